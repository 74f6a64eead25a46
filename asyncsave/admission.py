"""Who may stage now: slots by policy, and no waiting for oneself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from asyncsave.errors import QueueFullError
from asyncsave.ledger import Ledger
from asyncsave.slots import Slot, Slots

__all__ = ["Admission", "OnBusy"]

OnBusy = Literal["wait", "skip", "replace", "raise"]

_LOOK_AGAIN = 0.1


class Admission:
    """The way to a slot.

    Args:
        slots: What is lent.
        ledger: The saves that may have to give way.
        on_writing_thread: Tells whether the caller is the thread that frees slots.
    """

    def __init__(self, slots: Slots, ledger: Ledger, on_writing_thread: Callable[[], bool]) -> None:
        self._slots = slots
        self._ledger = ledger
        self._on_writing_thread = on_writing_thread
        self._staging: dict[int, int] = {}

    @contextmanager
    def staging(self) -> Iterator[None]:
        """Note that the calling thread holds a slot: from inside here it must not wait for one."""
        me = threading.get_ident()
        self._staging[me] = self._staging.get(me, 0) + 1
        try:
            yield
        finally:
            self._staging[me] -= 1
            if not self._staging[me]:
                del self._staging[me]

    def take(self, policy: OnBusy, still_open: Callable[[], None]) -> Slot | None:
        """Take a slot; None if the save is to be skipped.

        Args:
            policy: What to do when there is none.
            still_open: Called after every wait; raises if it was in vain.

        Raises:
            QueueFullError: By policy, or because waiting would never end.
        """
        # The lock is not held from here on: a save that gives way runs its callbacks on this thread.
        while (slot := self._slots.take()) is None:
            if not self.make_way(policy, lambda: self._slots.free > 0):
                return None
            still_open()
        return slot

    def make_way(self, policy: OnBusy, until: Callable[[], bool] | None = None) -> bool:
        """Let another save end or give way; False if the caller is to be skipped.

        Args:
            policy: What to do.
            until: Tells whether what is waited for is there; None: whether memory is, the caller sees.
                The wait is short: memory may become free without a save of ours ending, and the
                notice of a slot may be missed.

        Raises:
            QueueFullError: By policy, or because waiting would never end.
        """
        if policy == "skip":
            return False
        if policy == "raise":
            message = (
                f"{self._slots.busy} save(s) are in flight, as many as max_pending or the memory allows. "
                'Save less often, raise max_pending, or use on_busy="wait", "skip" or "replace"'
            )
            raise QueueFullError(message)
        if policy == "replace" and any(save.withdraw("replaced") for save in self._ledger.in_flight):
            return True
        with self._slots.changed:
            if until is None or not until():
                self._forbid_waiting_for_oneself()
                self._slots.changed.wait(_LOOK_AGAIN)
        return True

    def _forbid_waiting_for_oneself(self) -> None:
        """Raise where waiting would never end.

        A signal handler may save while the code it interrupted holds the slots; a done callback runs
        on the very thread that would have to write.
        """
        mine = self._staging.get(threading.get_ident(), 0)
        if (mine and mine >= self._slots.busy) or self._on_writing_thread():
            message = (
                "every slot is held by the code that this call interrupted (a signal handler), or the "
                "call comes from the writer's own thread (a done callback): waiting would never end"
            )
            raise QueueFullError(message)
