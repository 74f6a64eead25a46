"""How much slower is a training step while a save is being written?

Pairs: in each round the median step during the save against the median quiet step around it. Two controls in the
same turns: the same with no save at all, which shows the noise of the machine, and with a bare copy and raw write.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Bench
from benchmarks.contestants import AsyncSave, BareMetal, Contestant, Saving
from benchmarks.race import Spread, interleave, recorded_time
from benchmarks.report import Figure
from benchmarks.states import State, tensor_bytes
from benchmarks.training import Toll, Training, take_toll

QUESTION = "training step while saving"
PROMISES = {"nothing": "-", "bare copy + raw write": "file + folder", "asyncsave": "file + folder"}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


class Nothing:
    """Saves nothing, for half a second: the control that shows the noise."""

    name = "nothing"
    promise = "-"

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def save(self, state: State, path: Path) -> Saving:  # noqa: ARG002
        """Sleep in the background."""
        return Saving.start(lambda: self._sleep(path))

    def check(self, state: State, path: Path) -> bool:  # noqa: ARG002
        """Nothing was written, so nothing is wrong."""
        return True

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()

    def _sleep(self, path: Path) -> Future[Any]:
        path.touch()
        return self._pool.submit(time.sleep, 0.5)


@pytest.fixture(scope="module")
def tolls(bench: Bench, standard: State) -> Mapping[str, list[Toll]]:
    """Take turns; return what each save took."""
    training = Training()
    training.steps(20)
    with ExitStack() as stack:
        savers: list[Contestant] = [Nothing(), BareMetal(standard, bench.folder), AsyncSave(standard)]
        for saver in savers:
            stack.enter_context(closing(saver))
        runs = {s.name: partial(take_toll, s, standard, bench.path(s.name), training) for s in savers}
        samples = interleave(runs, bench.rounds(15))
    bench.clear()
    for name, goal, limit in (
        ("asyncsave", "<= 1.05", 1.05),
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
