"""What a writer and whoever works for it in the background know of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from asyncsave.claim import Claim
from asyncsave.image.layout import Layout
from asyncsave.memory import Pages
from asyncsave.persist import Job
from asyncsave.result import SaveResult

__all__ = ["Backend", "BackendFactory", "Order", "Task"]


class Task(Protocol):
    """A job, and who is to be told of it."""

    job: Job

    def begin(self) -> bool:
        """Claim the job; False means that it was withdrawn."""

    def progress(self, nbytes: int) -> None:
        """Count written bytes; called on any thread."""

    def finish(self, result: SaveResult) -> None:
        """Say that it is done."""

    def fail(self, error: BaseException) -> None:
        """Say that it failed, and that what it had made is gone."""


class Order(Task, Protocol):
    """A writer's task.

    Attributes:
        queued: ``time.perf_counter()`` when its state was staged.
    """

    queued: float

    def contest(self, withdrawn: Callable[[], None]) -> Claim:
        """Let it be withdrawn only by who takes its claim, and return that.

        ``withdrawn`` is called when somebody has.
        """


class Backend(Protocol):
    """Whoever seals and stores what a writer has staged.

    Attributes:
        name: What it is.
        outlives: Whether it goes on when this process ends.
    """

    name: str
    outlives: bool

    @property
    def pages(self) -> Callable[[int], Pages]:
        """What kind of memory the arenas are made of."""

    def room(self, layout: Layout) -> int:
        """Return how many bytes of an arena it needs for an image of this layout."""

    def warmup(self) -> None:
        """Block until it can work at once."""

    def submit(self, order: Order) -> None:
        """Take an order; orders of files are worked first in, first out."""

    def drop_spare(self) -> None:
        """Have the file removed that is kept to be overwritten, when what was submitted before is done."""

    def settle(self) -> None:
        """Block until what was submitted is safe from the death of this process, as far as it can be.

        Called without any lock: it may have to wait for the thread that reports to the orders.
        """

    def close(self, timeout: float | None = None) -> None:
        """Finish what was submitted, then end. Orders that are submitted later are worked by their caller.

        Args:
            timeout: Seconds after which who has nothing to do any more, and does not end, is made to.
        """

    def abandon(self) -> None:
        """Forget everything, in a forked child."""

    def is_current_thread(self) -> bool:
        """Tell whether the caller runs on the thread that reports to the orders."""


class BackendFactory(Protocol):
    """Settings of a backend, from which a writer makes its own."""

    def start(self, threads: int) -> Backend:
        """Make one that writes so many blocks at once."""
