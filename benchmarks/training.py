"""Two training loops, one that keeps every core busy and one that keeps the GIL, and what a save takes from them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from benchmarks.contestants import Contestant
from benchmarks.states import State

QUIET_STEPS = 10


class Loop(Protocol):
    """Something that goes on beside a save, step by step."""

    def step(self) -> float:
        """Do one step; return the seconds it took."""


class Training:
    """A small transformer with AdamW on random tokens: forward, backward and update in one step.

    It trains beside the state that is saved, so that a step takes tens of milliseconds and a save spans many. The work
    runs on as many threads as torch uses: all cores, if nobody has said otherwise.
    """

    def __init__(self, width: int = 256, layers: int = 2, batch: int = 4, length: int = 64) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self._model = nn.Sequential(
            nn.Embedding(256, width), nn.TransformerEncoder(layer, layers), nn.Linear(width, 256)
        )
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._tokens = torch.randint(256, (batch, length + 1))

    def step(self) -> float:
        """Do one step; return the seconds it took."""
        began = time.perf_counter()
        logits = self._model(self._tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), self._tokens[:, 1:].flatten())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        loss.item()
        return time.perf_counter() - began

    def steps(self, count: int) -> list[float]:
        """Do ``count`` steps; return the seconds of each."""
        return [self.step() for _ in range(count)]


class PythonLoop:
    """Steps of nothing but Python: one core is busy, and the GIL is let go only when another thread insists on it.

    That is a training loop whose time goes into tokens, sampling or bookkeeping. A step takes several milliseconds,
    more than the five for which a thread may keep the GIL from the others.
    """

    def __init__(self, rounds: int = 120_000) -> None:
        self._rounds = rounds

    def step(self) -> float:
        """Do one step; return the seconds it took."""
        began = time.perf_counter()
        value = 0
        for index in range(self._rounds):
            value = (31 * value + index) % 1_000_003
        return time.perf_counter() - began


@dataclass(frozen=True)
class Toll:
    """What one save took from the training, in seconds. ``quiet`` is the median step around the save."""

    stall: float
    durable: float
    quiet: float
    busy: tuple[float, ...]

    @property
    def cost(self) -> float:
        """The training time that the save took: its stall, and what the steps beside it took longer than quiet ones."""
        return self.stall + self.taken

    @property
    def taken(self) -> float:
        """What the steps beside the save took longer than quiet ones, in sum."""
        return sum(step - self.quiet for step in self.busy)

    @property
    def slowdown(self) -> float:
        """The median step while the save was being written, in quiet steps; 1.0 if there was none."""
        return statistics.median(self.busy) / self.quiet if self.busy else 1.0

    @property
    def inflation(self) -> float:
        """The mean step while the save was being written, in quiet steps; 1.0 if there was none.

        The mean, because a thread that takes the GIL for five milliseconds holds up one short step in many.
        """
        return statistics.fmean(self.busy) / self.quiet if self.busy else 1.0


def take_toll(contestant: Contestant, state: State, path: Path, training: Loop, quiet_steps: int = QUIET_STEPS) -> Toll:
    """Train, save over the last checkpoint while training goes on, train again.

    A step that had begun when the save ended counts whole. Quiet steps are taken on both sides, so that a machine that
    grows slower or faster meanwhile does not count for or against the save.
    """
    before = [training.step() for _ in range(quiet_steps)]
    saving = contestant.save(state, path)
    busy = []
    while not saving.done():
        busy.append(training.step())
    durable = saving.wait()
    after = [training.step() for _ in range(quiet_steps)]
    return Toll(saving.blocked, durable, statistics.median(before + after), tuple(busy))
