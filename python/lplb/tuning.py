"""Two helpers that are offered and measured, not recommended (docs/runtime.md says what they
brought): a batch size that follows the step time, and a cache of plans."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Sequence

from . import _library as c
from ._arrays import Array
from ._checks import INT64, Unique, filled, integer
from .plan import HostTable, Plan, Solver, _fill


class _Sizer(ctypes.Structure):
    _fields_ = [("size", c_int64), ("least", c_int64), ("most", c_int64),
                ("grow_below_ns", c_int64), ("shrink_above_ns", c_int64), ("factor", c_double),
                ("patience", c_int32), ("streak", c_int32), ("grown", c_int64),
                ("shrunk", c_int64)]


class _CacheConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("hosts", c.Hosts), ("capacity", c_int64),
                ("quantum", c_int64)]


class _CacheStats(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("lookups", "hits", "exact_hits", "evictions",
                                             "plans")]


c.PROTOTYPES.update({
    "lplb_batch_sizer_init": (c_int, POINTER(_Sizer)),
    "lplb_batch_sizer_update": (c_int64, POINTER(_Sizer), c_int64),
    "lplb_plan_cache_create": (c_int, POINTER(_CacheConfig), c_void_p),
    "lplb_plan_cache_destroy": (None, c_void_p),
    "lplb_plan_cache_solve": (c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_int32)),
    "lplb_plan_cache_get_stats": (None, c_void_p, POINTER(_CacheStats)),
})


class BatchSizer:
    """A batch size that grows while steps are short and shrinks when they are long.

    size: tokens to begin with, within [least, most]; steps below grow_below_ns (2 ms) ask for more,
    above shrink_above_ns (10 ms) for less, by factor (1.25) after patience (3) of them in a row.
    """

    def __init__(self, size: int, least: int, most: int, *, grow_below_ns: int = 0,
                 shrink_above_ns: int = 0, factor: float = 0, patience: int = 0) -> None:
        self._sizer = filled(_Sizer, size=size, least=least, most=most,
                             grow_below_ns=grow_below_ns, shrink_above_ns=shrink_above_ns,
                             factor=factor, patience=patience)
        c.check(c.lib().lplb_batch_sizer_init(ctypes.byref(self._sizer)))

    def update(self, step_ns: int) -> int:
        """After a step of so many nanoseconds: the size of the next batch."""
        return c.lib().lplb_batch_sizer_update(ctypes.byref(self._sizer),
                                               integer(step_ns, "step_ns", *INT64))

    @property
    def size(self) -> int:
        """Tokens of the next batch."""
        return self._sizer.size

    @property
    def grown(self) -> int:
        """How often it grew."""
        return self._sizer.grown

    @property
    def shrunk(self) -> int:
        """How often it shrank."""
        return self._sizer.shrunk


class PlanCache(Unique):
    """Plans of one layer by counts rounded to `quantum`, the least recently used one goes.

    hosts: for every expert the ranks that hold a copy. A hit with other counts than those planned
    scales the cached split to them: valid, but not optimal.
    """

    _handle: c_void_p | None = None

    def __init__(self, hosts: Sequence[Sequence[int]], ranks: int, *, capacity: int = 1024,
                 quantum: int = 1, solver: str = "exact") -> None:
        self._solver = Solver(HostTable.from_lists(ranks, hosts), solver)
        config = filled(_CacheConfig, struct_size=ctypes.sizeof(_CacheConfig),
                        hosts=self._solver.hosts.struct, capacity=capacity, quantum=quantum)
        handle = c_void_p()
        c.check(c.lib().lplb_plan_cache_create(ctypes.byref(config), ctypes.byref(handle)))
        self._handle = handle

    def __del__(self) -> None:
        if self._handle and c._library is not None:
            c.lib().lplb_plan_cache_destroy(self._handle)
            self._handle = None

    def solve(self, tokens: Array) -> tuple[Plan, bool]:
        """The plan for counts [E], and whether it came from the cache."""
        _fill(self._solver.tokens, tokens, "tokens")
        hit = c_int32()
        given = c.PlanInput(tokens=self._solver._input.tokens)  # the cache takes no fixed tokens
        c.check(c.lib().lplb_plan_cache_solve(self._handle, self._solver._handle,
                                              ctypes.byref(given), self._solver._result_ref,
                                              ctypes.byref(hit)))
        return self._solver.snapshot(), bool(hit.value)

    @property
    def stats(self) -> dict[str, int]:
        """lookups, hits, exact_hits, evictions and plans so far."""
        out = _CacheStats()
        c.lib().lplb_plan_cache_get_stats(self._handle, ctypes.byref(out))
        return {name: getattr(out, name) for name, *_ in _CacheStats._fields_}
