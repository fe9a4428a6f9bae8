"""Reads files of torch.save without torch and without running what is pickled in them.

Only plain Python values and tensors are rebuilt; anything else in the file is an error. torch's own
weights_only mode is not used: in releases before 2.6 it could be made to run code
(CVE-2025-32434).
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from typing import Any

import numpy as np

from . import _library as c

_STORAGE = {"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8",
            "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
            "BoolStorage": "?", "BFloat16Storage": "bf16"}
# Views with more elements than their storage (expanded tensors) are read up to this many.
_MOST_EXPANDED = 1 << 20


class _StorageType:
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_ignored: Any
                    ) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a view of the storage, checked to lie inside it."""
    if not isinstance(storage, np.ndarray) or not isinstance(size, tuple) or (
            not isinstance(stride, tuple)) or len(size) != len(stride):
        raise pickle.UnpicklingError("a malformed tensor")
    numbers = (offset, *size, *stride)
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor with a negative size, stride or offset")
    count, last = 1, offset
    for n, step in zip(size, stride):
        count *= n
        last += (n - 1) * step
    if count and last >= storage.size:
        raise pickle.UnpicklingError(f"a tensor reaches beyond its storage ({last} of "
                                     f"{storage.size})")
    if count > max(storage.size, _MOST_EXPANDED):
        raise pickle.UnpicklingError(f"an expanded tensor of {count} elements")
    if count == 0:
        return np.empty(size, storage.dtype)
    item = storage.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], size,
                                           tuple(step * item for step in stride)).copy()


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str, big_endian: bool) -> None:
        super().__init__(io.BytesIO(_read(archive, prefix + "data.pkl")))
        self._archive, self._prefix = archive, prefix
        self._order = ">" if big_endian else "<"
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE:
            return _StorageType(_STORAGE[name])
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        raise pickle.UnpicklingError(f"it holds {module}.{name}; only tensors and plain values are "
                                     "read")

    def persistent_load(self, pid: Any) -> np.ndarray:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
                and isinstance(pid[1], _StorageType) and type(pid[2]) is str
                and type(pid[4]) is int):
            raise pickle.UnpicklingError("a malformed storage")
        key = pid[2]
        if key not in self._storages:
            self._storages[key] = self._load(key, pid[1].dtype, pid[4])
        return self._storages[key]

    def _load(self, key: str, dtype: str, count: int) -> np.ndarray:
        raw = _read(self._archive, f"{self._prefix}data/{key}")
        kind = np.dtype(self._order + ("u2" if dtype == "bf16" else dtype))
        if count < 0 or len(raw) < count * kind.itemsize:
            raise pickle.UnpicklingError(f"storage {key} has {len(raw)} bytes, too few for {count} "
                                         f"x {kind.itemsize}")
        values = np.frombuffer(raw, kind, count)
        if dtype == "bf16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(kind.newbyteorder("="))


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a bomb would
        raise c.bad(f"{name} is compressed; torch.save does not do that", c.FORMAT)
    return archive.read(info)


def _what_instead(path: str) -> str:
    """What a file is that is no whole zip file, as torch.save writes since 1.6."""
    with open(path, "rb") as file:
        head = file.read(2)
    if not head:
        return "the file is empty"
    if head == b"PK":
        return "the file is cut short: its end is missing"
    if head[:1] == b"\x80":
        return "files of torch.save before 1.6 are not read: load and save it again"
    return "not a file of torch.save"


def load(path: str) -> Any:
    """What torch.save wrote to path, tensors as numpy arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise c.bad(f"{path}: a zip file, but not one of torch.save", c.FORMAT)
            prefix = pickles[0][:-len("data.pkl")]
            order = prefix + "byteorder"
            big = order in archive.namelist() and _read(archive, order) == b"big"
            return _Unpickler(archive, prefix, big).load()
    except c.Error:
        raise
    except OSError as error:
        raise c.Error(c.IO, f"{path}: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise c.bad(f"{path}: {_what_instead(path)}", c.FORMAT) from None
    except RecursionError:
        raise c.bad(f"{path}: nested too deeply", c.FORMAT) from None
    except Exception as error:  # whatever a damaged pickle makes of itself
        raise c.bad(f"{path}: {error}", c.FORMAT) from None
