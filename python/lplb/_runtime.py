"""Structs and functions of the C interface that runtime.py calls, in the order of include/lplb."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t
from ctypes import c_uint64, c_void_p

from . import _library as c


class _TrackerConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("kind", c_int), ("layers", c_int32),
                ("experts", c_int32), ("window", c_int32), ("alpha", c_double),
                ("prefill_alpha", c_double), ("decode_alpha", c_double), ("samples", c_int32)]


class _TrackerStats(ctypes.Structure):
    _fields_ = [("batches", c_int64), ("stage", c_int64 * 2), ("zero", c_int64),
                ("dummy", c_int64), ("missing", c_int64), ("zero_layers", c_int64),
                ("refused", c_int64)]


class _ForecasterConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("layers", c_int32), ("experts", c_int32),
                ("block", c_int32), ("period", c_int32), ("level", c_double), ("trend", c_double),
                ("season", c_double), ("damping", c_double)]


class _Event(ctypes.Structure):
    _fields_ = [("step", c_int64), ("kind", c_int), ("status", c_int), ("layer", c_int32),
                ("rank", c_int32), ("layers", c_int64), ("moves", c_int64), ("before", c_double),
                ("after", c_double), ("text", c_char * 200)]


_AGREE = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, c_int32, POINTER(c_int32))
_STAGE = ctypes.CFUNCTYPE(c_int, c_void_p, c_int32, POINTER(c.Move), c_int64)
_STAGED = ctypes.CFUNCTYPE(c_int, c_void_p, c_int32)
_COMMIT = ctypes.CFUNCTYPE(None, c_void_p, c_int32, POINTER(c_int32))
_DISCARD = ctypes.CFUNCTYPE(None, c_void_p, c_int32)
_EVENT = ctypes.CFUNCTYPE(None, c_void_p, POINTER(_Event))
_PLACE = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c.PlaceConfig), POINTER(c_int64), c_int64,
                          c_int32, c_int32, POINTER(c_double),
                          POINTER(POINTER(c.PlacementStruct)))


class _Hooks(ctypes.Structure):
    _fields_ = [("user", c_void_p), ("agree", _AGREE), ("stage", _STAGE), ("staged", _STAGED),
                ("commit", _COMMIT), ("discard", _DISCARD), ("event", _EVENT),
                ("place", _PLACE)]


class _ManagerConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("layers", c_int32), ("experts", c_int32),
                ("ranks", c_int32), ("slots", c_int32), ("slots_per_rank", c_void_p),
                ("nodes", c_int32), ("groups", c_int32), ("initial", c_void_p),
                ("tracker", _TrackerConfig), ("forecaster", c_void_p), ("mode", c_int),
                ("interval", c_int64), ("min_interval", c_int64), ("max_interval", c_int64),
                ("shorter_above", c_double), ("longer_below", c_double), ("adopt_lag", c_int64),
                ("step_ns", c_double), ("late", c_int32), ("algorithm", c_int),
                ("topology", POINTER(c.Topology)), ("even_split", c_int32), ("work", c_int64),
                ("effort", c_int32),
                ("max_moves_per_layer", c_int64), ("max_moves", c_int64), ("move_rate", c_double),
                ("move_cost", c_double), ("keep_below", c_double), ("min_gain", c_double),
                ("always", c_int32), ("seed", c_uint64), ("expert_bytes", c_int64),
                ("link_bytes_per_s", c_double), ("token_ns", c_double), ("exposed", c_double),
                ("hysteresis", c_double), ("layers_per_chunk", c_int32),
                ("moves_per_chunk", c_int64), ("move_lag", c_int64), ("load_lost", c_int32),
                ("synchronous", c_int32), ("threads", c_int32), ("worker_timeout_s", c_double),
                ("hooks", _Hooks), ("monitor", c_void_p)]


class _ManagerStats(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in
                ("steps", "requests", "skipped", "refused", "adopted", "layers_switched", "moves",
                 "moved_bytes", "loaded", "move_failures", "worker_failures", "fallbacks",
                 "recoveries", "loads_refused", "interval", "place_ns", "wait_ns", "waits",
                 "longest_wait_ns", "postponed", "adopt_lag")]
    _fields_ += [("dead_ranks", c_int32), ("usable", c_int32), ("pending", c_int32),
                 ("variance", c_double), ("balance_loss", c_double),
                 ("predicted_before", c_double), ("predicted_after", c_double)]


class _MonitorConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("ranks", c_int32), ("job", c_char_p),
                ("serve", c_int32), ("port", c_int32), ("address", c_char_p),
                ("event_log", c_char_p), ("event_log_bytes", c_int64), ("trace", c_char_p),
                ("trace_bytes", c_int64)]


class _StepData(ctypes.Structure):
    _fields_ = [("step", c_int64), ("tokens", c_int64), ("step_ns", c_int64), ("plan_ns", c_int64),
                ("dispatch_ns", c_int64), ("comm_ns", c_int64), ("comm_bytes", c_int64),
                ("moved_tokens", c_int64), ("imbalance", c_double), ("worst_imbalance", c_double),
                ("rank_load", c_void_p)]


class _AdviseConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("ranks", c_int32), ("slots", c_int32),
                ("nodes", c_int32), ("batch_tokens", c_int64), ("topk", c_int32),
                ("most_redundant", c_int32),
                ("expert_bytes", c_int64), ("token_ns", c_double), ("plan_us", c_double),
                ("seed", c_uint64), ("threads", c_int32)]


class _Measures(ctypes.Structure):
    _fields_ = [(name, c_double) for name in ("cv", "worst_cv", "hottest", "worst_hottest",
                                              "contiguous", "worst_contiguous")]
    _fields_ += [("layers", c_int32)]


class _Point(ctypes.Structure):
    _fields_ = [("redundant", c_int32), ("slots", c_int32), ("even", c_double),
                ("exact", c_double), ("bytes", c_int64)]


class _TopologyAdvice(ctypes.Structure):
    _fields_ = [("name", c_char * 40), ("redundant", c_int32), ("exact", c_double)]


class _GroupsAdvice(ctypes.Structure):
    _fields_ = [("groups", c_int32), ("even", c_double), ("exact", c_double)]


class _BatchAdvice(ctypes.Structure):
    _fields_ = [("tokens", c_int64), ("even", c_double), ("exact", c_double),
                ("gain_us", c_double)]


class _Advice(ctypes.Structure):
    _fields_ = [("measures", _Measures), ("experts", c_int32), ("layers", c_int32),
                ("ranks", c_int32), ("held_out", c_int32), ("rule_groups", c_int32),
                ("rule_redundant", c_int32), ("points", c_int32), ("knee", c_int32),
                ("point", _Point * 17), ("topologies", c_int32),
                ("topology", _TopologyAdvice * 8), ("topology_pays", c_int32),
                ("group_counts", c_int32), ("group", _GroupsAdvice * 8), ("plan_us", c_double),
                ("plan_measured", c_int32), ("batches", c_int32), ("batch", _BatchAdvice * 10),
                ("break_even_tokens", c_double)]


_P, _I32, _I64 = c_void_p, c_int32, c_int64
c.PROTOTYPES.update({
    "lplb_tracker_create": (c_int, POINTER(_TrackerConfig), _P),
    "lplb_tracker_destroy": (None, _P),
    "lplb_tracker_update": (c_int, _P, c_int, _P),
    "lplb_tracker_update_real": (c_int, _P, c_int, _P),
    "lplb_tracker_update_pairs": (c_int, _P, c_int, _P, _P, _P),
    "lplb_tracker_mark": (c_int, _P, c_int),
    "lplb_tracker_get_stats": (None, _P, POINTER(_TrackerStats)),
    "lplb_tracker_mean": (c_int, _P, c_int, _P),
    "lplb_tracker_variance": (c_int, _P, c_int, _P),
    "lplb_tracker_counts": (c_int, _P, c_int, c_double, _P),
    "lplb_tracker_samples": (c_int, _P, c_int, _I64, _P, POINTER(c_int64)),
    "lplb_tracker_covariance": (c_int, _P, c_int, _I32, _I32, _P, POINTER(c_int32)),
    "lplb_tracker_save_bytes": (c_size_t, _P),
    "lplb_tracker_save": (c_int, _P, _P, c_size_t),
    "lplb_tracker_restore": (c_int, _P, _P, c_size_t),
    "lplb_forecaster_create": (c_int, POINTER(_ForecasterConfig), _P),
    "lplb_forecaster_destroy": (None, _P),
    "lplb_forecaster_update": (c_int, _P, _P),
    "lplb_forecaster_predict": (c_int, _P, _P, _P),
    "lplb_forecaster_error": (c_int, _P, _I32, POINTER(c_double), POINTER(c_double)),
    "lplb_forecaster_save_bytes": (c_size_t, _P),
    "lplb_forecaster_save": (c_int, _P, _P, c_size_t),
    "lplb_forecaster_restore": (c_int, _P, _P, c_size_t),
    "lplb_event_name": (c_char_p, c_int),
    "lplb_manager_create": (c_int, POINTER(_ManagerConfig), _P),
    "lplb_manager_destroy": (None, _P),
    "lplb_manager_step": (c_int, _P, _I64, c_int, _P),
    "lplb_manager_step_real": (c_int, _P, _I64, c_int, _P),
    "lplb_manager_set_dead": (c_int, _P, _P),
    "lplb_manager_lost": (_I64, _P, POINTER(POINTER(c.Move)), POINTER(c_int32)),
    "lplb_manager_tracker": (_P, _P),
    "lplb_manager_forecaster": (_P, _P),
    "lplb_manager_reset": (c_int, _P, POINTER(c.PlacementStruct)),
    "lplb_manager_placement": (c_int, _P, POINTER(POINTER(c.PlacementStruct))),
    "lplb_manager_get_stats": (None, _P, POINTER(_ManagerStats)),
    "lplb_manager_events": (_I64, _P, POINTER(_Event), _I64),
    "lplb_manager_save_bytes": (c_size_t, _P),
    "lplb_manager_save": (c_int, _P, _P, c_size_t),
    "lplb_manager_restore": (c_int, _P, _P, c_size_t),
    "lplb_monitor_create": (c_int, POINTER(_MonitorConfig), _P),
    "lplb_monitor_destroy": (None, _P),
    "lplb_monitor_port": (_I32, _P),
    "lplb_monitor_step": (None, _P, POINTER(_StepData)),
    "lplb_monitor_measure": (None, _P, _I32, _I32, _P, POINTER(_StepData)),
    "lplb_monitor_redundant_bytes": (None, _P, _I64),
    "lplb_monitor_render": (c_int, _P, c_int, _P, c_size_t, POINTER(c_size_t)),
    "lplb_range_begin": (_I64, c_char_p),
    "lplb_range_end": (None, _P, c_char_p, _I32, _I64),
    "lplb_trace_read": (c_int, c_char_p, _P, POINTER(POINTER(c.Trace))),
    "lplb_trace_destroy": (None, POINTER(c.Trace)),
    "lplb_advise": (c_int, POINTER(c.Trace), POINTER(_AdviseConfig), POINTER(_Advice)),
})
