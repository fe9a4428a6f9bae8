"""One layer's step on a GPU: one launch on the current stream, fit for graph capture.

Only torch tensors reach this module; other arrays become tensors without a copy through
torch.from_dlpack.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t
from ctypes import c_uint64, c_void_p
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from . import _library as c
from ._arrays import INT32, INT64, Ids, address, check_counter
from .placement import Placement
from .plan import parse_solver

SONAME = "liblplb_cuda.so.0"


class Config(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("device", c_int32), ("placement", c_void_p),
                ("layer", c_int32), ("speed", c_void_p), ("sources", c_int32),
                ("source_rank", c_void_p), ("node", c_void_p), ("solver", c_int),
                ("ipm", c.IpmOptions), ("tolerance", c_double), ("reuse", c_double),
                ("locality", c_int32), ("max_ids", c_int64), ("n_sms", c_int32),
                ("comm", c_void_p)]


class IdsStruct(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("ids", c_void_p), ("ids_dtype", c_int),
                ("out", c_void_p), ("out_dtype", c_int), ("n", c_int64), ("n_device", c_void_p),
                ("topk", c_int32), ("source", c_int32)]


class Problem(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("source_counts", c_void_p), ("own_counts", c_void_p),
                ("fixed", c_void_p), ("counts", c_void_p), ("split", c_void_p),
                ("loads", c_void_p), ("share", c_void_p), ("gathered", c_void_p),
                ("counter", c_void_p), ("counter_dtype", c_int), ("counter_add", c_int32)]


GATHER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int64, c_void_p)
ABORT = ctypes.CFUNCTYPE(None, c_void_p)


class CommConfig(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("device", c_int32), ("rank", c_int32),
                ("ranks", c_int32), ("experts", c_int32), ("transport", c_int),
                ("ranks_per_node", c_int32), ("timeout_ns", c_int64), ("exchange", c_void_p),
                ("state", c_void_p), ("all_gather", GATHER), ("abort", ABORT),
                ("gather_state", c_void_p)]


class Report(ctypes.Structure):
    _fields_ = [("error", c_uint64), ("steps", c_uint64), ("outcome", c_int32),
                ("reused", c_int32), ("sweeps", c_int32), ("augmentations", c_int32),
                ("restarts", c_int32), ("unused", c_int32), ("max_load", c_int64),
                ("bound_numerator", c_int64), ("bound_denominator", c_int64),
                ("ipm_objective", c_double), ("ipm_bound", c_double),
                ("reserved", c_int64 * 6)]


_stream = c_void_p
PROTOTYPES = {
    "lplb_error_message": (c_char_p,),
    "lplb_cuda_planner_create": (c_int, POINTER(Config), c_void_p),
    "lplb_cuda_planner_destroy": (None, c_void_p),
    "lplb_cuda_planner_bytes": (c_int64, c_void_p),
    "lplb_cuda_planner_update": (c_int, c_void_p, c_void_p, c_int32, _stream),
    "lplb_cuda_run": (c_int, c_void_p, c_void_p, c_void_p, _stream),
    "lplb_cuda_solve": (c_int, c_void_p, c_void_p, _stream),
    "lplb_cuda_map_shares": (c_int, c_void_p, c_void_p, c_void_p, _stream),
    "lplb_cuda_report_read": (c_int, c_void_p, _stream, POINTER(Report)),
    "lplb_cuda_report_status": (c_int, POINTER(Report)),
    "lplb_cuda_report_clear": (c_int, c_void_p, _stream),
    "lplb_cuda_comm_create": (c_int, POINTER(CommConfig), c_void_p),
    "lplb_cuda_comm_destroy": (None, c_void_p),
    "lplb_cuda_comm_transport": (c_int, c_void_p),
    "lplb_cuda_comm_agree": (c_int, c_void_p, c_void_p),
    "lplb_cuda_comm_state": (c_int, c_void_p),
}

# Values of lplb_cuda_transport; "torch" is an all-gather of our own to the library.
TRANSPORTS = ("auto", "p2p", "nccl", "hierarchical", "nvshmem", "torch")


def find_library() -> str | None:
    """The GPU library: LPLB_CUDA_LIBRARY, or beside liblplb."""
    named = os.environ.get("LPLB_CUDA_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise c.Error(c.IO, f"LPLB_CUDA_LIBRARY names {named}, which does not exist")
        return named
    folder = Path(c.lib().path).parent
    for name in (SONAME, "liblplb_cuda.so"):
        if (folder / name).is_file():
            return str(folder / name)
    return None


_loaded: c.Library | None = None


def lib() -> c.Library:
    global _loaded
    if _loaded is None:
        path = find_library()
        if path is None:
            raise c.bad(f"GPU tensors need liblplb_cuda, which is not beside {c.lib().path}: "
                        "build and install where nvcc is, or give CPU tensors", c.UNSUPPORTED)
        _loaded = c.Library(path, PROTOTYPES)
    return _loaded


def check(status: int) -> None:
    if status:
        raise c.error_of(status, lib().lplb_error_message().decode(errors="replace"))


def current_stream(device: int) -> int:
    """The current stream of torch on a device, as a cudaStream_t."""
    global _raw_stream
    if _raw_stream is None:
        import torch

        # The public way makes two objects, which takes longer than a launch.
        _raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None) or (
            lambda index: torch.cuda.current_stream(index).cuda_stream)
    return _raw_stream(device)


_raw_stream: Any = None


def check_group(group: Any) -> None:
    """Refuses a group whose collectives do not take GPU tensors."""
    if group is None:
        return
    import torch

    backend = str(torch.distributed.get_backend(group))
    if backend in ("gloo", "mpi"):
        raise c.bad(f"the group has the backend {backend}, which does not gather GPU tensors on "
                    "the stream: give a group with nccl", c.UNSUPPORTED)


def _tensor_device(index: int) -> Any:
    import torch

    return torch.device("cuda", index)


class DeviceComm:
    """Ranks whose steps share counts on the GPU; made by all of them together.

    comm: a `Communicator`, by which the ranks find each other. transport: one of TRANSPORTS.
    ranks_per_node: 0 = by host. group: for "torch", a torch.distributed group of these ranks.
    """

    def __init__(self, comm: Any, device: int, experts: int, transport: str, ranks_per_node: int,
                 timeout: float, group: Any = None) -> None:
        self.lib = lib()
        self.ranks, self.rank = comm.size(), comm.rank()
        self.agreed = False  # by the planners of the ranks' first steps
        self._comm = comm  # its handle is used by the library
        self._gather = None
        gather = c.lib().lplb_comm_all_gather
        config = CommConfig(
            struct_size=ctypes.sizeof(CommConfig), device=device, rank=self.rank, ranks=self.ranks,
            experts=experts, transport=TRANSPORTS.index(transport), ranks_per_node=ranks_per_node,
            timeout_ns=int(timeout * 1e9), exchange=ctypes.cast(gather, c_void_p),
            state=comm._handle)
        if transport == "torch":
            self._gather = GroupGather(group, device, timeout)
            config.all_gather, config.abort = self._gather.callbacks
        elif transport == "nvshmem":
            name_nvshmem()
        handle = c_void_p()
        status = self.lib.lplb_cuda_comm_create(ctypes.byref(config), ctypes.byref(handle))
        if status and self._gather is not None and self._gather.errors:
            raise self._gather.errors.pop()
        check(status)
        self.handle = handle
        # The callbacks must live as long as the library may call them.
        weakref.finalize(self, _destroy_comm, self.lib, handle, self._gather)

    @property
    def transport(self) -> str:
        number = self.lib.lplb_cuda_comm_transport(self.handle)
        return TRANSPORTS[number]

    def meet(self, data: bytes) -> None:
        """Takes part in an exchange of the ranks' hosts, whatever comes of it."""
        with contextlib.suppress(c.Error):
            self._comm.all_gather(data)

    @property
    def alive(self) -> bool:
        return self.lib.lplb_cuda_comm_state(self.handle) == c.OK


def _destroy_comm(library: c.Library, handle: c_void_p, _gather: Any) -> None:
    library.lplb_cuda_comm_destroy(handle)


def name_nvshmem() -> None:
    """Where pip puts NVSHMEM the loader does not look: LPLB_NVSHMEM_LIBRARY, unless it is set."""
    if "LPLB_NVSHMEM_LIBRARY" in os.environ:
        return
    import importlib.util

    try:
        found = importlib.util.find_spec("nvidia.nvshmem")
    except ImportError:
        return
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "lib" / "libnvshmem_host.so.3"
        if path.is_file():
            os.environ["LPLB_NVSHMEM_LIBRARY"] = str(path)
            return


# ---- a torch.distributed group as the library's all-gather ---------------------------------------

_groups: dict[tuple[int, ...], Any] = {}  # ranks -> the group that is ours alone


def own_group(group: Any, timeout: float) -> Any:
    """A group of the same ranks that may be aborted without harm to the caller's; one for all
    planners. torch's own watchdog ends the process, so ours has to come first."""
    import datetime

    import torch

    ranks = tuple(torch.distributed.get_process_group_ranks(group))
    if ranks not in _groups:
        _groups[ranks] = torch.distributed.new_group(
            list(ranks), backend="nccl", use_local_synchronization=True,
            timeout=datetime.timedelta(seconds=10 * timeout + 600))
    return _groups[ranks]


def forget_groups() -> None:
    """Before all ranks connect anew: groups that were aborted on any of them are of no use."""
    _groups.clear()


def abort_group(group: Any, device: int) -> None:
    backend = group._get_backend(_tensor_device(device))
    (getattr(backend, "abort", None) or backend._shutdown)()


def check_abort(group: Any, device: int) -> None:
    backend = group._get_backend(_tensor_device(device))
    if not (hasattr(backend, "abort") or hasattr(backend, "_shutdown")):
        raise c.bad("this version of torch cannot abort a group, which a rank that is gone needs: "
                    "use the transport nccl", c.UNSUPPORTED)


def tensor_at(address_: int, count: int, device: int) -> Any:
    """int64 [count] at a device address."""
    import torch

    class Memory:
        __cuda_array_interface__ = {"shape": (count,), "typestr": "<i8", "version": 3,
                                    "data": (address_, False)}

    return torch.as_tensor(Memory(), device=_tensor_device(device))


def on_stream(stream: int | None, device: int) -> Any:
    """A context in which torch works on this cudaStream_t."""
    import torch

    if (stream or 0) == current_stream(device):
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.ExternalStream(stream or 0, device=_tensor_device(device)))


class GroupGather:
    """all_gather_into_tensor of a group, as the library calls it."""

    def __init__(self, group: Any, device: int, timeout: float) -> None:
        self.group, self.device = own_group(group, timeout), device
        check_abort(self.group, device)
        self.errors: list[Exception] = []
        self._tensors: tuple[Any, Any] | None = None
        self.callbacks = GATHER(self._all_gather), ABORT(self._abort)

    def _all_gather(self, _state: Any, send: int, receive: int, n_bytes: int,
                    stream: int | None) -> int:
        try:
            import torch

            if self._tensors is None:  # the library's buffers stay where they are
                words = n_bytes // 8
                self._tensors = (tensor_at(receive, words * self.group.size(), self.device),
                                 tensor_at(send, words, self.device))
            with on_stream(stream, self.device):
                torch.distributed.all_gather_into_tensor(*self._tensors, group=self.group)
            return c.OK
        except Exception as error:  # nothing may pass through C
            self.errors.append(error)
            return c.REMOTE

    def _abort(self, _state: Any) -> None:
        try:
            abort_group(self.group, self.device)
        except Exception as error:
            self.errors.append(error)


class Step:
    """Balances one layer's ids for one source of S on one device.

    comm: ranks that share counts inside the step. None: one source. counts: int64 [E] of the last
    batch, of all sources, and, if wanted, split: int64 [P], its plan by (expert, host), zeros
    behind, on the device.
    """

    def __init__(self, placement: Placement, solver: str, device: int,
                 comm: DeviceComm | None, source: int,
                 source_rank: Sequence[int] | None, node: Sequence[int] | None, locality: bool,
                 n_sms: int, max_ids: int, keep_split: bool) -> None:
        import torch

        self.lib = lib()
        self.torch, self.device = torch, device
        parsed, _ = parse_solver(solver)
        sources = 1 if comm is None else comm.ranks
        self._keep = [None if x is None else np.ascontiguousarray(x, dtype=np.int32)
                      for x in ((source_rank, node) if locality else (None, None))]
        ranks, nodes = (None if x is None else address(x) for x in self._keep)
        self.config = Config(
            struct_size=ctypes.sizeof(Config), device=device, sources=sources, source_rank=ranks,
            node=nodes, solver=parsed.solver, ipm=parsed.ipm, tolerance=parsed.tolerance,
            locality=locality, n_sms=n_sms, comm=None if comm is None else comm.handle)
        self.placement, self.comm = placement, comm
        self._handles: list[c_void_p] = []
        self._counts_in = False
        self._failure: tuple[int, c.Error | None] = (-1, None)  # the plans made before it
        self._ids = IdsStruct(struct_size=ctypes.sizeof(IdsStruct), source=source)
        n = placement.n_logical_experts
        where = _tensor_device(device)
        self.counts = torch.zeros(n, dtype=torch.int64, device=where)
        self._problem = Problem(struct_size=ctypes.sizeof(Problem), counts=self.counts.data_ptr())
        self.split = None
        if keep_split:
            self.split = torch.zeros(placement.slots, dtype=torch.int64, device=where)
            self._problem.split = self.split.data_ptr()
        self._ids_at = ctypes.addressof(self._ids)
        self._problem_at = ctypes.addressof(self._problem)
        self._n = self._code = self._out_code = -1  # what the struct holds
        self.locality, self.n_sms, self.tensor = locality, n_sms or None, torch.Tensor
        self._run = self.lib.lplb_cuda_run
        self._empty_like = torch.empty_like
        self._dtypes = {torch.int32: INT32, torch.int64: INT64}
        try:
            self._grow(max_ids)
        except Exception:
            if comm is not None and not comm.agreed:
                comm.meet(bytes(4))  # in place of lplb_cuda_comm_agree, where the others are
            raise
        # Steps find it on the device when ranks do not plan alike, also those that are made later
        # and by one rank alone (for another number of multiprocessors, say). But the first ones
        # are made by all, and there it is said before anything runs.
        if comm is not None and not comm.agreed:
            check(self.lib.lplb_cuda_comm_agree(comm.handle, self._handle))
            comm.agreed = True

    def _grow(self, max_ids: int) -> None:
        """A planner for more ids. Graphs that were captured go on using the earlier ones."""
        if self._handles and self.torch.cuda.is_current_stream_capturing():
            raise c.bad(f"{max_ids} ids are more than the {self.config.max_ids} that this planner "
                        "has met so far: run it once before the capture, or make it with max_ids",
                        c.STATE)
        self.config.max_ids = max_ids
        self.config.placement = ctypes.cast(self.placement._handle, c_void_p)
        handle = c_void_p()
        check(self.lib.lplb_cuda_planner_create(ctypes.byref(self.config), ctypes.byref(handle)))
        self._handles.append(handle)
        self._handle, self._address = handle, handle.value
        weakref.finalize(self, self.lib.lplb_cuda_planner_destroy, handle)

    @property
    def bytes(self) -> int:
        """Device memory of the library's planners."""
        return sum(self.lib.lplb_cuda_planner_bytes(h) for h in self._handles)

    def update(self, placement: Placement) -> None:
        """Another placement of the same size, from here on in the stream; also in graphs."""
        self.placement = placement
        if self.split is not None:
            self.split.zero_()  # it may have fewer hosts
        stream = current_stream(self.device)
        for handle in self._handles:
            check(self.lib.lplb_cuda_planner_update(handle, ctypes.cast(placement._handle,
                                                                        c_void_p), 0, stream))

    def _count_in(self, problem: Problem, counter: Any, add: int) -> None:
        """Solved plans add to a tensor of one element on this device, or (None) to nothing."""
        if counter is None:
            problem.counter = None
            return
        check_counter(counter)
        where = getattr(counter, "device", "cpu")
        if where != self.counts.device:
            raise c.bad(f"avail_counter is on {where}, must be on {self.counts.device} like the "
                        "ids")
        problem.counter, problem.counter_add = counter.data_ptr(), add
        problem.counter_dtype = self._dtypes[counter.dtype]

    def run(self, idx: Any, out: Any, counter: Any = None, add: int = 1) -> Any:
        """Maps tensor idx into out, or into a new tensor; every look-up here is on the clock.

        counter: int32 or int64 of one element, to which `add` is added if the plan is solved.
        """
        try:
            view = self._ids
            if counter is not None or self._counts_in:
                self._counts_in = True  # also where the next line refuses it
                self._count_in(self._problem, counter, add)
                self._counts_in = counter is not None
            code = self._dtypes.get(idx.dtype)
            if code is None or not idx.is_contiguous():
                idx = Ids(idx).array  # says what is wrong, or copies
            n = idx.numel()
            if out is None:
                out, out_code = self._empty_like(idx), code
            elif out.is_contiguous() and out.shape == idx.shape and out.device == idx.device:
                out_code = self._dtypes.get(out.dtype) or Ids(out, "out").dtype
            else:
                raise c.bad(f"out must be a contiguous tensor {tuple(idx.shape)} on {idx.device}")
            if n != self._n or code != self._code or out_code != self._out_code:
                if n > self.config.max_ids:
                    self._grow(max(n, 2 * self.config.max_ids))
                view.n, view.ids_dtype, view.out_dtype = n, code, out_code
                self._n, self._code, self._out_code = n, code, out_code
            view.ids, view.out = idx.data_ptr(), out.data_ptr()
        except Exception:
            self.take_part()
            raise
        status = self._run(self._address, self._ids_at, self._problem_at,
                           current_stream(self.device))
        if status:
            check(status)
        return out

    def take_part(self) -> None:
        """A step without ids, by a rank that refuses its own: the others plan for what they have,
        and counts of different batches never meet."""
        if self.comm is None:
            return
        somewhere = self.counts.data_ptr()  # of which nothing is read or written
        ids = IdsStruct(struct_size=ctypes.sizeof(IdsStruct), ids=somewhere, ids_dtype=INT64,
                        out=somewhere, out_dtype=INT64, source=self._ids.source)
        problem = Problem(struct_size=ctypes.sizeof(Problem))
        self._run(self._address, ctypes.addressof(ids), ctypes.addressof(problem),
                  current_stream(self.device))

    def share(self, own: Any) -> Any:
        """int64 [E]: the sum over the ranks of own, int64 [E]; own alone after an error."""
        total = self.torch.empty_like(own)
        problem = Problem(struct_size=ctypes.sizeof(Problem), own_counts=own.data_ptr(),
                          counts=total.data_ptr())
        check(self.lib.lplb_cuda_solve(self._handle, ctypes.byref(problem),
                                       current_stream(self.device)))
        return total

    def solve(self, tokens: Any, fixed: Any, hosts: int, counter: Any, add: int) -> Any:
        """Shares float32 [hosts] for int64 tokens [E] of all sources, fixed [G] or None.

        counter, add: as in `run`.
        """
        torch = self.torch
        share = torch.empty(hosts, dtype=torch.float32, device=tokens.device)
        problem = Problem(struct_size=ctypes.sizeof(Problem), source_counts=tokens.data_ptr(),
                          fixed=None if fixed is None else fixed.data_ptr(),
                          share=share.data_ptr())
        self._count_in(problem, counter, add)
        check(self.lib.lplb_cuda_solve(self._handle, ctypes.byref(problem),
                                       current_stream(self.device)))
        return share

    def map_by_share(self, ids: Ids, out: Ids, share: Any) -> None:
        if ids.count > self.config.max_ids:
            self._grow(max(ids.count, 2 * self.config.max_ids))
        view = self._ids
        view.ids, view.ids_dtype, view.n = ids.pointer, ids.dtype, ids.count
        view.out, view.out_dtype = out.pointer, out.dtype
        self._n = -1  # of another call
        check(self.lib.lplb_cuda_map_shares(self._handle, self._ids_at, share.data_ptr(),
                                            current_stream(self.device)))

    def report(self, look: bool = False) -> tuple[Report, c.Error | None]:
        """What the device wrote, and an error, which is then forgotten; waits for the stream.

        The error may be of a planner that only graphs of before it grew still use. look: forget
        nothing, and say one that was told before as long as there is no newer plan.
        """
        found, steps = None, 0
        for handle in self._handles:  # the newest one last
            out = Report(outcome=-1)
            check(self.lib.lplb_cuda_report_read(handle, current_stream(self.device),
                                                 ctypes.byref(out)))
            steps += out.steps
            status = self.lib.lplb_cuda_report_status(ctypes.byref(out))
            if status != c.OK:
                found = self._error_of(status)
                if not look:
                    check(self.lib.lplb_cuda_report_clear(handle, current_stream(self.device)))
        if found is not None:
            self._failure = steps, found
        elif look and steps == self._failure[0]:
            found = self._failure[1]
        return out, found

    def _error_of(self, status: int) -> c.Error:
        return c.error_of(status, self.lib.lplb_error_message().decode(errors="replace"))
