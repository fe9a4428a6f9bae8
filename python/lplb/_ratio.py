"""Shares for the ratio mode: how much of each expert every copy gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays
from . import _library as c
from ._arrays import refuse_where
from .placement import Placement
from .plan import HostTable, Solver

if TYPE_CHECKING:
    from .planner import Planner


class Shares:
    """Shares of the hosts of every expert, and the form in which users see them."""

    def solve(self, counts: np.ndarray) -> tuple[np.ndarray, str]:
        """(shares as users see them, outcome) for int64 counts [E]."""
        raise NotImplementedError

    def of_hosts(self, weight: np.ndarray) -> np.ndarray:
        """float32 [sum of hosts] in the order of the dispatcher's hosts."""
        raise NotImplementedError

    def solve_on_device(self, counts: Any, counter: Any) -> Any:
        """`solve` for an int64 tensor on a GPU, without waiting for it."""
        raise NotImplementedError

    def of_hosts_on_device(self, weight: Any) -> Any:
        raise NotImplementedError


def shares_of(planner: Planner) -> Shares:
    return (SlotShares if planner._r2o is None else EdgeShares)(planner)


def _fractions(weight: np.ndarray) -> np.ndarray:
    """Shares as users give them; NaN is left to the library, which names expert and rank."""
    slack = 1e-3  # solvers of floats end a little outside
    refuse_where((weight < -slack) | (weight > 1 + slack), weight, "o_weight",
                 "shares are in [0, 1]")
    return np.clip(weight, 0, 1)


class _Tables:
    """numpy index tables as tensors on a device, copied once."""

    def __init__(self, **tables: np.ndarray) -> None:
        self._tables = tables
        self._on: dict[Any, dict[str, Any]] = {}

    def on(self, device: Any) -> dict[str, Any]:
        if device not in self._on:
            import torch

            self._on[device] = {name: torch.from_numpy(np.ascontiguousarray(t)).to(device)
                                for name, t in self._tables.items()}
        return self._on[device]


class EdgeShares(Shares):
    """LPLB's form: one share for every (rank, column): all experts that rank copies to one other
    rank through this column are one variable."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        r2o = planner._r2o
        assert r2o is not None
        ranks, columns = planner.ep_size, planner.num_redundants
        self.shape = (planner.n_group, planner.group_size, columns)
        local, head = planner.n_local_routed_experts, planner.combined_redundant_experts * columns
        table = planner.placement.physical_to_logical_map[0].reshape(ranks, local)
        rank = np.arange(ranks)
        variable = np.full(planner.n_logical_routed_experts, -1)
        variable[table[:, :head]] = rank[:, None] * columns + np.arange(head) % columns
        home = np.empty(planner.n_logical_routed_experts, np.int64)
        home[table[:, :planner.n_local_logical_routed_experts]] = rank[:, None]
        # A placement of its own, with the variables as experts: originals, then copies.
        group = rank // planner.group_size * planner.group_size
        copied_from = group[:, None] + np.tile(r2o, (planner.n_group, 1))
        column = np.arange(columns)
        self.placement = Placement(
            np.concatenate([rank[:, None] * columns + column, copied_from * columns + column],
                           axis=1).reshape(-1), ranks)
        o2r = np.argsort(r2o, axis=0, kind="stable")
        copy = (group[:, None] + np.tile(o2r, (planner.n_group, 1))).reshape(-1)
        own = np.repeat(rank, columns)
        pairs = np.sort(np.stack([own, copy], axis=1), axis=1)
        self.own_first = own < copy
        self.solver = Solver(HostTable.from_lists(ranks, pairs.tolist()), planner.solver)
        hosts = planner._cpu_step().hosts
        self.host_variable = variable[hosts.expert]
        self.host_is_home = hosts.rank == home[hosts.expert]
        copied = variable >= 0
        self.copied, self.alone = np.flatnonzero(copied), np.flatnonzero(~copied)
        self.to_variable, self.to_rank = variable[copied], home[~copied]
        self._tables = _Tables(copied=self.copied, alone=self.alone, to_rank=self.to_rank,
                               to_variable=self.to_variable, own_first=self.own_first,
                               host_variable=np.maximum(self.host_variable, 0),
                               host_has_copy=self.host_variable >= 0,
                               host_is_home=self.host_is_home)

    def solve(self, counts: np.ndarray) -> tuple[np.ndarray, str]:
        self.solver.tokens[:] = 0
        np.add.at(self.solver.tokens, self.to_variable, counts[self.copied])
        self.solver.fixed[:] = 0
        np.add.at(self.solver.fixed, self.to_rank, counts[self.alone])
        self.solver.solve()
        halves = self.solver.split.reshape(-1, 2)
        kept = np.where(self.own_first, halves[:, 0], halves[:, 1])
        total = self.solver.tokens
        share = np.where(total > 0, kept / np.maximum(total, 1), 1.0)
        return share.astype(np.float32).reshape(self.shape), self.solver.outcome

    def of_hosts(self, weight: np.ndarray) -> np.ndarray:
        self._check(weight)
        weight = _fractions(weight)
        kept = weight.reshape(-1)[np.maximum(self.host_variable, 0)]
        share = np.where(self.host_is_home, kept, 1 - kept)
        return np.where(self.host_variable < 0, 1, share).astype(np.float32)

    def _check(self, weight: Any) -> None:
        if tuple(weight.shape) != self.shape:
            raise c.bad(f"o_weight has shape {tuple(weight.shape)}, must be {self.shape}")

    def solve_on_device(self, counts: Any, counter: Any) -> Any:
        import torch

        t = self._tables.on(counts.device)
        tokens = counts.new_zeros(len(self.own_first))
        tokens.index_add_(0, t["to_variable"], counts.index_select(0, t["copied"]))
        fixed = counts.new_zeros(self.placement.ranks)
        fixed.index_add_(0, t["to_rank"], counts.index_select(0, t["alone"]))
        step = self.planner._device_step(_arrays.device_index(counts), placement=self.placement)
        halves = step.solve(tokens, fixed, 2 * len(self.own_first), counter,
                            self.planner.n_group).reshape(-1, 2)
        kept = torch.where(t["own_first"], halves[:, 0], halves[:, 1])
        return torch.where(tokens > 0, kept, torch.ones_like(kept)).reshape(self.shape)

    def of_hosts_on_device(self, weight: Any) -> Any:
        import torch

        self._check(weight)
        t = self._tables.on(weight.device)
        kept = weight.reshape(-1).index_select(0, t["host_variable"])
        share = torch.where(t["host_is_home"], kept, 1 - kept)
        return torch.where(t["host_has_copy"], share, torch.ones_like(share))


class SlotShares(Shares):
    """For any placement: a share for every copy of every expert."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.hosts = hosts = planner._cpu_step().hosts
        self.solver = Solver(hosts, planner.solver)
        table = planner.placement.logical_to_physical_map[0]
        expert, column = np.nonzero(table >= 0)
        offset = planner.placement.rank_offset
        rank = np.searchsorted(offset, table[expert, column], side="right") - 1
        key = hosts.expert.astype(np.int64) * hosts.ranks + hosts.rank
        order = np.argsort(key, kind="stable")
        wanted = expert.astype(np.int64) * hosts.ranks + rank
        self.host = order[np.searchsorted(key[order], wanted)]  # of every copy
        self.expert, self.column, self.shape = expert, column, table.shape
        self.copies = np.bincount(self.host, minlength=len(hosts.rank))  # of every host
        self.hosts_of = np.diff(hosts.offset)[hosts.expert]
        self._tables = _Tables(host=self.host, cell=expert * table.shape[1] + column,
                               copies=self.copies[self.host].astype(np.float32),
                               of=hosts.expert.astype(np.int64),
                               even=(1 / self.hosts_of).astype(np.float32))

    def solve(self, counts: np.ndarray) -> tuple[np.ndarray, str]:
        self.solver.tokens[:] = counts
        self.solver.solve()
        total = counts[self.hosts.expert]
        of_host = np.where(total > 0, self.solver.split / np.maximum(total, 1), 1 / self.hosts_of)
        share = np.zeros(self.shape, np.float32)
        share[self.expert, self.column] = of_host[self.host] / self.copies[self.host]
        return share, self.solver.outcome

    def of_hosts(self, weight: np.ndarray) -> np.ndarray:
        self._check(weight)
        weight = _fractions(weight)
        share = np.zeros(len(self.hosts.rank), np.float32)
        np.add.at(share, self.host, weight[self.expert, self.column])
        return share

    def _check(self, weight: Any) -> None:
        if tuple(weight.shape) != self.shape:
            raise c.bad(f"o_weight has shape {tuple(weight.shape)}, must be {self.shape}")

    def solve_on_device(self, counts: Any, counter: Any) -> Any:
        import torch

        t = self._tables.on(counts.device)
        # counts are of all sources already: one source
        step = self.planner._device_step(_arrays.device_index(counts),
                                         placement=self.planner.placement)
        of_host = step.solve(counts, None, len(self.hosts.rank), counter, self.planner.n_group)
        of_host = torch.where(counts.index_select(0, t["of"]) > 0, of_host, t["even"])
        share = of_host.new_zeros(self.shape)
        share.view(-1).index_copy_(0, t["cell"], of_host.index_select(0, t["host"]) / t["copies"])
        return share

    def of_hosts_on_device(self, weight: Any) -> Any:
        self._check(weight)
        t = self._tables.on(weight.device)
        share = weight.new_zeros(len(self.hosts.rank))
        return share.index_add_(0, t["host"], weight.reshape(-1).index_select(0, t["cell"]))
