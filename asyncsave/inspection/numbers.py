"""numpy's numbers and element types, as its pickles write them."""

from __future__ import annotations

import struct
from typing import Any

from asyncsave.inspection.tree import Call

__all__ = ["dtype_of", "number_of"]

_TYPES = {
    "b1": ("bool", "?"),
    "i1": ("int8", "b"),
    "i2": ("int16", "h"),
    "i4": ("int32", "i"),
    "i8": ("int64", "q"),
    "u1": ("uint8", "B"),
    "u2": ("uint16", "H"),
    "u4": ("uint32", "I"),
    "u8": ("uint64", "Q"),
    "f2": ("float16", "e"),
    "f4": ("float32", "f"),
    "f8": ("float64", "d"),
}
_LONGEST = 40


def dtype_of(node: Any) -> tuple[str, str]:
    """Return the name of an element type and its code for ``struct``, which is empty if there is none."""
    if type(node) is not Call or node.path != "numpy.dtype" or not node.args or type(node.args[0]) is not str:
        return "object", ""
    name, code = _TYPES.get(node.args[0], (node.args[0][:_LONGEST], ""))
    state = node.states[0] if node.states else ()
    big = type(state) is tuple and len(state) > 1 and type(state[1]) is str and state[1] == ">"
    return name, code and (">" if big else "<") + code


def number_of(dtype: Any, data: bytes) -> tuple[str, str]:
    """Return the type and the text of a number of numpy's."""
    name, code = dtype_of(dtype)
    if code and struct.calcsize(code) == len(data):
        return f"numpy.{name}", repr(struct.unpack(code, data)[0])
    return f"numpy.{name}", repr(data)
