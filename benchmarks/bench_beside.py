"""What does training lose beside a save: to a thread that writes, and to a process that does?

A thread shares the GIL with the training, a process does not; both share its cores, memory and disk. So there are two
states, one whose saves are nearly all copying and writing and one whose saves are nearly all Python, and beside each
two loops: torch, which uses all cores and lets the GIL go for every operator, and plain Python, which holds it.
Thread and process take turns (A B, B A, ...), each over its own last checkpoint; a ratio is that of two saves one
after the other. The caller's stall is not in these figures: staging is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.loops import Loop, PythonLoop, Training
from asyncsave.bench.savers import AsyncSave
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, tensor_bytes
from asyncsave.bench.timeline import Toll
from benchmarks.conftest import Bench
from benchmarks.race import race_beside, ratios, recorded_time
from benchmarks.report import Figure
from benchmarks.states import small_tensors

QUESTION = "step while thread or process saves"
THREAD, PROCESS = "thread", "process"
LARGE, SMALL = "1 GB", "20,000 tensors"
TORCH, PYTHON = "torch", "Python"
# Rounded as the table shows it: whether two equals have met the goal is not left to the third digit.
NO_MORE = 1.005
pytestmark = pytest.mark.benchmark(group=QUESTION, timer=recorded_time)


LOOPS: Mapping[tuple[str, str], Callable[[], Loop]] = {
    (LARGE, TORCH): Training,
    (LARGE, PYTHON): PythonLoop,
    # A save of this state lasts a tenth of a second: short steps, so that it spans several.
    (SMALL, TORCH): partial(Training, layers=1, batch=2, length=32),
    (SMALL, PYTHON): PythonLoop,
}
ROUNDS = {LARGE: 7, SMALL: 12}
RUNS = {f"{saver}: {state}, {loop}": (saver, state, loop) for state, loop in LOOPS for saver in (THREAD, PROCESS)}


@pytest.fixture(scope="module")
def states(standard: State) -> Mapping[str, State]:
    """Return the states."""
    return {LARGE: standard, SMALL: small_tensors()}


@pytest.fixture(scope="module")
def tolls(bench: Bench, states: Mapping[str, State]) -> Mapping[tuple[str, str, str], list[Toll]]:
    """Take turns with each state and loop; return what each save took."""
    found = {}
    for name, state in states.items():
        with bench.contest(state, [AsyncSave("thread", state), AsyncSave("process", state)]) as savers:
            for loop in (TORCH, PYTHON):
                taken = race_beside(savers, state, bench.path, LOOPS[name, loop](), bench.rounds(ROUNDS[name]))
                _judge(bench, f"{name}, {loop}", taken)
                found.update({(saver, name, loop): of for saver, of in taken.items()})
    return found


@pytest.mark.parametrize("contestant", RUNS)
def bench_beside(
    contestant: str,
    tolls: Mapping[tuple[str, str, str], list[Toll]],
    bench: Bench,
    states: Mapping[str, State],
    benchmark: BenchmarkFixture,
) -> None:
    """Record the steps beside one contestant's saves: one sample is a round's mean step while saving."""
    saver, state, loop = RUNS[contestant]
    taken = tolls[saver, state, loop]
    bench.report.record(
        benchmark,
        [toll.inflation * toll.quiet for toll in taken],
        nbytes=tensor_bytes(states[state]),
        promise="file + folder",
        extra={
            "quiet_steps": [toll.quiet for toll in taken],
            "inflations": [toll.inflation for toll in taken],
            "taken": [toll.taken for toll in taken],
            "stalls": [toll.stall for toll in taken],
            "durable": [toll.durable for toll in taken],
            "steps": [len(toll.busy) for toll in taken],
        },
    )


def _judge(bench: Bench, setup: str, tolls: Mapping[str, list[Toll]]) -> None:
    threads, processes = tolls[THREAD], tolls[PROCESS]
    steps = Spread.of(ratios([toll.inflation for toll in processes], [toll.inflation for toll in threads]))
    bench.report.add(Figure(f"step beside a save, process in the thread's: {setup}", "<= 1", steps, limit=NO_MORE))
    for who, taken in ((THREAD, threads), (PROCESS, processes)):
        lost = Spread.of([toll.taken * 1e3 for toll in taken])
        bench.report.add(Figure(f"taken from the steps beside a save: {setup}: {who}", "told", lost, "ms"))
    durable = Spread.of(ratios([toll.durable for toll in processes], [toll.durable for toll in threads]))
    bench.report.add(Figure(f"durable beside training, process in the thread's: {setup}", "told", durable))
