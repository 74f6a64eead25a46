"""The bounded part of the queue: as many arenas as saves may be in flight, and no more bytes.

A slot is taken before a byte is copied and given back when its save has ended, so memory is bounded
by the number of slots and by the budget, however slow the disk is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from asyncsave.errors import StagingError
from asyncsave.staging.arena import Arena
from asyncsave.staging.headroom import headroom
from asyncsave.workers import Workers

__all__ = ["Slot", "Slots"]


class Slot:
    """The right to stage one save, and the memory to do it in."""

    def __init__(self) -> None:
        self.arena: Arena | None = None

    @property
    def capacity(self) -> int:
        """Bytes of its arena, 0 while it has none."""
        return self.arena.capacity if self.arena else 0


class Slots:
    """A fixed number of slots, lent one at a time. The lock is re-entrant: a signal may save too.

    Args:
        count: How many.
        memory_budget: Most bytes that all arenas together may have, or None.
        workers: Who touches the pages of new arenas.
    """

    def __init__(self, count: int, memory_budget: int | None, workers: Workers) -> None:
        self.count = count
        self.changed = threading.Condition(threading.RLock())
        self._budget = memory_budget
        self._workers = workers
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
            if not self._free:
                return None
            slot = max(self._free, key=lambda one: one.capacity)
            self._free.remove(slot)
            return slot

    def give_back(self, slot: Slot) -> None:
        """Make a slot free again. Its arena stays, for the next save."""
        with self.changed:
            self._free.append(slot)
            self.changed.notify_all()

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
        while (short := self._short_of(nbytes)) is not None:
            with self.changed:  # both looks under one lock, or a save that ends between them is missed
                if self._drop_idle():
                    continue
                lent = (other for other in self._all if other is not slot and other not in self._free)
                others_hold_memory = any(other.arena is not None for other in lent)
            if not others_hold_memory:
                message = (
                    f"the state needs {nbytes:,} bytes of host memory, {short:,} are free on this "
                    "machine (or in this container). Free some, or save less"
                )
                raise StagingError(message)
            if not wait():
                return None
        try:
            slot.arena = Arena(nbytes, self._workers, room=self._budget is None)
        except (OSError, MemoryError, ValueError, OverflowError) as error:
            message = f"the system refused {nbytes:,} bytes of host memory: {error}"
            raise StagingError(message) from error
        return slot.arena

    def _short_of(self, nbytes: int) -> int | None:
        """Return what is free if that is too little; None if ``nbytes`` bytes can be taken now."""
        if self._budget is not None and self.allocated + nbytes > self._budget:
            return self._budget - self.allocated
        free = headroom()
        return free if free < nbytes else None

    def _drop_idle(self) -> bool:
        """Close the arena of one free slot; False if there is none."""
        with self.changed:
            for slot in self._free:
                if slot.arena is not None:
                    slot.arena.close()
                    slot.arena = None
                    return True
        return False

    def close(self) -> None:
        """Give all memory of the free slots back."""
        while self._drop_idle():
            pass
