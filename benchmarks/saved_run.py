"""A training that is saved every few steps, in the foreground or in the background, and what the saves took from it.

Each way keeps one checkpoint, and each counts a save as durable when it is on the disk: `torch.save` overwrites one
file and is followed by an fsync of it. That is the fair baseline, and a kind one: asyncsave's manager makes a new
folder with a manifest, syncs everything and only then drops the old one, so that no crash can cost both.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import asyncsave
from asyncsave.bench.savers import Saving, TorchSave
from asyncsave.bench.states import State
from asyncsave.bench.timeline import Step, Timeline, Toll, tolls
from benchmarks.charlm import Trainer


class Saver(Protocol):
    """A way to save a training many times. ``path`` is the file of the last save."""

    title: str
    path: Path

    def save(self, step: int, state: asyncsave.TrainingState) -> Saving:
        """Save; return when the loop may change the state."""


class Foreground:
    """`torch.save` and an fsync: the loop waits for all of it."""

    title = "torch.save + fsync"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "torch_save.pt"
        self._saver = TorchSave(fsync=True)

    def save(self, step: int, state: asyncsave.TrainingState) -> Saving:  # noqa: ARG002 - it overwrites the last one
        """Save and wait for the disk."""
        return Saving.at_once(lambda: self._saver.save(state.state_dict(), str(self.path)))


class Background:
    """`CheckpointManager.save`: the loop waits for one copy in memory."""

    title = "asyncsave"
    path = Path()

    def __init__(self, manager: asyncsave.CheckpointManager) -> None:
        self._manager = manager

    def save(self, step: int, state: asyncsave.TrainingState) -> Saving:
        """Stage the state; the rest happens beside the training."""
        began = time.perf_counter()
        handle = self._manager.save(step, state)
        saving = Saving(began, handle)
        self.path = Path(handle.path) / "state.pt"
        return saving


@dataclass
class Run:
    """What happened in a training with saves. ``last_saved`` is a copy of the state, made just before its last save."""

    title: str
    path: Path = Path()
    losses: list[float] = field(default_factory=list)
    tolls: list[Toll] = field(default_factory=list)
    last_saved: State = field(default_factory=dict)

    def median(self, figure: Callable[[Toll], float]) -> float:
        """The median of a figure over all saves."""
        return statistics.median(map(figure, self.tolls))


def train(trainer: Trainer, saver: Saver, steps: int, every: int, progress: Callable[[float], None]) -> Run:
    """Train for ``steps`` steps and save after every ``every``-th of them, but not after the last step.

    So there is always something left to do after the last checkpoint, and the run shows what should come of it.
    ``progress`` is called with the loss of each step.
    """
    run = Run(saver.title)
    training = trainer.training_state()
    last_save = (steps - 1) // every * every
    timeline = Timeline()
    savings = []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        run.losses.append(trainer.step())
        timeline.steps.append(Step(began, time.perf_counter()))
        if step == last_save:
            run.last_saved = copy.deepcopy(training.state_dict())
        if step <= last_save and step % every == 0:
            savings.append(saver.save(step - 1, training))
        progress(run.losses[-1])
    timeline.saves = [saving.mark() for saving in savings]
    run.tolls = tolls(timeline)
    run.path = saver.path
    return run
