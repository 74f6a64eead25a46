"""What do 20,000 small tensors cost? Nothing but work per tensor: 32 floats each, 2.6 MB in all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.rounds import interleave
from asyncsave.bench.savers import AsyncSave, Saver, TorchSave, discard
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.race import ratios, recorded_time
from benchmarks.report import Figure
from benchmarks.states import small_tensors

QUESTION = "20,000 small tensors"
COUNT = 20_000
PROMISES = {"thread": "file + folder", "torch.save": "page cache", "torch.save+fsync": "file"}
pytestmark = pytest.mark.benchmark(group=f"{QUESTION}, caller blocked", timer=recorded_time)


@pytest.fixture(scope="module")
def many() -> State:
    """Return the state."""
    return small_tensors(COUNT)


@pytest.fixture(scope="module")
def blocked(bench: Bench, many: State) -> dict[str, list[tuple[float, float, int]]]:
    """Take turns; return seconds that the caller was held, seconds until durable, and bytes of the file."""
    contestants: list[Saver] = [AsyncSave("thread", many), TorchSave(fsync=False), TorchSave(fsync=True)]
    with bench.contest(many, contestants) as savers:
        samples = interleave({s.name: partial(_save, bench, s, many) for s in savers}, bench.rounds(9))

    ours = [held for held, _, _ in samples["thread"]]
    theirs = [held for held, _, _ in samples["torch.save"]]
    per_tensor = Spread.of([seconds / COUNT * 1e6 for seconds in ours])
    bench.report.add(Figure(f"{QUESTION}, caller blocked per tensor", "<= 12 us", per_tensor, "us", 12.0))
    bench.report.add(
        Figure(f"{QUESTION}, caller blocked, against torch.save", "< 1", Spread.of(ratios(ours, theirs)), limit=1.0)
    )
    return samples


@pytest.mark.parametrize("contestant", PROMISES)
def bench_small(
    contestant: str,
    blocked: dict[str, list[tuple[float, float, int]]],
    bench: Bench,
    many: State,
    benchmark: BenchmarkFixture,
) -> None:
    """Record one contestant."""
    samples = blocked[contestant]
    bench.report.record(
        benchmark,
        [held for held, _, _ in samples],
        nbytes=tensor_bytes(many),
        promise=PROMISES[contestant],
        extra={"durable": [durable for _, durable, _ in samples], "file_bytes": samples[0][2]},
    )


def _save(bench: Bench, saver: Saver, state: State) -> tuple[float, float, int]:
    path = bench.path(saver.name)
    discard(path)
    saving = saver.save(state, path)
    return saving.blocked, saving.wait(), Path(path).stat().st_size
