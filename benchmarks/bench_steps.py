"""What does the manager gain: one flush for the many files of a step, and the blocks of a dropped step for the next?

"Many" is 200 small models of 40 KB: one step with 200 parts, against a durable save of each, waited for or not. "Large"
is the standard state, once with `recycle` and once without, the last step kept and the one before dropped each time:
the rate is that of the bytes from the first block to the last flush (phases `write` and `sync`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import asyncsave
from asyncsave.bench.rounds import interleave
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, same_tensors, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.race import ratios, recorded_time
from benchmarks.report import Figure

MANY, LARGE = "200 small models, durable", "1 GB step, durable"
COUNT = 200
STEP, EACH, QUEUED = "one step of 200 parts", "a durable save of each", "the same, all queued, then waited for"
RECYCLED, FRESH = "manager, recycle=True", "manager, recycle=False"
SYNCED = "files + folders"


@dataclass(frozen=True)
class Sample:
    """Seconds from the call until durable, and bytes per second of the write and its flush."""

    seconds: float
    rate: float


@pytest.fixture(scope="module")
def models() -> dict[str, State]:
    """Return the small models."""
    return {f"model-{number}": {"weight": torch.randn(100, 100)} for number in range(COUNT)}


@pytest.fixture(scope="module")
def many(bench: Bench, models: dict[str, State]) -> dict[str, list[float]]:
    """Take turns; return the seconds until all models are durable."""
    steps = itertools.count()
    with asyncsave.Writer() as writer, asyncsave.CheckpointManager(bench.folder, version="many") as manager:
        for name in (EACH, QUEUED):
            (bench.folder / name).mkdir()

        def step() -> None:
            manager.save(next(steps), parts=models).result()

        def each(folder: str, *, waits: bool) -> None:
            handles = []
            turn = next(steps)  # new files, as a step's are
            for name, model in models.items():
                handles.append(writer.save(model, bench.folder / folder / f"{turn}-{name}.pt"))
                if waits:
                    handles[-1].result()
            for handle in handles:
                handle.result()

        samples = interleave(
            {
                STEP: partial(_timed, step),
                EACH: partial(_timed, partial(each, EACH, waits=True)),
                QUEUED: partial(_timed, partial(each, QUEUED, waits=False)),
            },
            bench.rounds(15),
        )
        assert all(same_tensors(models[name], manager.load(part=name)) for name in ("model-0", "model-199"))
    bench.clear()
    for name, goal, limit in ((EACH, ">= 5", 5.0), (QUEUED, "told", None)):
        gain = Spread.of(ratios(samples[name], samples[STEP]))
        bench.report.add(Figure(f"{MANY}: rate of {STEP}, against {name}", goal, gain, limit=limit, at_most=False))
    return samples


@pytest.fixture(scope="module")
def large(bench: Bench, standard: State) -> dict[str, list[Sample]]:
    """Take turns; return what was measured of each."""
    with ExitStack() as stack:
        runs = {
            name: partial(next, stack.enter_context(_steps(bench, name, standard, recycle=recycle)))
            for name, recycle in ((RECYCLED, True), (FRESH, False))
        }
        for run in runs.values():
            for _ in range(2):  # the first ones have nothing to recycle yet
                run()
        samples = interleave(runs, bench.rounds(11))
    bench.clear()
    gain = Spread.of(ratios(*([sample.rate for sample in samples[name]] for name in (RECYCLED, FRESH))))
    name = f"{LARGE}: rate on recycled files, against new ones"
    bench.report.add(Figure(name, ">= 1.3", gain, limit=1.3, at_most=False))
    return samples


@contextmanager
def _steps(bench: Bench, name: str, state: State, *, recycle: bool) -> Iterator[Iterator[Sample]]:
    """Give an endless iterator, each turn of which saves a step; check the last one at the end."""
    version = name.replace("=", "-")
    with asyncsave.CheckpointManager(
        bench.folder, version=version, retain=asyncsave.Retention(last=1), recycle=recycle
    ) as manager:
        yield (_saved(manager.save(step, state).result()) for step in itertools.count())
        assert same_tensors(state, manager.load())


def _saved(result: asyncsave.SaveResult) -> Sample:
    timings = result.timings
    return Sample(timings["total"], result.nbytes / (timings["write"] + timings["sync"]))


@pytest.mark.benchmark(group=MANY, timer=recorded_time)
@pytest.mark.parametrize("contestant", [STEP, EACH, QUEUED])
def bench_many(
    contestant: str,
    many: dict[str, list[float]],
    bench: Bench,
    models: dict[str, State],
    benchmark: BenchmarkFixture,
) -> None:
    """Record one contestant."""
    nbytes = sum(map(tensor_bytes, models.values()))
    bench.report.record(benchmark, many[contestant], nbytes=nbytes, promise=SYNCED)


@pytest.mark.benchmark(group=LARGE, timer=recorded_time)
@pytest.mark.parametrize("contestant", [RECYCLED, FRESH])
def bench_large(
    contestant: str, large: dict[str, list[Sample]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record one contestant."""
    samples = large[contestant]
    bench.report.record(
        benchmark,
        [sample.seconds for sample in samples],
        nbytes=tensor_bytes(standard),
        promise=SYNCED,
        extra={"rates": [sample.rate for sample in samples]},
    )


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
