"""The balancing runtime (docs/runtime.md): trackers, rebalance manager, monitor, advice.

    manager = Manager(layers, experts, ranks, slots, algorithm="search")
    manager.step(step, counts)          # after every batch, the same on every rank
    manager.placement                   # the mapping in force
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import warnings
from ctypes import POINTER, c_double, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from . import _library as c
from ._arrays import Array, address, as_integers, as_numpy
from ._checks import INT64, Unique, expect, filled, integer, real
from ._runtime import (_AGREE, _Advice, _AdviseConfig, _COMMIT, _DISCARD, _EVENT, _Event,
                       _ForecasterConfig, _Hooks, _ManagerConfig, _ManagerStats, _MonitorConfig,
                       _PLACE, _STAGE, _STAGED, _StepData, _TrackerConfig, _TrackerStats)
from .mapping import LostExperts, digest, moves_of, recover, validate
from .placement import Move, Placement, _opened_topology, dead_flags
from .tuning import BatchSizer, PlanCache

__all__ = ["BatchSizer", "Event", "Forecaster", "LostExperts", "Manager", "Monitor", "PlaceRequest",
           "PlanCache", "Tracker", "advise", "digest", "recover", "validate"]

_STAGES = {"all": -1, "prefill": 0, "decode": 1}
_MARKS = {"dummy": 0, "missing": 1}
_KINDS = {"ewma": 0, "window": 1, "stages": 2}
_MODES = {"adaptive": 0, "periodic": 1}
_ALGORITHMS = {"eplb": 0, "topology": 1, "search": 2}
_LATE = {"wait": 0, "postpone": 1}


def _one_of(what: str, value: str, table: dict[str, int]) -> int:
    if value not in table:
        raise c.bad(f"{what} '{value}' is not one of {', '.join(table)}")
    return table[value]


def _plain(struct: ctypes.Structure) -> dict[str, Any]:
    return {name: getattr(struct, name) for name, *_ in struct._fields_}


class _Handle(Unique):
    """Owner of one object of the library, whose functions begin with _prefix."""

    _prefix = ""
    _handle: int | None = None
    _owner: Any = None  # keeps alive what the handle is a part of, and destroys it

    def _make(self, config: ctypes.Structure) -> None:
        config.struct_size = ctypes.sizeof(config)
        out = c_void_p()
        c.check(self._call("create", ctypes.byref(config), ctypes.byref(out)))
        self._handle = out.value

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(c.lib(), f"lplb_{self._prefix}_{name}")(*arguments)

    def __del__(self) -> None:
        if self._handle and self._owner is None and c._library is not None:
            self._call("destroy", self._handle)
            self._handle = None

    def _counts(self, counts: Array, shape: tuple[int, ...]) -> np.ndarray:
        out = as_integers(counts, "counts")
        if out.shape != shape:
            raise c.bad(f"counts has shape {out.shape}, must be {list(shape)}")
        return out


class _Saved(_Handle):
    def save(self) -> bytes:
        """The state, for the same build of the library and the same configuration."""
        buffer = ctypes.create_string_buffer(self._call("save_bytes", self._handle))
        c.check(self._call("save", self._handle, buffer, len(buffer)))
        return buffer.raw

    def restore(self, state: bytes) -> None:
        c.check(self._call("restore", self._handle, bytes(state), len(state)))


# ---- trackers ------------------------------------------------------------------------------------


def _check_options(what: str, config: type[ctypes.Structure], options: dict[str, Any],
                   own: set[str]) -> None:
    """ctypes would keep a misspelt name as an attribute of its own."""
    for name in options:
        if name in own or name not in {field for field, *_ in config._fields_}:
            raise c.bad(f"the {what} has no option '{name}'")


def _tracker_config(layers: int, experts: int, kind: str, options: dict[str, Any]
                    ) -> _TrackerConfig:
    _check_options("tracker", _TrackerConfig, options, {"struct_size", "kind"})
    return filled(_TrackerConfig, struct_size=ctypes.sizeof(_TrackerConfig),
                  kind=_one_of("tracker", kind, _KINDS), layers=layers, experts=experts, **options)


class Tracker(_Saved):
    """What each expert of each layer has been asked for lately: tokens a batch.

    kind: "ewma" (alpha, 0.05), "window" (window, 1000 batches), "stages" (an average for prefill,
    prefill_alpha 0.15, and one for decode, decode_alpha 0.05). samples: batches kept whole.
    """

    _prefix = "tracker"

    def __init__(self, layers: int, experts: int, kind: str = "ewma", **options: Any) -> None:
        config = _tracker_config(layers, experts, kind, options)
        self.layers, self.experts = layers, experts
        self._samples = config.samples or 8
        self._rows = 2 if kind == "stages" else 1
        self._make(config)

    def update(self, counts: Array, stage: str = "decode") -> None:
        """One batch: counts [L][E]; floats that are not whole are loads."""
        given = as_numpy(counts)
        if given.dtype.kind == "f":
            loads = np.ascontiguousarray(given, dtype=np.float32)
            if loads.shape != (self.layers, self.experts):
                raise c.bad(f"loads has shape {loads.shape}, must be "
                            f"[{self.layers}][{self.experts}]")
            c.check(self._call("update_real", self._handle, _one_of("stage", stage, _STAGES),
                               address(loads)))
            return
        values = self._counts(given, (self.layers, self.experts))
        c.check(self._call("update", self._handle, _one_of("stage", stage, _STAGES),
                           address(values)))

    def update_pairs(self, first: Array, expert: Array, tokens: Array, stage: str = "decode"
                     ) -> None:
        """One batch as pairs: those of layer l are first[l]:first[l + 1] of expert and tokens."""
        first, tokens = as_integers(first, "first"), as_integers(tokens, "tokens")
        expert = as_integers(expert, "expert", np.int32)
        if first.shape != (self.layers + 1,) or expert.shape != tokens.shape or expert.ndim != 1:
            raise c.bad(f"first [{self.layers + 1}], expert [n] and tokens [n] have shapes "
                        f"{first.shape}, {expert.shape}, {tokens.shape}")
        if first[0] != 0 or first.max() > len(expert):
            raise c.bad(f"first runs from {first[0]} to {first.max()}, must be from 0 to "
                        f"{len(expert)}", c.RANGE)
        c.check(self._call("update_pairs", self._handle, _one_of("stage", stage, _STAGES),
                           address(first), address(expert), address(tokens)))

    def mark(self, what: str) -> None:
        """A batch that says nothing: "dummy", or "missing" when its counts are not known."""
        c.check(self._call("mark", self._handle, _one_of("mark", what, _MARKS)))

    def _read(self, name: str, stage: str) -> np.ndarray:
        out = np.empty((self.layers, self.experts), np.float32)
        c.check(self._call(name, self._handle, _one_of("stage", stage, _STAGES), address(out)))
        return out

    def mean(self, stage: str = "all") -> np.ndarray:
        """float32 [L][E]"""
        return self._read("mean", stage)

    def variance(self, stage: str = "all") -> np.ndarray:
        """float32 [L][E]"""
        return self._read("variance", stage)

    def counts(self, batches: float, stage: str = "all") -> np.ndarray:
        """The mean of so many batches in whole numbers, as `place` takes them: int64 [L][E]."""
        out = np.empty((self.layers, self.experts), np.int64)
        c.check(self._call("counts", self._handle, _one_of("stage", stage, _STAGES),
                           real(batches, "batches"), address(out)))
        return out

    def samples(self, stage: str = "all") -> np.ndarray:
        """Batches kept whole, oldest first: int64 [samples][L][E]."""
        most = max(0, self._samples) * self._rows
        out = np.empty((most, self.layers, self.experts), np.int64)
        n = c_int64()
        c.check(self._call("samples", self._handle, _one_of("stage", stage, _STAGES), most,
                           address(out), ctypes.byref(n)))
        return out[:n.value]

    def covariance(self, layer: int, stage: str = "all") -> np.ndarray:
        """Low-rank factor of one layer's covariance, factor.T @ factor: float32 [rank][E]."""
        most = max(0, self._samples)
        out = np.empty((most, self.experts), np.float32)
        rank = c_int32()
        c.check(self._call("covariance", self._handle, _one_of("stage", stage, _STAGES),
                           integer(layer, "layer"), most, address(out), ctypes.byref(rank)))
        return out[:rank.value]

    @property
    def stats(self) -> dict[str, Any]:
        """The fields of lplb_tracker_stats: batches seen, marked and refused."""
        out = _TrackerStats()
        self._call("get_stats", self._handle, ctypes.byref(out))
        stats = _plain(out)
        stats["stage"] = {"prefill": out.stage[0], "decode": out.stage[1]}
        return stats


class Forecaster(_Saved):
    """Trend and season of each expert's share, used only where better than "as the last block".

    block: batches (100); period: blocks a season (0 = none); level, trend, season, damping.
    """

    _prefix = "forecaster"

    def __init__(self, layers: int, experts: int, **options: Any) -> None:
        self.layers, self.experts = layers, experts
        _check_options("forecaster", _ForecasterConfig, options, {"struct_size"})
        self._make(filled(_ForecasterConfig, layers=layers, experts=experts, **options))

    def update(self, counts: Array) -> None:
        """One batch: counts [L][E]."""
        values = self._counts(counts, (self.layers, self.experts))
        c.check(self._call("update", self._handle, address(values)))

    def predict(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the next block, float32 [L][E], and which layers are forecast, bool [L]."""
        share = np.empty((self.layers, self.experts), np.float32)
        used = np.empty(self.layers, np.uint8)
        c.check(self._call("predict", self._handle, address(share), address(used)))
        return share, used.astype(bool)

    def error(self, layer: int) -> tuple[float, float]:
        """Of the model and of "as the last block"; NaN before two blocks could be compared."""
        model, persistence = c_double(), c_double()
        c.check(self._call("error", self._handle, integer(layer, "layer"), ctypes.byref(model),
                           ctypes.byref(persistence)))
        return model.value, persistence.value


# ---- the manager ---------------------------------------------------------------------------------


class Event(NamedTuple):
    """Something the manager did or refused, with its reason. layer, rank -1 = does not apply."""

    step: int
    kind: str
    status: int
    layer: int
    rank: int
    layers: int
    moves: int
    before: float
    after: float
    text: str


def _event(e: _Event) -> Event:
    return Event(e.step, c.lib().lplb_event_name(e.kind).decode(), e.status, e.layer, e.rank,
                 e.layers, e.moves, e.before, e.after, e.text.decode(errors="replace"))


class PlaceRequest(NamedTuple):
    """What the hook `place` is asked for: the layers that the manager chose, in their order."""

    load: np.ndarray               # int64 [samples][layers][experts]
    ranks: int
    slots: int
    slots_per_rank: np.ndarray | None
    placement: np.ndarray | None   # int32 [layers][slots] now, where the algorithm is "search"
    dead_ranks: np.ndarray         # bool [ranks]
    max_moves: int                 # a layer; < 0 = no limit
    seed: int


def _place_request(config: Any, load: Any, samples: int, layers: int, experts: int
                   ) -> PlaceRequest:
    def array(pointer: int | None, kind: Any, n: int) -> np.ndarray | None:
        if not pointer:
            return None
        return np.ctypeslib.as_array(ctypes.cast(pointer, POINTER(kind)), (n,)).copy()
    now = None
    if config.from_:
        struct = ctypes.cast(config.from_, POINTER(c.PlacementStruct))[0]
        now = array(struct.physical_to_logical, c_int32, layers * config.slots)
        now = now.reshape(layers, config.slots)
    dead = array(config.dead_ranks, ctypes.c_uint8, config.ranks)
    return PlaceRequest(np.ctypeslib.as_array(load, (samples, layers, experts)).copy(),
                        config.ranks, config.slots,
                        array(config.slots_per_rank, c_int32, config.ranks), now,
                        np.zeros(config.ranks, bool) if dead is None else dead != 0,
                        config.max_moves, config.seed)


class Manager(_Saved):
    """Decides when experts move, and keeps a valid mapping in force whatever goes wrong.

    Every rank has one of the same configuration and feeds it the same counts (summed over ranks)
    at the same steps. options: the fields of lplb_manager_config (include/lplb/runtime.h) by name:
    interval, min_interval, adopt_lag, max_moves_per_layer, move_rate, move_cost, min_gain, ...

    Hooks, called by `step`; one that raises has failed on this rank, and a warning says why. After
    `stage`, `staged` or `agree` all ranks then keep the mapping; a `commit` that raises changes
    nothing any more, for all ranks have agreed before:
      agree(digest, ok) -> bool      a collective: all ranks ok, with the same digest
      stage(layer, moves)            begin to bring these experts (list of Move) to a staging area
      staged(layer)                  wait until they are there
      commit(layer, row)             use this mapping, int32 [P], from the next batch on
      discard(layer)                 throw the staging area away
      event(event)
      place(request) -> map          in place of `lplb.place`, on the worker's thread: see
                                     PlaceRequest; int [layers][slots], -1 = empty
    """

    _prefix = "manager"

    def __init__(self, layers: int, experts: int, ranks: int, slots: int, *,
                 algorithm: str = "search", topology: str | Array | None = None,
                 mode: str = "adaptive", late: str = "wait", tracker: str = "ewma",
                 tracker_options: dict[str, Any] | None = None,
                 forecaster: dict[str, Any] | None = None, initial: Placement | None = None,
                 slots_per_rank: Sequence[int] | None = None, monitor: Monitor | None = None,
                 agree: Callable[[int, bool], bool] | None = None,
                 stage: Callable[[int, list[Move]], Any] | None = None,
                 staged: Callable[[int], Any] | None = None,
                 commit: Callable[[int, np.ndarray], Any] | None = None,
                 discard: Callable[[int], Any] | None = None,
                 event: Callable[[Event], Any] | None = None,
                 place: Callable[[PlaceRequest], Array] | None = None, **options: Any) -> None:
        _check_options("manager", _ManagerConfig, options, {"struct_size", "hooks"})
        self.layers, self.experts = integer(layers, "layers", 1), integer(experts, "experts", 1)
        self.ranks, self.slots = integer(ranks, "ranks", 1), integer(slots, "slots", 1)
        self._monitor = monitor  # outlives the manager
        self._loads_refused, self._refusing = 0, False
        config = filled(_ManagerConfig, layers=layers, experts=experts, ranks=ranks, slots=slots,
                        mode=_one_of("mode", mode, _MODES), late=_one_of("late", late, _LATE),
                        algorithm=_one_of("algorithm", algorithm, _ALGORITHMS), **options)
        if tracker != "ewma" or tracker_options:
            config.tracker = _tracker_config(layers, experts, tracker, tracker_options or {})
        if forecaster is not None:
            _check_options("forecaster", _ForecasterConfig, forecaster, {"struct_size"})
            season = filled(_ForecasterConfig, struct_size=ctypes.sizeof(_ForecasterConfig),
                            layers=layers, experts=experts, **forecaster)
            config.forecaster = ctypes.addressof(season)
        if initial is not None:
            config.initial = ctypes.cast(expect(initial, Placement, "initial")._handle, c_void_p)
        if slots_per_rank is not None:
            per_rank = as_integers(slots_per_rank, "slots_per_rank", np.int32)
            if per_rank.shape != (ranks,):
                raise c.bad(f"slots_per_rank has shape {per_rank.shape}, must be [{ranks}]")
            config.slots_per_rank = address(per_rank)
        if monitor is not None:
            config.monitor = expect(monitor, Monitor, "monitor")._handle
        self._tracker_samples = config.tracker.samples or 64
        self._tracker_rows = 2 if tracker == "stages" else 1
        # The library calls these as long as the manager lives.
        self._hooks = config.hooks = self._wrap(agree, stage, staged, commit, discard, event, place)
        with _opened_topology(topology, ranks, (slots - experts) // ranks) as table:
            config.topology = table
            self._make(config)

    def _wrap(self, agree: Any, stage: Any, staged: Any, commit: Any, discard: Any, event: Any,
              place: Any) -> _Hooks:
        slots = self.slots

        def guarded(name: str, body: Callable[[], Any], then: str = "") -> int:
            try:
                body()
                return c.OK
            except Exception as error:  # an exception cannot pass through C
                warnings.warn(f"the manager's hook {name} failed: {error!r}{then}", RuntimeWarning,
                              stacklevel=3)
                return error.status if isinstance(error, c.Error) else c.STATE

        def on_agree(_: Any, digest: int, ok: int, all_ok: Any) -> int:
            def body() -> None:
                all_ok[0] = bool(agree(digest, bool(ok)))
            return guarded("agree", body)

        def on_stage(_: Any, layer: int, moves: Any, n: int) -> int:
            return guarded("stage", lambda: stage(layer, [
                Move(m.layer, m.slot, m.expert, m.rank, m.source_rank) for m in moves[:n]]))

        def on_place(_: Any, config: Any, load: Any, samples: int, layers: int, experts: int,
                     weight: Any, out: Any) -> int:
            def body() -> None:
                request = _place_request(config[0], load, samples, layers, experts)
                placed = place(request)
                if not isinstance(placed, Placement):
                    placed = Placement(placed, request.ranks, n_logical_experts=experts,
                                       slots_per_rank=request.slots_per_rank)
                copy = POINTER(c.PlacementStruct)()
                c.check(c.lib().lplb_placement_copy(placed._handle, ctypes.byref(copy)))
                out[0] = copy
            return guarded("place", body)

        hooks = _Hooks()
        if place:
            hooks.place = _PLACE(on_place)
        if agree:
            hooks.agree = _AGREE(on_agree)
        if stage:
            hooks.stage = _STAGE(on_stage)
        if staged:
            hooks.staged = _STAGED(lambda _, layer: guarded("staged", lambda: staged(layer)))
        if commit:
            hooks.commit = _COMMIT(lambda _, layer, row: (guarded(
                "commit", lambda: commit(layer, np.array(row[:slots], np.int32)),
                f"; the mapping of layer {layer} is in force all the same"), None)[1])
        if discard:
            hooks.discard = _DISCARD(lambda _, layer: (guarded(
                "discard", lambda: discard(layer)), None)[1])
        if event:
            hooks.event = _EVENT(lambda _, e: (guarded(
                "event", lambda: event(_event(e[0]))), None)[1])
        return hooks

    def step(self, step: int, counts: Array | None, stage: str = "decode") -> None:
        """After the batch of a step: counts [L][E] summed over ranks; floats are loads; None when
        they are not known. Values out of range (negative, NaN, huge) count as not known: the first
        of a run of such batches is an event and a RuntimeWarning."""
        self._step(step, counts, stage)
        refused = self.stats["loads_refused"]
        refusing, self._loads_refused = refused > self._loads_refused, refused
        if refusing and not self._refusing:
            why = [e.text for e in self.events() if e.kind == "loads_refused"]
            warnings.warn(f"the manager refuses the loads of step {step}: {(why or [''])[-1]}",
                          RuntimeWarning, stacklevel=2)
        self._refusing = refusing

    def _step(self, step: int, counts: Array | None, stage: str) -> None:
        at, step = _one_of("stage", stage, _STAGES), integer(step, "step", *INT64)
        if counts is None:
            c.check(self._call("step", self._handle, step, at, None))
            return
        given = as_numpy(counts)
        if given.dtype.kind == "f":
            given = np.ascontiguousarray(given, dtype=np.float32)
            if given.shape != (self.layers, self.experts):
                raise c.bad(f"loads has shape {given.shape}, must be "
                            f"[{self.layers}][{self.experts}]")
            c.check(self._call("step_real", self._handle, step, at, address(given)))
            return
        values = self._counts(given, (self.layers, self.experts))
        c.check(self._call("step", self._handle, step, at, address(values)))

    def set_dead(self, ranks: Sequence[int]) -> None:
        """Which ranks are dead now. Raises LostExperts, which carries all that is lost, while
        survivors do not cover every expert; with load_lost=1 (and the hook stage, whose moves then
        have source_rank -1) the manager loads them by itself."""
        dead = dead_flags(ranks, self.ranks)
        status = self._call("set_dead", self._handle, address(dead))
        if status == c.INFEASIBLE:
            message = c.last_error(status).message
            raise LostExperts(status, message, *self.lost())
        c.check(status)

    def lost(self) -> tuple[list[Move], int]:
        """While no mapping serves every expert: the experts without a copy, each with the slot and
        rank to load it into (-1 when slots are missing), and the slots missing in a layer (equally
        many in all)."""
        moves, missing = POINTER(c.Move)(), c_int32()
        n = self._call("lost", self._handle, ctypes.byref(moves), ctypes.byref(missing))
        return moves_of(moves, n), missing.value

    def reset(self, placement: Placement) -> None:
        """The host has brought the weights to this mapping by its own means, such as a checkpoint
        loaded anew (`recover` makes one): it is in force, what was under way is dropped. Every rank
        calls it between the same steps."""
        c.check(self._call("reset", self._handle,
                           expect(placement, Placement, "placement")._handle))

    @property
    def placement(self) -> Placement:
        """A copy of the mapping in force. Raises while there is none that serves every expert."""
        handle, copy = POINTER(c.PlacementStruct)(), POINTER(c.PlacementStruct)()
        c.check(self._call("placement", self._handle, ctypes.byref(handle)))
        c.check(c.lib().lplb_placement_copy(handle, ctypes.byref(copy)))
        return Placement._adopt(copy)

    @property
    def tracker(self) -> Tracker:
        """The manager's own, to be read; it is fed by `step`."""
        view = Tracker.__new__(Tracker)
        view.layers, view.experts = self.layers, self.experts
        view._samples, view._rows = self._tracker_samples, self._tracker_rows
        view._owner, view._handle = self, self._call("tracker", self._handle)
        return view

    @property
    def forecaster(self) -> Forecaster | None:
        """The manager's own, to be read; None without one."""
        handle = self._call("forecaster", self._handle)
        if not handle:
            return None
        view = Forecaster.__new__(Forecaster)
        view.layers, view.experts = self.layers, self.experts
        view._owner, view._handle = self, handle
        return view

    @property
    def stats(self) -> dict[str, Any]:
        """The fields of lplb_manager_stats (include/lplb/runtime.h)."""
        out = _ManagerStats()
        self._call("get_stats", self._handle, ctypes.byref(out))
        return _plain(out)

    def events(self) -> list[Event]:
        """The last 256, oldest first."""
        out = (_Event * 256)()
        return [_event(e) for e in out[:self._call("events", self._handle, out, 256)]]


# ---- the monitor ---------------------------------------------------------------------------------


class Monitor(_Handle):
    """Figures of a running balancer: over HTTP (serve=True), as text, JSON and OpenMetrics.

    port 0 = any free one; address None = 127.0.0.1; event_log, trace: files of JSON lines and a
    Chrome trace.
    """

    _prefix = "monitor"

    def __init__(self, ranks: int, *, job: str | None = None, serve: bool = False, port: int = 0,
                 address: str | None = None, event_log: str | os.PathLike[str] | None = None,
                 event_log_bytes: int = 0, trace: str | os.PathLike[str] | None = None,
                 trace_bytes: int = 0) -> None:
        def text(value: Any) -> bytes | None:
            return None if value is None else os.fsencode(value)
        self.ranks = integer(ranks, "ranks", 1)
        self._make(filled(_MonitorConfig, ranks=ranks, job=text(job), serve=serve, port=port,
                          address=text(address), event_log=text(event_log),
                          event_log_bytes=event_log_bytes, trace=text(trace),
                          trace_bytes=trace_bytes))

    @property
    def port(self) -> int:
        """-1 without HTTP"""
        return self._call("port", self._handle)

    def step(self, step: int, loads: Array | None = None, **figures: int) -> None:
        """One step. loads [L][G] or [G]: tokens of each rank, from which imbalance is measured.
        figures: tokens, step_ns, plan_ns, dispatch_ns, comm_ns, comm_bytes, moved_tokens."""
        _check_options("monitor", _StepData, figures, {"step", "rank_load"})
        data = filled(_StepData, step=step, **figures)
        if loads is not None:
            values = np.atleast_2d(as_integers(loads, "loads"))
            if values.ndim != 2 or values.shape[1] != self.ranks:
                raise c.bad(f"loads has shape {values.shape}, must be [layers][{self.ranks}]")
            if values.min(initial=0) < 0:
                raise c.bad(f"loads has {values.min()}, must not be negative", c.RANGE)
            rank_load = np.empty(self.ranks, np.int64)
            self._call("measure", address(values), values.shape[0], self.ranks,
                       address(rank_load), ctypes.byref(data))
        self._call("step", self._handle, ctypes.byref(data))

    def redundant_bytes(self, count: int) -> None:
        """Memory of redundant expert copies on this rank."""
        self._call("redundant_bytes", self._handle, integer(count, "count", *INT64))

    @contextlib.contextmanager
    def range(self, name: str, lane: int = 0) -> Iterator[None]:
        """A named range in the Chrome trace, and for NVTX tools."""
        text, lane = name.encode()[:31], integer(lane, "lane")
        begin = c.lib().lplb_range_begin(text)
        try:
            yield
        finally:
            c.lib().lplb_range_end(self._handle, text, lane, begin)

    def _render(self, kind: int) -> str:
        need, room = c_size_t(), 1 << 16
        while True:
            buffer = ctypes.create_string_buffer(room)
            status = self._call("render", self._handle, kind, buffer, room, ctypes.byref(need))
            if status != c.RANGE:
                c.check(status)
                return buffer.value.decode()
            room = need.value + 4096

    def text(self) -> str:
        """The figures as a table."""
        return self._render(0)

    def summary(self) -> dict[str, Any]:
        """Schema lplb.monitor/1 (docs/formats.md)."""
        return json.loads(self._render(1))

    def openmetrics(self) -> str:
        """What /metrics serves."""
        return self._render(2)

    def close(self) -> None:
        """Ends the files properly. Managers that report here must be gone."""
        self.__del__()


# ---- advice --------------------------------------------------------------------------------------


def advise(load: Array | str | os.PathLike[str], ranks: int, *, slots: int = 0, nodes: int = 1,
           batch_tokens: int = 0, topk: int = 0, most_redundant: int = 0, expert_bytes: int = 0,
           token_ns: float = 0, plan_us: float = 0, seed: int = 0, threads: int = 0
           ) -> dict[str, Any]:
    """How unequal loads are, how many redundant experts pay, which topology, and from which batch
    size on planning every batch is worth its time (`lplb advise`, lplb_advice in lplb/advise.h).

    load: a file that `lplb` reads, or counts [L][E] or [steps][L][E].
    """
    config = filled(_AdviseConfig, struct_size=ctypes.sizeof(_AdviseConfig), ranks=ranks,
                    slots=slots, nodes=nodes, batch_tokens=batch_tokens, topk=topk,
                    most_redundant=most_redundant, expert_bytes=expert_bytes, token_ns=token_ns,
                    plan_us=plan_us, seed=seed, threads=threads)
    advice = _Advice()
    if isinstance(load, (str, os.PathLike)):
        handle = POINTER(c.Trace)()
        c.check(c.lib().lplb_trace_read(os.fsencode(load), None, ctypes.byref(handle)))
        try:
            c.check(c.lib().lplb_advise(handle, ctypes.byref(config), ctypes.byref(advice)))
        finally:
            c.lib().lplb_trace_destroy(handle)
    else:
        counts = as_integers(load, "load")
        counts = counts[None] if counts.ndim == 2 else counts
        if counts.ndim != 3 or counts.size == 0:
            raise c.bad(f"load has shape {counts.shape}, must be [layers][experts] or "
                        "[steps][layers][experts]")
        layer_id = np.arange(counts.shape[1], dtype=np.int32)
        trace = c.Trace(kind=1, steps=counts.shape[0], layers=counts.shape[1],
                        experts=counts.shape[2], counts=address(counts),
                        layer_id=address(layer_id), source=b"counts")
        c.check(c.lib().lplb_advise(ctypes.byref(trace), ctypes.byref(config),
                                        ctypes.byref(advice)))
    return _advice(advice)


def _advice(a: _Advice) -> dict[str, Any]:
    out = {name: getattr(a, name) for name, kind in _Advice._fields_
           if kind in (c_int32, c_double)
           and name not in ("points", "topologies", "group_counts", "batches")}
    out["measures"] = _plain(a.measures)
    out["point"] = [_plain(p) for p in a.point[:a.points]]
    out["group"] = [_plain(g) for g in a.group[:a.group_counts]]
    out["topology"] = [{"name": t.name.decode(), "redundant": t.redundant, "exact": t.exact}
                       for t in a.topology[:a.topologies]]
    out["batch"] = [_plain(b) for b in a.batch[:a.batches]]
    return out
