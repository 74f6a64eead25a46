"""When is a save durable, and does its write phase go at the speed of the disk?

From the call until the file and its name are synced. Each contestant writes over its own last checkpoint, as a loop
that saves "ckpt.pt" does; "thread, new file" and the raw probe write a new one, so their rates are compared. The
probe is what `bare copy + raw write` does after its copy: fallocate, two threads, 16 MiB direct blocks, sync.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.probes import WriteTimes
from asyncsave.bench.rounds import interleave
from asyncsave.bench.savers import AsyncSave, Saver, TorchSave
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.contestants import BareMetal, NewFile, Safetensors
from benchmarks.race import ratios as by_round
from benchmarks.race import recorded_time
from benchmarks.report import Figure

QUESTION = "durable, from the call"
PROMISES = {
    "bare copy + raw write": "file + folder",
    "thread": "file + folder",
    "thread, new file": "file + folder",
    "torch.save": "page cache",
    "torch.save+fsync": "file",
    "safetensors + fsync": "file",
}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@dataclass(frozen=True)
class Sample:
    """Seconds until durable; where they are known, the write phase in bytes per second and seconds by phase."""

    seconds: float
    rate: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def durable(bench: Bench, standard: State) -> dict[str, list[Sample]]:
    """Take turns; return what was measured of each."""
    contestants: list[Saver] = [
        BareMetal(standard, bench.folder),
        AsyncSave("thread", standard),
        NewFile(standard),
        TorchSave(fsync=False),
        TorchSave(fsync=True),
        Safetensors(),
    ]
    with bench.contest(standard, contestants) as savers:
        runs = {saver.name: partial(_wait, bench, saver, standard) for saver in savers}
        samples = interleave(runs, bench.rounds(9))

    ours, new, raw = (samples[name] for name in ("thread", "thread, new file", "bare copy + raw write"))
    baseline = _seconds(samples["torch.save+fsync"])
    rates = by_round([sample.rate for sample in new], [sample.rate for sample in raw])
    over = by_round([sample.rate for sample in ours], [sample.rate for sample in raw])
    for figure in (
        Figure(
            f"{QUESTION}, against torch.save+fsync",
            "<= 1/3 = 0.333",
            Spread.of(by_round(_seconds(ours), baseline)),
            limit=1 / 3,
        ),
        Figure(f"{QUESTION}, new file, against torch.save+fsync", "told", Spread.of(by_round(_seconds(new), baseline))),
        Figure(
            "rate of the write phase, new file, against the raw probe",
            ">= 0.9",
            Spread.of(rates),
            limit=0.9,
            at_most=False,
        ),
        Figure("rate of the write phase, over the last but one, against the raw probe", "told", Spread.of(over)),
        Figure("rate of the raw probe", "told", Spread.of([sample.rate / 1e9 for sample in raw]), "GB/s"),
    ):
        bench.report.add(figure)
    return samples


@pytest.mark.parametrize("contestant", PROMISES)
def bench_durable(
    contestant: str, durable: dict[str, list[Sample]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record one contestant."""
    samples = durable[contestant]
    bench.report.record(
        benchmark,
        _seconds(samples),
        nbytes=tensor_bytes(standard),
        promise=PROMISES[contestant],
        extra={
            "write_rates": [sample.rate for sample in samples if sample.rate],
            "phases": [dict(sample.phases) for sample in samples if sample.phases],
        },
    )


def _wait(bench: Bench, saver: Saver, state: State) -> Sample:
    path = bench.path(saver.name)
    saving = saver.save(state, path)
    seconds, phases, result = saving.wait(), saving.mark().phases, saving.future.result()
    nbytes = Path(path).stat().st_size
    if phases:
        return Sample(seconds, nbytes / phases["write"], phases)
    if isinstance(result, WriteTimes):
        return Sample(seconds, nbytes / (result.allocate + result.write))
    return Sample(seconds)


def _seconds(samples: list[Sample]) -> list[float]:
    return [sample.seconds for sample in samples]
