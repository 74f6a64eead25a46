"""How much slower is a training step while a save is being written?

Pairs: in each round the median step during the save against the median quiet step around it. Two controls in the
same turns: the same with no save at all, which shows the noise of the machine, and with a bare copy and raw write.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.loops import Training
from asyncsave.bench.savers import AsyncSave, Promise, Saver, Saving
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, tensor_bytes
from asyncsave.bench.timeline import Toll
from benchmarks.conftest import Bench
from benchmarks.contestants import BareMetal
from benchmarks.race import race_beside, recorded_time
from benchmarks.report import Figure

QUESTION = "training step while saving"
PROMISES = {"nothing": "-", "bare copy + raw write": "file + folder", "thread": "file + folder"}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


class Nothing:
    """Saves nothing, for half a second: the control that shows the noise."""

    name = "nothing"
    promise: Promise = "page cache"

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def save(self, state: State, path: str) -> Saving:  # noqa: ARG002
        """Sleep in the background."""
        return Saving.start(lambda: self._pool.submit(time.sleep, 0.5))

    def check(self, state: State, path: str) -> bool:  # noqa: ARG002
        """Nothing was written, so nothing is wrong."""
        return True

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


@pytest.fixture(scope="module")
def tolls(bench: Bench, standard: State) -> Mapping[str, list[Toll]]:
    """Take turns; return what each save took."""
    contestants: list[Saver] = [Nothing(), BareMetal(standard, bench.folder), AsyncSave("thread", standard)]
    with bench.contest(standard, contestants) as savers:
        samples = race_beside(savers, standard, bench.path, Training(), bench.rounds(15))
    for name, goal, limit in (
        ("thread", "<= 1.05", 1.05),
        ("bare copy + raw write", "told", None),
        ("nothing", "told", None),
    ):
        slowdowns = Spread.of([toll.slowdown for toll in samples[name]])
        bench.report.add(Figure(f"{QUESTION}, in quiet steps: {name}", goal, slowdowns, limit=limit))
    return samples


@pytest.mark.parametrize("contestant", PROMISES)
def bench_step(
    contestant: str, tolls: Mapping[str, list[Toll]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record the steps of one contestant: one sample is a round's median step while saving."""
    taken = tolls[contestant]
    bench.report.record(
        benchmark,
        [toll.slowdown * toll.quiet for toll in taken],
        nbytes=tensor_bytes(standard),
        promise=PROMISES[contestant],
        extra={
            "quiet_steps": [toll.quiet for toll in taken],
            "slowdowns": [toll.slowdown for toll in taken],
        },
    )
