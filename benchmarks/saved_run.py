"""A training that is saved every few steps, in the foreground or in the background, and what the saves took from it.

Each way keeps one checkpoint, and each counts a save as durable when it is on the disk: `torch.save` overwrites one
file and is followed by an fsync of it. That is the fair baseline, and a kind one: asyncsave's manager makes a new
folder with a manifest, syncs everything and only then drops the old one, so that no crash can cost both.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

import asyncsave
from benchmarks.charlm import Trainer
from benchmarks.states import State


class Saver(Protocol):
    """A way to save a training many times."""

    title: str

    @property
    def path(self) -> Path:
        """The file of the last save."""

    def save(self, step: int, state: asyncsave.TrainingState) -> None:
        """Save; return when the loop may change the state."""

    def writing(self) -> bool:
        """Say whether a save is still under way."""

    def finish(self) -> list[float]:
        """Wait for all saves; return for each the seconds from the call until it was durable."""


class Foreground:
    """`torch.save` and an fsync: the loop waits for all of it."""

    title = "torch.save + fsync"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "torch_save.pt"
        self._seconds: list[float] = []

    def save(self, step: int, state: asyncsave.TrainingState) -> None:  # noqa: ARG002 - it overwrites the last one
        """Save and wait for the disk."""
        began = time.perf_counter()
        torch.save(state.state_dict(), self.path)
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self._seconds.append(time.perf_counter() - began)

    def writing(self) -> bool:
        """Say no: while the loop runs, nothing is being saved."""
        return False

    def finish(self) -> list[float]:
        """Return the seconds of each call."""
        return self._seconds


class Background:
    """`CheckpointManager.save`: the loop waits for one copy in memory."""

    title = "asyncsave"

    def __init__(self, manager: asyncsave.CheckpointManager) -> None:
        self._manager = manager
        self._handles: list[asyncsave.SaveHandle] = []

    @property
    def path(self) -> Path:
        """The file of the newest checkpoint."""
        return Path(self._handles[-1].path) / "state.pt"

    def save(self, step: int, state: asyncsave.TrainingState) -> None:
        """Stage the state; the rest happens beside the training."""
        self._handles.append(self._manager.save(step, state))

    def writing(self) -> bool:
        """Say whether the newest save is still under way; those before it have ended by then."""
        return bool(self._handles) and not self._handles[-1].done()

    def finish(self) -> list[float]:
        """Wait for all saves; raise the error of the first that failed."""
        return [handle.result().timings["total"] for handle in self._handles]


@dataclass(frozen=True)
class Round:
    """One save and the training around it; all times in seconds."""

    blocked: float  # what the call took
    beside: list[float]  # steps that began while the save was under way
    before: list[float]  # quiet steps, since the save before this one
    after: list[float]  # quiet steps, until the next save

    @property
    def quiet(self) -> float:
        """The median quiet step around the save: near in time, as a shared machine is not always equally fast."""
        return statistics.median(self.before + self.after)

    @property
    def lost(self) -> float:
        """The training time that the save took: the call, and what the steps beside it took above a quiet one."""
        return self.blocked + sum(step - self.quiet for step in self.beside)


@dataclass
class Run:
    """What happened in a training with saves."""

    title: str
    path: Path = Path()
    losses: list[float] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)  # seconds from each call until the file was on the disk
    last_saved: State = field(default_factory=dict)  # a copy of the state, made just before its last save

    def median(self, figure: Callable[[Round], float]) -> float:
        """The median of a figure over all rounds."""
        return statistics.median(map(figure, self.rounds))


def train(trainer: Trainer, saver: Saver, steps: int, every: int, progress: Callable[[float], None]) -> Run:
    """Train for ``steps`` steps and save after every ``every``-th of them, but not after the last step.

    So there is always something left to do after the last checkpoint, and the run shows what should come of it.
    ``progress`` is called with the loss of each step.
    """
    run = Run(saver.title)
    training = trainer.training_state()
    last_save = (steps - 1) // every * every
    beside: list[float] = []
    quiet: list[float] = []
    before = quiet
    for step in range(1, steps + 1):
        times = beside if saver.writing() else quiet
        began = time.perf_counter()
        run.losses.append(trainer.step())
        times.append(time.perf_counter() - began)
        if step == last_save:
            run.last_saved = copy.deepcopy(training.state_dict())
        if step <= last_save and step % every == 0:
            began = time.perf_counter()
            saver.save(step - 1, training)
            blocked = time.perf_counter() - began
            before = quiet or before  # saves that follow each other closely leave no quiet step between
            beside, quiet = [], []
            run.rounds.append(Round(blocked, beside, before, quiet))
        progress(run.losses[-1])
    run.durable = saver.finish()
    run.path = saver.path
    return run
