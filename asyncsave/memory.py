"""Page-aligned memory of a process's own, on huge pages where it is large enough.

The first touch of fresh memory costs ten times as much as a later one, and on small pages ten times
as much as on huge ones (measured, docs/benchmarks.md). So what is about to be filled is touched
first, by whoever fills it, without the GIL.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from typing import Any

__all__ = ["Pages"]

_HUGE = 2 << 20
_MADV_DONTFORK, _MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 10, 14, 23

_libc: Any = ctypes.CDLL(None)


def _madvise(address: int, nbytes: int, advice: int) -> None:
    """Give the kernel a hint, without the GIL; older kernels refuse some, other systems get none."""
    if sys.platform.startswith("linux"):
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), advice)


class Pages:
    """A private anonymous mapping.

    Args:
        nbytes: Its size, a multiple of the page size.

    Attributes:
        address: Where it begins: on a huge page's boundary if it is as large as one.
        view: The same as a writable memoryview, which keeps the memory by itself.

    Raises:
        OSError: The mapping was refused (address-space limit, overcommit).
    """

    def __init__(self, nbytes: int) -> None:
        huge = nbytes >= _HUGE
        slack = _HUGE if huge else 0
        self._mapping = mmap.mmap(-1, nbytes + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        offset = -start % _HUGE if huge else 0
        self.address = start + offset
        self.view = memoryview(self._mapping)[offset : offset + nbytes]
        if huge:
            _madvise(self.address, nbytes, _MADV_HUGEPAGE)

    def touch(self, offset: int, nbytes: int) -> None:
        """Make some of it present, in one system call."""
        _madvise(self.address + offset, nbytes, _MADV_POPULATE_WRITE)

    def keep_from_children(self) -> None:
        """Leave it out of forked children.

        They would pay for its page tables, and this process for copies of its pages. In a child its
        addresses hold nothing, or by now something else: call :meth:`abandon` there.
        """
        _madvise(self.address, len(self.view), _MADV_DONTFORK)

    def abandon(self) -> None:
        """Never unmap it, in a forked child: that could take away another object's memory."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._mapping))

    def close(self) -> None:
        """Give the memory back; who still has a part of the view keeps it all until then."""
        self.view.release()
        with contextlib.suppress(BufferError):
            self._mapping.close()
