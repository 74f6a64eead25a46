"""A writer's account of its saves: those that have not ended, and those whose error nobody has read."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from asyncsave.handle import SaveHandle

__all__ = ["Ledger"]

_log = logging.getLogger("asyncsave")
_KEPT = 100
_SAY_EVERY = 30.0
_CALLBACKS = 0.01
"""Seconds between two looks while the callbacks of the last save are running."""


class Ledger:
    """Handles, from the moment they are queued. Any thread may call any method.

    Every change is one step of a list, so none takes a lock: the thread that writes must not wait for
    code that a signal handler has interrupted. :attr:`lock` is for who hands saves over in order.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._in_flight: list[SaveHandle] = []
        self._failed: list[SaveHandle] = []

    @property
    def in_flight(self) -> list[SaveHandle]:
        """The saves that have not ended, oldest first."""
        return list(self._in_flight)

    def enter(self, handle: SaveHandle) -> None:
        """Add a save."""
        self._in_flight.append(handle)

    def leave(self, handle: SaveHandle) -> None:
        """Strike off a save that has ended."""
        with contextlib.suppress(ValueError):
            self._in_flight.remove(handle)

    def blame(self, handle: SaveHandle) -> None:
        """Keep a save that is about to fail until somebody has read its error; of many, the first ones."""
        for other in list(self._failed):
            if other.read:
                with contextlib.suppress(ValueError):
                    self._failed.remove(other)
        if len(self._failed) < _KEPT:
            self._failed.append(handle)

    def next_unread(self) -> BaseException | None:
        """Take the oldest error that nobody has looked at, and count it as read."""
        with contextlib.suppress(IndexError):
            while True:
                handle = self._failed.pop(0)
                if not handle.read:
                    return handle.exception()
        return None

    def wait(self, timeout: float | None) -> None:
        """Block until all saves that are in flight now have ended.

        Raises:
            TimeoutError: Some have not after ``timeout`` seconds; it names them.
        """
        waited_for = self.in_flight
        _, late = concurrent.futures.wait(waited_for, timeout)
        if late:
            names = ", ".join(handle.path for handle in waited_for if handle in late)
            message = f"{len(late)} save(s) still in flight after {timeout} s: {names}. They go on"
            raise TimeoutError(message)

    def drain(self, timeout: float, fate: Callable[[SaveHandle], str]) -> bool:
        """Block until no save is in flight, at exit; log what is waited for, and what is not.

        Args:
            timeout: Seconds.
            fate: Tells what becomes of one that is still in flight then.

        Returns:
            False if something was in flight after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while late := self.in_flight:
            left = deadline - time.monotonic()
            if left <= 0:
                for handle in late:
                    _log.critical("%s at exit after %s s: %r", fate(handle), timeout, handle)
                return False
            concurrent.futures.wait(late, min(left, _SAY_EVERY))
            if all(handle.done() for handle in late):
                time.sleep(_CALLBACKS)
            if left > _SAY_EVERY and (late := self.in_flight):
                _log.warning("exit waits for %d save(s): %s", len(late), late)
        return True

    def orphan(self, error: BaseException) -> None:
        """Fail everything, in a forked child: no thread is left to finish it, no lock is safe."""
        self.lock = threading.RLock()
        for handle in self._in_flight:
            handle.orphan(error)
        self._in_flight, self._failed = [], []
