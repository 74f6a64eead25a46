"""The bounded part of the queue: as many arenas as saves may be in flight, and no more bytes.

A slot is taken before a byte is copied and given back when its save has ended, so memory is bounded
by the number of slots and by the budget, however slow the disk is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from asyncsave.errors import StagingError
from asyncsave.memory import Pages
from asyncsave.staging.arena import Arena
from asyncsave.staging.headroom import headroom
from asyncsave.workers import Workers

__all__ = ["Slot", "Slots"]


class Slot:
    """The right to stage one save, and the memory to do it in."""

    def __init__(self) -> None:
        self.arena: Arena | None = None
        self.reserved = 0

    @property
    def capacity(self) -> int:
        """Bytes of its arena, or of the one that is being made."""
        return self.arena.capacity if self.arena else self.reserved


class Slots:
    """A fixed number of slots, lent one at a time.

    Giving back takes no lock: the thread that writes must never wait for one which the code holds
    that a signal handler has interrupted, and in which it waits for its own save. So who waits for a
    slot may miss the notice, and looks again soon.

    Args:
        count: How many.
        memory_budget: Most bytes that all arenas together may have, or None.
        workers: Who touches the pages of new arenas.
        pages: What kind of memory they are made of.
    """

    def __init__(
        self, count: int, memory_budget: int | None, workers: Workers, pages: Callable[[int], Pages] = Pages
    ) -> None:
        self.count = count
        self.changed = threading.Condition(threading.RLock())
        self._budget = memory_budget
        self._workers = workers
        self._pages = pages
        self._all = [Slot() for _ in range(count)]
        self._free = list(self._all)

    @property
    def free(self) -> int:
        """How many slots can be taken now."""
        return len(self._free)

    @property
    def busy(self) -> int:
        """How many are lent."""
        return self.count - len(self._free)

    @property
    def allocated(self) -> int:
        """Bytes of all arenas."""
        return sum(slot.capacity for slot in self._all)

    def take(self) -> Slot | None:
        """Take a free slot, the one with the largest arena; None if there is none."""
        with self.changed:
            while free := list(self._free):
                slot = max(free, key=lambda one: one.capacity)
                with contextlib.suppress(ValueError):  # a signal handler, in this very thread, has taken it
                    self._free.remove(slot)
                    return slot
            return None

    def give_back(self, slot: Slot) -> None:
        """Make a slot free again. Its arena stays, for the next save."""
        self._free.append(slot)
        if self.changed.acquire(blocking=False):
            try:
                self.changed.notify_all()
            finally:
                self.changed.release()

    def equip(self, slot: Slot, nbytes: int, *, wait: Callable[[], bool]) -> Arena | None:
        """Give a taken slot an arena of at least ``nbytes`` bytes.

        Args:
            slot: The slot.
            nbytes: What the save needs.
            wait: Called when other saves must end first; blocks until one may have, and returns
                False if this save is not to wait for that.

        Returns:
            The arena; None if ``wait`` said False.

        Raises:
            StagingError: The state can never fit, or memory was refused.
        """
        if slot.arena is not None and slot.capacity >= nbytes:
            return slot.arena
        if self._budget is not None and nbytes > self._budget:
            message = (
                f"the state needs {nbytes:,} bytes of host memory, memory_budget is "
                f"{self._budget:,}. Raise the budget, or save less"
            )
            raise StagingError(message)
        if slot.arena is not None:
            slot.arena.close()
            slot.arena = None
        while (idle := self._reserve(slot, nbytes)) is not None:
            if idle:
                for other in idle:
                    other.close()
            elif not wait():
                return None
        try:
            slot.arena = Arena(nbytes, self._workers, pages=self._pages, room=self._budget is None)
        except (OSError, MemoryError, ValueError, OverflowError) as error:
            message = f"the system refused {nbytes:,} bytes of host memory: {error}"
            raise StagingError(message) from error
        finally:
            slot.reserved = 0
        return slot.arena

    def _reserve(self, slot: Slot, nbytes: int) -> list[Arena] | None:
        """Reserve memory for a slot, under one lock with the look at what there is.

        Returns:
            None if it is reserved. Otherwise the idle arenas that are to be closed first, or nothing
            but an empty list if other saves must end first.

        Raises:
            StagingError: Nobody else holds memory that could become free.
        """
        with self.changed:
            free = self._room()
            if free >= nbytes:
                slot.reserved = nbytes
                return None
            idle = [arena for other in list(self._free) if (arena := other.arena) is not None]
            for other in list(self._free):
                other.arena = None
            if idle:
                return idle
            if any(other.capacity for other in self._all if other is not slot):
                return []
        message = (
            f"the state needs {nbytes:,} bytes of host memory, {free:,} are free on this "
            "machine (or in this container). Free some, or save less"
        )
        raise StagingError(message)

    def _room(self) -> int:
        """Return how many bytes may be taken, less what is reserved already."""
        room = headroom() - sum(slot.reserved for slot in self._all)
        if self._budget is not None:
            room = min(room, self._budget - self.allocated)
        return max(0, room)

    def close(self) -> None:
        """Give all memory of the free slots back."""
        with self.changed:
            for slot in list(self._free):
                if slot.arena is not None:
                    slot.arena.close()
                    slot.arena = None
