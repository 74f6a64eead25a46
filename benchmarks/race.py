"""Races beside a training, ratios within a turn, and how samples get into pytest-benchmark.

Contestants take turns (`asyncsave.bench.rounds`); ratios are taken within a turn, then their median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.loops import Loop
from asyncsave.bench.rounds import QUIET_STEPS, interleave, save_beside
from asyncsave.bench.savers import Saver
from asyncsave.bench.states import State
from asyncsave.bench.timeline import Toll, tolls


def race_beside(
    savers: Sequence[Saver], state: State, path: Callable[[str], str], loop: Loop, rounds: int
) -> dict[str, list[Toll]]:
    """Let all save in turns beside one training, each over its own last file; return what each save took."""
    for _ in range(QUIET_STEPS):
        loop.step()
    runs = {saver.name: partial(save_beside, saver, state, path(saver.name), loop) for saver in savers}
    return {name: [tolls(one)[0] for one in found] for name, found in interleave(runs, rounds).items()}


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
