"""The caller's end of one save: a future, with the moments on the way to it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any, Literal

from asyncsave.errors import AsyncSaveError
from asyncsave.result import SaveResult

__all__ = ["Moment", "SaveHandle", "Status"]

Status = Literal[
    "staging",
    "queued",
    "writing",
    "durable",
    "written",
    "skipped",
    "replaced",
    "cancelled",
    "failed",
]


class Moment:
    """Something that happens once, or never will."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._happened: bool | None = None

    def __repr__(self) -> str:
        """Show what is known."""
        return f"<Moment {({None: 'open', True: 'set', False: 'missed'})[self._happened]}>"

    def is_set(self) -> bool:
        """Tell whether it has happened."""
        return self._happened is True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it happens (True), can no longer happen, or ``timeout`` seconds are over."""
        with self._condition:
            self._condition.wait_for(lambda: self._happened is not None, timeout)
            return self._happened is True

    def renew_lock(self) -> None:
        """Forget who holds the lock, in a forked child."""
        self._condition = threading.Condition()

    def settle(self, *, happened: bool) -> None:
        """Say that it has happened, or never will; for the writer. The first word stands."""
        with self._condition:
            if self._happened is None:
                self._happened = happened
                self._condition.notify_all()


class SaveHandle(concurrent.futures.Future[SaveResult]):
    """One save under way: a ``concurrent.futures.Future`` of its :class:`SaveResult`.

    ``concurrent.futures.wait``, ``as_completed`` and ``add_done_callback`` work as on any future, and
    in asyncio it can be awaited; cancelling the task that awaits it does not cancel the save. Callbacks
    run on the writer's thread; those of a withdrawn save on the thread that withdrew it.

    An error counts as read once ``result()``, ``exception()`` or ``await`` has delivered it. One
    that nobody reads is raised by the writer's next call.

    Attributes:
        path: The target, absolute; for a file object its ``name`` or type.
        is_file: Whether the target is a path, and not a file object.
        staged: Set once the state is the caller's again: always, when ``save_async`` has returned,
            unless the save was skipped.
        durable: Set once the checkpoint survives a power cut. Where it never will (a failed or
            cancelled save, a file system in memory), ``wait`` returns False as soon as that is known.
    """

    def __init__(self, path: str, *, is_file: bool = True) -> None:
        super().__init__()
        self.path = path
        self.is_file = is_file
        self.staged = Moment()
        self.durable = Moment()
        self._status: Status = "staging"
        self._nbytes = 0
        self._written = 0
        self._phases: dict[str, float] = {}
        self.read = False
        self._on_cancel: Callable[[], None] | None = None
        self._on_writing_thread: Callable[[], bool] = lambda: False
        self._claim: Callable[[], bool] = lambda: True

    def __repr__(self) -> str:
        """Show path, status and progress."""
        done, total = self.progress
        return f"<SaveHandle {self.path!r} {self.status}, {done}/{total} bytes>"

    @property
    def status(self) -> Status:
        """Where the save is.

        ``"staging"``, ``"queued"`` and ``"writing"`` on the way. In the end ``"durable"``;
        ``"written"`` (in place, but this file system or ``durable=False`` promises no more);
        ``"skipped"`` or ``"replaced"`` (by ``on_busy``), ``"cancelled"``, or ``"failed"``.
        """
        return self._status

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes written, and bytes in all (0 while the state is being captured)."""
        return self._written, self._nbytes

    @property
    def timings(self) -> dict[str, float]:
        """Seconds per phase, those that have ended; see :class:`SaveResult`."""
        return dict(self._phases)

    def result(self, timeout: float | None = None) -> SaveResult:
        """Block until the save has ended; return its result or raise its error.

        Raises:
            SaveError: It failed; what was at the path before is untouched, unless the error's
                ``outcome`` says otherwise.
            concurrent.futures.CancelledError: It was cancelled, skipped or replaced.
            concurrent.futures.TimeoutError: It has not ended after ``timeout`` seconds; it goes on.
            AsyncSaveError: A done callback asks for a save of the same writer that has not ended.
        """
        self._forbid_waiting_for_oneself()
        try:
            return super().result(timeout)
        except BaseException as error:
            self._note_read(error)
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Block until the save has ended; return its error, or None."""
        self._forbid_waiting_for_oneself()
        error = super().exception(timeout)
        self._note_read(error)
        return error

    def cancel(self) -> bool:
        """Cancel the save if it has not begun to be written; its slot is free at once.

        Returns:
            True if it is cancelled now, or was before; False once it is being written or has ended.
        """
        return self.withdraw("cancelled") or self.cancelled()

    def __await__(self) -> Generator[Any, None, SaveResult]:
        """Wait in a running event loop, without blocking it."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_: object) -> None:
            # The loop may be gone by the time the save ends; then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_release, waiter)

        self.add_done_callback(wake)
        yield from waiter
        return self.result()

    def _forbid_waiting_for_oneself(self) -> None:
        if not self.done() and self._on_writing_thread():
            message = "a done callback cannot wait for a save of the same writer: it runs on the thread that writes it"
            raise AsyncSaveError(message)

    def _note_read(self, error: BaseException | None) -> None:
        if error is not None and error is self._exception:
            self.read = True

    # What follows is for the writer.

    def withdraw(self, status: Status) -> bool:
        """End a save that has not begun, as skipped, replaced or cancelled; False if it has."""
        with self._condition:
            if self._status != "queued" and not (self._status == "staging" and status == "skipped"):
                return False
            if self._status == "queued" and not self._claim():
                return False
            self._status = status
        # The slot first: the future's own cancel runs the callbacks, and one of them may want to save.
        if self._on_cancel is not None:
            self._on_cancel()
        self.durable.settle(happened=False)
        self.staged.settle(happened=False)
        super().cancel()
        self.set_running_or_notify_cancel()
        return True

    def measure(self, phases: dict[str, float]) -> None:
        """Show these timings from now on; they are filled as the phases end."""
        self._phases = phases

    def queue(self, nbytes: int, on_cancel: Callable[[], None], on_writing_thread: Callable[[], bool]) -> None:
        """Say that the state is staged.

        Args:
            nbytes: Size of the file.
            on_cancel: Called if the save is withdrawn.
            on_writing_thread: Tells whether the caller is the thread that has to write the save.
        """
        self._on_writing_thread = on_writing_thread
        self._nbytes = nbytes
        self._on_cancel = on_cancel
        self._status = "queued"
        self.staged.settle(happened=True)

    def contest(self, claim: Callable[[], bool]) -> None:
        """Let the queued save be withdrawn only where ``claim`` says, once, that nobody else has it."""
        self._claim = claim

    def begin(self) -> bool:
        """Claim the save for writing; False if it was withdrawn meanwhile."""
        with self._condition:
            if self._status != "queued":
                return False
            self._status = "writing"
            self.set_running_or_notify_cancel()
            return True

    def advance(self, nbytes: int) -> None:
        """Count written bytes."""
        with self._condition:
            self._written += nbytes

    def finish(self, result: SaveResult) -> None:
        """Resolve with a result; the first word stands."""
        if self.done():
            return
        self._status = "durable" if result.durable else "written"
        self._phases = result.timings
        self.durable.settle(happened=result.durable)
        self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Resolve with an error; the first word stands."""
        if self.done():
            return
        self._status = "failed"
        self.durable.settle(happened=False)
        self.staged.settle(happened=False)
        self.set_exception(error)

    def orphan(self, error: BaseException) -> None:
        """Fail in a forked child, where the writer's thread does not exist and locks may be held.

        Callbacks are left to the parent: what they tell of happens there, and a lock that they need
        may be held here by a thread that does not exist.
        """
        self._condition = threading.Condition()
        self._done_callbacks: list[Callable[[Any], object]] = []
        for moment in (self.staged, self.durable):
            moment.renew_lock()
        if not self.done():
            self.fail(error)
        self.read = True


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
