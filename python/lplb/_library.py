"""The C library behind the package: where it is, what its functions take, how they fail."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t
from ctypes import c_uint64, c_void_p
from pathlib import Path
from typing import Any, Iterator

__version__ = "0.1.0"

# Values of lplb_status in include/lplb/status.h.
OK, INVALID, RANGE, OVERFLOW, NO_MEMORY, IO, FORMAT, UNSUPPORTED = 0, -1, -2, -3, -4, -5, -6, -7
INFEASIBLE, NOT_CONVERGED, STATE, TIMEOUT, DISAGREE, REMOTE = -8, -9, -10, -11, -12, -13
DEVICE, CHECK_FAILED, INTERNAL = -14, -15, -16


class Error(Exception):
    """A failure of the library.

    status: the lplb_status code (negative); name: its name, such as "LPLB_RANGE"; message: what was
    wrong and what to do about it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def name(self) -> str:
        """Of the status, such as "LPLB_RANGE"."""
        return lib().lplb_status_name(self.status).decode()

    def __reduce__(self):
        return type(self), (self.status, self.message)


class InputError(Error, ValueError):
    """Bad input: an argument, a file or a combination of options."""


_BAD_INPUT = {INVALID, RANGE, OVERFLOW, FORMAT, UNSUPPORTED, INFEASIBLE}


def error_of(status: int, message: str) -> Error:
    return (InputError if status in _BAD_INPUT else Error)(status, message)


def bad(message: str, status: int = INVALID) -> InputError:
    """An error that this package finds itself."""
    return InputError(status, message)


# ---- structs of the C interface ----------------------------------------------------------------


class Hosts(ctypes.Structure):
    _fields_ = [("ranks", c_int32), ("experts", c_int32), ("offset", c_void_p), ("rank", c_void_p)]


class IpmOptions(ctypes.Structure):
    _fields_ = [("iterations", c_int32), ("tolerance", c_double), ("step", c_double),
                ("published", c_int32)]


class PlanConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("hosts", Hosts), ("speed", c_void_p),
                ("node", c_void_p), ("solver", c_int), ("objective", c_int), ("cost", c_void_p),
                ("cost_entries", c_int64), ("tile", c_int64), ("activation", c_int64),
                ("tolerance", c_double), ("ipm", IpmOptions)]


class PlanInput(ctypes.Structure):
    _fields_ = [("tokens", c_void_p), ("fixed", c_void_p), ("sources", c_void_p)]


class PlanResult(ctypes.Structure):
    _fields_ = [("split", c_void_p), ("loads", c_void_p), ("certificate", c_void_p),
                ("outcome", c_int), ("max_load", c_int64), ("objective", c_double),
                ("bound", c_double), ("sweeps", c_int32), ("augmentations", c_int32),
                ("restarts", c_int32), ("rejected", c_int32), ("ipm_gap", c_double)]


class Fraction(ctypes.Structure):
    _fields_ = [("numerator", c_int64), ("denominator", c_int64)]


class Bound(ctypes.Structure):
    _fields_ = [("fractional", Fraction), ("integer", Fraction), ("integer_bound", c_int64),
                ("bottleneck_tokens", c_int64), ("bottleneck_ranks", c_int32)]


class PlacementStruct(ctypes.Structure):
    _fields_ = [("layers", c_int32), ("experts", c_int32), ("slots", c_int32), ("ranks", c_int32),
                ("rank_offset", c_void_p), ("physical_to_logical", c_void_p)]


class Move(ctypes.Structure):
    _fields_ = [("layer", c_int32), ("slot", c_int32), ("expert", c_int32), ("rank", c_int32),
                ("source_rank", c_int32)]


class PlaceConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("algorithm", c_int), ("ranks", c_int32),
                ("slots", c_int32), ("slots_per_rank", c_void_p), ("nodes", c_int32),
                ("groups", c_int32), ("topology", c_void_p), ("from_", c_void_p),
                ("max_moves", c_int64), ("dead_ranks", c_void_p), ("speed", c_void_p),
                ("batch_tokens", c_int64), ("topk", c_int32), ("seed", c_uint64),
                ("effort", c_int32), ("threads", c_int32), ("exact_split", c_int32),
                ("samples_as_are", c_int32), ("move_cost", c_double), ("work", c_int64)]


class Topology(ctypes.Structure):
    _fields_ = [("group_size", c_int32), ("redundant", c_int32), ("r2o", c_void_p)]


class Trace(ctypes.Structure):
    _fields_ = [("kind", c_int), ("layers", c_int32), ("experts", c_int32), ("topk", c_int32),
                ("tokens", c_int64), ("steps", c_int64), ("topk_ids", c_void_p),
                ("counts", c_void_p), ("sequences", c_int64), ("sequence_start", c_void_p),
                ("layer_id", c_void_p), ("source", c_char_p)]


ALL_GATHER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p,
                              c_size_t)
DESTROY = ctypes.CFUNCTYPE(None, c_void_p)
INTERRUPT = ctypes.CFUNCTYPE(c_int32)


class Transport(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("name", c_char_p), ("rank", c_int32),
                ("ranks", c_int32), ("max_bytes", c_int64), ("state", c_void_p),
                ("all_gather", ALL_GATHER), ("destroy", DESTROY)]


# ---- functions: name -> (result, argument types...) ---------------------------------------------

_pointer, _i32, _i64 = c_void_p, c_int32, c_int64
PROTOTYPES = {
    "lplb_status_name": (c_char_p, c_int),
    "lplb_status_text": (c_char_p, c_int),
    "lplb_error_message": (c_char_p,),
    "lplb_version": (c_char_p,),
    "lplb_count_experts": (c_int, _pointer, c_int, _i64, _i32, _i32, _pointer),
    "lplb_dispatcher_create": (c_int, _pointer, _i32, _i32, _pointer, _pointer, _i32, _pointer),
    "lplb_dispatcher_destroy": (None, _pointer),
    "lplb_dispatcher_hosts": (POINTER(Hosts), _pointer),
    "lplb_dispatch_count": (c_int, _pointer, _pointer, c_int, _i64, _pointer),
    "lplb_dispatch_prepare": (c_int, _pointer, _pointer, _pointer, _i32, _i32),
    "lplb_dispatch_prepare_ratio": (c_int, _pointer, _pointer, _pointer, _i32),
    "lplb_dispatch_map": (c_int, _pointer, _pointer, c_int, _i64, _pointer, c_int),
    "lplb_plan_parse_solver": (c_int, c_char_p, POINTER(PlanConfig), POINTER(c_int32)),
    "lplb_planner_create": (c_int, POINTER(PlanConfig), _pointer),
    "lplb_planner_destroy": (None, _pointer),
    "lplb_plan_solve": (c_int, _pointer, POINTER(PlanInput), POINTER(PlanResult)),
    "lplb_plan_bound": (c_int, POINTER(Hosts), _pointer, POINTER(PlanInput), POINTER(Bound),
                        _pointer),
    "lplb_plan_check": (c_int, POINTER(Hosts), _pointer, POINTER(PlanInput), POINTER(PlanResult)),
    "lplb_solver_name": (c_char_p, c_int),
    "lplb_outcome_name": (c_char_p, c_int),
    "lplb_placement_create": (c_int, _i32, _i32, _i32, _i32, _pointer,
                              POINTER(POINTER(PlacementStruct))),
    "lplb_placement_destroy": (None, POINTER(PlacementStruct)),
    "lplb_placement_validate": (c_int, POINTER(PlacementStruct)),
    "lplb_placement_replica_count": (_i32, POINTER(PlacementStruct), _pointer),
    "lplb_placement_logical_to_physical": (c_int, POINTER(PlacementStruct), _i32, _pointer),
    "lplb_placement_moves": (c_int, POINTER(PlacementStruct), POINTER(PlacementStruct), _pointer,
                             _i64, POINTER(c_int64)),
    "lplb_placement_imbalance": (c_int, POINTER(PlacementStruct), _pointer, _i64, c_int, _i32,
                                 _pointer),
    "lplb_placement_read": (c_int, c_char_p, _i32, POINTER(POINTER(PlacementStruct))),
    "lplb_placement_write": (c_int, POINTER(PlacementStruct), c_int, c_char_p),
    "lplb_place": (c_int, POINTER(PlaceConfig), _pointer, _i64, _i32, _i32, _pointer,
                   POINTER(POINTER(PlacementStruct))),
    "lplb_eplb_balanced_packing": (c_int, _pointer, _i32, _i32, _i32, _pointer, _pointer),
    "lplb_eplb_replicate_experts": (c_int, _pointer, _i32, _i32, _i32, _pointer, _pointer,
                                    _pointer),
    "lplb_eplb_rebalance_experts": (c_int, _pointer, _i32, _i32, _i32, _i32, _i32, _i32, _pointer,
                                    _pointer, _pointer),
    "lplb_topology_create": (c_int, c_char_p, _i32, _i32, POINTER(POINTER(Topology))),
    "lplb_topology_from_r2o": (c_int, _pointer, _i32, _i32, POINTER(POINTER(Topology))),
    "lplb_topology_destroy": (None, POINTER(Topology)),
    "lplb_trace_write": (c_int, POINTER(Trace), c_char_p),
    "lplb_comm_create": (c_int, POINTER(Transport), _i64, _pointer),
    "lplb_comm_create_local": (c_int, _pointer),
    "lplb_comm_create_shm": (c_int, c_char_p, _i32, _i32, _i64, _i64, _pointer),
    "lplb_comm_destroy": (None, _pointer),
    "lplb_comm_set_interrupt": (None, INTERRUPT),
    "lplb_comm_rank": (_i32, _pointer),
    "lplb_comm_ranks": (_i32, _pointer),
    "lplb_comm_transport_name": (c_char_p, _pointer),
    "lplb_comm_state": (c_int, _pointer),
    "lplb_comm_all_gather": (c_int, _pointer, _pointer, _pointer, _i64),
    "lplb_comm_gather_counts": (c_int, _pointer, c_uint64, _pointer, _i32, _pointer),
    "lplb_comm_agree": (c_int, _pointer, _pointer, _pointer, _i32),
}


# ---- finding and loading ------------------------------------------------------------------------

SONAME = "liblplb.so.0"


def _candidates() -> Iterator[Path]:
    """Places of the library, best first: LPLB_LIBRARY, the wheel, a build folder beside the source.

    LPLB_LIBRARY names the file or the folder; when it is set nothing else is tried.
    """
    named = os.environ.get("LPLB_LIBRARY")
    if named:
        path = Path(named)
        if not path.exists():
            raise Error(IO, f"LPLB_LIBRARY names {named}, which does not exist")
        yield from ([path / SONAME, path / "liblplb.so"] if path.is_dir() else [path])
        return
    import lplb

    for folder in lplb.__path__:
        yield Path(folder) / SONAME
    yield Path(__file__).resolve().parents[2] / "build" / SONAME


def find_library() -> str:
    for path in _candidates():
        if path.is_file():
            return str(path)
    if os.environ.get("LPLB_LIBRARY"):
        raise Error(IO, f"there is no {SONAME} in LPLB_LIBRARY={os.environ['LPLB_LIBRARY']}")
    return SONAME  # an installed one, found by the loader


class Library:
    """The loaded library. Its functions are bound when they are first used."""

    def __init__(self, path: str, prototypes: dict[str, tuple] | None = None) -> None:
        self.path = path
        self._prototypes = PROTOTYPES if prototypes is None else prototypes
        try:
            self._dll = ctypes.CDLL(path)
        except OSError as error:
            raise Error(IO, f"cannot load the library {path} ({error}): install the package "
                            "(pip install .), build it (make build), or name it in LPLB_LIBRARY"
                        ) from None

    def __getattr__(self, name: str) -> Any:
        prototype = self.__dict__.get("_prototypes", {}).get(name)
        if prototype is None:
            raise AttributeError(name)
        try:
            function = getattr(self._dll, name)
        except AttributeError:
            raise Error(UNSUPPORTED, f"{self.path} has no {name}: it is older than this package; "
                                     "build and install both together") from None
        function.restype, function.argtypes = prototype[0], prototype[1:]
        setattr(self, name, function)
        return function


_library: Library | None = None


def lib() -> Library:
    global _library
    if _library is None:
        loaded = Library(find_library())
        version = loaded.lplb_version().decode()
        if version.split(".")[:2] != __version__.split(".")[:2]:
            raise Error(UNSUPPORTED, f"{loaded.path} has version {version}, this package "
                                     f"{__version__}: install both together")
        _library = loaded
    return _library


def last_error(status: int) -> Error:
    return error_of(status, lib().lplb_error_message().decode(errors="replace"))


def check(status: int) -> None:
    if status != OK:
        raise last_error(status)
