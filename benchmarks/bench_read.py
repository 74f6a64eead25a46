"""How fast is a cold checkpoint verified and loaded?

Before each read the file is dropped from the page cache, and how much of it is still there is recorded. Reference
for `verify`: a raw direct read of the same file into warm memory by two threads; for `load`: `torch.load`.

Also before each read, as much memory as any of them needs is touched and given back. Where the host behind a virtual
machine has to find that memory first, 1 GB takes up to 3 s, which would hit now one reader and now another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import asyncsave
from asyncsave.bench.probes import RawDisk, warm_pages
from asyncsave.bench.rounds import interleave
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, same_tensors, tensor_bytes
from asyncsave.memory import Pages
from benchmarks.conftest import Bench
from benchmarks.probes import PAGE, drop_cache
from benchmarks.race import ratios, recorded_time
from benchmarks.report import Figure

QUESTION = "cold read"
ROOM = 2.2  # torch.load takes the file twice: in the page cache and in its tensors
NAMES = ("raw read", "asyncsave.verify", "asyncsave.load", "torch.load")
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@dataclass(frozen=True)
class Sample:
    """Seconds of one read, and the share of the file that was in the page cache before it."""

    seconds: float
    resident: float


@pytest.fixture(scope="module")
def written(bench: Bench, standard: State) -> Iterator[Path]:
    """Save the standard state once."""
    path = bench.folder / "checkpoint"
    asyncsave.save(standard, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def reads(bench: Bench, standard: State, written: Path) -> dict[str, list[Sample]]:
    """Take turns; return what each read took."""
    assert asyncsave.verify(written).ok
    assert same_tensors(standard, asyncsave.load(written))
    with ExitStack() as stack:
        memory = stack.enter_context(closing(warm_pages(written.stat().st_size)))
        disk = stack.enter_context(closing(RawDisk(bench.folder, memory)))
        runs: dict[str, Callable[[], object]] = {
            "raw read": lambda: disk.read(written.name),
            "asyncsave.verify": lambda: asyncsave.verify(written),
            "asyncsave.load": lambda: asyncsave.load(written),
            "torch.load": lambda: torch.load(written, weights_only=True),
        }
        samples = interleave({name: partial(_cold, written, run) for name, run in runs.items()}, bench.rounds(7))

    seconds = {name: [sample.seconds for sample in taken] for name, taken in samples.items()}
    rate = Spread.of(ratios(seconds["raw read"], seconds["asyncsave.verify"]))
    bench.report.add(Figure("verify, cold, rate against the raw read", ">= 0.9", rate, limit=0.9, at_most=False))
    load = Spread.of(ratios(seconds["asyncsave.load"], seconds["torch.load"]))
    bench.report.add(Figure("load, cold, against torch.load", "<= 1", load, limit=1.0))
    return samples


@pytest.mark.parametrize("contestant", NAMES)
def bench_read(
    contestant: str, reads: dict[str, list[Sample]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record one reader."""
    samples = reads[contestant]
    resident = max(sample.resident for sample in samples)
    bench.report.record(
        benchmark,
        [sample.seconds for sample in samples],
        nbytes=tensor_bytes(standard),
        promise="-",
        cache=f"cold, {resident:.0%} resident",
    )


def _cold(path: Path, read: Callable[[], object]) -> Sample:
    resident = drop_cache(path)
    with closing(Pages(int(ROOM * path.stat().st_size) & -PAGE)) as room:
        room.touch(0, len(room.view))
    began = time.perf_counter()
    kept = read()
    seconds = time.perf_counter() - began
    del kept  # what was loaded is freed here, outside of the time
    return Sample(seconds, resident)
