"""What does one save take from the training, all in all?

The time of the call says nothing: a thread that copies and compresses and fills the page cache takes its time from
the next steps instead. Cost = stall + the sum, over the steps while the save was being written, of what each took
longer than a quiet step. The training keeps both cores busy. Each contestant writes over its own last checkpoint, as
a loop that saves "ckpt.pt" does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Bench
from benchmarks.contestants import (
    AsyncSave,
    BareMetal,
    Contestant,
    CopyThenThread,
    DistributedCheckpoint,
    Safetensors,
    TorchSave,
)
from benchmarks.race import Spread, interleave, ratios, recorded_time
from benchmarks.report import Figure
from benchmarks.states import State, tensor_bytes
from benchmarks.training import Toll, Training, take_toll

QUESTION = "cost per save"
PROMISES = {
    "bare copy + raw write": "file + folder",
    "asyncsave": "file + folder",
    "torch.save": "page cache",
    "torch.save + fsync": "file",
    "deepcopy + thread": "file",
    "DCP async_save": "file",
    "DCP async_save, kept stager": "file",
    "safetensors + fsync": "file",
}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@pytest.fixture(scope="module")
def tolls(bench: Bench, standard: State) -> Mapping[str, list[Toll]]:
    """Take turns; return what each save took."""
    training = Training()
    training.steps(20)
    with ExitStack() as stack:
        savers: list[Contestant] = [
            BareMetal(standard, bench.folder),
            AsyncSave(standard),
            TorchSave(fsync=False),
            TorchSave(fsync=True),
            CopyThenThread(),
            DistributedCheckpoint(),
            DistributedCheckpoint(kept_stager=True),
            Safetensors(),
        ]
        for saver in savers:
            stack.enter_context(closing(saver))
        for saver in savers:
            saver.save(standard, bench.path(saver.name)).wait()
            assert saver.check(standard, bench.path(saver.name)), saver.name
        runs = {s.name: partial(take_toll, s, standard, bench.path(s.name), training) for s in savers}
        samples = interleave(runs, bench.rounds(6, quick=1))
    bench.clear()

    ours = _costs(samples["asyncsave"])
    for name, goal, limit in (
        ("torch.save + fsync", "<= 1/20 = 0.050", 1 / 20),
        ("DCP async_save", "<= 1/8 = 0.125", 1 / 8),
        ("DCP async_save, kept stager", "told", None),
        ("deepcopy + thread", "told", None),
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
