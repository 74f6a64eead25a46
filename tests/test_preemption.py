"""Signals that take the machine away: they set a flag, the old handlers are called and come back, all ranks agree."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from processes import PATIENCE, Trainer, until
from programs import _environment

from asyncsave import AsyncSaveError, OptionError, PreemptionGuard

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def _handlers():
    """Leave the handlers as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Send this process a signal, and let its handler run."""
    os.kill(os.getpid(), number)
    signal.sigpending()  # a call on the main thread: the handler has run when it returns


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_sets_the_flag(number):
    """Both signals of schedulers are watched for by default; asking is all that it takes to know."""
    with PreemptionGuard() as guard:
        assert not guard.preempted
        assert repr(guard) == "<PreemptionGuard SIGTERM, SIGUSR1>"
        send(number)
        assert guard.preempted
        assert repr(guard) == "<PreemptionGuard SIGTERM, SIGUSR1, preempted>"
    assert guard.preempted


def test_the_flag_is_seen_everywhere():
    """Other threads, and code that knows nothing of the loop, see the flag at once."""
    seen = []
    with PreemptionGuard() as guard:
        send(signal.SIGTERM)
        thread = threading.Thread(target=lambda: seen.append(guard.preempted))
        thread.start()
        thread.join()
    assert seen == [True]


def test_only_the_signals_that_were_named():
    """Others do what they did before."""
    others = []
    signal.signal(signal.SIGUSR2, lambda *_: others.append(1))
    with PreemptionGuard(signals=[signal.SIGTERM]) as guard:
        send(signal.SIGUSR2)
        assert not guard.preempted
    assert others == [1]


@pytest.mark.parametrize("old", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None], ids=["default", "ignored", "own"])
def test_the_old_handlers_come_back(old):
    """Whatever was there before is there again, also if the block raises."""
    signal.signal(signal.SIGTERM, old)
    inside = []
    with contextlib.suppress(ZeroDivisionError), PreemptionGuard():
        inside.append(signal.getsignal(signal.SIGTERM))
        raise ZeroDivisionError
    assert inside != [old]
    assert signal.getsignal(signal.SIGTERM) is old


def test_a_handler_that_somebody_sets_meanwhile_stays():
    """Who takes a signal over inside the block keeps it."""

    def theirs(*_):
        pass

    with PreemptionGuard():
        signal.signal(signal.SIGTERM, theirs)
    assert signal.getsignal(signal.SIGTERM) is theirs
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_earlier_handlers_are_called():
    """A launcher's handler runs as if the guard were not there, each time; so does an outer guard's."""
    calls = []
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append((number, frame is not None)))
    with PreemptionGuard() as outer, PreemptionGuard() as inner:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert (outer.preempted, inner.preempted) == (True, True)
    assert calls == [(signal.SIGTERM, True)] * 2


def test_a_handler_that_raises_still_ends_the_program():
    """A handler that makes an exit of the signal still does, and the flag is set before."""

    def leave(*_):
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    with PreemptionGuard() as guard, pytest.raises(SystemExit, match="143"):
        send(signal.SIGTERM)
    assert guard.preempted


def test_entering_on_another_thread():
    """Python lets only the main thread have handlers: the error says so, and none is changed."""
    errors = []

    def enter():
        try:
            PreemptionGuard().__enter__()
        except AsyncSaveError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert errors == ["a PreemptionGuard has to be entered by the main thread: signals arrive there"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_entering_twice():
    """One guard cannot be entered inside itself; afterwards it can be used again."""
    guard = PreemptionGuard()
    with guard:
        with pytest.raises(AsyncSaveError, match="entered already"):
            guard.__enter__()
        assert signal.getsignal(signal.SIGTERM) == guard._note
    with guard:
        assert signal.getsignal(signal.SIGTERM) == guard._note
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    "options",
    [
        {"signals": [signal.SIGKILL]},
        {"signals": [signal.SIGTERM, signal.SIGSTOP]},
        {"signals": [0]},
        {"signals": 15},
        {"signals": ["SIGTERM"]},
        {"deadline": 0},
        {"deadline": -1.0},
        {"deadline": float("nan")},
        {"deadline": "25"},
    ],
    ids=repr,
)
def test_options_that_make_no_sense(options):
    """They are refused when the guard is made."""
    with pytest.raises(OptionError):
        PreemptionGuard(**options)


def test_what_is_left_of_the_deadline():
    """It runs from the first signal on, not from the last one, and ends at zero."""
    with PreemptionGuard(deadline=1e-9) as short, PreemptionGuard(deadline=1000.0) as long:
        assert (short.remaining, long.remaining) == (1e-9, 1000.0)
        send(signal.SIGTERM)
        left = long.remaining
        assert short.remaining == 0
        assert 0 < left < 1000
        send(signal.SIGTERM)
        assert long.remaining < left


def test_agreed_without_other_processes():
    """Where torch.distributed is not in use, ``agreed`` is ``preempted``."""
    with PreemptionGuard() as guard:
        assert not guard.agreed()
        send(signal.SIGUSR1)
        assert guard.agreed()


EVALUATION = """
with asyncsave.PreemptionGuard() as guard:
    say("evaluating")
    batches = 0
    while not guard.preempted:
        batches += 1
say("left", guard.preempted)
"""


def test_an_evaluation_sees_it(tmp_path, template):
    """A loop without steps, which only asks the guard, ends by a real signal; the program ends as it would have."""
    with Trainer(template, EVALUATION, tmp_path) as trainer:
        trainer.heard("evaluating")
        os.kill(trainer.pid, signal.SIGTERM)
        assert trainer.heard("left") == ["True"]
        assert trainer.wait().rc == 0


RANK = """
import pathlib, signal, sys, time
import torch, torch.distributed as dist
import asyncsave
folder, rank = pathlib.Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
state = asyncsave.TrainingState(rng=False, rank=rank)
with asyncsave.CheckpointManager(folder, version=f"rank-{rank}") as manager:
    with manager.protect(state) as run:
        for step in run.steps(0, 1_000_000):
            if step == 3:
                (folder / f"ready-{rank}").touch()
    print(step, run.preempted, manager.latest().step, flush=True)
dist.destroy_process_group()
"""


def test_all_ranks_leave_at_the_same_step(tmp_path):
    """Only one of two processes gets the signal: both end behind the same step, and both have saved it."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        for rank in range(2)
    ]
    try:
        until(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in range(2)), "both ranks in their loops")
        ranks[1].send_signal(signal.SIGTERM)
        said = [rank.communicate(timeout=PATIENCE)[0].split() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[0] == said[1]
    assert said[0][1] == "True"
    assert said[0][0] == said[0][2]
    assert int(said[0][0]) >= 3
