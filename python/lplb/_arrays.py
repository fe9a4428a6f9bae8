"""Arrays of the caller: numpy, torch, and whatever speaks DLPack, without importing torch."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from ._library import RANGE, UNSUPPORTED, bad

Array = Any

# lplb_dtype in include/lplb/dispatch.h.
DTYPES = {"int8": 0, "uint8": 1, "int16": 2, "uint16": 3, "int32": 4, "uint32": 5, "int64": 6,
          "uint64": 7, "float16": 8, "float32": 9, "float64": 10, "bool": 11}
INT32, INT64 = 4, 6
_ID_DTYPES = {np.dtype(np.int32): INT32, np.dtype(np.int64): INT64}


def torch_module() -> Any:
    """torch, if the program has imported it."""
    return sys.modules.get("torch")


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_device(x: Any) -> bool:
    """Whether x lives on a GPU."""
    if is_torch(x):
        return x.device.type != "cpu"
    if isinstance(x, np.ndarray):
        return False
    if hasattr(x, "__dlpack_device__"):
        return int(x.__dlpack_device__()[0]) not in (1, 3)  # CPU, pinned CPU
    return hasattr(x, "__cuda_array_interface__")


def on_gpu(x: Any) -> bool:
    """Whether x is a tensor on a GPU; refuses what is neither that nor in the CPU's memory."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if x.is_cuda:
            return True
        if x.device.type == "cpu":
            return False
        raise bad(f"tensors on {x.device} are not supported; cpu or cuda", UNSUPPORTED)
    if is_device(x):
        raise bad("GPU arrays must be torch tensors: torch.from_dlpack(x) makes one without a copy",
                  UNSUPPORTED)
    return False


def device_index(x: Any) -> int:
    """The CUDA ordinal of a tensor on a GPU."""
    return x.get_device()


def as_numpy(x: Any, dtype: Any = None) -> np.ndarray:
    """x as a numpy array; shares memory where it can (CPU, same dtype), else copies."""
    if is_torch(x):
        out = _of_tensor(x)
    elif isinstance(x, np.ndarray):
        out = x
    elif hasattr(x, "__dlpack__") and not is_device(x):
        out = np.from_dlpack(x)
    elif is_device(x) and hasattr(x, "get"):  # CuPy
        out = x.get()
    else:
        try:
            out = np.asarray(x)
        except ValueError as error:  # rows of unequal lengths
            raise bad(f"a {type(x).__name__} is no array: {error}") from None
    return out if dtype is None or out.dtype == dtype else out.astype(dtype)


def _of_tensor(x: Any) -> np.ndarray:
    torch = sys.modules["torch"]
    if x.layout != torch.strided:
        raise bad(f"a tensor has the layout {x.layout}; give x.to_dense()", UNSUPPORTED)
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def as_integers(x: Any, what: str, dtype: Any = np.int64) -> np.ndarray:
    """x as contiguous integers of this type; floats only where they are whole numbers. Errors name
    the first value that does not fit, and where it is."""
    out = as_numpy(x)
    if out.dtype == dtype:
        return np.ascontiguousarray(out)
    if out.dtype.kind not in "fiu" and out.size:
        raise bad(f"{what} must be integers, not {out.dtype}", UNSUPPORTED)
    bits = np.iinfo(dtype)
    if out.dtype.kind == "f":
        out = out.astype(np.float64)
        refuse_where(~np.isfinite(out) | (np.rint(out) != out), out, what,
                     "must be whole numbers")
        # 2^63 - 1 itself is no float64: compare with the first power that is too large.
        refuse_where((out < bits.min) | (out >= float(bits.max) + 1), out, what,
                     f"does not fit {bits.bits} bits")
    elif np.iinfo(out.dtype if out.size else dtype).max > bits.max:
        refuse_where((out < bits.min) | (out > bits.max), out, what,
                     f"does not fit {bits.bits} bits")
    return np.ascontiguousarray(out, dtype=dtype)


def refuse_where(wrong: np.ndarray, values: np.ndarray, what: str, why: str) -> None:
    """Names the first of the wrong values, and where it is."""
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        index = "".join(f"[{i}]" for i in at)
        raise bad(f"{what}{index} is {values[at]}: {why}", RANGE)


def as_loads(x: Any, what: str) -> np.ndarray:
    """x as real numbers, which loads and weights are."""
    out = as_numpy(x)
    if out.dtype.kind not in "fiu":
        raise bad(f"{what} must be numbers, not {out.dtype}", UNSUPPORTED)
    return out


def like(values: np.ndarray, model: Any) -> Array:
    """values as the same kind of array as model: torch on its device, else numpy."""
    if not is_torch(model):
        return values
    torch = sys.modules["torch"]
    return torch.from_numpy(np.require(values, requirements="CW")).to(model.device)


def address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


class Ids:
    """Ids of the caller as the C library takes them."""

    __slots__ = ("array", "pointer", "dtype", "count")

    def __init__(self, x: Any, what: str = "idx") -> None:
        # On the way of every step: as few look-ups as possible.
        if type(x) is not np.ndarray:
            torch = sys.modules.get("torch")
            if torch is not None and isinstance(x, torch.Tensor):
                kind = x.dtype
                if kind is torch.int64:
                    self.dtype = INT64
                elif kind is torch.int32:
                    self.dtype = INT32
                else:
                    raise bad(f"{what} must be int32 or int64, not {kind}", UNSUPPORTED)
                self.array = x if x.is_contiguous() else x.contiguous()
                self.pointer = self.array.data_ptr()
                self.count = self.array.numel()
                return
            x = as_numpy(x)
        code = _ID_DTYPES.get(x.dtype)
        if code is None:
            raise bad(f"{what} must be int32 or int64, not {x.dtype}", UNSUPPORTED)
        self.dtype = code
        self.array = x if x.flags.c_contiguous else np.ascontiguousarray(x)
        self.pointer = self.array.__array_interface__["data"][0]
        self.count = x.size

    def empty_like(self) -> Array:
        if is_torch(self.array):
            return sys.modules["torch"].empty_like(self.array)
        return np.empty_like(self.array)


def _is_memory(x: Any) -> bool:
    """Whether numpy would look at what x holds, not at a copy."""
    if isinstance(x, np.ndarray) or is_torch(x):
        return True
    if hasattr(x, "__dlpack__") or hasattr(x, "__array_interface__"):
        return True
    try:
        memoryview(x)
    except TypeError:
        return False
    return True


def output_ids(out: Any, ids: Ids) -> Ids:
    """`out` as a place to write to: contiguous, writable, of idx's shape."""
    if not _is_memory(out):
        raise bad(f"out is a {type(out).__name__}, in which nothing could be written: give an "
                  "array or a tensor")
    view = Ids(out, "out")
    if view.array is not out and not (isinstance(view.array, np.ndarray)
                                      and not isinstance(out, np.ndarray)):
        raise bad("out must be contiguous")
    if isinstance(view.array, np.ndarray) and not view.array.flags.writeable:
        raise bad("out is read-only")
    if tuple(view.array.shape) != tuple(ids.array.shape):
        raise bad(f"out has shape {tuple(view.array.shape)}, idx {tuple(ids.array.shape)}")
    return view


def add_to_counter(counter: Any, n: int) -> None:
    """counter += n for an int32 or int64 array of one element."""
    if type(counter) is np.ndarray:
        np.add(counter, n, out=counter, casting="unsafe")
    elif is_torch(counter):
        counter += n
    else:
        counter[...] += n


def check_counter(counter: Any) -> None:
    if counter is None:
        return
    if type(counter) is np.ndarray and counter.size == 1 and counter.dtype in _ID_DTYPES:
        if not counter.flags.writeable:
            raise bad("avail_counter is read-only")
        return
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(counter, torch.Tensor):
        if counter.dtype in (torch.int32, torch.int64) and counter.numel() == 1:
            return
    if not hasattr(counter, "dtype") or not hasattr(counter, "shape"):
        raise bad("avail_counter must be an array or tensor, int32 or int64, of one element")
    size = math.prod(counter.shape)
    if str(counter.dtype).replace("torch.", "") not in ("int32", "int64") or size != 1:
        raise bad(f"avail_counter must be int32 or int64 with one element, not {counter.dtype} "
                  f"with shape {tuple(counter.shape)}")
