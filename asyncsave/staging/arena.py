"""The staging buffer: host memory that is filled, written to disk, and used again.

Memory is the cost that decides, so an arena is mapped once, touched in parallel before the first
copy, and kept for the next save.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import NamedTuple

from asyncsave.image.layout import PAGE
from asyncsave.memory import Pages
from asyncsave.workers import Workers

__all__ = ["Arena", "Berth"]

_TOUCH = 64 << 20
_SLACK = 64

_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


class Berth(NamedTuple):
    """A part of an arena, for one file: where it begins, and the same as a writable memoryview."""

    address: int
    view: memoryview


class Arena:
    """Page-aligned memory, ready to be filled without a page fault. Forked children do not get it.

    Args:
        nbytes: At least so many bytes are usable.
        workers: Who touches the pages.
        pages: What kind of memory.
        room: Whether to add a 64th, so that a state which grows a little from save to save stays in
            its arena.

    Attributes:
        capacity: Usable bytes, a multiple of the page size.
        address: Where they begin, page-aligned.
        view: The same as a writable memoryview.
        descriptor: By which another process can have the memory too, -1 if none can.

    Raises:
        OSError: The mapping was refused (address-space limit, overcommit), or memory is short.
    """

    def __init__(
        self, nbytes: int, workers: Workers, *, pages: Callable[[int], Pages] = Pages, room: bool = True
    ) -> None:
        slack = nbytes // _SLACK if room else 0
        self.capacity = max(PAGE, (nbytes + slack + PAGE - 1) & -PAGE)
        self._pages = pages(self.capacity)
        self.address, self.view, self.descriptor = self._pages.address, self._pages.view, self._pages.descriptor
        _arenas.add(self)
        self._pages.keep_from_children()
        try:
            workers.each(
                lambda offset: self._pages.touch(offset, min(_TOUCH, self.capacity - offset)),
                range(0, self.capacity, _TOUCH),
            )
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        """Show the size."""
        return f"<Arena {self.capacity} bytes>"

    def berth(self, start: int, stop: int) -> Berth:
        """Return the part between two offsets in bytes; the first one is that of a page."""
        return Berth(self.address + start, self.view[start:stop])

    def close(self) -> None:
        """Give the memory back. The arena cannot be used any more. Idempotent."""
        self._pages.close()


def _abandon_in_child() -> None:
    for arena in list(_arenas):
        arena._pages.abandon()  # noqa: SLF001 - an arena's own
    _arenas.clear()


os.register_at_fork(after_in_child=_abandon_in_child)
