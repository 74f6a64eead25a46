"""What saving costs a real training: the saves, steps and phases of a user's own loop, in the bench's table."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from asyncsave import observers
from asyncsave.bench.machine import describe
from asyncsave.bench.spread import Spread
from asyncsave.bench.summary import summed
from asyncsave.bench.table import told
from asyncsave.bench.timeline import SaveMark, Step, Timeline, tolls
from asyncsave.errors import AsyncSaveError
from asyncsave.handle import SaveHandle

__all__ = ["Profile", "profile"]


class Profile:
    """Records a loop's saves and steps while its block runs. A context manager; made by :func:`profile`.

    All saves of this process count, of whatever writer or manager. A step ends where an optimizer's ``step`` has
    ended: that of the first optimizer seen, so that several count once. A loop where that is not so calls
    :meth:`step` at the end of each; then only those calls count.

    Args:
        show: Whether the table is printed when the block has ended without an error.
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._marks: list[float] = []
        self._own_marks: list[float] = []
        self._optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None
        self._saves: list[_Watched] = []

    def __enter__(self) -> Profile:  # noqa: PYI034 - not made for subclasses
        """Begin."""
        hook = register_optimizer_step_post_hook(self._stepped)
        self._stack.callback(hook.remove)
        self._stack.enter_context(observers.observed(self._saved))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the saves under way, and print the table; after an error of the block's, do neither."""
        self._stack.close()
        if error is None:
            for save in self._saves:
                save.ended.wait()
            if self._show:
                sys.stdout.write(f"{self}\n")

    def __str__(self) -> str:
        """Return the table."""
        return told(self.document()) if self._complete() else f"profile: {len(self._saves)} saves, none complete"

    def step(self) -> None:
        """Say that a step has ended here."""
        self._own_marks.append(time.perf_counter())

    def timeline(self) -> Timeline:
        """Return steps and saves so far, those that are complete; seconds of ``time.perf_counter()``."""
        return self._timeline(self._complete())

    def document(self) -> dict[str, Any]:
        """Return what was found, in the form of ``asyncsave bench --json`` (docs/cli.md); the saves by backend.

        Raises:
            AsyncSaveError: No save is complete.
        """
        complete = self._complete()
        if not complete:
            raise AsyncSaveError("there is nothing to tell: no save was made in the block, or none has ended well")
        timeline = self._timeline(complete)  # of these: others may complete meanwhile
        by_mode = defaultdict(list)
        taken = tolls(timeline)
        ordered = sorted(complete, key=lambda save: save.called)
        for save, toll in zip(ordered, taken, strict=True):
            by_mode[save.backend].append((save, toll))
        return {
            "machine": describe(os.path.dirname(ordered[-1].handle.path), direct=False),
            "state": None,
            "training": {
                "kind": "profile",
                "quiet_ms": Spread.of([toll.quiet for toll in taken]).as_json(1e3),
                "saves": len(taken),
            },
            "disk": None,
            "modes": {
                mode: summed(
                    [toll for _, toll in saves],
                    Timeline(timeline.steps, [save.mark() for save, _ in saves]),
                    promise=_promise([save.handle for save, _ in saves]),
                    nbytes=sum(save.handle.result().nbytes for save, _ in saves) / len(saves),
                )
                | {"first_ms": 1e3 * saves[0][1].stall, "peak_bytes": None}
                for mode, saves in by_mode.items()
            },
            "sweeps": None,
            "verdict": None,
        }

    def _timeline(self, saves: list[_Watched]) -> Timeline:
        marks = list(self._own_marks or self._marks)
        steps = [Step(began, ended) for began, ended in itertools.pairwise(marks)]
        return Timeline(steps, [save.mark() for save in saves])

    def _complete(self) -> list[_Watched]:
        return [save for save in list(self._saves) if save.is_complete()]

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        with self._lock:
            if self._optimizer() is None:
                self._optimizer = weakref.ref(optimizer)
            if self._optimizer() is optimizer:
                self._marks.append(time.perf_counter())

    def _saved(self, handle: SaveHandle, backend: str, called: float) -> None:
        self._saves.append(_Watched(handle, backend, called))


class _Watched:
    """A save, and its moments."""

    def __init__(self, handle: SaveHandle, backend: str, called: float) -> None:
        self.handle = handle
        self.backend = backend
        self.called = called
        self.returned = self.completed = time.perf_counter()
        self.ended = threading.Event()
        handle.add_done_callback(self._stamp)

    def is_complete(self) -> bool:
        """Tell whether it has ended well."""
        return self.ended.is_set() and self.handle.status in {"durable", "written"}

    def mark(self) -> SaveMark:
        return SaveMark(self.called, self.returned, max(self.completed, self.returned), self.handle.timings)

    def _stamp(self, _: object) -> None:
        self.completed = time.perf_counter()
        self.ended.set()


def profile(*, show: bool = True) -> Profile:
    """Record the saves, steps and phases of a real training loop, and print what saving costs it.

    Args:
        show: Whether the table is printed on standard output when the block ends; an error of the block's prevents it.

    Returns:
        A context manager. ``print(report)`` shows the table at any time, ``report.document()`` returns the figures.

    Example:
        >>> with asyncsave.profile() as report:
        ...     for step in range(1000):
        ...         train(step)
        ...         if step % 100 == 99:
        ...             asyncsave.save_async(state, "ckpt.pt")
    """
    return Profile(show=show)


def _promise(handles: list[SaveHandle]) -> str:
    """Say what is flushed when these saves count as complete."""
    return "file + folder" if all(handle.status == "durable" for handle in handles) else "page cache"
