"""Kills: of the trainer, whose staged saves its writer process finishes; and of the writer process itself.

Trainers are programs in processes of their own. A wait of random length before a kill is the
experiment itself, not a wait for something to happen.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import textwrap
import time

import pytest
from processes import (
    Trainer,
    Watched,
    caught_writing,
    current_service,
    freeze,
    nobody_is_left,
    number_at,
    numbers_in,
    service_of,
    services,
    state,
    temporaries,
    until,
)
from programs import Template

import asyncsave

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd_open")

SIZES = {"small": 1000, "large": 3 << 20, "recycled": 9 << 20}
BIG = 32 << 20

AFTER = """
target, number, numel, pending = sys.argv[1], *map(int, sys.argv[2:])
writer = asyncsave.Writer(backend="process", max_pending=pending)
while True:
    number += 1
    writer.save(state(number, numel), target)
    say(number)
"""

BEFORE = """
target, numel, where = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def hang():
    say("hangs")
    pause()
class Slow:
    def __reduce__(self):
        hang()
what = {"number": -1, "x": torch.ones(numel), "slow": Slow() if where == "capture" else None}
say("begins")
writer = asyncsave.Writer(backend="process")
writer.save_if_wanted(what, target, pickle, 2, on_busy=None, compact=False, wanted=hang)
"""


def seeded() -> int:
    """Return a seed, and print it: to run the same again."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - pytest -s shows it
    return seed


def kill_after(template: Template, path, choose: random.Random, number: int, numel: int) -> tuple[int, int]:
    """Kill a trainer at any instant after its first acknowledgment; return the last one, and what is there then."""
    rounds = 4 if numel == SIZES["recycled"] else choose.choice((1, 1, 1, 2))
    with Trainer(template, AFTER, path, number, numel, choose.randint(1, 4)) as trainer:
        until(lambda: len(trainer.said()) >= rounds, trainer.said)
        time.sleep(choose.uniform(0, 0.03))
        result = trainer.killed()
    assert result.rc == -9, result
    nobody_is_left(path.parents[1])
    return int(result.stdout.split()[-1]), number_at(path)


def kill_trainers(template: Template, folder, kills: int) -> None:
    """Kill so many trainers after they have staged something, one version going on from another."""
    choose = random.Random(seeded())  # noqa: S311 - no secret
    numbers = dict.fromkeys(SIZES, 0)
    more = lost = 0
    for kill in range(kills):
        name = "recycled" if kill % 20 == 9 else ("small", "large")[kill % 2]
        staged, found = kill_after(template, folder / name, choose, numbers[name], SIZES[name])
        lost += found < staged
        more += found > staged
        assert found <= staged + 1
        assert not temporaries(folder)
        numbers[name] = found
    print(f"{kills} trainers killed after `staged`: {lost} lost, 0 torn, 0 leftovers, {more} more than acknowledged")  # noqa: T201
    assert not lost


def test_a_trainer_killed_after_staging_loses_nothing(folder, template):
    """A hundred trainers killed at any instant after ``save`` returned: all that was staged is there, and whole."""
    kill_trainers(template, folder, 100)


def test_a_trainer_killed_before_staging_leaves_nothing(folder, template):
    """A hundred trainers killed before their save was staged: the old file, no other, and no process."""
    choose = random.Random(seeded())  # noqa: S311 - no secret
    asyncsave.save(state(7), folder / "old")
    old = (folder / "old").read_bytes()
    for kill in range(100):
        where = ("capture", "staged", "any", "any")[kill % 4]
        target = folder / choose.choice(("old", "new"))
        with Trainer(template, BEFORE, target, choose.choice(list(SIZES.values())), where) as trainer:
            trainer.heard("begins" if where == "any" else "hangs")
            time.sleep(choose.uniform(0, 0.1 if where == "any" else 0.01))
            assert trainer.killed().rc == -9
        nobody_is_left(folder.parent)
        assert [path.name for path in folder.iterdir()] == ["old"]
        assert (folder / "old").read_bytes() == old
    print("100 trainers killed before `staged`: 0 landed, 0 leftovers")  # noqa: T201 - pytest -s shows it


@pytest.mark.parametrize(
    ("end", "rc"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os._exit(7)", 7),
        ("import faulthandler; faulthandler._sigsegv()", -11),
        ("os.abort()", -6),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("os.execv('/bin/true', ['true'])", 0),
    ],
    ids=["SIGKILL", "os._exit", "SIGSEGV", "SIGABRT", "SIGTERM", "exec"],
)
def test_however_a_trainer_dies_its_queue_lands_in_order(folder, template, end, rc):
    """Four saves staged, none begun: when the trainer is dead they land one after the other, and the process ends."""
    program = """
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    writer = asyncsave.Writer(backend="process", max_pending=4)
    say("service", service_of(writer))
    freeze(service_of(writer))
    for number in (1, 2, 3, 4):
        writer.save(state(number, 1 << 20), folder / ("first" if number < 3 else str(number)))
    """
    with Trainer(template, textwrap.dedent(program) + end, folder) as trainer, Watched(trainer) as service:
        assert trainer.wait().rc == rc
        assert not service.has_ended(0)
        assert not list(folder.iterdir())
        service.thaw()
        assert service.has_ended()
    assert numbers_in(folder) == {"first": 2, "3": 3, "4": 4}
    times = [(folder / name).stat().st_mtime_ns for name in ("first", "3", "4")]
    assert times == sorted(times)


def kill_services(open_writer, folder, caplog, kills: int) -> None:
    """Kill the writer process so often, at any instant of a save, and look at the target at once."""
    choose = random.Random(seeded())  # noqa: S311 - no secret
    writer = open_writer(backend="process")
    idle = left = 0
    for number in range(1, kills + 1):
        name = "recycled" if number % 20 in {7, 8, 9} else ("small", "large")[number % 2]
        before = number_at(folder / name)
        handle = writer.save(state(number, SIZES[name]), folder / name)
        time.sleep(choose.uniform(0, 0.04))
        pid = service_of(writer)
        caplog.clear()
        os.kill(pid, signal.SIGKILL)
        idle += handle.done()
        left += bool(temporaries(folder))
        assert number_at(folder / name) in {before, number}
        assert handle.result(30).durable
        assert number_at(folder / name) == number
        told = f"the writer process {pid} ended by SIGKILL"
        until(lambda told=told: [record for record in caplog.records if told in record.getMessage()], told)
        assert len(temporaries(folder)) <= 1, "leftovers pile up"  # one may be the spare of the living process
    assert writer.save(state(1), folder / "last").result(30).durable
    writer.close(30)
    assert not temporaries(folder)
    print(f"{kills} writer processes killed, {idle} while idle, {left} with a temporary file: 0 lost, 0 torn")  # noqa: T201


def test_a_writer_process_killed_at_any_instant_loses_nothing(open_writer, folder, caplog):
    """A hundred times: the old file is whole, the save is handed to a new process, lands, and the log says so."""
    kill_services(open_writer, folder, caplog, 100)


def test_a_save_that_two_processes_die_of_fails(open_writer, folder, caplog):
    """It alone is blamed: what was queued behind it lands, the old file stays, no temporary file does."""
    asyncsave.save(state(1), folder / "big")
    old = (folder / "big").read_bytes()
    writer = open_writer(backend="process", max_pending=3)
    big = writer.save(state(2, BIG), folder / "big")
    others = [writer.save(state(number), folder / str(number)) for number in (3, 4)]
    dead = set()
    for _ in range(2):
        pid = caught_writing(writer, big, dead)
        dead |= temporaries(folder)
        os.kill(pid, signal.SIGKILL)
        assert (folder / "big").read_bytes() == old
        until(lambda pid=pid: current_service(writer) != pid)
    error = big.exception(30)
    assert isinstance(error, asyncsave.WriterDiedError), error
    assert (error.path, error.returncode) == (str(folder / "big"), -signal.SIGKILL)
    assert f"the writer process {pid} ended by SIGKILL" in str(error)
    assert [handle.result(30).durable for handle in others] == [True, True]
    assert not temporaries(folder)
    assert writer.save(state(5), folder / "5").result(30).durable
    assert (folder / "big").read_bytes() == old
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("ended by SIGKILL" in record.getMessage() for record in warnings) == 2


def test_a_save_that_no_process_had_begun_is_not_blamed(open_writer, folder):
    """Two processes die before they have begun anything: at most the first save in the queue can be why."""
    writer = open_writer(backend="process", max_pending=4)
    pid = service_of(writer)
    freeze(pid)
    handles = [writer.save(state(number), folder / str(number)) for number in range(4)]
    os.kill(pid, signal.SIGKILL)
    fresh = until(lambda: (found := service_of(writer)) != pid and found)
    os.kill(fresh, signal.SIGKILL)
    errors = [handle.exception(30) for handle in handles]
    assert errors[1:] == [None, None, None], errors


def test_a_process_that_dies_while_idle_is_replaced(open_writer, folder, caplog):
    """Nothing fails, and the next save finds a living process; one that crashed has left its last words."""
    writer = open_writer(backend="process")
    for number, how in enumerate((signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT), 1):
        assert writer.save(state(number), folder / "file").result(30).durable
        pid = service_of(writer)
        os.kill(pid, how)
        until(lambda pid=pid: f"process {pid} ended by " in caplog.text)
    assert writer.save(state(4), folder / "file").result(30).durable
    assert number_at(folder / "file") == 4
    assert "last words: Fatal Python error: Segmentation fault" in caplog.text
    assert "ended by SIGABRT" in caplog.text


@pytest.fixture
def executable(tmp_path):
    """Return what sets the interpreter for writer processes to a shell script; it is the old one after the test."""
    before = multiprocessing.spawn.get_executable()

    def replace(script: str | None) -> None:
        path = tmp_path / "python"
        if script is not None:
            path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
            path.chmod(0o700)
        multiprocessing.set_executable(str(path))

    yield replace
    multiprocessing.set_executable(before)


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo sorry >&2; exit 3", "ended with exit status 3 (its last words: sorry)"), (None, "No such file")],
    ids=["ends at once", "is not there"],
)
def test_a_process_that_cannot_be_replaced(open_writer, folder, executable, caplog, script, reason):
    """No save is lost: the trainer writes them itself, the log says why, until a process can be started again."""
    writer = open_writer(backend="process")
    assert writer.save(state(1), folder / "file").result(30).durable
    pid = service_of(writer)
    freeze(pid)
    executable(script)
    handles = [writer.save(state(number), folder / "file") for number in (2, 3)]
    os.kill(pid, signal.SIGKILL)
    assert all(handle.result(30).durable for handle in [*handles, writer.save(state(4), folder / "file")])
    assert number_at(folder / "file") == 4
    assert not current_service(writer)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors
    assert all("no writer process can be started, this one writes" in text and reason in text for text in errors)
    with pytest.raises(asyncsave.WriterDiedError, match=re.escape(reason)):
        writer.warmup(state(0))
    multiprocessing.set_executable(sys.executable)
    writer.warmup(state(0))
    assert writer.save(state(5), folder / "file").result(30).durable
    executable(script)
    os.kill(service_of(writer), signal.SIGKILL)
    writer.close(30)


def test_a_trainer_killed_after_its_process_loses_nothing(folder, template):
    """Its process has died before a save: when that returns, the next process has it, so the trainer may die too."""
    program = """
    writer = asyncsave.Writer(backend="process")
    writer.save(state(1), folder / "file").result()
    os.kill(service_of(writer), signal.SIGKILL)
    while current_service(writer):
        pass
    writer.save(state(2), folder / "file")
    os.kill(os.getpid(), signal.SIGKILL)
    """
    for _ in range(10):
        with Trainer(template, program, folder) as trainer:
            assert trainer.wait().rc == -9
        nobody_is_left(folder.parent)
        assert numbers_in(folder) == {"file": 2}


def test_a_trainer_and_its_process_killed_together(folder, template):
    """Then nobody is left to finish it: the old file stays, and the next save sweeps what lies about."""
    asyncsave.save(state(1), folder / "file")
    program = """
    writer = asyncsave.Writer(backend="process")
    say("service", service_of(writer))
    writer.save(state(2, 32 << 20), folder / "file")
    pause()
    """
    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        until(lambda: temporaries(folder))
        service.send(signal.SIGKILL)
        assert trainer.killed().rc == -9
        assert service.has_ended()
    assert number_at(folder / "file") in {1, 2}
    with asyncsave.Writer(backend="process") as writer:
        assert writer.save(state(3), folder / "file").result(30).durable
    assert numbers_in(folder) == {"file": 3}


HELD = """
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)
(folder / "gone").mkdir()
writer = asyncsave.Writer(backend="process", exit_timeout=60)
if "starting" not in sys.argv:
    writer.warmup(state(1))
service = service_of(writer)
say("service", service)
freeze(service)
writer.save(state(1), folder / sys.argv[2])
say("staged")
"""
"""A save that is staged, and a process that stands still."""


def test_ctrl_c_reaches_the_trainer_only(folder, template):
    """SIGINT to the whole process group: the trainer ends by it, after what it had staged has landed."""
    with Trainer(template, HELD + "pause()", folder, "file") as trainer, Watched(trainer) as service:
        trainer.heard("staged")
        os.killpg(trainer.pid, signal.SIGINT)
        service.thaw()
        done = trainer.wait()
        assert done.rc == -signal.SIGINT
        assert service.has_ended(0)
    assert "KeyboardInterrupt" in done.stderr
    assert number_at(folder / "file") == 1


@pytest.mark.parametrize("when", ["ready", "starting"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_signal_to_both(folder, template, name, when):
    """What a batch system sends to all processes ends the trainer only: the save lands, then the process ends."""
    program = HELD + "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    program += "signal.signal(signal.SIGINT, signal.SIG_DFL); say('ready'); pause()"
    with Trainer(template, program, folder, "file", when) as trainer, Watched(trainer) as service:
        trainer.heard("ready")
        service.send(signal.Signals[name])
        os.kill(trainer.pid, signal.Signals[name])
        assert trainer.wait().rc == -signal.Signals[name]
        service.thaw()
        assert service.has_ended()
    assert number_at(folder / "file") == 1


def test_an_unread_failure_of_the_process_spoils_the_exit_code(folder, template):
    """What fails over there is a failure here: the exit code is 1, and standard error says why."""
    program = HELD + "(folder / 'gone').rmdir(); os.kill(service, signal.SIGCONT)"
    with Trainer(template, program, folder, "gone/file") as trainer:
        done = trainer.wait()
    assert done.rc == 1
    assert "a save failed, and nobody has read that: cannot save" in done.stderr
    assert "ENOENT" in done.stderr
    assert not services(folder.parent)


@pytest.mark.soak
def test_many_kills(open_writer, folder, template, caplog):
    """Two thousand trainers killed after staging, and as many writer processes: none lost, none torn."""
    kill_trainers(template, folder, 2000)
    kill_services(open_writer, folder, caplog, 2000)
