"""What does one save take from the training, all in all?

The time of the call says nothing: a thread that copies and compresses and fills the page cache takes its time from
the next steps instead. Cost = stall + the sum, over the steps while the save was being written, of what each took
longer than a quiet step. The training keeps both cores busy. Each contestant writes over its own last checkpoint, as
a loop that saves "ckpt.pt" does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.loops import Training
from asyncsave.bench.savers import AsyncSave, NaiveThread, Saver, TorchSave
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, tensor_bytes
from asyncsave.bench.timeline import Toll
from benchmarks.conftest import Bench
from benchmarks.contestants import BareMetal, DistributedCheckpoint, Safetensors
from benchmarks.race import race_beside, ratios, recorded_time
from benchmarks.report import Figure

QUESTION = "cost per save"
PROMISES = {
    "bare copy + raw write": "file + folder",
    "thread": "file + folder",
    "torch.save": "page cache",
    "torch.save+fsync": "file",
    "naive-thread": "file",
    "DCP async_save": "file",
    "DCP async_save, kept stager": "file",
    "safetensors + fsync": "file",
}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@pytest.fixture(scope="module")
def tolls(bench: Bench, standard: State) -> Mapping[str, list[Toll]]:
    """Take turns; return what each save took."""
    contestants: list[Saver] = [
        BareMetal(standard, bench.folder),
        AsyncSave("thread", standard),
        TorchSave(fsync=False),
        TorchSave(fsync=True),
        NaiveThread(),
        DistributedCheckpoint(),
        DistributedCheckpoint(kept_stager=True),
        Safetensors(),
    ]
    with bench.contest(standard, contestants) as savers:
        samples = race_beside(savers, standard, bench.path, Training(), bench.rounds(6, quick=1))

    ours = _costs(samples["thread"])
    for name, goal, limit in (
        ("torch.save+fsync", "<= 1/20 = 0.050", 1 / 20),
        ("DCP async_save", "<= 1/8 = 0.125", 1 / 8),
        ("DCP async_save, kept stager", "told", None),
        ("naive-thread", "told", None),
        ("bare copy + raw write", "told", None),
    ):
        bench.report.add(
            Figure(f"{QUESTION}, against {name}", goal, Spread.of(ratios(ours, _costs(samples[name]))), limit=limit)
        )
    return samples


@pytest.mark.parametrize("contestant", PROMISES)
def bench_cost(
    contestant: str, tolls: Mapping[str, list[Toll]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record one contestant."""
    taken = tolls[contestant]
    bench.report.record(
        benchmark,
        _costs(taken),
        nbytes=tensor_bytes(standard),
        promise=PROMISES[contestant],
        extra={
            "stall": statistics.median(toll.stall for toll in taken),
            "durable": statistics.median(toll.durable for toll in taken),
            "quiet_step": statistics.median(toll.quiet for toll in taken),
            "slowdown": statistics.median(toll.slowdown for toll in taken),
            "steps": [len(toll.busy) for toll in taken],
        },
    )


def _costs(tolls: list[Toll]) -> list[float]:
    return [toll.cost for toll in tolls]
