"""What do 20,000 small tensors cost? Nothing but work per tensor: 32 floats each, 2.6 MB in all."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Bench
from benchmarks.contestants import AsyncSave, Contestant, TorchSave, discard
from benchmarks.race import Spread, interleave, ratios, recorded_time
from benchmarks.report import Figure
from benchmarks.states import State, small_tensors, tensor_bytes

QUESTION = "20,000 small tensors"
COUNT = 20_000
PROMISES = {"asyncsave": "file + folder", "torch.save": "page cache", "torch.save + fsync": "file"}
pytestmark = pytest.mark.benchmark(group=f"{QUESTION}, caller blocked", timer=recorded_time)


@pytest.fixture(scope="module")
def many() -> State:
    """Return the state."""
    return small_tensors(COUNT)


@pytest.fixture(scope="module")
def blocked(bench: Bench, many: State) -> dict[str, list[tuple[float, float, int]]]:
    """Take turns; return seconds that the caller was held, seconds until durable, and bytes of the file."""
    with ExitStack() as stack:
        savers: list[Contestant] = [AsyncSave(many), TorchSave(fsync=False), TorchSave(fsync=True)]
        for saver in savers:
            stack.enter_context(closing(saver))
        samples = interleave({s.name: partial(_save, bench, s, many) for s in savers}, bench.rounds(9))
        for saver in savers:
            saver.save(many, bench.path()).wait()
            assert saver.check(many, bench.path()), saver.name
            discard(bench.path())

    ours = [held for held, _, _ in samples["asyncsave"]]
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


def _save(bench: Bench, saver: Contestant, state: State) -> tuple[float, float, int]:
    saving = saver.save(state, bench.path())
    durable = saving.wait()
    nbytes = bench.path().stat().st_size
    discard(bench.path())
    return saving.blocked, durable, nbytes
