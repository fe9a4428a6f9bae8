"""Arguments of the caller before ctypes takes them, which cuts integers to their low bits in
silence; and objects of the C library, of which there is one owner."""

from __future__ import annotations

import operator
from ctypes import Structure, c_double, c_int32, c_int64, c_size_t, c_uint64
from typing import Any, TypeVar

from . import _library as c

INT32 = (-2**31, 2**31 - 1)
INT64 = (-2**63, 2**63 - 1)
_RANGES = {c_int32: INT32, c_int64: INT64, c_uint64: (0, 2**64 - 1), c_size_t: (0, 2**64 - 1)}

_Struct = TypeVar("_Struct", bound=Structure)


def integer(value: Any, what: str, least: int = INT32[0], most: int = INT32[1]) -> int:
    """value as an int in [least, most]."""
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError, ValueError):  # tensors have opinions of their own
        raise c.bad(f"{what} is {value!r}, must be a whole number") from None
    if number < least == 1:
        raise c.bad(f"{what} is {number}, must be positive", c.RANGE)
    if not least <= number <= most:
        raise c.bad(f"{what} is {number}, outside [{least}, {most}]", c.RANGE)
    return number


def real(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise c.bad(f"{what} is {value!r}, must be a number") from None


def filled(struct: type[_Struct], **values: Any) -> _Struct:
    """The struct with these fields, whose numbers must fit; errors name the field."""
    for name, kind, *_ in struct._fields_:
        if name not in values:
            continue
        if kind in _RANGES:
            values[name] = integer(values[name], name, *_RANGES[kind])
        elif kind is c_double:
            values[name] = real(values[name], name)
    return struct(**values)


def expect(value: Any, kind: type, what: str) -> Any:
    """value, which must be of this class."""
    if not isinstance(value, kind):
        raise c.bad(f"{what} is a {type(value).__name__}, must be a {kind.__name__}")
    return value


class Unique:
    """An object that owns something of the C library: a copy would own it, too, and free it."""

    _instead = "make another one with the same arguments"

    def __reduce_ex__(self, protocol: Any) -> Any:  # what copy, deepcopy and pickle call
        raise c.bad(f"a {type(self).__name__} can be neither copied nor pickled: {self._instead}",
                    c.UNSUPPORTED)
