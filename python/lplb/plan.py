"""The per-batch plan: how each expert's tokens split over the ranks that hold a copy."""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any, Sequence

import numpy as np

from . import _library as c
from ._arrays import Array, address, as_integers
from ._checks import Unique, integer

OUTCOMES = ("optimal", "within_tolerance", "feasible", "not_converged")


class HostTable:
    """Hosts H(e) of every expert as compressed rows: offset int64 [E+1], rank int32 [offset[E]]."""

    def __init__(self, ranks: int, offset: np.ndarray, rank: np.ndarray) -> None:
        self.ranks = ranks
        self.experts = len(offset) - 1
        self.offset = np.ascontiguousarray(offset, dtype=np.int64)
        self.rank = np.ascontiguousarray(rank, dtype=np.int32)
        self.expert = np.repeat(np.arange(self.experts), np.diff(self.offset))
        self.struct = c.Hosts(ranks, self.experts, address(self.offset), address(self.rank))

    @classmethod
    def from_lists(cls, ranks: int, hosts: Sequence[Sequence[int]]) -> HostTable:
        try:
            lists = [np.asarray(list(h)) for h in hosts]
        except TypeError:
            raise c.bad(f"hosts is a {type(hosts).__name__}, must be a list of ranks for every "
                        "expert") from None
        offset = np.cumsum([0] + [len(h) for h in lists])
        rank = [as_integers(h, f"hosts[{e}]", np.int32) for e, h in enumerate(lists)]
        return cls(integer(ranks, "ranks"), offset, np.concatenate(rank or [np.empty(0)]))

    def __reduce__(self) -> Any:
        return type(self), (self.ranks, self.offset, self.rank)

    def hosts_of(self, expert: int) -> np.ndarray:
        return self.rank[self.offset[expert]:self.offset[expert + 1]]


def parse_solver(text: str) -> tuple[c.PlanConfig, bool]:
    """The options of a solver's text, and whether it asks for locality."""
    if not isinstance(text, str):
        raise c.bad(f"solver is {text!r}, must be a text such as \"exact\"")
    config = c.PlanConfig(struct_size=ctypes.sizeof(c.PlanConfig))
    locality = ctypes.c_int32()
    c.check(c.lib().lplb_plan_parse_solver(text.encode(), ctypes.byref(config),
                                               ctypes.byref(locality)))
    return config, bool(locality.value)


class Solver(Unique):
    """A planner of the C library for one host table; solves batch after batch, allocating nothing.

    solver: "exact", "even", "greedy", "waterfill", "balance", "ipm", "ipm:published", with options
    as in "exact:tolerance=1.02,locality=1".
    """

    def __init__(self, hosts: HostTable, solver: str = "exact",
                 speed: np.ndarray | None = None, node: np.ndarray | None = None) -> None:
        config, _ = parse_solver(solver)
        self.name = solver
        self.hosts = hosts
        self.speed = None if speed is None else np.ascontiguousarray(speed, dtype=np.int64)
        for what, values in (("speed", self.speed), ("node", node)):
            if values is not None and np.shape(values) != (hosts.ranks,):
                raise c.bad(f"{what} has shape {np.shape(values)}, must be [{hosts.ranks}]")
        config.hosts = hosts.struct
        config.speed = None if self.speed is None else address(self.speed)
        if node is not None:
            node = as_integers(node, "node", np.int32)
            config.node = address(node)
        handle = ctypes.c_void_p()
        c.check(c.lib().lplb_planner_create(ctypes.byref(config), ctypes.byref(handle)))
        self._handle = handle
        self._close = weakref.finalize(self, c.lib().lplb_planner_destroy, handle)
        self._solve = c.lib().lplb_plan_solve
        self.tokens = np.zeros(hosts.experts, np.int64)
        self.fixed = np.zeros(hosts.ranks, np.int64)
        self.split = np.zeros(len(hosts.rank), np.int64)
        self.loads = np.zeros(hosts.ranks, np.int64)
        self.result = c.PlanResult(split=address(self.split), loads=address(self.loads))
        self._input = c.PlanInput(tokens=address(self.tokens), fixed=address(self.fixed))
        self._result_ref = ctypes.byref(self.result)
        self._input_ref = ctypes.byref(self._input)

    def solve(self, sources: int | None = None) -> None:
        """Solves for what is in `tokens` and `fixed`; sources: address of int64 [G][E]."""
        self._input.sources = sources
        status = self._solve(self._handle, self._input_ref, self._result_ref)
        if status:
            raise c.last_error(status)

    @property
    def outcome(self) -> str:
        return OUTCOMES[self.result.outcome]

    def snapshot(self) -> Plan:
        return Plan(self.hosts, self.tokens.copy(), self.fixed.copy(), self.speed,
                    self.split.copy(), self.loads.copy(), self.outcome, self.name)


class Plan:
    """One batch's split, with what proves it.

    tokens int64 [E]; loads int64 [G]; split int64 [sum of hosts] in the order of (expert, host);
    outcome "optimal", "within_tolerance", "feasible" or "not_converged".
    """

    def __init__(self, hosts: HostTable, tokens: np.ndarray, fixed: np.ndarray,
                 speed: np.ndarray | None, split: np.ndarray, loads: np.ndarray, outcome: str,
                 solver: str) -> None:
        self.hosts, self.tokens, self.fixed, self.speed = hosts, tokens, fixed, speed
        self.split, self.loads, self.outcome, self.solver = split, loads, outcome, solver
        self._bound: tuple[c.Bound, np.ndarray] | None = None

    def __repr__(self) -> str:
        return (f"Plan(outcome={self.outcome!r}, max_load={self.max_load}, "
                f"imbalance={self.imbalance:.4f})")

    @property
    def max_load(self) -> int:
        """Tokens on the fullest rank."""
        return int(self.loads.max())

    @property
    def imbalance(self) -> float:
        """Max over mean of the ranks' loads; 1 is perfect, 0 when there are no tokens."""
        total = int(self.loads.sum())
        return self.max_load * len(self.loads) / total if total else 0.0

    def _certificate(self) -> tuple[c.Bound, np.ndarray]:
        if self._bound is None:
            self._bound = _bound(self.hosts, self.tokens, self.fixed, self.speed)
        return self._bound

    @property
    def lower_bound(self) -> float:
        """Least max load over speed that a fractional split could reach."""
        t = self._certificate()[0].fractional
        return t.numerator / t.denominator if t.numerator else 0.0

    @property
    def integer_bound(self) -> int:
        """Least possible tokens on the fullest rank (equal speeds)."""
        return int(self._certificate()[0].integer_bound)

    @property
    def bottleneck(self) -> np.ndarray:
        """A smallest set of ranks that sets the bound: its experts live nowhere else. int [n]"""
        return self._certificate()[1]

    @property
    def bottleneck_experts(self) -> np.ndarray:
        """Experts with tokens whose copies are all inside the bottleneck, by falling tokens."""
        inside = np.isin(self.hosts.rank, self.bottleneck)
        all_inside = np.ones(self.hosts.experts, bool)
        np.logical_and.at(all_inside, self.hosts.expert, inside)
        found = np.flatnonzero(all_inside & (self.tokens > 0))
        return found[np.argsort(-self.tokens[found], kind="stable")]

    def of_expert(self, expert: int) -> dict[int, int]:
        """{rank: tokens} of one expert."""
        expert = integer(expert, "expert", 0, self.hosts.experts - 1)
        begin, end = self.hosts.offset[expert], self.hosts.offset[expert + 1]
        return {int(r): int(x) for r, x in zip(self.hosts.rank[begin:end], self.split[begin:end])}

    def check(self) -> None:
        """Verifies split, loads and bound independently of the solver; raises on any fault."""
        result = c.PlanResult(split=address(self.split), loads=address(self.loads),
                              outcome=2, max_load=self.max_load, objective=self._objective(),
                              bound=-math.inf)
        given = c.PlanInput(tokens=address(self.tokens), fixed=address(self.fixed))
        c.check(c.lib().lplb_plan_check(
            ctypes.byref(self.hosts.struct), None if self.speed is None else address(self.speed),
            ctypes.byref(given), ctypes.byref(result)))
        if self.outcome == "optimal" and self.speed is None and self.max_load != self.integer_bound:
            raise c.Error(c.CHECK_FAILED, f"max load {self.max_load} is not the least possible, "
                                          f"{self.integer_bound}")

    def _objective(self) -> float:
        speed = np.ones(len(self.loads), np.int64) if self.speed is None else self.speed
        return float((self.loads / speed).max())

    def explain(self) -> str:
        """Why the fullest rank has what it has, and which further copy would help."""
        total, ranks = int(self.loads.sum()), len(self.loads)
        if total == 0:
            return f"{ranks} ranks, no tokens: nothing to balance."
        fullest = int(np.argmax(self.loads))
        lines = [f"{total} tokens on {ranks} ranks ({total / ranks:.1f} each); the fullest, rank "
                 f"{fullest}, has {self.max_load}: imbalance {self.imbalance:.4f}.",
                 self._verdict()]
        if len(self.bottleneck) == ranks:
            lines.append("No placement limits this batch: every rank can be equally full.")
            return "\n".join(lines)
        experts = self.bottleneck_experts
        own = int(self.tokens[experts].sum()) + int(self.fixed[self.bottleneck].sum())
        shown = ", ".join(f"{e} ({self.tokens[e]})" for e in experts[:8])
        more = f" and {len(experts) - 8} more" if len(experts) > 8 else ""
        lines.append(f"Bottleneck: {_ranks(self.bottleneck)} must take {own} tokens, as these "
                     f"experts (tokens) live nowhere else: {shown}{more}.")
        lines.append(self._next_copy())
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.outcome == "optimal":
            return f"Optimal ({self.solver}): no split of this placement does better."
        if self.outcome == "within_tolerance":
            return ("The even split, within the tolerance that was asked for; the best possible "
                    f"is {self.integer_bound} tokens on the fullest rank.")
        return (f"{self.outcome} ({self.solver}): the best possible is {self.integer_bound} tokens "
                "on the fullest rank.")

    def _next_copy(self, trials: int = 8) -> str:
        """The further copy of a bottleneck expert that lowers the bound most."""
        outside = np.setdiff1d(np.arange(len(self.loads)), self.bottleneck)
        target = int(outside[np.argmin(self.loads[outside])])
        best = None
        for e in self.bottleneck_experts[:trials]:
            at = int(self.hosts.offset[e + 1])
            offset = self.hosts.offset.copy()
            offset[e + 1:] += 1
            table = HostTable(self.hosts.ranks, offset, np.insert(self.hosts.rank, at, target))
            bound = _bound(table, self.tokens, self.fixed, self.speed)[0]
            value = bound.fractional.numerator / bound.fractional.denominator
            if best is None or value < best[0]:
                best = (value, int(e))
        if best is None or best[0] >= self.lower_bound:
            return "No single further copy of them lowers the bound."
        return (f"A copy of expert {best[1]} on rank {target} would lower the bound from "
                f"{self.lower_bound:.1f} to {best[0]:.1f} tokens.")


def _ranks(ranks: np.ndarray) -> str:
    shown = ", ".join(str(r) for r in ranks[:16]) + (", ..." if len(ranks) > 16 else "")
    return ("rank " if len(ranks) == 1 else "ranks ") + shown


def _bound(hosts: HostTable, tokens: np.ndarray, fixed: np.ndarray,
           speed: np.ndarray | None) -> tuple[c.Bound, np.ndarray]:
    bound = c.Bound()
    words = np.zeros((hosts.ranks + 63) // 64, np.uint64)
    given = c.PlanInput(tokens=address(tokens), fixed=address(fixed))
    c.check(c.lib().lplb_plan_bound(
        ctypes.byref(hosts.struct), None if speed is None else address(speed),
        ctypes.byref(given), ctypes.byref(bound), address(words)))
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:hosts.ranks]
    return bound, np.flatnonzero(bits)


def solve(tokens: Array, hosts: Sequence[Sequence[int]], ranks: int, *,
          fixed: Array | None = None, speed: Array | None = None, node: Array | None = None,
          sources: Array | None = None, solver: str = "exact") -> Plan:
    """Splits the tokens of one batch over the ranks.

    tokens: counts [E]; hosts: for every expert the ranks that hold a copy; fixed: tokens that
    cannot move [G]; speed: relative speeds [G], whole numbers; sources: counts by source rank
    [G][E], summing to tokens, to keep tokens near their source; node: node of every rank [G].
    """
    table = HostTable.from_lists(ranks, hosts)
    planner = Solver(table, solver, None if speed is None else as_integers(speed, "speed"),
                     None if node is None else as_integers(node, "node"))
    _fill(planner.tokens, tokens, "tokens")
    if fixed is not None:
        _fill(planner.fixed, fixed, "fixed")
    keep: Any = None
    if sources is not None:
        keep = as_integers(sources, "sources")
        if keep.shape != (ranks, table.experts):
            raise c.bad(f"sources has shape {keep.shape}, must be [{ranks}][{table.experts}]")
    planner.solve(None if keep is None else address(keep))
    return planner.snapshot()


def _fill(target: np.ndarray, values: Array, what: str) -> None:
    values = as_integers(values, what)
    if values.shape != target.shape:
        raise c.bad(f"{what} has shape {values.shape}, must be {target.shape}")
    target[:] = values
