"""``on_durable``: called for every checkpoint that is in place, in order; it neither stops nor delays a save."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from pathlib import Path

import pytest
from backends import make_writer, process_is_tested
from gates import Failing, Gated
from managed import LARGE, PATIENCE, managed, number_in, state, steps
from processes import Trainer, until

import asyncsave
from asyncsave import CheckpointManager, Retention

pytestmark = pytest.mark.usefixtures("backend")


class Hook:
    """Remembers what it was called with; waits at a gate if there is one."""

    def __init__(self, *, gated=False):
        self.infos = []
        self.threads = set()
        self.entered = threading.Event()
        self.gate = threading.Event()
        if not gated:
            self.gate.set()

    def __call__(self, info):
        """Note it."""
        self.threads.add(threading.current_thread())
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        self.infos.append(info)

    @property
    def steps(self):
        """The steps that it was called with."""
        return [info.step for info in self.infos]


def test_it_is_called_in_order(tmp_path):
    """Once for each checkpoint, in the order of the saves, with what ``list`` knows of it, on a thread of its own."""
    hook = Hook()
    with managed(tmp_path, on_durable=hook, writing={"max_pending": 4}) as manager:
        for step in (3, 1, 2, 10, 7):
            manager.save(step, state(step), metrics={"loss": step}, metadata={"tags": [step]})
        manager.wait(PATIENCE)
        assert hook.steps == [3, 1, 2, 10, 7]
        assert sorted(hook.infos, key=lambda info: info.step) == manager.list()
        (thread,) = hook.threads
        assert thread is not threading.main_thread()


def test_the_checkpoint_is_in_place_and_durable_then(tmp_path):
    """The hook can load it, by path and by step, and copy it; its handle has resolved."""
    seen, handles = [], {}

    def hook(info):
        handle = handles[info.step]
        seen.append((number_in(asyncsave.load(Path(info.path) / "state.pt")), handle.done(), handle.durable.is_set()))
        seen.append(number_in(manager.load(info.step)))

    with managed(tmp_path, on_durable=hook, retain=Retention(last=1)) as manager:
        for step in range(3):
            handles[step] = manager.save(step, state(step))
            manager.wait(PATIENCE)
        assert seen == [(0, True, True), 0, (1, True, True), 1, (2, True, True), 2]


def test_waiting_is_waiting_for_the_hook(tmp_path):
    """When ``wait`` returns, the hook has been called for every save before, each time."""
    hook = Hook()
    with managed(tmp_path, on_durable=hook, retain=Retention(last=1)) as manager:
        for step in range(100):
            manager.save(step, {"n": step})
            manager.wait(PATIENCE)
            assert hook.steps[-1:] == [step]
    assert hook.steps == list(range(100))


@pytest.mark.parametrize("own", [True, False], ids=["own writer", "given writer"])
def test_closing_is_waiting_for_the_hook(tmp_path, own):
    """When ``close`` returns, the hook has been called for every save, and no time-out was invented."""
    hook = Hook()
    for step in range(30):
        with contextlib.ExitStack() as opened:
            writer = None if own else opened.enter_context(make_writer())
            manager = CheckpointManager(tmp_path, version="v", writer=writer, on_durable=hook)
            manager.save(step, {"n": step})
            manager.close()
            assert hook.steps == list(range(step + 1))


def test_only_for_what_is_in_place(tmp_path):
    """Not for saves that failed, were skipped, replaced or cancelled."""
    hook, system = Hook(), Failing("mkdir", errno.EIO, at=2)
    with managed(tmp_path, on_durable=hook, system=system) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        assert isinstance(manager.save(2, state(2)).exception(PATIENCE), asyncsave.SaveError)
        manager.save(3, state(3)).result(PATIENCE)
        manager.wait(PATIENCE)
        assert hook.steps == [1, 3]


def test_not_for_what_was_withdrawn(tmp_path):
    """A save that gave way, or was skipped by the queue or by the metric, is no checkpoint."""
    hook, gate = Hook(), Gated("mkdir")
    retain = Retention(every=1, best=1, metric="loss")
    with managed(tmp_path, on_durable=hook, system=gate, retain=retain, writing={"max_pending": 2}) as manager:
        manager.save(1, state(1), metrics={"loss": 1.0})
        gate.arrival()
        manager.save(2, state(2))
        manager.save(3, state(3), on_busy="skip")
        manager.save(4, state(4), on_busy="replace").cancel()
        manager.save(5, state(5), metrics={"loss": 2.0}, only_if_best=True)
        manager.save(6, state(6))
        gate.release()
        manager.wait(PATIENCE)
        assert hook.steps == steps(manager) == [1, 6]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_in_it_is_harmless(tmp_path, caplog, error):
    """It is logged with the checkpoint and its traceback; that stays, and the hook is called for the next one."""
    seen = []

    def hook(info):
        seen.append(info.step)
        if info.step == 1:
            raise error("no network")

    with managed(tmp_path, on_durable=hook) as manager:
        for step in (1, 2):
            manager.save(step, state(step))
        manager.wait(PATIENCE)
        assert seen == steps(manager) == [1, 2]
        path = manager.latest().path
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"on_durable failed for {path[:-1]}1; the checkpoint is in place"
    assert "no network" in caplog.text


def test_a_slow_one_blocks_no_save(tmp_path):
    """Saves go on, and their handles resolve, while the hook is still at the first; then it is called for all."""
    hook = Hook(gated=True)
    with managed(tmp_path, on_durable=hook, writing={"max_pending": 1}) as manager:
        for step in range(5):
            manager.save(step, state(step), on_busy="wait").result(PATIENCE)
        assert hook.entered.wait(PATIENCE)
        assert steps(manager) == [0, 1, 2, 3, 4]
        assert number_in(manager.load("latest")) == 4
        assert not hook.infos
        with pytest.raises(TimeoutError, match="on_durable is still at work"):
            manager.wait(0)
        with pytest.raises(TimeoutError):
            manager.close(0)
        hook.gate.set()
        manager.wait(PATIENCE)
        assert hook.steps == [0, 1, 2, 3, 4]


def test_closing_again_after_a_time_out(tmp_path):
    """A ``close`` that ran out of time holds the version; the next one finishes, and every call was made."""
    hook = Hook(gated=True)
    with make_writer() as writer:
        manager = CheckpointManager(tmp_path, version="v", writer=writer, on_durable=hook)
        for step in range(3):
            manager.save(step, state(step)).result(PATIENCE)
        with pytest.raises(TimeoutError):
            manager.close(0)
        with pytest.raises(asyncsave.VersionInUseError):
            CheckpointManager(tmp_path, version="v", writer=writer)
        hook.gate.set()
        manager.close(PATIENCE)
        assert hook.steps == [0, 1, 2]
        CheckpointManager(tmp_path, version="v", writer=writer).close()


def test_it_may_use_the_manager(tmp_path):
    """From within, a hook can list, pin, export and save; waiting for itself is refused, not endless."""
    outcomes = []

    def hook(info):
        if info.step == 1:
            manager.pin(1)
            manager.export(1, tmp_path / "exported", part="x")
            manager.save(2, state(2)).result(PATIENCE)
            for wait in (manager.wait, manager.close):
                try:
                    outcomes.append(wait(0.1))
                except asyncsave.AsyncSaveError as error:
                    outcomes.append(type(error))

    with managed(tmp_path / "runs", on_durable=hook) as manager:
        manager.save(1, state(1))
        until(lambda: len(outcomes) == 2)
        assert outcomes == [asyncsave.AsyncSaveError, asyncsave.AsyncSaveError]
    assert [(info.step, info.pinned) for info in manager.list()] == [(1, True), (2, False)]
    assert (tmp_path / "exported").exists()


def test_one_whose_checkpoint_is_dropped_before_its_turn(tmp_path):
    """Who reports to the handles is late, and retention has gone on: the hook hears of every checkpoint, in order."""
    hook, blocked, reached = Hook(), threading.Event(), threading.Event()

    def block(_):
        reached.set()
        blocked.wait(PATIENCE)

    with managed(tmp_path, on_durable=hook, retain=Retention(last=1), writing={"max_pending": 5}) as manager:
        gate = manager.save(0, state(0, LARGE))  # not done before the callback is there
        gate.add_done_callback(block)
        assert reached.wait(PATIENCE)
        for step in (1, 2, 3):
            manager.save(step, state(step))
        if process_is_tested():
            until(lambda: steps(manager) == [3], "the last step")
        blocked.set()
        manager.wait(PATIENCE)
        assert hook.steps == [0, 1, 2, 3]


EXITING = """
import time
from backends import make_writer, process_is_tested

def hook(info):
    time.sleep(0.05)
    say("hook", info.step)

manager = asyncsave.CheckpointManager(folder, writer=make_writer(max_pending=4), on_durable=hook)
for step in range(4):
    manager.save(step, state(step))
say("end")
if "raise" in sys.argv:
    raise ValueError("sorry")
"""


@pytest.mark.parametrize("how", ["return", "raise"])
def test_the_exit_waits_for_it(folder, template, until_processes_end, how):
    """A program that just ends has called the hook for every save, also when it ends by an exception."""
    with Trainer(template, EXITING, folder, how) as trainer:
        done = trainer.wait()
    assert done.rc == (0 if how == "return" else 1)
    assert done.stdout.splitlines()[-1] == "hook 3"
    assert [line for line in done.stdout.splitlines() if line != "end"] == [f"hook {step}" for step in range(4)]


def test_a_child_that_is_forked_has_none(tmp_path, template):
    """The hook is the parent's: a child neither calls it nor waits for it."""
    program = """
    def hook(info):
        say("hook", info.step, os.getpid() == parent)

    parent = os.getpid()
    with asyncsave.CheckpointManager(folder, on_durable=hook) as manager:
        manager.save(1, state(1))
        child = os.fork()
        if not child:
            sys.exit(0)
        say("child", os.waitpid(child, 0)[1])
    """
    with Trainer(template, program, tmp_path) as trainer:
        done = trainer.wait()
    assert done.rc == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["child 0", "hook 1 True"]


def test_what_is_no_function_is_refused(tmp_path):
    """Before anything is made."""
    with pytest.raises(asyncsave.OptionError, match="on_durable must be a function"):
        CheckpointManager(tmp_path / "runs", on_durable="print")
    assert not (tmp_path / "runs").exists()
