"""Placements: which expert copy lives in which slot of which rank, for every layer."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

from . import _library as c
from ._arrays import Array, address, as_integers, as_loads
from ._checks import INT64, expect, filled, integer

# lplb_placement_format in include/lplb/trace.h.
FORMATS = {"sglang": 0, "vllm": 1, "trtllm": 2, "vllm-ascend": 3, "omni": 4}
_ALGORITHMS = {"eplb": 0, "topology": 1, "search": 2}
_SOLVERS = {"exact": 0, "ipm": 1, "even": 2, "greedy": 3, "waterfill": 4, "balance": 5}


class Move(NamedTuple):
    """An expert that a rank did not hold before. source_rank: a rank that held it, -1 if none."""

    layer: int
    slot: int
    expert: int
    rank: int
    source_rank: int


class Placement:
    """A placement of L layers: E logical experts in P physical slots of G ranks.

    physical_to_logical_map: int [L][P] (or [P] for one layer), -1 = empty slot. Slots of a rank are
    contiguous; `slots_per_rank` [G] where they are unequal, else P must be a multiple of ranks.
    """

    def __init__(self, physical_to_logical_map: Array, ranks: int, *,
                 n_logical_experts: int | None = None,
                 slots_per_rank: Sequence[int] | np.ndarray | None = None) -> None:
        table = as_integers(physical_to_logical_map, "physical_to_logical_map")
        if table.ndim == 1:
            table = table[None]
        if table.ndim != 2 or table.size == 0:
            raise c.bad(f"physical_to_logical_map has shape {table.shape}, must be [layers][slots]")
        largest = int(table.max())
        if table.min() < -1 or largest >= 2**31 - 1:
            raise c.bad(f"physical_to_logical_map: expert {int(table.min())}..{largest} is out of "
                        "range", c.RANGE)
        self.physical_to_logical_map = table.astype(np.int32)
        self.n_logical_experts = largest + 1 if n_logical_experts is None else (
            integer(n_logical_experts, "n_logical_experts"))
        self.ranks = integer(ranks, "ranks")
        self._handle = _create(self.physical_to_logical_map, self.n_logical_experts, self.ranks,
                               slots_per_rank)
        self.rank_offset = _int32_at(self._handle.contents.rank_offset, self.ranks + 1)
        # The library has a copy: what is written here would be shown, but not used.
        self.physical_to_logical_map.flags.writeable = False

    def __reduce__(self) -> Any:
        """Copies and pickles as its arrays."""
        return _again, (self.physical_to_logical_map, self.ranks, self.n_logical_experts,
                        self.slots_per_rank)

    def __copy__(self) -> Placement:
        again, arguments = self.__reduce__()
        return again(*arguments)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle and c._library is not None:
            c._library.lplb_placement_destroy(handle)

    def __repr__(self) -> str:
        return (f"Placement(layers={self.layers}, n_logical_experts={self.n_logical_experts}, "
                f"slots={self.slots}, ranks={self.ranks})")

    @property
    def layers(self) -> int:
        """L"""
        return self.physical_to_logical_map.shape[0]

    @property
    def slots(self) -> int:
        """P, of all ranks together."""
        return self.physical_to_logical_map.shape[1]

    @property
    def slots_per_rank(self) -> np.ndarray:
        """int32 [G]"""
        return np.diff(self.rank_offset)

    @property
    def replica_count(self) -> np.ndarray:
        """Copies of each expert: int32 [L][E]."""
        out = np.empty((self.layers, self.n_logical_experts), np.int32)
        c.lib().lplb_placement_replica_count(self._handle, address(out))
        return out

    @property
    def logical_to_physical_map(self) -> np.ndarray:
        """Slots of each expert, ascending, padded with -1: int32 [L][E][X]."""
        most = max(1, int(self.replica_count.max()))
        out = np.empty((self.layers, self.n_logical_experts, most), np.int32)
        c.check(c.lib().lplb_placement_logical_to_physical(self._handle, most, address(out)))
        return out

    def imbalance(self, load: Array, solver: str = "exact", threads: int = 0) -> np.ndarray:
        """Max over mean of the ranks' loads under a solver's split; 0 where there is no load.

        load: counts [samples][L][E] or [L][E]. Returns float64 [samples][L] or [L].
        """
        counts, shape = _load(load, self.layers, self.n_logical_experts)
        if solver not in _SOLVERS:
            raise c.bad(f"solver '{solver}' is not one of {', '.join(_SOLVERS)}")
        out = np.empty(counts.shape[:2])
        c.check(c.lib().lplb_placement_imbalance(
            self._handle, address(counts), counts.shape[0], _SOLVERS[solver],
            integer(threads, "threads"), address(out)))
        return out if len(shape) == 3 else out[0]

    def moves(self, before: Placement) -> list[Move]:
        """What has to be copied to come from `before` to this placement."""
        expect(before, Placement, "before")
        n = ctypes.c_int64()
        c.check(c.lib().lplb_placement_moves(before._handle, self._handle, None, 0,
                                                 ctypes.byref(n)))
        out = (c.Move * n.value)()
        c.check(c.lib().lplb_placement_moves(before._handle, self._handle, out, n.value,
                                                 ctypes.byref(n)))
        return [Move(m.layer, m.slot, m.expert, m.rank, m.source_rank) for m in out]

    def write(self, path: str | os.PathLike[str], format: str = "sglang") -> None:
        """Writes an engine's file: sglang, vllm, trtllm, vllm-ascend or omni."""
        if format not in FORMATS:
            raise c.bad(f"format '{format}' is not one of {', '.join(FORMATS)}")
        c.check(c.lib().lplb_placement_write(self._handle, FORMATS[format], os.fsencode(path)))

    @classmethod
    def read(cls, path: str | os.PathLike[str], ranks: int = 0) -> Placement:
        """Reads an engine's file, recognised by content; ranks 0 = the file says."""
        handle = ctypes.POINTER(c.PlacementStruct)()
        c.check(c.lib().lplb_placement_read(os.fsencode(path), integer(ranks, "ranks"),
                                            ctypes.byref(handle)))
        return cls._adopt(handle)

    @classmethod
    def _adopt(cls, handle: Any) -> Placement:
        try:
            struct = handle.contents
            table = _int32_at(struct.physical_to_logical, struct.layers * struct.slots)
            offset = _int32_at(struct.rank_offset, struct.ranks + 1)
            return cls(table.reshape(struct.layers, struct.slots), struct.ranks,
                       n_logical_experts=struct.experts, slots_per_rank=np.diff(offset))
        finally:
            c.lib().lplb_placement_destroy(handle)


def _again(table: np.ndarray, ranks: int, experts: int, per_rank: np.ndarray) -> Placement:
    return Placement(table, ranks, n_logical_experts=experts, slots_per_rank=per_rank)


def dead_flags(ranks: Sequence[int], count: int) -> np.ndarray:
    """uint8 [count], 1 = dead."""
    dead = np.zeros(count, np.uint8)
    if isinstance(ranks, (int, np.integer)):
        raise c.bad(f"dead ranks are a list, such as [{ranks}]")
    for r in ranks:
        if not 0 <= integer(r, "dead rank") < count:
            raise c.bad(f"dead rank {r} is outside [0, {count})", c.RANGE)
        dead[r] = 1
    return dead


def _int32_at(pointer: int, count: int) -> np.ndarray:
    return np.frombuffer(ctypes.string_at(pointer, count * 4), np.int32)


def _create(table: np.ndarray, experts: int, ranks: int,
            slots_per_rank: Sequence[int] | np.ndarray | None) -> Any:
    layers, slots = table.shape
    per_rank = None
    if slots_per_rank is not None:
        per_rank = as_integers(slots_per_rank, "slots_per_rank", np.int32)
        if per_rank.shape != (ranks,):
            raise c.bad(f"slots_per_rank has shape {per_rank.shape}, must be [{ranks}]")
    handle = ctypes.POINTER(c.PlacementStruct)()
    c.check(c.lib().lplb_placement_create(layers, experts, slots, ranks,
                                              None if per_rank is None else address(per_rank),
                                              ctypes.byref(handle)))
    ctypes.memmove(handle.contents.physical_to_logical, address(table), table.nbytes)
    status = c.lib().lplb_placement_validate(handle)
    if status != c.OK:
        error = c.last_error(status)
        c.lib().lplb_placement_destroy(handle)
        raise error
    return handle


def _load(load: Array, layers: int | None, experts: int | None) -> tuple[np.ndarray, tuple]:
    counts = as_integers(load, "load")
    shape = counts.shape
    if counts.ndim == 2:
        counts = counts[None]
    if counts.ndim != 3 or (layers is not None and counts.shape[1:] != (layers, experts)):
        want = "[layers][experts]" if layers is None else f"[{layers}][{experts}]"
        raise c.bad(f"load has shape {shape}, must be {want} or [samples]{want}")
    return counts, shape


def place(load: Array, ranks: int, slots: int, *, algorithm: str = "search",
          slots_per_rank: Sequence[int] | np.ndarray | None = None, nodes: int = 1, groups: int = 1,
          topology: str | Array | None = None, previous: Placement | None = None,
          max_moves: int | None = None, dead_ranks: Sequence[int] = (),
          speed: Sequence[int] | None = None, batch_tokens: int = 0, topk: int = 0, seed: int = 0,
          effort: int = 0, threads: int = 0, weight_of_sample: Sequence[float] | None = None,
          even_split: bool = False, work: int = 0) -> Placement:
    """Chooses which expert copies live where.

    load: token counts [L][E], or [samples][L][E]: real batches or steps, or several workloads,
    weighted by weight_of_sample [samples]. ranks G, slots P (all ranks together).
    algorithm: "search" (small per-batch optimum, few moves), "eplb", "topology" (LPLB's scheme;
    topology "cube", "hypercube", "ring", "torus:MxN" or r2o [G'][D]).
    previous, max_moves: stay close to a placement, at most so many moves a layer.
    batch_tokens, topk: tokens of a served batch and selections a token, for "search".
    even_split: score by the even split instead of the exact one.
    work: what the search of a layer may cost, in about nanoseconds of a core, counted and not
    timed; 0 = no bound.
    """
    counts, _ = _load(load, None, None)
    samples, layers, experts = counts.shape
    if algorithm not in _ALGORITHMS:
        raise c.bad(f"algorithm '{algorithm}' is not one of {', '.join(_ALGORITHMS)}")
    ranks, slots = integer(ranks, "ranks", 1), integer(slots, "slots", 1)
    most = -1 if max_moves is None else integer(max_moves, "max_moves", 0, INT64[1])
    config = filled(c.PlaceConfig, struct_size=ctypes.sizeof(c.PlaceConfig),
                    algorithm=_ALGORITHMS[algorithm], ranks=ranks, slots=slots, nodes=nodes,
                    groups=groups, max_moves=most, batch_tokens=batch_tokens, topk=topk, seed=seed,
                    effort=effort, threads=threads, work=work, exact_split=2 if even_split else 1)
    keep = []

    def pointer(values: Any, dtype: Any, count: int, what: str) -> int:
        array = (np.ascontiguousarray(as_loads(values, what), dtype) if dtype is np.float64
                 else as_integers(values, what, dtype))
        if array.shape != (count,):
            raise c.bad(f"{what} has shape {array.shape}, must be [{count}]")
        keep.append(array)
        return address(array)

    if slots_per_rank is not None:
        config.slots_per_rank = pointer(slots_per_rank, np.int32, ranks, "slots_per_rank")
    if speed is not None:
        config.speed = pointer(speed, np.int64, ranks, "speed")
    dead = dead_flags(dead_ranks, ranks)
    if dead.any():
        config.dead_ranks = pointer(dead, np.uint8, ranks, "dead_ranks")
    if previous is not None:
        expect(previous, Placement, "previous")
        config.from_ = ctypes.cast(previous._handle, ctypes.c_void_p)
    elif max_moves is not None:
        raise c.bad("max_moves needs previous, the placement to stay close to")
    weights = None
    if weight_of_sample is not None:
        weights = pointer(weight_of_sample, np.float64, samples, "weight_of_sample")
    with _opened_topology(topology, ranks, (slots - experts) // ranks) as graph:
        config.topology = ctypes.cast(graph, ctypes.c_void_p)
        handle = ctypes.POINTER(c.PlacementStruct)()
        c.check(c.lib().lplb_place(ctypes.byref(config), address(counts), samples, layers,
                                       experts, weights, ctypes.byref(handle)))
    return Placement._adopt(handle)


@contextlib.contextmanager
def _opened_topology(topology: str | Array | None, ranks: int, redundant: int) -> Iterator[Any]:
    """By name or as r2o, for the time of a call; a null pointer for None."""
    graph = _topology(topology, ranks, redundant) if topology is not None else None
    try:
        yield graph
    finally:
        if graph is not None:
            c.lib().lplb_topology_destroy(graph)


def _topology(topology: str | Array, ranks: int, redundant: int) -> Any:
    graph = ctypes.POINTER(c.Topology)()
    if isinstance(topology, str):
        c.check(c.lib().lplb_topology_create(topology.encode(), ranks, max(1, redundant),
                                                 ctypes.byref(graph)))
        return graph
    r2o = as_integers(topology, "topology", np.int32)
    if r2o.ndim != 2:
        raise c.bad(f"topology has shape {r2o.shape}, must be [group_size][redundant]")
    c.check(c.lib().lplb_topology_from_r2o(address(r2o), r2o.shape[0], r2o.shape[1],
                                               ctypes.byref(graph)))
    return graph
