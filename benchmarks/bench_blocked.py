"""How long is the caller held, when everything is warm?

The clock stops when the state is the caller's again. Then the save is waited for, so that no contestant pays for the
one before. Each writes over its own last checkpoint. Reference: the plain copy of the same bytes into warm memory by
two threads.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.rounds import interleave
from asyncsave.bench.savers import AsyncSave, Saver, TorchSave
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, flatten, tensor_bytes
from benchmarks.conftest import Bench
from benchmarks.probes import WarmCopy
from benchmarks.race import ratios, recorded_time
from benchmarks.report import Figure

QUESTION = "caller blocked, warm"
COPY = "plain warm copy"
PER_TENSOR = 10e-6
PROMISES = {COPY: "-", "thread": "file + folder", "torch.save": "page cache", "torch.save+fsync": "file"}
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


@pytest.fixture(scope="module")
def blocked(bench: Bench, standard: State) -> dict[str, list[float]]:
    """Take turns; return the seconds that the caller was held."""
    contestants: list[Saver] = [AsyncSave("thread", standard), TorchSave(fsync=False), TorchSave(fsync=True)]
    with closing(WarmCopy(standard)) as copy, bench.contest(standard, contestants) as savers:
        runs = {COPY: copy.run} | {s.name: partial(_hold, bench, s, standard) for s in savers}
        samples = interleave(runs, bench.rounds(9))

    allowed = [1.3 * seconds + PER_TENSOR * len(flatten(standard)) for seconds in samples[COPY]]
    ours = samples["thread"]
    for question, goal, against, limit in (
        (f"{QUESTION}, in plain copies", "told", samples[COPY], None),
        (f"{QUESTION}, against 1.3 copies + 10 us per tensor", "<= 1", allowed, 1.0),
        (f"{QUESTION}, against torch.save+fsync", "<= 1/12 = 0.083", samples["torch.save+fsync"], 1 / 12),
    ):
        bench.report.add(Figure(question, goal, Spread.of(ratios(ours, against)), limit=limit))
    return samples


@pytest.mark.parametrize("contestant", PROMISES)
def bench_blocked(
    contestant: str, blocked: dict[str, list[float]], bench: Bench, standard: State, benchmark: BenchmarkFixture
) -> None:
    """Record one contestant."""
    bench.report.record(benchmark, blocked[contestant], nbytes=tensor_bytes(standard), promise=PROMISES[contestant])


def _hold(bench: Bench, saver: Saver, state: State) -> float:
    saving = saver.save(state, bench.path(saver.name))
    saving.wait()
    return saving.blocked
