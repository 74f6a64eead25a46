"""What does the first save of a writer cost the caller, after ``warmup(state)`` and without it?

Each round makes two writers: one is warmed up and saves twice (its second save is the warm one), one saves cold.
"""

from __future__ import annotations

from contextlib import closing

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.rounds import interleave
from asyncsave.bench.savers import AsyncSave, Saver, discard
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.race import ratios, recorded_time
from benchmarks.report import Figure

QUESTION = "caller blocked, first save"
WARM, AFTER, WITHOUT = "second save", "first save after warmup", "first save without warmup"
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@pytest.fixture(scope="module")
def first(bench: Bench, standard: State) -> dict[str, list[float]]:
    """Take turns; return the seconds that the caller was held."""

    def warmed() -> tuple[float, float]:
        with closing(AsyncSave("thread", standard)) as saver:
            return _hold(bench, saver, standard), _hold(bench, saver, standard)

    def cold() -> tuple[float, float]:
        with closing(AsyncSave("thread")) as saver:
            return _hold(bench, saver, standard), 0.0

    turns = interleave({AFTER: warmed, WITHOUT: cold}, bench.rounds(5))
    samples = {
        WARM: [again for _, again in turns[AFTER]],
        AFTER: [once for once, _ in turns[AFTER]],
        WITHOUT: [once for once, _ in turns[WITHOUT]],
    }
    bench.report.add(
        Figure(
            f"{QUESTION}, after warmup, in warm saves",
            "<= 1.5",
            Spread.of(ratios(samples[AFTER], samples[WARM])),
            limit=1.5,
        )
    )
    gigabytes = tensor_bytes(standard) / 1e9
    more = [(cold - warm) / gigabytes for cold, warm in zip(samples[WITHOUT], samples[WARM], strict=True)]
    bench.report.add(
        Figure(f"{QUESTION}, without warmup, more than a warm one", "<= 0.3 s per GB", Spread.of(more), "s/GB", 0.3)
    )
    return samples


@pytest.mark.parametrize("contestant", [WARM, AFTER, WITHOUT])
def bench_first(
    contestant: str, first: dict[str, list[float]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record one kind of save."""
    bench.report.record(benchmark, first[contestant], nbytes=tensor_bytes(standard), promise="file + folder")


def _hold(bench: Bench, saver: Saver, state: State) -> float:
    saving = saver.save(state, bench.path())
    saving.wait()
    discard(bench.path())
    return saving.blocked
