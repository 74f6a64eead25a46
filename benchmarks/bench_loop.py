"""How long does an event loop stand still while many saves run in it?

Twenty saves of 32 MB at once, and beside them a task that wakes every millisecond. Its longest pause, less that
millisecond, is the figure. Controls: the loop with nothing in it, and ``asyncio.to_thread(torch.save)``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import asyncsave
import asyncsave.aio
from asyncsave.bench.rounds import interleave
from asyncsave.bench.savers import TorchSave, discard
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, same_tensors, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.race import recorded_time
from benchmarks.report import Figure
from benchmarks.states import megabytes

QUESTION = "event loop, longest gap"
SAVES = 20
TICK = 0.001
IDLE, OURS, THEIRS = "nothing", f"{SAVES} x aio.save", f"{SAVES} x to_thread(torch.save+fsync)"
PROMISES = {IDLE: "-", OURS: "file + folder", THEIRS: "file"}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@pytest.fixture(scope="module")
def piece() -> State:
    """Return the state that each save saves."""
    return megabytes(32)


@pytest.fixture(scope="module")
def gaps(bench: Bench, piece: State) -> dict[str, list[float]]:
    """Take turns; return the longest gaps in seconds."""
    torch_save = TorchSave(fsync=True)

    async def ours(path: str) -> None:
        await asyncsave.aio.save(piece, path)

    async def theirs(path: str) -> None:
        await asyncio.to_thread(torch_save.save, piece, path)

    async def idle(_: str) -> None:
        await asyncio.sleep(0.3)

    paths = [bench.path(f"loop-{index}") for index in range(SAVES)]
    runs = {name: partial(_gap, save, paths) for name, save in ((IDLE, idle), (OURS, ours), (THEIRS, theirs))}
    samples = interleave(runs, bench.rounds(7))
    asyncio.run(_longest_gap(ours, paths))
    assert all(same_tensors(piece, torch.load(path, weights_only=True)) for path in paths)
    _remove(paths)
    for name in PROMISES:
        longest = Spread.of([seconds * 1e3 for seconds in samples[name]])
        bench.report.add(Figure(f"{QUESTION}: {name}", "told", longest, "ms"))
    return samples


@pytest.mark.parametrize("contestant", PROMISES)
def bench_loop(
    contestant: str, gaps: dict[str, list[float]], bench: Bench, piece: State, benchmark: BenchmarkFixture
) -> None:
    """Record one contestant."""
    bench.report.record(
        benchmark,
        gaps[contestant],
        nbytes=SAVES * tensor_bytes(piece),
        promise=PROMISES[contestant],
        extra={"saves": SAVES},
    )


def _gap(save: Callable[[str], Awaitable[None]], paths: list[str]) -> float:
    longest = asyncio.run(_longest_gap(save, paths))
    _remove(paths)
    return longest


def _remove(paths: list[str]) -> None:
    for path in paths:
        discard(path)


async def _longest_gap(save: Callable[[str], Awaitable[None]], paths: list[str]) -> float:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            slept = time.perf_counter()
            await asyncio.sleep(TICK)
            longest = max(longest, time.perf_counter() - slept - TICK)

    ticking = asyncio.create_task(tick())
    await asyncio.gather(*(save(path) for path in paths))
    ticking.cancel()
    return longest
