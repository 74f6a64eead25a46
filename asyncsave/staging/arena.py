"""The staging buffer: page-aligned host memory that is filled, written to disk, and used again.

Memory is the cost that decides: fresh pages are ten times slower to fill than warm ones. So an arena
is mapped once, on huge pages, touched in parallel before the first copy, and kept for the next save.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from typing import Any

from asyncsave.workers import Workers

__all__ = ["Arena"]

_HUGE = 2 << 20
_MADV_DONTFORK, _MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 10, 14, 23
_POPULATE = 64 << 20
_SLACK = 64

_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


def _madvise(address: int, nbytes: int, advice: int) -> None:
    """Give the kernel a hint, without the GIL; older kernels and other systems refuse some."""
    if sys.platform.startswith("linux"):
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), advice)


_libc: Any = ctypes.CDLL(None)


class Arena:
    """A private anonymous mapping, ready to be filled without a page fault.

    Forked children do not get it: they would pay for its page tables, and the parent would pay for
    copies of its pages.

    Args:
        nbytes: At least so many bytes are usable. A 64th is added, so that a state which grows a
            little from save to save stays in its arena.
        workers: Who touches the pages.

    Attributes:
        capacity: Usable bytes, a multiple of the page size.
        address: Where they begin, page-aligned.
        view: The same as a writable memoryview.

    Raises:
        OSError: The mapping was refused (address-space limit, overcommit).
    """

    def __init__(self, nbytes: int, workers: Workers) -> None:
        page = mmap.PAGESIZE
        self.capacity = max(page, (nbytes + nbytes // _SLACK + page - 1) & -page)
        huge = self.capacity >= _HUGE
        unaligned = self.capacity + (_HUGE if huge else 0)
        self._mapping = mmap.mmap(-1, unaligned, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        offset = -start % (_HUGE if huge else page)
        self.address = start + offset
        self.view = memoryview(self._mapping)[offset : offset + self.capacity]
        _madvise(self.address, self.capacity, _MADV_DONTFORK)
        if huge:
            _madvise(self.address, self.capacity, _MADV_HUGEPAGE)
        workers.each(self._populate, range(0, self.capacity, _POPULATE))
        _arenas.add(self)

    def _populate(self, offset: int) -> None:
        nbytes = min(_POPULATE, self.capacity - offset)
        _madvise(self.address + offset, nbytes, _MADV_POPULATE_WRITE)

    def __repr__(self) -> str:
        """Show the size."""
        return f"<Arena {self.capacity} bytes>"

    def close(self) -> None:
        """Give the memory back. The arena cannot be used any more. Idempotent."""
        self.view.release()
        self._mapping.close()


def _abandon_in_child() -> None:
    """Leak what a child inherits: its addresses hold nothing there, or by now something else.

    Unmapping them, as the mapping's destructor would, could take away another object's memory.
    """
    for arena in list(_arenas):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(arena._mapping))  # noqa: SLF001
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(arena))
    _arenas.clear()


os.register_at_fork(after_in_child=_abandon_in_child)
