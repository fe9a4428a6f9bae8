"""One layer's step on the CPU: count, share counts, solve, map."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Sequence

import numpy as np

from . import _library as c
from ._arrays import Ids, address, as_numpy
from ._checks import Unique
from .comm import Communicator
from .placement import Placement
from .plan import HostTable, Solver

# What a failed exchange of counts may return; the step then leaves the ids unbalanced.
COMM_FAILURES = {c.TIMEOUT, c.REMOTE, c.DISAGREE}


class Step(Unique):
    """Balances one layer's ids for one source (this rank) of S.

    counts int64 [E]: of the last batch, this source's. source_counts int64 [S][E]: of all sources.
    home int32 [E]: the slot of each expert that unbalanced ids go to.
    """

    def __init__(self, placement: Placement, solver: str, comm: Communicator | None, source: int,
                 source_rank: Sequence[int] | None, node: Sequence[int] | None, threads: int,
                 home: np.ndarray) -> None:
        self.placement, self.comm, self.source = placement, comm, source
        sources = comm.size() if comm else 1
        n = placement.n_logical_experts
        ranks = None if source_rank is None else np.ascontiguousarray(source_rank, dtype=np.int32)
        nodes = None if node is None else np.ascontiguousarray(node, dtype=np.int32)
        handle = ctypes.c_void_p()
        c.check(c.lib().lplb_dispatcher_create(
            placement._handle, 0, sources, None if ranks is None else address(ranks),
            None if nodes is None else address(nodes), threads, ctypes.byref(handle)))
        self._handle = handle
        self._close = weakref.finalize(self, c.lib().lplb_dispatcher_destroy, handle)
        self.hosts = self._read_hosts()
        self.solver = Solver(self.hosts, solver, node=nodes)
        self.source_rank = ranks
        if comm is None:  # one array is all three
            self.counts = self.solver.tokens
            self.source_counts = self.counts[None]
        else:
            self.counts = np.zeros(n, np.int64)
            self.source_counts = np.zeros((sources, n), np.int64)
        self._by_rank: np.ndarray | None = None
        self._counts, self._sources = address(self.counts), address(self.source_counts)
        self._split = address(self.solver.split)
        lib = c.lib()
        self._count, self._prepare = lib.lplb_dispatch_count, lib.lplb_dispatch_prepare
        self._prepare_ratio, self._map = lib.lplb_dispatch_prepare_ratio, lib.lplb_dispatch_map
        self._home = np.append(home, np.int32(-1))  # [E+1]: id -1 finds the last one

    def _read_hosts(self) -> HostTable:
        hosts = c.lib().lplb_dispatcher_hosts(self._handle).contents
        n = hosts.experts + 1
        offset = np.frombuffer(ctypes.string_at(hosts.offset, n * 8), np.int64)
        rank = np.frombuffer(ctypes.string_at(hosts.rank, int(offset[-1]) * 4), np.int32)
        return HostTable(hosts.ranks, offset, rank)

    def count(self, ids: Ids) -> None:
        status = self._count(self._handle, ids.pointer, ids.dtype, ids.count, self._counts)
        if status:
            raise c.last_error(status)

    def share(self, tag: int) -> int:
        """Fills source_counts; returns a status, failures of the others included."""
        if self.comm is None:
            return c.OK
        return self.comm.gather_into(tag, self._counts, len(self.counts), self._sources)

    def solve(self, locality: bool) -> None:
        if self.comm is not None:
            np.add.reduce(self.source_counts, axis=0, out=self.solver.tokens)
        self.solver.solve(self._counts_by_rank() if locality else None)

    def _counts_by_rank(self) -> int:
        """Address of the counts as [ranks][E]: the sources' rows at their ranks."""
        if self.source_rank is None and len(self.source_counts) == self.hosts.ranks:
            return self._sources
        if self.source_rank is None:
            raise c.bad(f"locality needs to know the rank of every source: {self.hosts.ranks} "
                        f"ranks, {len(self.source_counts)} source(s); give a group of all ranks, "
                        "or rank=", c.STATE)
        if self._by_rank is None:
            self._by_rank = np.zeros((self.hosts.ranks, self.hosts.experts), np.int64)
        self._by_rank[self.source_rank] = self.source_counts
        return address(self._by_rank)

    def map(self, ids: Ids, out: Ids, locality: bool) -> None:
        status = self._prepare(self._handle, self._sources, self._split, self.source, locality)
        if not status:
            status = self._map(self._handle, ids.pointer, ids.dtype, ids.count, out.pointer,
                               out.dtype)
        if status:
            raise c.last_error(status)

    def map_by_share(self, ids: Ids, out: Ids, share: np.ndarray, counts: np.ndarray) -> None:
        """share float32 [sum of hosts]; counts int64 [E] of these ids."""
        status = self._prepare_ratio(self._handle, address(share), address(counts), self.source)
        if not status:
            status = self._map(self._handle, ids.pointer, ids.dtype, ids.count, out.pointer,
                               out.dtype)
        if status:
            raise c.last_error(status)

    def map_unbalanced(self, ids: Ids, out: Ids) -> None:
        """Every id to the home of its expert, whatever the counts."""
        target: Any = as_numpy(out.array)
        target[...] = self._home[as_numpy(ids.array)]
