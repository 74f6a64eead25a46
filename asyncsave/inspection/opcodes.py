"""The opcodes of pickle, protocols 0 to 5: their names, and how much memory one of each may take."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NEWEST", "OPCODES", "Opcode"]

NEWEST = 5
"""The newest protocol."""

_SLOT, _NUMBER, _TEXT, _NODE, _OBJECT = 16, 44, 72, 80, 124


class Opcode(NamedTuple):
    """One opcode.

    Attributes:
        name: As in Python's ``pickle`` module.
        nbytes: What it may take of memory, long texts and bytes aside.
    """

    name: str
    nbytes: int


OPCODES: dict[int, Opcode] = {
    code[0]: Opcode(name, nbytes)
    for nbytes, known in (
        (
            _SLOT,
            {
                b".": "STOP", b"0": "POP", b"1": "POP_MARK", b"2": "DUP", b"N": "NONE", b"K": "BININT1",
                b")": "EMPTY_TUPLE", b"\x88": "NEWTRUE", b"\x89": "NEWFALSE", b"\x80": "PROTO", b"\x95": "FRAME",
                b"\x97": "NEXT_BUFFER", b"\x98": "READONLY_BUFFER", b"g": "GET", b"h": "BINGET", b"j": "LONG_BINGET",
                b"a": "APPEND", b"e": "APPENDS", b"s": "SETITEM", b"u": "SETITEMS", b"\x90": "ADDITEMS",
                b"(": "MARK", b"p": "PUT", b"q": "BINPUT", b"r": "LONG_BINPUT", b"\x94": "MEMOIZE",
            },
        ),
        (
            _NUMBER,
            {b"I": "INT", b"J": "BININT", b"M": "BININT2", b"F": "FLOAT", b"G": "BINFLOAT"},
        ),
        (
            _TEXT,
            {
                b"L": "LONG", b"\x8a": "LONG1", b"\x8b": "LONG4", b"S": "STRING", b"T": "BINSTRING",
                b"U": "SHORT_BINSTRING", b"B": "BINBYTES", b"C": "SHORT_BINBYTES", b"\x8e": "BINBYTES8",
                b"V": "UNICODE", b"X": "BINUNICODE", b"\x8c": "SHORT_BINUNICODE", b"\x8d": "BINUNICODE8",
                b"\x96": "BYTEARRAY8",
            },
        ),
        (
            _NODE,
            {
                b"t": "TUPLE", b"\x85": "TUPLE1", b"\x86": "TUPLE2", b"\x87": "TUPLE3",
                b"]": "EMPTY_LIST", b"l": "LIST", b"}": "EMPTY_DICT", b"d": "DICT", b"\x8f": "EMPTY_SET",
                b"\x91": "FROZENSET", b"b": "BUILD", b"P": "PERSID", b"Q": "BINPERSID",
            },
        ),
        (
            _OBJECT,
            {
                b"c": "GLOBAL", b"\x93": "STACK_GLOBAL", b"R": "REDUCE", b"i": "INST", b"o": "OBJ",
                b"\x81": "NEWOBJ", b"\x92": "NEWOBJ_EX", b"\x82": "EXT1", b"\x83": "EXT2", b"\x84": "EXT4",
            },
        ),
    )
    for code, name in known.items()
}  # fmt: skip
