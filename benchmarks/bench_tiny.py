"""How long until 10 KB are durable? Nothing but fixed costs: threads woken, syncs, a rename.

Every save replaces the file of the one before, as a real one would. Reference: write, fsync, rename, fsync of the
folder, by hand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import asyncsave
from asyncsave.bench.rounds import interleave
from asyncsave.bench.savers import TorchSave
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, same_tensors, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.probes import bare_write
from benchmarks.race import ratios, recorded_time
from benchmarks.report import Figure
from benchmarks.states import tiny

QUESTION = "10 KB, durable"
BARE, WAITS, HANDLE = "write + fsync + rename + fsync", "asyncsave.save", "Writer.save(...).result()"
PROMISES = {BARE: "file + folder", WAITS: "file + folder", HANDLE: "file + folder", "torch.save+fsync": "file"}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@pytest.fixture(scope="module")
def little() -> State:
    """Return the state."""
    return tiny()


@pytest.fixture(scope="module")
def durable(bench: Bench, little: State) -> dict[str, list[float]]:
    """Take turns; return the seconds until durable."""
    payload = os.urandom(tensor_bytes(little))
    ours, waits, theirs = bench.path("handle"), bench.path("waits"), bench.path("torch")
    torch_save = TorchSave(fsync=True)
    with asyncsave.Writer() as writer:
        writer.warmup(little)
        samples = interleave(
            {
                BARE: partial(_timed, lambda: bare_write(bench.folder / "bare", payload)),
                WAITS: partial(_timed, lambda: asyncsave.save(little, waits)),
                HANDLE: partial(_timed, lambda: writer.save(little, ours).result()),
                "torch.save+fsync": partial(_timed, lambda: torch_save.save(little, theirs)),
            },
            bench.rounds(60, quick=10),
        )
    for path in (ours, waits, theirs):
        assert same_tensors(little, torch.load(path, weights_only=True)), path
    for name, limit in ((HANDLE, 2.0), (WAITS, 2.0)):
        ratio = Spread.of(ratios(samples[name], samples[BARE]))
        bench.report.add(Figure(f"{QUESTION}, {name}, in bare writes", "<= 2", ratio, limit=limit))
    return samples


@pytest.mark.parametrize("contestant", PROMISES)
def bench_tiny(
    contestant: str, durable: dict[str, list[float]], bench: Bench, little: State, benchmark: BenchmarkFixture
) -> None:
    """Record one contestant."""
    bench.report.record(benchmark, durable[contestant], nbytes=tensor_bytes(little), promise=PROMISES[contestant])


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
