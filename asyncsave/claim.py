"""Who may begin a save that two processes know of, and whether it has ended: one pipe for both.

The pipe holds one byte. Whoever reads it owns the save: the process that is about to write it, or the
writer that withdraws it. The kernel gives the byte to one of them, whichever of the two is busy, stopped
or dead by then. When the save has ended, everybody closes the writing end: to whoever waits for the save,
in this process or another, the reading end hangs up.
"""

from __future__ import annotations

import concurrent.futures
import os
import select
import threading
import weakref
from typing import Any

from asyncsave import descriptors

__all__ = ["Claim", "claim_of", "register", "wait_for_end"]


class Claim:
    """One end's view of the pipe.

    Args:
        fds: The reading and the writing end, as another process sent them; None: a new pipe, the byte in it.
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        with descriptors.held_back():
            self._reading, self._writing = map(descriptors.keep, fds or os.pipe())
        self._lock = threading.RLock()
        self._taken_here = False
        if fds is None:
            os.set_blocking(self._reading, False)
            os.write(self._writing, b"!")

    def take(self) -> bool:
        """Take the save, for good; False if somebody else has, or if it has ended."""
        with self._lock:
            try:
                self._taken_here = bool(os.read(self._reading, 1)) or self._taken_here
            except OSError:
                return False
            return self._taken_here

    def renew(self) -> None:
        """Put the byte back if the process that took it has died."""
        with self._lock:
            if self._reading >= 0 and not self._taken_here and not select.select([self._reading], [], [], 0)[0]:
                os.write(self._writing, b"!")

    def duplicate(self, *, writing: bool = True) -> list[int]:
        """Return further descriptors of both ends, or of the reading one only; none if it is closed here.

        :func:`descriptors.drop` closes them.
        """
        with descriptors.held_back():
            if self._reading < 0:
                return []
            ends = (self._reading, self._writing) if writing else (self._reading,)
            return [descriptors.keep(os.dup(fd)) for fd in ends]

    def abandon(self) -> None:
        """Forget the pipe, in a forked child, where it is closed already."""
        self._reading = self._writing = -1

    def close(self) -> None:
        """Say that the save has ended, as far as this process is concerned. Idempotent."""
        with descriptors.held_back():
            for fd in (self._reading, self._writing):
                descriptors.drop(fd)
            self._reading = self._writing = -1


_claims: weakref.WeakKeyDictionary[concurrent.futures.Future[Any], Claim] = weakref.WeakKeyDictionary()


def register(save: concurrent.futures.Future[Any], claim: Claim) -> None:
    """Note the claim of a save that another process carries out."""
    _claims[save] = claim


def claim_of(save: concurrent.futures.Future[Any]) -> Claim:
    """Return a save's claim; one that this process carries out gets one now, which ends with it."""
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
