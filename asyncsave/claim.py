"""Who may begin a save that two processes know of, and whether it has ended: one pipe for both.

The pipe holds one byte. Whoever reads it owns the save: the process that is about to write it, or the
writer that withdraws it. The kernel gives the byte to one of them, whichever of the two is busy, stopped
or dead by then. When the save has ended, everybody closes the writing end: to whoever waits for the save,
in this process or another, the reading end hangs up.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import select
import threading
import weakref
from typing import Any

from asyncsave import descriptors

__all__ = ["Claim", "claim_of", "wait_for_end"]


_PATIENCE = 1.0


class Claim:
    """One end's view of the pipe.

    Args:
        fds: The reading and the writing end, as another process sent them; None: a new pipe, the byte in it.
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        with descriptors.held_back():
            self._reading, self._writing = map(descriptors.keep, fds or os.pipe())
        self._lock = threading.RLock()
        self._withdrawn = self._seized = False
        if fds is None:
            os.set_blocking(self._reading, False)
            os.write(self._writing, b"!")

    def take(self) -> bool:
        """Take the save, for good; False if somebody else has, or if it has ended."""
        with self._lock:
            if not self._withdrawn and not self._seized:
                with contextlib.suppress(OSError):
                    self._withdrawn = bool(os.read(self._reading, 1))
            return self._withdrawn

    def is_free(self) -> bool:
        """Tell whether nobody has taken the save yet, and it has not ended."""
        return self._reading >= 0 and descriptors.is_readable(self._reading)

    def renew(self) -> bool:
        """Put the byte back that a dead process took; False if the save is not to be begun any more.

        That is so if it was withdrawn, or where a signal handler has interrupted :meth:`take` and waits.
        """
        if not self._lock.acquire(timeout=_PATIENCE):
            return False
        try:
            if self._reading < 0 or self._withdrawn or self._seized:
                return False
            if not descriptors.is_readable(self._reading):
                os.write(self._writing, b"!")
        finally:
            self._lock.release()
        return True

    def seize(self) -> bool:
        """Take the save from a dead process, byte or not; False if it was withdrawn before."""
        if not self._lock.acquire(timeout=_PATIENCE):
            return False
        try:
            self._seized = not self._withdrawn
            return self._seized
        finally:
            self._lock.release()

    def duplicate(self, *, writing: bool = True) -> list[int]:
        """Return further descriptors of both ends, or of the reading one only; none if it is closed here.

        :func:`descriptors.drop` closes them.
        """
        with self._lock, descriptors.held_back():
            if self._reading < 0:
                return []
            reading = descriptors.keep(os.dup(self._reading))
            if not writing:
                return [reading]
            try:
                return [reading, descriptors.keep(os.dup(self._writing))]
            except OSError:
                descriptors.drop(reading)
                raise

    def abandon(self) -> None:
        """Forget the pipe, in a forked child, where it is closed already."""
        self._reading = self._writing = -1

    def close(self) -> None:
        """Say that the save has ended, as far as this process is concerned. Idempotent."""
        held = self._lock.acquire(timeout=_PATIENCE)
        try:
            fds, self._reading, self._writing = (self._reading, self._writing), -1, -1
            for fd in fds:
                descriptors.drop(fd)
        finally:
            if held:
                self._lock.release()


_claims: weakref.WeakKeyDictionary[concurrent.futures.Future[Any], Claim] = weakref.WeakKeyDictionary()


def claim_of(save: concurrent.futures.Future[Any]) -> Claim:
    """Return a save's claim; the first who asks makes it. It ends with the save, if not before."""
    known = _claims.get(save)
    if known is not None:
        return known
    new = Claim()
    claim = _claims.setdefault(save, new)
    if claim is new:
        save.add_done_callback(lambda _: new.close())
    else:
        new.close()
    return claim


def wait_for_end(reading: int) -> None:
    """Block until everybody who has to do with a save has closed its writing end."""
    poll = select.poll()
    poll.register(reading, 0)
    poll.poll()
