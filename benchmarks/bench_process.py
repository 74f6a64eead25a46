"""What does a writer process cost, where a writing thread would do: the caller, the save, and until it is ready?

Thread and process take turns (A B, B A, ...), each over its own last checkpoint, and every save is waited for, so a
ratio is that of two saves one after the other. The trainer does nothing beside; what training loses beside a save is
in `bench_beside`. "Ready": from the making of the writer until ``warmup`` has returned, for a state of 10 KB, so that
nothing but the process is waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.rounds import interleave
from asyncsave.bench.savers import AsyncSave, Saver
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.probes import mapped
from benchmarks.race import ratios, recorded_time
from benchmarks.report import Figure
from benchmarks.states import tiny

THREAD, PROCESS = "thread", "process"
CONTESTANTS = (THREAD, PROCESS)
ARENAS = 2
BLOCKED, DURABLE, LITTLE, READY = (
    "thread and process, caller blocked",
    "thread and process, durable",
    "thread and process, 10 KB durable",
    "writer process ready",
)


@dataclass(frozen=True)
class Sample:
    """Seconds that the caller was held, and until the save was durable; bytes of shared memory on huge pages then."""

    blocked: float
    durable: float
    huge: int


@pytest.fixture(scope="module")
def large(bench: Bench, standard: State) -> Mapping[str, list[Sample]]:
    """Take turns with the standard state."""
    samples = _race(bench, standard, bench.rounds(9))
    held = ratios(*([one.blocked for one in samples[name]] for name in (PROCESS, THREAD)))
    bench.report.add(Figure("process: caller blocked, in the thread's", "<= 1.15", Spread.of(held), limit=1.15))
    until = ratios(*([one.durable for one in samples[name]] for name in (PROCESS, THREAD)))
    bench.report.add(Figure("process: durable, in the thread's", "<= 1.1", Spread.of(until), limit=1.1))
    # What a copy and a direct write cost depends on this, and whether there are any depends on more than this package.
    huge = Spread.of([one.huge / tensor_bytes(standard) / ARENAS for one in samples[PROCESS]])
    bench.report.add(Figure("process: share of its arenas on huge pages", "told", huge))
    return samples


@pytest.fixture(scope="module")
def little() -> State:
    """Return the small state."""
    return tiny()


@pytest.fixture(scope="module")
def small(bench: Bench, little: State) -> Mapping[str, list[Sample]]:
    """Take turns with 10 KB: nothing but the ways between the processes."""
    samples = _race(bench, little, bench.rounds(30, quick=10))
    until = ratios(*([one.durable for one in samples[name]] for name in (PROCESS, THREAD)))
    bench.report.add(Figure("process: 10 KB durable, in the thread's", "told", Spread.of(until)))
    return samples


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.benchmark(group=BLOCKED, timer=recorded_time)
def bench_blocked(
    contestant: str, large: Mapping[str, list[Sample]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record the seconds that the caller was held."""
    seconds = [sample.blocked for sample in large[contestant]]
    bench.report.record(benchmark, seconds, nbytes=tensor_bytes(standard), promise="file + folder")


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.benchmark(group=DURABLE, timer=recorded_time)
def bench_durable(
    contestant: str, large: Mapping[str, list[Sample]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record the seconds until a save of the standard state was durable."""
    seconds = [sample.durable for sample in large[contestant]]
    bench.report.record(benchmark, seconds, nbytes=tensor_bytes(standard), promise="file + folder")


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.benchmark(group=LITTLE, timer=recorded_time)
def bench_little(
    contestant: str, small: Mapping[str, list[Sample]], bench: Bench, little: State, benchmark: BenchmarkFixture
) -> None:
    """Record the seconds until 10 KB were durable."""
    seconds = [sample.durable for sample in small[contestant]]
    bench.report.record(benchmark, seconds, nbytes=tensor_bytes(little), promise="file + folder")


@pytest.mark.benchmark(group=READY, timer=recorded_time)
def bench_ready(bench: Bench, little: State, benchmark: BenchmarkFixture) -> None:
    """Start processes, one after the other; record the seconds until each was ready, and its memory then."""
    starts = interleave({PROCESS: partial(_start, little)}, bench.rounds(9))[PROCESS]
    seconds, own = [taken for taken, _ in starts], [nbytes for _, nbytes in starts]
    bench.report.add(Figure("writer process ready", "< 0.3 s", Spread.of(seconds), "s", 0.3))
    megabytes = Spread.of([nbytes / 1e6 for nbytes in own])
    bench.report.add(Figure("writer process ready, memory of its own (USS)", "< 60 MB", megabytes, "MB", 60.0))
    bench.report.record(benchmark, seconds, nbytes=0, promise="-", extra={"uss": own})


def _race(bench: Bench, state: State, rounds: int) -> Mapping[str, list[Sample]]:
    with bench.contest(state, [AsyncSave("thread", state), AsyncSave("process", state)]) as savers:
        return interleave({saver.name: partial(_save, bench, saver, state) for saver in savers}, rounds)


def _save(bench: Bench, saver: Saver, state: State) -> Sample:
    saving = saver.save(state, bench.path(saver.name))
    durable = saving.wait()
    return Sample(saving.blocked, durable, mapped(os.getpid()).get("ShmemPmdMapped", 0))


def _start(state: State) -> tuple[float, int]:
    """Make a writer with a process; return the seconds until it was ready, and the bytes that are its own."""
    others = psutil.Process().children()
    began = time.perf_counter()
    with closing(AsyncSave("process", state)):
        seconds = time.perf_counter() - began
        (process,) = (child for child in psutil.Process().children() if child not in others)
        return seconds, process.memory_full_info().uss
