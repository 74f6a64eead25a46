"""The thread that writes: one save at a time, first in, first out, its blocks in parallel."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from asyncsave import pending
from asyncsave.persist import Job, persist
from asyncsave.result import SaveResult
from asyncsave.storage.spare import Spares
from asyncsave.storage.sweep import sweep
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.workers import Workers

__all__ = ["Order", "ThreadBackend"]


class Order(NamedTuple):
    """A job, and what is to be told of it. All four are called on the writing thread.

    Attributes:
        job: What to store.
        begin: Called first; False means that the save was withdrawn.
        progress: Called with the bytes of each block.
        finish: Called with the result.
        fail: Called with the error; what the save had made is gone by then.
    """

    job: Job
    begin: Callable[[], bool]
    progress: Callable[[int], None]
    finish: Callable[[SaveResult], None]
    fail: Callable[[BaseException], None]


class ThreadBackend:
    """A daemon thread and its helpers, started here and now.

    They are daemons because a non-daemon thread that waits for work would keep the interpreter from
    exiting; the exit hook waits for their work instead.

    Args:
        system: The operating system.
        threads: How many write blocks at once.
    """

    def __init__(self, system: System, threads: int) -> None:
        self._system = system
        self._spares = Spares(system)
        self._swept: set[str] = set()
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._workers = Workers(threads, "asyncsave-blocks")
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="asyncsave-writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # The interpreter is shutting down and starts no thread: the caller writes.
            self._thread = None

    def submit(self, order: Order) -> None:
        """Take an order; return at once, or when it is done if there can be no thread any more."""
        if self._thread is None:
            self._work(order)
        else:
            self._orders.put(order)

    def close(self) -> None:
        """Finish what was submitted, then end the threads and wait for them.

        Orders that are submitted later are worked by their caller.
        """
        if self._thread is not None and self._thread is not threading.current_thread():
            self._orders.put(None)
            self._thread.join()
            self._thread = None
        self._workers.close()
        self._spares.close()

    def abandon(self) -> None:
        """Forget the threads: in a forked child they do not exist."""
        self._thread = None
        self._workers.abandon()
        self._spares.abandon()

    def is_current_thread(self) -> bool:
        """Tell whether the caller runs on the writing thread."""
        return self._thread is threading.current_thread()

    def _run(self) -> None:
        pending.never_wait_here()
        while (order := self._orders.get()) is not None:
            self._work(order)
            del order  # let go of the arena and the handle while waiting for the next

    def _work(self, order: Order) -> None:
        if not order.begin():
            return
        try:
            self._sweep(order.job.target)
            persist(
                order.job,
                self._system,
                self._workers,
                spares=self._spares,
                progress=order.progress,
                finish=order.finish,
            )
        except BaseException as error:  # noqa: BLE001 - every handle resolves, whatever happens
            if isinstance(order.job.target, Target):
                self._spares.drop(order.job.target.folder)  # the disk may be full
            _let_go(error)
            order.fail(error)

    def _sweep(self, target: object) -> None:
        """Remove what dead writers left, once in every folder that this writer writes to."""
        if isinstance(target, Target) and target.folder not in self._swept:
            self._swept.add(target.folder)
            sweep(self._system, target.folder)


def _let_go(error: BaseException) -> None:
    """Clear the frames that an error has come through: they hold on to pieces of the arena."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
