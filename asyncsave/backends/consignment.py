"""One save on its way through a writer process, and perhaps through a second one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Callable

from asyncsave import descriptors
from asyncsave.backends.child import Child
from asyncsave.backends.contract import Order
from asyncsave.backends.thread import ThreadBackend
from asyncsave.bundle import write_bundle
from asyncsave.claim import claim_of
from asyncsave.errors import SaveError, WriterDiedError
from asyncsave.result import SaveResult
from asyncsave.storage.target import Target, umask
from asyncsave.wire import Begun, Done, Failed, Progress, Save

__all__ = ["Consignment"]

_LIVES = 2
_MOST_EARLIER = 100


class Consignment:
    """A save from its hand-over to its end.

    Args:
        number: What it is called between the two processes.
        order: What is to be done, and who is told.
        target: Where the checkpoint goes.
        ended: Called with the number once it has ended, however.

    Attributes:
        child: The process that has it; None: none yet.
        begun: Whether that process has begun it.
        is_over: Whether it has ended.
    """

    def __init__(self, number: int, order: Order, target: Target, ended: Callable[[int], None]) -> None:
        job = order.job
        self.number = number
        self.child: Child | None = None
        self.begun = False
        self.is_over = False
        self._order = order
        self._ended = ended
        self._deaths = 0
        self._written = 0
        # More of them than a message has room for are waited for here.
        concurrent.futures.wait(job.after[:-_MOST_EARLIER])
        self._earlier = [claim_of(save) for save in job.after[-_MOST_EARLIER:]]
        path, self._folder, name = target
        brief_at, brief_nbytes = write_bundle(job)
        self._message = Save(
            number,
            job.nbytes,
            path,
            self._folder,
            name,
            job.sync,
            umask(),
            job.started,
            order.queued,
            after=0,
            locked=job.lock >= 0,
            recycle=job.recycle,
            brief_at=brief_at,
            brief_nbytes=brief_nbytes,
        )
        self._claim = order.contest(self._end)

    def hand_to(self, child: Child) -> None:
        """Give it to a process, if it does not have it already. Whoever gets it twice begins it once.

        Raises:
            OSError: The process is gone, or does not listen now; or the save is over, and its memory was given
                back meanwhile; or this process has no descriptors left.
        """
        if self.child is child:
            return
        fds: list[int] = []
        try:
            fds += self._claim.duplicate()
            if fds:
                for other in self._earlier:
                    fds += other.duplicate(writing=False)
                message = self._message._replace(after=len(fds) - 2)
                if message.locked:
                    with descriptors.held_back():
                        fds.append(descriptors.keep(os.dup(self._order.job.lock)))
                child.folders.add(self._folder)
                child.send(message, [self._order.job.memory, *fds])
        finally:
            for fd in fds:
                descriptors.drop(fd)
        self.child = child

    def hear(self, message: Begun | Progress | Done | Failed) -> None:
        """Pass on what the process says of it."""
        order, job = self._order, self._order.job
        if isinstance(message, Begun):
            self.begun = True
            order.begin()
            job.timings["queue"] = message.queue
        elif isinstance(message, Progress):
            self._written += message.nbytes
            order.progress(message.nbytes)
        elif isinstance(message, Done):
            job.timings |= {phase: getattr(message, phase) for phase in ("seal", "write", "sync", "total")}
            result = SaveResult(job.path, job.nbytes, message.digest, message.durable, dict(job.timings))
            self._end()
            try:
                order.finish(result)
            except BaseException as error:  # noqa: BLE001 - every handle resolves, whatever happens
                self._fail(error)
        else:
            _, text, phase, number, outcome = message
            failure = SaveError(text, path=job.path, phase=phase, errno=number or None, outcome=outcome)
            failure.__cause__ = OSError(number, os.strerror(number)) if number else None
            self._fail(failure)

    def outlive(self, *, blamed: bool) -> bool:
        """Get ready for another process after the death of one; False if there must be no other.

        Args:
            blamed: Whether the dead one may have died of this save.
        """
        self._order.progress(-self._written)
        self._written = 0
        self.begun = False
        self._deaths += blamed
        return self._deaths < _LIVES and self._claim.renew()

    def give_up(self, reason: str, returncode: int | None) -> None:
        """Fail it, now that no process can begin it any more; not if it is withdrawn in this very moment."""
        if not self.is_over and self._claim.seize():
            path = self._order.job.path
            message = f"cannot save {path!r}: {reason}. What is there is whole, nearly always the old version"
            self._fail(WriterDiedError(message, path=path, returncode=returncode))

    def take_back(self, backend: ThreadBackend) -> None:
        """Let this process write it, now that no other can begin it any more."""
        if not self.is_over and self._claim.seize():
            self._ended(self.number)
            backend.submit(self._order)

    def abandon(self) -> None:
        """Forget it, in a forked child."""
        self._claim.abandon()

    def _fail(self, error: BaseException) -> None:
        self._end()
        with contextlib.suppress(BaseException):
            self._order.fail(error)

    def _end(self) -> None:
        """Let nobody begin it any more, and who waits for its end go on."""
        self.is_over = True
        self._ended(self.number)
        self._claim.close()
