"""The planner: LPLB's interface, with an exact integral mapping behind it.

`Planner(redundant_to_original, n_routed_experts, n_logical_routed_experts, ep_size, group)` takes
what DeepSeek's LPLB takes and has its methods; `Planner.from_placement` takes any placement. CPU
and GPU tensors of torch and numpy arrays all work; results are of the kind of what came in.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np

from . import _library as c
from . import _arrays, _cpu, _cuda
from ._arrays import (Array, Ids, add_to_counter, address, as_integers, as_loads, as_numpy,
                      check_counter, like, output_ids)
from ._checks import INT64, Unique, integer
from ._ratio import Shares, shares_of
from .comm import Communicator, all_or_none, nanoseconds, nodes_of
from .placement import Placement
from .plan import Plan, Solver, parse_solver

_log = logging.getLogger("lplb")


@dataclass(frozen=True)
class Status:
    """How the last `run` went.

    outcome: "optimal" (proven), "within_tolerance", "feasible", "not_converged" (a split of a
    solver that proves nothing, still valid), "unbalanced": the counts could not be shared, ids
    went to their experts' homes (on a GPU: evenly to their experts' copies), and error says why;
    or "failed": this rank was given what it must refuse: `run` raised, or the GPU found it, and the
    ids that came out are not to be used.
    """

    outcome: str
    error: c.Error | None = None

    @property
    def ok(self) -> bool:
        """Whether the step went as planned: no error."""
        return self.error is None


class Planner(Unique):
    """Maps the router's logical expert ids to physical ones so that all ranks get equal loads.

    redundant_to_original: int [group_size][num_redundants]: redundant slot k of rank r copies the
        k-th expert of rank r2o[r][k % num_redundants] of its group; every column is a permutation
        without fixed points. Its kind of array (numpy, torch and device) is the kind of the maps.
    n_routed_experts: physical experts, redundant ones included (P).
    n_logical_routed_experts: logical experts (E).
    ep_size: ranks (G), a multiple of group_size; default: size of group.
    group: a torch.distributed group, or a `Communicator`, whose ranks share their counts. None:
        the ids given are the whole batch.

    Further options: rank, of this process where there is no group (for locality); nodes, number of
    nodes (default: the hosts of a torch group, else 1); solver, as in "exact", "even",
    "exact:tolerance=1.02" (keep the even split when its fullest rank is within 2 % of the mean);
    transport, how the ranks share counts: "auto", or for CPU ids "shm" or "torch", for GPU ids
    "p2p" (inside the step's kernel, over memory that the GPUs of a node map), "nccl",
    "hierarchical" (p2p inside nodes, nccl across), "nvshmem" (over NVSHMEM's memory), or "torch"
    (an all-gather of the group, on the stream); timeout in seconds for ranks that are gone or late;
    threads for CPU ids (0 = all; results do not depend on it); max_ids, most ids of a call for
    GPU ids (0 = grow as they come, which a graph capture cannot).

    One thread at a time may use a planner: its buffers are those of the call under way.
    """

    _instead = ("make another one with the same arguments, and save its `placement` (of a module, "
                "its state_dict)")

    def __init__(self, redundant_to_original: Array, n_routed_experts: int,
                 n_logical_routed_experts: int, ep_size: int | None = None, group: Any = None, *,
                 rank: int | None = None, nodes: int | None = None, solver: str = "exact",
                 transport: str = "auto", timeout: float = 10.0, threads: int = 1,
                 max_ids: int = 0) -> None:
        with all_or_none(group, "make its planner"):
            r2o = as_integers(redundant_to_original, "redundant_to_original")
            if r2o.ndim != 2 or 0 in r2o.shape:
                raise c.bad(f"redundant_to_original has shape {r2o.shape}, must be "
                            "[group_size][num_redundants]")
            _check_r2o(r2o)
            self._model = redundant_to_original
            self._r2o: np.ndarray | None = r2o
            self._options(n_routed_experts, n_logical_routed_experts, ep_size, group, rank, solver,
                          transport, timeout, threads, max_ids, nodes)
            if not isinstance(group, (type(None), Communicator)) and group.size() != self.ep_size:
                raise c.bad(f"the group has {group.size()} ranks, ep_size is {self.ep_size}")
            self.group_size, self.num_redundants = r2o.shape
            if self.ep_size % self.group_size:
                raise c.bad(f"ep_size {self.ep_size} is not a multiple of the {self.group_size} "
                            "ranks of redundant_to_original")
            self.n_group = self.ep_size // self.group_size
            self._check_counts_of_experts()
            self.combined_redundant_experts = (
                (self.n_local_routed_experts - self.n_local_logical_routed_experts)
                // self.num_redundants)
            self.r2o = like(r2o.astype(np.int32), self._model)
            self.o2r = like(np.argsort(r2o, axis=0, kind="stable").astype(np.int32), self._model)
            self.update_redundancy_mapping()
        self._join(group, nodes)

    @classmethod
    def from_placement(cls, physical_to_logical_map: Array,
                       n_logical_routed_experts: int | None = None, ep_size: int | None = None,
                       group: Any = None, *, slots_per_rank: Sequence[int] | None = None,
                       node: Sequence[int] | None = None, rank: int | None = None,
                       nodes: int | None = None,
                       solver: str = "exact", transport: str = "auto", timeout: float = 10.0,
                       threads: int = 1, max_ids: int = 0) -> Planner:
        """A planner for any placement of one layer, with any number of copies.

        physical_to_logical_map: int [P] (or [1][P]), -1 = empty slot; slots of a rank are
        contiguous, slots_per_rank [G] where they are unequal. node: node of every rank [G].
        nodes: number of nodes that the group's ranks are on (default: their hosts).
        """
        self = cls.__new__(cls)
        with all_or_none(group, "make its planner"):
            table = _one_layer(physical_to_logical_map)
            self._model = physical_to_logical_map
            self._r2o = None
            experts = int(table.max()) + 1 if n_logical_routed_experts is None else (
                n_logical_routed_experts)
            self._options(table.size, experts, ep_size, group, rank, solver, transport, timeout,
                          threads, max_ids, nodes)
            self.r2o = self.o2r = None
            self.group_size, self.num_redundants, self.n_group = self.ep_size, None, 1
            self.combined_redundant_experts = None
            self.n_local_logical_routed_experts = experts // self.ep_size
            self._node = None if node is None else as_integers(node, "node", np.int32).tolist()
            self.update_placement(physical_to_logical_map, slots_per_rank=slots_per_rank)
        self._join(group, nodes)
        return self

    # ---- set up ----

    def _options(self, n_routed: int, n_logical: int, ep_size: int | None, group: Any,
                 rank: int | None, solver: str, transport: str, timeout: float, threads: int,
                 max_ids: int, nodes: int | None) -> None:
        if group is not None and not (hasattr(group, "size") and hasattr(group, "rank")):
            raise c.bad(f"group is {group!r}, neither a torch.distributed group that this process "
                        "is a member of nor a Communicator")
        if ep_size is None:
            if group is None:
                raise c.bad("ep_size must be given when group is None")
            ep_size = group.size()
        ep_size = integer(ep_size, "ep_size", 1)
        n_routed = integer(n_routed, "n_routed_experts", 1)
        n_logical = integer(n_logical, "n_logical_routed_experts", 1)
        if rank is not None:
            rank = integer(rank, "rank", 0, ep_size - 1)
        if rank is not None and group is not None:
            raise c.bad("give rank or group, not both: a group knows its ranks")
        if nodes is not None:
            integer(nodes, "nodes", 1)
        self.ep_size = ep_size
        self.n_routed_experts = n_routed
        self.n_logical_routed_experts = n_logical
        self.solver = solver
        self._locality = parse_solver(solver)[1]
        if transport not in _TRANSPORTS:
            raise c.bad(f"transport '{transport}' is not known; one of {', '.join(_TRANSPORTS)}")
        nanoseconds(timeout)  # says what is wrong with it
        self._rank, self._transport, self._timeout = rank, transport, timeout
        self._threads = integer(threads, "threads")
        self._max_ids = integer(max_ids, "max_ids", 0, INT64[1])
        self.deep_ep_initialized = False
        self.keep_split = False
        self._comm: Communicator | None = None
        self._step: _cpu.Step | None = None
        self._device_steps: dict[tuple, _cuda.Step] = {}
        self._device_comms: dict[int, _cuda.DeviceComm] = {}
        self._last: Status | _cuda.Step | None = None
        self._warned_of_end = False  # of the communicator
        self._device_step_before: _cuda.Step | None = None
        self._node: list[int] | None = None

    def _check_counts_of_experts(self) -> None:
        for what, n in (("n_routed_experts", self.n_routed_experts),
                        ("n_logical_routed_experts", self.n_logical_routed_experts)):
            if n % self.ep_size:
                raise c.bad(f"{what} {n} is not a multiple of the {self.ep_size} ranks")
        self.n_local_routed_experts = self.n_routed_experts // self.ep_size
        self.n_local_logical_routed_experts = self.n_logical_routed_experts // self.ep_size
        spare = self.n_local_routed_experts - self.n_local_logical_routed_experts
        if spare < self.num_redundants or spare % self.num_redundants:
            raise c.bad(f"{spare} redundant experts a rank; must be a multiple of the "
                        f"{self.num_redundants} columns of redundant_to_original")
        if spare > self.n_local_logical_routed_experts:
            raise c.bad(f"{spare} redundant experts a rank, but only "
                        f"{self.n_local_logical_routed_experts} experts to copy")

    def _join(self, group: Any, nodes: int | None) -> None:
        """Makes the communicator; ranks that were given other options are told so here."""
        self.ep_group = group
        self._nodes = nodes
        if group is None:
            self._nodes = nodes or 1
            return
        if isinstance(group, Communicator):
            self._comm = group
            self._nodes = nodes or 1
        else:
            on_cpu = self._transport if self._transport in ("shm", "torch") else "auto"
            self._comm = Communicator.from_group(group, self.n_logical_routed_experts, on_cpu,
                                                 self._timeout)
            hosts = nodes_of(group)
            self._nodes = nodes or max(hosts) + 1
            if self._node is None and group.size() == self.ep_size:
                self._node = hosts
        if self._comm.rank() == 0:
            _log.info("lplb: counts of %d ranks are shared over %s", self._comm.size(),
                      self._comm.transport)
        self._comm.agree({
            "the library's version": c.lib().lplb_version().decode(),
            "n_routed_experts": self.n_routed_experts,
            "n_logical_routed_experts": self.n_logical_routed_experts,
            "ep_size": self.ep_size,
            "redundant_to_original": None if self._r2o is None else self._r2o.tolist(),
            "nodes": self._nodes,
            "node": self._node,
            "solver": self.solver,
            "transport": self._transport,
        })

    def init_from_deep_ep(self, buffer: Any) -> None:
        """Shares counts among the ranks of a DeepEP buffer (any version: only `buffer.group`).

        A buffer that was made without a torch group (over mpi4py, or a raw NCCL communicator) will
        do where the planner has a group of the same ranks. Another buffer later takes the place of
        the first: with its group all ranks connect anew, and captured graphs must be made again.
        """
        group = _group_of_buffer(buffer, self.ep_group)
        if group.size() != self.ep_size:
            raise c.bad(f"the buffer's group has {group.size()} ranks, the planner {self.ep_size}")
        if self.ep_group is not group:
            self._leave()
            self._join(group, self._nodes if self._nodes != 1 else None)
        self.deep_ep_initialized = True

    def reconnect(self) -> None:
        """Makes a new communicator after a timeout; all ranks of the group must call it."""
        if self.ep_group is None or isinstance(self.ep_group, Communicator):
            raise c.bad("reconnect needs a torch.distributed group; make a new planner with a new "
                        "Communicator instead", c.STATE)
        _cuda.forget_groups()
        self._leave()
        self._join(self.ep_group, self._nodes)

    def _leave(self) -> None:
        if self._comm is not None and self._comm is not self.ep_group:
            self._comm.close()
        self._last = self._device_step_before = None  # what they refer to goes first
        self._warned_of_end = False
        self._step, self._device_steps, self._device_comms = None, {}, {}

    @property
    def transport(self) -> str | None:
        """How counts are shared: "shm", "torch", "local", a custom name; once GPU ids have come,
        how theirs are: "p2p", "nccl", "hierarchical" or "torch". None without group."""
        for comm in self._device_comms.values():
            return comm.transport
        return None if self._comm is None else self._comm.transport

    # ---- placement ----

    def update_redundancy_mapping(self, workload: Array | None = None
                                  ) -> tuple[Array, Array, Array]:
        """Places the experts anew: packed by EPLB without redundancy, heaviest first on each rank,
        copied along redundant_to_original.

        workload: load history [E], any number type; None: experts stay in order. Every rank must
        give the same. Returns int32 phy2log [P], log2phy [E][2] (original first, -1 padded) and
        logcnt [E].
        """
        if self._r2o is None:
            raise c.bad("a planner made by from_placement has no redundant_to_original; use "
                        "update_placement", c.STATE)
        ranks, own = self.ep_size, self.n_local_logical_routed_experts
        if workload is None:
            packed = np.arange(self.n_logical_routed_experts).reshape(ranks, own)
        else:
            packed = self._pack(as_loads(workload, "workload"))
        self._set_placement(self._with_copies(packed).astype(np.int32), None)
        log2phy = self._copies_in_order()
        model = self._model if workload is None else workload
        logcnt = (log2phy >= 0).sum(1, dtype=np.int32)
        self.phy2log = like(self._placement.physical_to_logical_map[0], model)
        return self.phy2log, like(log2phy, model), like(logcnt, model)

    def _with_copies(self, packed: np.ndarray) -> np.ndarray:
        """[P] for the experts of every rank [G][E/G]: these, and their copies along r2o."""
        heads = packed[:, :self.combined_redundant_experts * self.num_redundants].reshape(
            self.n_group, self.group_size, self.combined_redundant_experts, self.num_redundants)
        copies = np.empty_like(heads)
        for d in range(self.num_redundants):
            copies[..., d] = heads[..., d][:, self._r2o[:, d]]
        return np.concatenate([packed, copies.reshape(self.ep_size, -1)], axis=1).reshape(-1)

    def _follows_r2o(self) -> bool:
        table = self._placement.physical_to_logical_map[0]
        own, spare = self.n_local_logical_routed_experts, (
            self.combined_redundant_experts * self.num_redundants)
        if table.size != self.ep_size * (own + spare):
            return False
        packed = table.reshape(self.ep_size, -1)[:, :own]
        return (np.array_equal(np.sort(packed, None), np.arange(self.n_logical_routed_experts))
                and np.array_equal(self._with_copies(packed), table))

    def _pack(self, load: np.ndarray) -> np.ndarray:
        """[G][E/G] experts of every rank, heaviest first."""
        n = self.n_logical_routed_experts
        if load.size != n:
            raise c.bad(f"workload has {load.size} entries, must have {n}")
        load = load.reshape(n)
        weight = np.ascontiguousarray(load, dtype=np.float32)
        table = np.empty(n, np.int32)
        c.check(c.lib().lplb_eplb_rebalance_experts(
            address(weight), 1, n, n, self.n_group, self._nodes, self.ep_size, address(table),
            None, None))
        by_rank = table.reshape(self.ep_size, -1)
        keys = load if load.dtype.kind == "f" else load.astype(np.int64)
        order = np.argsort(-keys[by_rank], axis=1, kind="stable")
        return np.take_along_axis(by_rank, order, axis=1)

    def _copies_in_order(self) -> np.ndarray:
        """log2phy [E][2]: slots by position on their rank, then rank, so that originals precede."""
        table = self._placement.physical_to_logical_map[0]
        local = self.n_local_routed_experts
        out = np.full((self.n_logical_routed_experts, 2), -1, np.int32)
        seen = np.zeros(self.n_logical_routed_experts, np.int64)
        for slot in np.arange(table.size).reshape(-1, local).T.reshape(-1):
            expert = table[slot]
            out[expert, seen[expert]] = slot
            seen[expert] += 1
        self._home = out[:, 0].copy()
        return out

    def update_placement(self, physical_to_logical_map: Array, *,
                         slots_per_rank: Sequence[int] | None = None) -> None:
        """Another placement of the same experts and ranks, as `from_placement` takes it."""
        self._set_placement(_one_layer(physical_to_logical_map), slots_per_rank)
        self._home = self._placement.logical_to_physical_map[0, :, 0].copy()
        self.phy2log = like(self._placement.physical_to_logical_map[0], physical_to_logical_map)

    def _set_placement(self, table: np.ndarray, slots_per_rank: Sequence[int] | None) -> None:
        self._placement = Placement(table, self.ep_size, slots_per_rank=slots_per_rank,
                                    n_logical_experts=self.n_logical_routed_experts)
        digest = hashlib.blake2b(digest_size=8)
        digest.update(self._placement.physical_to_logical_map.tobytes())
        digest.update(self._placement.rank_offset.tobytes())
        self._digest = int.from_bytes(digest.digest(), "little")
        self.n_routed_experts = table.size
        self.n_local_routed_experts = table.size // self.ep_size
        self._step = self._last = self._device_step_before = None
        self._ratio: Shares | None = None
        kept = {}
        for key, step in self._device_steps.items():
            if step.placement.slots == table.size and key[0] is None:
                step.update(self._placement)  # graphs that hold this step follow
                kept[key] = step
        self._device_steps = kept

    @property
    def placement(self) -> Placement:
        """The present placement, one layer."""
        return self._placement

    # ---- one batch ----

    def _cpu_step(self) -> _cpu.Step:
        if self._step is None:
            comm = self._comm if self._comm is not None and self._comm.size() > 1 else None
            ranks = None if self._rank is None else [self._rank]
            if self._comm is not None and self._comm.size() == self.ep_size:
                ranks = list(range(self.ep_size))
            self._step = _cpu.Step(self._placement, self.solver, comm,
                                   comm.rank() if comm else 0, ranks, self._node, self._threads,
                                   self._home)
        return self._step

    def _device_step(self, device: int, locality: bool = False, n_sms: int | None = None,
                     n: int = 0, placement: Placement | None = None) -> _cuda.Step:
        """The step for tensors of a GPU; placement: of the ratio mode's own problem."""
        key = (None if placement is None else id(placement), device, locality, n_sms)
        step = self._device_steps.get(key)
        if step is None:
            comm = self._device_sharing(device) if placement is None else None
            ranks = None if self._rank is None else [self._rank]
            if comm is not None and comm.ranks == self.ep_size:
                ranks = list(range(self.ep_size))
            if comm is None and ranks is None:
                if locality:
                    raise c.bad("locality needs to know where the ids come from: give a group of "
                                "all ranks, or rank=", c.STATE)
                ranks = [0]
            step = _cuda.Step(self._placement if placement is None else placement, self.solver,
                              device, comm, 0 if comm is None else comm.rank, ranks, self._node,
                              locality, n_sms or 0,
                              max(n, self._max_ids, 1 << 16), self.keep_split)
            self._device_steps[key] = step
        return step

    def _check_cpu_transport(self) -> None:
        if self._transport == "auto":
            return
        self._check_group()
        if self._transport not in ("shm", "torch") and self._comm.size() > 1:
            raise c.bad(f"the transport {self._transport} carries counts of GPU ids; for CPU ids "
                        "give auto, shm or torch", c.UNSUPPORTED)

    def _check_group(self) -> None:
        if self._comm is None and self._transport != "auto":
            raise c.bad(f"the transport {self._transport} was asked for, but the planner has no "
                        "group: give group=, or call init_from_deep_ep first", c.STATE)

    def _device_sharing(self, device: int) -> _cuda.DeviceComm | None:
        """What shares GPU ids' counts; a collective call."""
        self._check_group()
        if self._comm is None or self._comm.size() == 1:
            return None
        if self._transport == "shm":
            raise c.bad("the transport shm carries counts of CPU ids; for GPU ids give auto, p2p, "
                        "nccl, hierarchical, nvshmem or torch", c.UNSUPPORTED)
        if self._transport == "torch":
            if isinstance(self.ep_group, Communicator):
                raise c.bad("the transport torch needs a torch.distributed group, not a "
                            "Communicator", c.UNSUPPORTED)
            _cuda.check_group(self.ep_group)
        if device not in self._device_comms:
            ranks, nodes = self._comm.size(), self._nodes or 1
            each = ranks // nodes if nodes > 1 and ranks % nodes == 0 else 0
            made = _cuda.DeviceComm(self._comm, device, self.n_logical_routed_experts,
                                    self._transport, each, self._timeout,
                                    None if isinstance(self.ep_group, Communicator)
                                    else self.ep_group)
            self._device_comms[device] = made
            if self._comm.rank() == 0:
                _log.info("lplb: counts of %d ranks' GPUs are shared over %s", ranks,
                          made.transport)
        return self._device_comms[device]

    def run(self, idx: Array, avail_counter: Array | None = None, n_sms: int | None = None, *,
            locality: bool | None = None, out: Array | None = None) -> Array:
        """Physical expert ids for logical ones; the loads of all ranks are as equal as can be.

        idx: int32 or int64, any shape, in [-1, E); -1 stays -1. avail_counter: int32 or int64 of
        one element; the number of groups is added when the plan is a solved one. n_sms: most
        multiprocessors to use on a GPU; no meaning on a CPU. locality: keep tokens on their source
        rank, then node, as far as the optimum allows. out: array to write to, of idx's shape, int32
        or int64, may be idx itself where the types agree; default: a new array like idx.

        Every rank of the group must call it, also with zero tokens. When counts cannot be shared
        (a rank is gone or late) the ids go to the experts' homes and `last_status` says so. A rank
        whose ids are refused has taken part in the step: its error is raised there, the others'
        ids stay unbalanced (on a GPU: are balanced without that rank's), and the next call of all
        ranks is the next step. So do not call again for the same batch on that rank alone.
        """
        if locality is None:
            locality = self._locality
        step = self._device_step_before
        if (step is None or type(idx) is not step.tensor or idx.get_device() != step.device
                or n_sms != step.n_sms or locality != step.locality):  # not just as the last one
            prepared = self._prepare_on_cpu(idx, avail_counter, n_sms, locality, out)
            if prepared is not None:
                self._device_step_before = None
                self._run_on_cpu(*prepared, avail_counter, locality)
                return prepared[2].array if out is None else out
            step = None
        try:
            if step is None:
                step = self._device_step_before = self._step_for(idx, n_sms, locality)
            self._last = step
            return step.run(idx, out, avail_counter, self.n_group)
        except Exception as error:
            self._last = _failed(error)
            raise

    def _step_for(self, idx: Array, n_sms: int | None, locality: bool) -> _cuda.Step:
        device = _arrays.device_index(idx)
        try:
            if n_sms is not None:
                n_sms = integer(n_sms, "n_sms", 1)
            step = self._device_steps.get((None, device, locality, n_sms))
            return step or self._device_step(device, locality, n_sms, idx.numel())
        except Exception:
            if self._device_step_before is not None:  # the others are not to wait for us
                self._device_step_before.take_part()
            raise

    def _tag(self, call: int) -> int:
        """What ranks must have alike where they share counts: the placement and the call."""
        return self._digest & ~_CALLS | call

    def _refuse(self, call: int) -> None:
        """By a rank that refuses what it was given before counts are shared: it takes part in the
        exchange all the same, as one that refused. So the others are told, and counts of different
        batches never meet."""
        if self._comm is not None and self._comm.size() > 1:
            self._comm.gather_into(self._tag(call), None, self.n_logical_routed_experts, None)

    def _prepare_on_cpu(self, idx: Array, avail_counter: Array | None, n_sms: int | None,
                        locality: bool, out: Array | None) -> tuple[_cpu.Step, Ids, Ids] | None:
        """Everything up to the sharing of counts; None: the ids are on a GPU."""
        try:
            if _arrays.on_gpu(idx):
                return None
            if avail_counter is not None:
                check_counter(avail_counter)
            if n_sms is not None:
                integer(n_sms, "n_sms", 1)
            ids = Ids(idx)
            self._check_cpu_transport()
            target = Ids(ids.empty_like(), "out") if out is None else output_ids(out, ids)
            step = self._cpu_step()
            step.count(ids)
            return step, ids, target
        except Exception as error:
            if self._device_step_before is not None:  # the others are where this rank was before
                self._device_step_before.take_part()
            else:
                self._refuse(_RUN_LOCALLY if locality else _RUN)
            self._last = _failed(error)
            raise

    def _run_on_cpu(self, step: _cpu.Step, ids: Ids, target: Ids, avail_counter: Array | None,
                    locality: bool) -> None:
        status = step.share(self._tag(_RUN_LOCALLY if locality else _RUN))
        if status == c.OK:
            step.solve(locality)
            step.map(ids, target, locality)
            self._last = solved = _SOLVED[step.solver.result.outcome]
            if avail_counter is not None and solved.outcome != "not_converged":
                add_to_counter(avail_counter, self.n_group)
            return
        error = c.last_error(status)
        if status not in _cpu.COMM_FAILURES:
            raise error
        before = self._last.error if isinstance(self._last, Status) else None
        known = before is not None and before.status == status
        if self._comm is not None and not self._comm.alive:
            known, self._warned_of_end = self._warned_of_end, True
            error = c.error_of(status, error.message + (
                "; make a new Communicator and planner on all ranks"
                if isinstance(self.ep_group, Communicator)
                else "; planner.reconnect() on all ranks connects them anew"))
        if not known:
            warnings.warn(f"lplb: ids stay unbalanced: {error}", RuntimeWarning, stacklevel=3)
        step.map_unbalanced(ids, target)
        self._last = Status("unbalanced", error)

    @property
    def last_status(self) -> Status | None:
        """How the last `run` went, None before the first. For GPU ids this waits for the GPU."""
        return self._status()

    def _status(self, look: bool = False) -> Status | None:
        """look: a GPU's error is to be told again."""
        if not isinstance(self._last, _cuda.Step):
            return self._last
        report, error = self._last.report(look)
        if error is None:
            return _SOLVED[report.outcome]
        return Status("unbalanced" if error.status in _cpu.COMM_FAILURES else "failed", error)

    @property
    def last_plan(self) -> Plan:
        """The split of the last `run`: tokens, loads, split, bottleneck, `explain()`."""
        status = self._status(look=True)
        if status is None:
            raise c.bad("there is no plan: call run first", c.STATE)
        if status.error is not None:
            raise c.bad(f"the last run has no plan, its ids are {status.outcome}: {status.error}"
                        if status.outcome == "unbalanced" else
                        f"the last run has no plan, it failed: {status.error}", c.STATE)
        if isinstance(self._last, _cuda.Step):
            return self.plan(self._last.counts)  # the same integers as on the GPU
        return self._cpu_step().solver.snapshot()

    def last_split(self) -> Array:
        """Tokens of every (expert, host) in the last `run`, int64, in the order of `Plan.split`.

        For GPU ids a tensor [P] on the GPU, zero behind the last host, that the next `run`
        overwrites, and nothing waits; set `planner.keep_split = True` before the first run. For
        CPU ids a copy.
        """
        if not isinstance(self._last, _cuda.Step):
            return self.last_plan.split
        if self._last.split is None:
            raise c.bad("set planner.keep_split = True before the first run", c.STATE)
        return self._last.split

    def plan(self, workload: Array) -> Plan:
        """The plan for given counts [E] of all ranks together, without mapping ids."""
        hosts = self._cpu_step().hosts
        solver = Solver(hosts, self.solver,
                        node=None if self._node is None else np.asarray(self._node))
        counts = as_integers(workload, "workload")
        if counts.size != hosts.experts:
            raise c.bad(f"workload has {counts.size} entries, must have {hosts.experts}")
        solver.tokens[:] = counts.reshape(-1)
        solver.solve()
        return solver.snapshot()

    def explain(self, workload: Array | None = None) -> str:
        """What limits the last batch, or one with these counts [E], and which copy would help."""
        return (self.last_plan if workload is None else self.plan(workload)).explain()

    # ---- LPLB's three steps, in ratio mode ----

    def count_workload(self, idx: Array, n_sms: int) -> tuple[Array, Array]:
        """Counts of the ids int32 [E], and their running sums over n_sms parts int32 [n_sms][E]."""
        n_sms = integer(n_sms, "n_sms", 1)
        n = self.n_logical_routed_experts
        if _arrays.on_gpu(idx):
            return _count_on_device(idx, n, n_sms)
        ids = Ids(idx)
        total = np.empty(n, np.int64)
        c.check(c.lib().lplb_count_experts(ids.pointer, ids.dtype, ids.count, n, 1,
                                               address(total)))
        flat = as_numpy(ids.array).reshape(-1).astype(np.int64)
        part = np.arange(flat.size) // max(1, -(-flat.size // n_sms))
        chosen = flat >= 0
        cells = np.bincount(part[chosen] * n + flat[chosen], minlength=n_sms * n)
        by_part = np.cumsum(cells.reshape(n_sms, n), axis=0, dtype=np.int32)
        return like(by_part[-1].copy(), idx), like(by_part, idx)

    def solve_probs(self, workload: Array, avail_counter: Array | None = None
                    ) -> tuple[Array, Array]:
        """Shares for the ratio mode.

        workload: counts [E] of this rank (of all ranks where there is no group). Returns
        float32 [n_group][group_size][num_redundants], the share of tokens that the original
        experts keep (experts combined in one column share it), and the counts of all ranks,
        float32 [n_group][group_size][E/G]. With `from_placement`: float32 [E][X], the share of
        every copy in the order of logical_to_physical_map, and counts [E].
        """
        if _arrays.on_gpu(workload):
            return self._solve_on_device(workload, avail_counter)
        try:
            check_counter(avail_counter)
            counts = as_integers(workload, "workload").reshape(-1)
            if counts.size != self.n_logical_routed_experts:
                raise c.bad(f"workload has {counts.size} entries, must have "
                            f"{self.n_logical_routed_experts}")
            self._check_cpu_transport()
            shares = self._shares()
        except Exception:
            self._refuse(_SOLVE_PROBS)
            raise
        if self._comm is not None:
            counts = self._comm.gather_counts(counts, self._tag(_SOLVE_PROBS)).sum(0)
        share, outcome = shares.solve(counts)
        if avail_counter is not None and outcome != "not_converged":
            add_to_counter(avail_counter, self.n_group)
        shape = (-1,) if self._r2o is None else (self.n_group, self.group_size, -1)
        return like(share, workload), like(counts.astype(np.float32).reshape(shape), workload)

    def weighted_select_target(self, idx: Array, o_weight: Array, local_workload_by_sm: Array,
                               n_sms: int) -> Array:
        """Maps ids by shares: every copy gets floor or ceiling of share x count of this rank's ids.

        idx as in `run`; o_weight from `solve_probs`; local_workload_by_sm int [n_sms][E] from
        `count_workload` of the same ids (a GPU counts anew instead). Returns physical ids like idx.
        """
        if _arrays.on_gpu(idx):
            ids = Ids(idx)
            target = Ids(ids.empty_like(), "out")
            share = self._shares().of_hosts_on_device(o_weight)
            step = self._device_step(_arrays.device_index(idx), n=ids.count)
            step.map_by_share(ids, target, share)
            return target.array
        n_sms = integer(n_sms, "n_sms", 1)
        sums = as_integers(local_workload_by_sm, "local_workload_by_sm")
        if sums.shape != (n_sms, self.n_logical_routed_experts):
            raise c.bad(f"local_workload_by_sm has shape {sums.shape}, must be "
                        f"[{n_sms}][{self.n_logical_routed_experts}]")
        share = self._shares().of_hosts(as_numpy(o_weight, np.float32))
        ids = Ids(idx)
        target = Ids(ids.empty_like(), "out")
        counts = np.ascontiguousarray(sums[-1])
        self._cpu_step().map_by_share(ids, target, share, counts)
        return target.array

    def _shares(self) -> Shares:
        if self._ratio is None:
            if self._r2o is not None and not self._follows_r2o():
                raise c.bad("the placement that update_placement set does not follow "
                            "redundant_to_original, by which shares are numbered: use run, or a "
                            "planner made by from_placement", c.STATE)
            self._ratio = shares_of(self)
        return self._ratio

    def _solve_on_device(self, workload: Array, avail_counter: Array | None
                         ) -> tuple[Array, Array]:
        import torch

        step = self._device_step(_arrays.device_index(workload))
        try:
            check_counter(avail_counter)
            counts = workload.reshape(-1).to(torch.int64)
            if counts.numel() != self.n_logical_routed_experts:
                raise c.bad(f"workload has {counts.numel()} entries, must have "
                            f"{self.n_logical_routed_experts}")
        except Exception:
            step.take_part()
            raise
        if step.comm is not None:
            counts = step.share(counts)
            self._last = step
        share = self._shares().solve_on_device(counts, avail_counter)
        total = counts.to(torch.float32)
        if self._r2o is not None:
            total = total.reshape(self.n_group, self.group_size, -1)
        return share, total


# Calls that share counts, which must not meet each other: the last bits of the tag.
_RUN, _RUN_LOCALLY, _SOLVE_PROBS, _CALLS = 0, 1, 2, 3

_TRANSPORTS = ("auto", "shm", "torch", "p2p", "nccl", "hierarchical", "nvshmem")
_SOLVED = tuple(Status(name) for name in ("optimal", "within_tolerance", "feasible",
                                          "not_converged"))


def _failed(error: Exception) -> Status:
    return Status("failed", error if isinstance(error, c.Error) else c.bad(repr(error)))


def _count_on_device(idx: Array, n: int, n_sms: int) -> tuple[Array, Array]:
    """`count_workload` in torch's operators, without waiting for the GPU: an id that is no
    expert's counts nowhere, and the step that maps it reports it."""
    import torch

    flat = idx.reshape(-1)
    each = max(1, -(-flat.numel() // n_sms))
    part = torch.arange(flat.numel(), device=idx.device) // each
    cells = torch.zeros(n_sms * n + 1, dtype=torch.int32, device=idx.device)
    counts = (flat >= 0) & (flat < n)
    cell = torch.where(counts, part * n + flat, n_sms * n)  # the last one takes the others
    cells.scatter_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
    by_part = cells[:-1].reshape(n_sms, n).cumsum(0, dtype=torch.int32)
    return by_part[-1], by_part


def _group_of_buffer(buffer: Any, present: Any) -> Any:
    """The group whose ranks share counts for a DeepEP buffer; present: the planner's, or None."""
    missing = [name for name in ("dispatch", "combine") if not hasattr(buffer, name)]
    if missing or not hasattr(buffer, "group"):
        raise c.bad(f"init_from_deep_ep takes a DeepEP buffer, which has group, dispatch and "
                    f"combine; a {type(buffer).__name__} was given")
    group = buffer.group
    if group is None or hasattr(group, "Get_size"):  # mpi4py's, where DeepEP was given comm=
        if present is None:
            raise c.bad("this buffer was made without a torch.distributed group: give the planner "
                        "one of the same ranks as group=, or a Communicator")
        if group is not None:
            _check_same_ranks(group, present)
        return present
    if not (hasattr(group, "size") and hasattr(group, "rank")):
        raise c.bad(f"the buffer's group is a {type(group).__name__}, not a "
                    "torch.distributed group")
    return group


def _check_same_ranks(mpi: Any, present: Any) -> None:
    """The ids that `run` returns number ranks as the planner's group does; so must the buffer."""
    if mpi.Get_size() != present.size():
        raise c.bad(f"the buffer's communicator has {mpi.Get_size()} ranks, the planner "
                    f"{present.size()}")
    if mpi.Get_rank() != present.rank():
        raise c.bad(f"this process is rank {mpi.Get_rank()} of the buffer's communicator and rank "
                    f"{present.rank()} of the planner's group; both must number the ranks alike")


def _one_layer(physical_to_logical_map: Array) -> np.ndarray:
    """[P] of a map [P] or [1][P]."""
    table = as_integers(physical_to_logical_map, "physical_to_logical_map")
    if table.ndim == 2 and table.shape[0] == 1:
        table = table[0]
    if table.ndim != 1 or table.size == 0:
        raise c.bad(f"physical_to_logical_map has shape {table.shape}; a planner takes the "
                    "[slots] of one layer")
    return table


def _check_r2o(r2o: np.ndarray) -> None:
    import ctypes

    table = as_integers(r2o, "redundant_to_original", np.int32)
    graph = ctypes.POINTER(c.Topology)()
    c.check(c.lib().lplb_topology_from_r2o(address(table), *table.shape, ctypes.byref(graph)))
    c.lib().lplb_topology_destroy(graph)
