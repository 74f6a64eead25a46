"""Interleaved rounds: the ways of saving take turns, so that what changes from minute to minute changes for all.

A disk and a few cores that others use too are never the same for long. So no way of saving runs all its saves before
the next one begins, but in turns, A B C, C B A, B C A, A C B: none is always first, none always after the same one. The
first turn is dropped; differences are taken within a turn.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from asyncsave.bench.loops import Loop
from asyncsave.bench.savers import Saver
from asyncsave.bench.states import State
from asyncsave.bench.timeline import Step, Timeline

__all__ = ["QUIET_STEPS", "interleave", "save_beside"]

QUIET_STEPS = 10

Result = TypeVar("Result")


def interleave(
    runs: Mapping[str, Callable[[], Result]], rounds: int, done: Callable[[], object] = lambda: None
) -> dict[str, list[Result]]:
    """Run all in turns, ``rounds`` times after one that is dropped; return the results of each, in order.

    Args:
        runs: What to run, by name.
        rounds: How many turns count.
        done: Called after every run.
    """
    results: dict[str, list[Result]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        gc.collect()
        for name in _order(list(runs), turn):
            os.sync()  # what the one before left in the page cache is not this one's to pay for
            result = runs[name]()
            if turn > 0:
                results[name].append(result)
            done()
    return results


def _order(names: list[str], turn: int) -> list[str]:
    """Return who comes when in a turn: every second turn goes back over the one before, then another begins."""
    start = turn // 2 % len(names)
    order = names[start:] + names[:start]
    return order[::-1] if turn % 2 else order


def save_beside(saver: Saver, state: State, path: str, loop: Loop, quiet_steps: int = QUIET_STEPS) -> Timeline:
    """Train, save over the last checkpoint while training goes on, train again; return what happened when.

    Quiet steps are taken on both sides, so that a machine that grows slower or faster meanwhile does not count for or
    against the save.
    """
    timeline = Timeline()

    def step() -> None:
        began = time.perf_counter()
        loop.step()
        timeline.steps.append(Step(began, time.perf_counter()))

    for _ in range(quiet_steps):
        step()
    saving = saver.save(state, path)
    while not saving.done():
        step()
    timeline.saves.append(saving.mark())
    for _ in range(quiet_steps):
        step()
    return timeline
