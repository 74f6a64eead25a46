"""A few threads that share a list of small jobs, for copies and disk blocks.

Not an executor: nothing is started late (an interpreter that is shutting down can start no thread),
the calling thread works too, and no job outlives the call that brought it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Workers"]

T = TypeVar("T")


class _Job:
    """One call of :meth:`Workers.each`: its items, and who is at work on them.

    Helpers come when they can, and need not come at all: the caller waits only for those that are
    here. So it never waits for a helper that was ended, nor for one that is stuck in a job which this
    very thread has left for a signal handler.
    """

    def __init__(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        self.error: BaseException | None = None
        self._function = function
        self._items = deque(items)
        self._helpers = 0
        self._changed = threading.Condition()

    def work(self) -> None:
        """Take items until there are none left, or until one has failed."""
        while self.error is None:
            try:
                item = self._items.popleft()
            except IndexError:
                return
            try:
                self._function(item)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Keep the first error."""
        self.error = self.error or error

    def help(self) -> None:
        """Work, as a helper."""
        with self._changed:
            self._helpers += 1
        self.work()
        with self._changed:
            self._helpers -= 1
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until no helper touches the items' memory any more, whatever is raised meanwhile."""
        while True:
            try:
                with self._changed:
                    self._changed.wait_for(lambda: not self._helpers)
            except BaseException as error:  # noqa: BLE001 - Ctrl-C must not free memory in use
                self.fail(error)
            else:
                return


class Workers:
    """Threads that help the calling thread through a list of independent items.

    Args:
        threads: How many work at once, the caller included. Helpers are daemon threads, made here.
        name: What the helpers are called.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._helpers = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(1, threads)
        ]
        started = 0
        try:
            for helper in self._helpers:
                helper.start()
                started += 1
        except RuntimeError:
            # The interpreter is shutting down, or the process may have no more threads: the
            # caller works alone, slower and just as well.
            del self._helpers[started:]

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.help()
            del job  # let go of the memory while waiting for the next

    def each(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        """Call ``function`` on every item, in no particular order; block until all is done.

        Raises:
            BaseException: The first error of any item; the items after it may not have been begun.
        """
        items = list(items)
        helpers = min(len(self._helpers), len(items) - 1)
        if helpers < 1:
            for item in items:
                function(item)
            return
        job = _Job(function, items)
        try:
            for _ in range(helpers):
                self._jobs.put(job)
            job.work()
        except BaseException as error:  # noqa: BLE001 - Ctrl-C between two items
            job.fail(error)
        job.join()
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """End the helpers and wait for them. Idempotent."""
        for _ in self._helpers:
            self._jobs.put(None)
        for helper in self._helpers:
            helper.join()
        self._helpers = []

    def abandon(self) -> None:
        """Forget the helpers: in a forked child they do not exist."""
        self._helpers = []
