"""The opcodes of a pickle that stand for numbers and texts, and how they lie in its bytes."""

from __future__ import annotations

import struct
from typing import Any

from asyncsave.inspection.tree import Bulk, Huge

__all__ = ["BULK", "LONGEST_NAME", "LONGEST_NUMBER", "Literals", "TooLargeError"]

LONGEST_NAME = 2048
"""Bytes of the name of a module, or of what is in one."""
LONGEST_NUMBER = 32
"""Bytes of a whole number that is calculated with."""
BULK = 4096
"""Bytes; longer texts and bytes are not copied."""
_COPIES = 96 << 20
"""Bytes that all texts and bytes shorter than ``BULK`` may take together."""
_STRUCTS = {code: struct.Struct(code) for code in ("<B", "<H", "<i", "<I", "<Q", ">d")}


class TooLargeError(Exception):
    """More would be copied out of a pickle than is allowed."""


class Literals:
    """The part of the machine that reads plain values: each method takes one, and returns where it ends.

    A length that reaches beyond the bytes is a ``struct.error``, whatever else is wrong a ``ValueError``.

    Args:
        data: The bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._stack: list[Any] = []
        self._room = _COPIES

    def _charge(self, nbytes: int) -> None:
        self._room -= nbytes
        if self._room < 0:
            raise TooLargeError

    def _number(self, code: str, at: int) -> Any:
        return _STRUCTS[code].unpack_from(self._data, at)[0]

    def _end(self, at: int, nbytes: int) -> int:
        if nbytes < 0:
            raise ValueError(f"a length of {nbytes} bytes")
        if nbytes > len(self._data) - at:
            raise struct.error
        return at + nbytes

    def _line(self, at: int, longest: int | None = None) -> tuple[bytes, int]:
        end = self._data.find(b"\n", at, at + (longest or len(self._data)) + 1)
        if end < 0:
            if longest is None or len(self._data) - at <= longest:
                raise struct.error
            raise ValueError(f"a line of more than {longest} bytes")
        return self._data[at:end], end + 1

    def _text(self, at: int, nbytes: int) -> int:
        end = self._end(at, nbytes)
        if nbytes > BULK:
            self._stack.append(Bulk("str", self._view[at:end]))
        else:
            text = str(self._data[at:end], "utf-8", "surrogatepass")
            self._charge(nbytes if text.isascii() else 4 * nbytes)
            self._stack.append(text)
        return end

    def _bytes(self, at: int, nbytes: int, kind: str = "bytes") -> int:
        end = self._end(at, nbytes)
        bulk = nbytes > BULK or kind != "bytes"
        self._charge(0 if bulk else nbytes)
        self._stack.append(Bulk(kind, self._view[at:end]) if bulk else self._data[at:end])
        return end

    def _old_text(self, at: int, nbytes: int) -> int:
        """Take a text of Python 2, which could be text or bytes."""
        end = self._end(at, nbytes)
        bulk = nbytes > BULK
        self._charge(0 if bulk else 2 * nbytes)
        self._stack.append(
            Bulk("bytes", self._view[at:end]) if bulk else self._data[at:end].decode("utf-8", "surrogateescape")
        )
        return end

    def _whole(self, at: int, nbytes: int) -> int:
        end = self._end(at, nbytes)
        huge = nbytes > LONGEST_NUMBER
        number = Huge(self._view[at:end]) if huge else int.from_bytes(self._data[at:end], "little", signed=True)
        self._stack.append(number)
        return end

    def _none(self, at: int) -> int:
        self._stack.append(None)
        return at

    def _newtrue(self, at: int) -> int:
        self._stack.append(True)
        return at

    def _newfalse(self, at: int) -> int:
        self._stack.append(False)
        return at

    def _int(self, at: int) -> int:
        line, end = self._line(at)
        if line in {b"00", b"01"}:
            self._stack.append(line == b"01")
        else:
            self._stack.append(Huge(self._view[at : end - 1]) if len(line) > LONGEST_NUMBER else int(line))
        return end

    def _long(self, at: int) -> int:
        line, end = self._line(at)
        huge = len(line) > LONGEST_NUMBER
        self._stack.append(Huge(self._view[at : end - 1]) if huge else int(line.removesuffix(b"L")))
        return end

    def _binint(self, at: int) -> int:
        self._stack.append(self._number("<i", at))
        return at + 4

    def _binint1(self, at: int) -> int:
        self._stack.append(self._data[at])
        return at + 1

    def _binint2(self, at: int) -> int:
        self._stack.append(self._number("<H", at))
        return at + 2

    def _long1(self, at: int) -> int:
        return self._whole(at + 1, self._number("<B", at))

    def _long4(self, at: int) -> int:
        return self._whole(at + 4, self._number("<i", at))

    def _float(self, at: int) -> int:
        line, at = self._line(at, LONGEST_NAME)
        self._stack.append(float(line))
        return at

    def _binfloat(self, at: int) -> int:
        self._stack.append(self._number(">d", at))
        return at + 8

    def _string(self, at: int) -> int:
        _, end = self._line(at)
        self._old_text(at + 1, end - at - 3)  # between its quotes; escapes stay as they are
        return end

    def _binstring(self, at: int) -> int:
        return self._old_text(at + 4, self._number("<i", at))

    def _short_binstring(self, at: int) -> int:
        return self._old_text(at + 1, self._number("<B", at))

    def _unicode(self, at: int) -> int:
        line, end = self._line(at)
        bulk = len(line) > BULK
        self._charge(0 if bulk else 4 * len(line))
        self._stack.append(Bulk("str", self._view[at : end - 1]) if bulk else str(line, "raw-unicode-escape"))
        return end

    def _binunicode(self, at: int) -> int:
        return self._text(at + 4, self._number("<I", at))

    def _short_binunicode(self, at: int) -> int:
        return self._text(at + 1, self._number("<B", at))

    def _binunicode8(self, at: int) -> int:
        return self._text(at + 8, self._number("<Q", at))

    def _binbytes(self, at: int) -> int:
        return self._bytes(at + 4, self._number("<I", at))

    def _short_binbytes(self, at: int) -> int:
        return self._bytes(at + 1, self._number("<B", at))

    def _binbytes8(self, at: int) -> int:
        return self._bytes(at + 8, self._number("<Q", at))

    def _bytearray8(self, at: int) -> int:
        return self._bytes(at + 8, self._number("<Q", at), "bytearray")

    def _next_buffer(self, _: int) -> int:
        raise ValueError("there are no buffers outside of the pickle")

    def _readonly_buffer(self, at: int) -> int:
        return at
