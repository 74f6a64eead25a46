"""Interleaved rounds, and how their samples get into pytest-benchmark.

A disk and a pair of cores that others use too change from minute to minute. So contestants never run one after the
other, but in turns, A B C, B C A, C A B. The first turn is dropped; ratios are taken within a turn, then their median.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_benchmark.fixture import BenchmarkFixture

Result = TypeVar("Result")


def interleave(runs: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Run all in turns, ``rounds`` times after one that is dropped; return the results of each, in order."""
    results: dict[str, list[Result]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        gc.collect()
        names = list(runs)
        start = turn % len(names)  # nobody always comes after the same one
        for name in names[start:] + names[:start]:
            os.sync()  # what the one before left in the page cache is not this one's to pay for
            result = runs[name]()
            if turn > 0:
                results[name].append(result)
    return results


@dataclass(frozen=True)
class Spread:
    """A median and the range that it was taken from."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum up samples."""
        return cls(statistics.median(samples), min(samples), max(samples))

    def show(self, scale: float = 1.0, digits: int = 2) -> str:
        """Return "median (low..high)", each times ``scale``."""
        low, middle, high = (f"{value * scale:.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{middle} ({low}..{high})"


def ratios(samples: Sequence[float], to: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [a / b for a, b in zip(samples, to, strict=True)]


_clock = 0.0


def recorded_time() -> float:
    """Tell the time of the recording that `replay` plays; the ``timer`` of every benchmark here."""
    return _clock


def replay(benchmark: BenchmarkFixture, samples: Sequence[float]) -> None:
    """Hand samples that were taken before, in turns with others, to pytest-benchmark, one as each of its rounds.

    The benchmark must be marked ``timer=recorded_time``. Its clock then goes forward by exactly one sample in each
    round, so that statistics, JSON and ``pytest-benchmark compare`` show what was measured.
    """
    rest = iter(samples)

    def play() -> None:
        global _clock  # noqa: PLW0603 - pytest-benchmark takes a function without arguments as its timer
        _clock += next(rest)

    benchmark.pedantic(play, rounds=len(samples))  # type: ignore[no-untyped-call]
