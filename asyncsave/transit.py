"""One save between its staging and its end: what the backend works on, and whom it tells.

The slot is given back before the handle resolves, so that whoever is woken finds it free. Nothing here
waits for a lock that a caller may hold, and nothing that the user has hung in (a log handler, a
callback) can keep a handle from resolving.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from asyncsave.claim import Claim, claim_of
from asyncsave.errors import AsyncSaveError, SaveError
from asyncsave.handle import SaveHandle
from asyncsave.ledger import Ledger
from asyncsave.persist import Job
from asyncsave.result import SaveResult
from asyncsave.slots import Slot, Slots
from asyncsave.stats import Tally

__all__ = ["Transit"]

_log = logging.getLogger("asyncsave")


class Transit:
    """An order for the backend.

    Args:
        job: What is to be stored.
        handle: The caller's end.
        slot: The memory it lies in.
        slots: Whom that is given back to.
        ledger: The writer's account.
        tally: The writer's counts.
        logs_errors: Whether an error is logged at once.
    """

    def __init__(
        self,
        job: Job,
        handle: SaveHandle,
        slot: Slot,
        *,
        slots: Slots,
        ledger: Ledger,
        tally: Tally,
        logs_errors: bool,
    ) -> None:
        self.job = job
        self._handle = handle
        self._lent = [slot]
        self._slots = slots
        self._ledger = ledger
        self._tally = tally
        self._logs_errors = logs_errors
        self._begun = False
        self._withdrawn: Callable[[], None] = lambda: None
        self.queued = time.perf_counter()

    def begin(self) -> bool:
        """Claim the save for writing; False if it was withdrawn. Who has begun may begin again."""
        if not self._begun and self._handle.begin():
            self._begun = True
            self.job.timings["queue"] = time.perf_counter() - self.queued
        return self._begun

    def contest(self, withdrawn: Callable[[], None]) -> Claim:
        """Let the save be withdrawn only by who takes its claim."""
        claim = claim_of(self._handle)
        self._withdrawn = withdrawn
        self._handle.contest(claim.take)
        return claim

    def progress(self, nbytes: int) -> None:
        """Count written bytes."""
        self._handle.advance(nbytes)

    def finish(self, result: SaveResult) -> None:
        """Say that the checkpoint is in place."""
        self._tally.count("saved", result.nbytes)
        self._give_back()
        self._handle.finish(result)
        self._ledger.leave(self._handle)
        self._say(logging.DEBUG, f"saved {result.path}: {result.nbytes} bytes, {result.timings}")

    def fail(self, error: BaseException) -> None:
        """Say that it is not, and why; nothing if it has ended already (a callback of the user's raised)."""
        if self._handle.done():
            return
        described = error if isinstance(error, AsyncSaveError) else SaveError.describing(error, path=self.job.path)
        self._tally.count("failed")
        self._ledger.blame(self._handle)
        self._give_back()
        self._handle.fail(described)
        self._ledger.leave(self._handle)
        if self._logs_errors:
            self._say(logging.ERROR, str(described))

    def withdrawn(self) -> None:
        """Say that the save was cancelled or replaced before it was begun."""
        self._withdrawn()
        self._tally.count("replaced" if self._handle.status == "replaced" else "cancelled")
        self._give_back()
        self._ledger.leave(self._handle)

    def _give_back(self) -> None:
        """Give the slot back, once: whoever comes second must not free it under the next save."""
        for image in self.job.images:  # who keeps the handle, or an error's traceback, must not keep the memory
            image.memory.release()
        with contextlib.suppress(IndexError):
            self._slots.give_back(self._lent.pop())

    def _say(self, level: int, message: str) -> None:
        with contextlib.suppress(Exception):
            _log.log(level, "%s", message)
