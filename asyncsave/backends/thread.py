"""The thread that writes: one save at a time, first in, first out, its blocks in parallel."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

from asyncsave import pending
from asyncsave.backends.contract import Task
from asyncsave.catalogue.upkeep import tidy
from asyncsave.image.layout import Layout
from asyncsave.memory import Pages
from asyncsave.persist import Job, Persister
from asyncsave.storage.attempt import FULL
from asyncsave.storage.sweep import sweep
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.workers import Workers

__all__ = ["ThreadBackend"]


class ThreadBackend:
    """A daemon thread and its helpers, started here and now.

    They are daemons because a non-daemon thread that waits for work would keep the interpreter from
    exiting; the exit hook waits for their work instead.

    Args:
        system: The operating system.
        threads: How many write blocks at once.
    """

    name = "thread"
    outlives = False
    pages = Pages

    def __init__(self, system: System, threads: int) -> None:
        self._system = system
        self._swept: set[str] = set()
        self._orders: SimpleQueue[Task | Callable[[], object] | None] = SimpleQueue()
        self._workers = Workers(threads, "asyncsave-blocks")
        self._persister = Persister(system, self._workers)
        self._lock = threading.RLock()
        self._writing = threading.Thread(target=self._run, name="asyncsave-writer", daemon=True)
        self._takes_orders = True
        try:
            self._writing.start()
        except RuntimeError:
            # The interpreter is shutting down and starts no thread: the caller writes.
            self._takes_orders = False

    def room(self, layout: Layout) -> int:
        """Return the size of the image: nothing else is needed."""
        return layout.nbytes

    def drop_spare(self) -> None:
        """Remove the file that is kept to be overwritten, when what was submitted before is done."""
        self.submit(self._persister.drop_spare)

    def warmup(self) -> None:
        """Do nothing: the threads are there."""

    def submit(self, order: Task | Callable[[], object]) -> None:
        """Take an order; return at once, or when it is done if the thread has ended."""
        with self._lock:
            if self._takes_orders:
                self._orders.put(order)
                return
        self._join()
        self._work(order)

    def settle(self) -> None:
        """Do nothing: nothing survives this process."""

    def close(self, timeout: float | None = None) -> None:  # noqa: ARG002 - the threads end when they are done
        """Finish what was submitted, then end the threads and wait for them.

        Orders that are submitted later are worked by their caller.
        """
        with self._lock:
            if self._takes_orders:
                self._takes_orders = False
                self._orders.put(None)
        self._join()
        self._workers.close()
        self._persister.close()

    def _join(self) -> None:
        if self._writing.is_alive() and not self.is_current_thread():
            self._writing.join()

    def abandon(self) -> None:
        """Forget the threads: in a forked child they do not exist."""
        self._takes_orders = False
        self._workers.abandon()
        self._persister.abandon()

    def is_current_thread(self) -> bool:
        """Tell whether the caller runs on the writing thread."""
        return self._writing is threading.current_thread()

    def _run(self) -> None:
        pending.never_wait_here()
        while (order := self._orders.get()) is not None:
            self._work(order)
            del order  # let go of the arena and the handle while waiting for the next

    def _work(self, order: Task | Callable[[], object]) -> None:
        if callable(order):
            with contextlib.suppress(Exception):
                order()
            return
        if not order.begin():
            return
        try:
            self._sweep(order.job)
            self._persister.persist(order.job, order.progress, order.finish)
        except BaseException as error:  # noqa: BLE001 - every handle resolves, whatever happens
            if isinstance(error, OSError) and error.errno in FULL:
                self._persister.drop_spare()
            _let_go(error)
            with contextlib.suppress(BaseException):
                order.fail(error)

    def _sweep(self, job: Job) -> None:
        """Remove what dead writers left, once in every folder that this writer writes to."""
        if isinstance(job.target, Target) and job.target.folder not in self._swept:
            self._swept.add(job.target.folder)
            (sweep if job.brief is None else tidy)(self._system, job.target.folder)


def _let_go(error: BaseException) -> None:
    """Clear the frames that an error has come through: they hold on to pieces of the arena."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
