"""Which version a manager gets, and that nobody else gets it too."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import re
import signal
import socket
from pathlib import Path

import pytest
from managed import PATIENCE, managed, number_in, state, steps
from processes import Trainer, Watched, freeze, nobody_is_left, service_of, until

import asyncsave
from asyncsave import CheckpointManager, VersionInUseError

HOLD = """
manager = asyncsave.CheckpointManager(folder, version="v", shared="shared" in sys.argv)
say("holds")
pause()
"""


@contextlib.contextmanager
def opened(root, *versions, **options):
    """Open managers one after the other, all at the same time; give the names that they got."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(CheckpointManager(root, version=version, **options)).version for version in versions]


def test_numbers(tmp_path):
    """The first version is 1; without a name the newest one goes on; ``"new"`` always makes one."""
    for version, expected in ((None, "1"), (None, "1"), ("new", "2"), (None, "2"), ("new", "3"), ("1", "1")):
        with opened(tmp_path, version) as names:
            assert names == [expected]


def test_the_newest_is_the_one_made_last(tmp_path):
    """Whatever the names are, and whichever was used last: not the greatest name."""
    for version in ("zebra", "7", "apple"):
        with opened(tmp_path, version):
            pass
    with opened(tmp_path, "zebra"):
        pass
    with opened(tmp_path, None, "new", "new") as names:
        assert names == ["apple", "8", "9"]
    with opened(tmp_path, None) as names:
        assert names == ["9"]


def test_the_tenth_is_newer_than_the_ninth(tmp_path):
    """Folders that nobody has written down when they were made go by their number."""
    for name in ("9", "10", "notes", ".hidden"):
        (tmp_path / "default" / "default" / name).mkdir(parents=True)
    (tmp_path / "default" / "default" / "99").write_text("a file")
    with opened(tmp_path, None, "new") as names:
        assert names == ["10", "11"]


@pytest.mark.parametrize("record", ["", "{", "[]", '{"created": "soon"}', '{"created": null}', "\0"])
def test_a_record_that_cannot_be_read(tmp_path, record):
    """Then the version counts as old, and works as any."""
    with opened(tmp_path, "a", "b"):
        pass
    (tmp_path / "default" / "default" / "b" / "version.json").write_text(record)
    with opened(tmp_path, None) as names:
        assert names == ["a"]
    with opened(tmp_path, "b") as names:
        assert names == ["b"]


def test_timestamps(tmp_path):
    """New versions are called by the time, also several in one second; the newest of them goes on."""
    with opened(tmp_path, "new", "new", "new", versioning="timestamp") as names:
        assert len(set(names)) == 3
        for name in names:
            assert re.fullmatch(r"\d{8}-\d{6}(-\d+)?", name)
    with opened(tmp_path, None, versioning="timestamp") as again:
        assert again == names[-1:]


def test_a_named_version(tmp_path):
    """It is made where it is missing, and goes on where it is there."""
    for step in (1, 2):
        with CheckpointManager(tmp_path, version="run 7, ü", project="p", experiment="e") as manager:
            manager.save(step, state(step))
        assert manager.path == str(tmp_path / "p" / "e" / "run 7, ü")
    assert steps(manager) == [1, 2]


def test_projects_and_experiments_are_apart(tmp_path):
    """The same version of two experiments is two versions, with checkpoints of their own."""
    with managed(tmp_path, experiment="a") as first, managed(tmp_path, experiment="b") as second:
        first.save(1, state(1)).result(PATIENCE)
        assert (first.version, second.version) == ("1", "1")
        assert (steps(first), steps(second)) == ([1], [])


def test_one_that_is_held_in_this_process(tmp_path):
    """By name it is refused, and the holder named; without a name a new one is made, and that is said."""
    with CheckpointManager(tmp_path, version="v") as manager:
        with pytest.raises(VersionInUseError) as raised:
            CheckpointManager(tmp_path, version="v")
        assert raised.value.path == manager.path
        assert f"{manager.path!r} is in use by process {os.getpid()} on {socket.gethostname()}." in str(raised.value)
        assert "shared=True" in str(raised.value)
        with opened(tmp_path, None, "w") as names:
            assert names == ["1", "w"]
        manager.save(1, state(1)).result(PATIENCE)
    with opened(tmp_path, "v") as names:
        assert names == ["v"]


def test_a_manager_that_could_not_be_made_holds_nothing(tmp_path):
    """An error on the way lets go of the version: it can be had again at once."""
    path = tmp_path / "default" / "default" / "v"
    path.mkdir(parents=True)
    (path / ".writing").mkdir()
    with pytest.raises(asyncsave.SaveError, match="target"):
        CheckpointManager(tmp_path, version="v")
    (path / ".writing").rmdir()
    with opened(tmp_path, "v") as names:
        assert names == ["v"]


def test_one_that_another_process_holds(tmp_path, template, caplog):
    """It is refused, and the process named; it dies by SIGKILL, and the version is free."""
    with Trainer(template, HOLD, tmp_path) as trainer:
        trainer.heard("holds")
        for shared in (False, True):
            with pytest.raises(VersionInUseError, match=f"in use by process {trainer.pid} on "):
                CheckpointManager(tmp_path, version="v", shared=shared)
        with opened(tmp_path, None) as names:
            assert names == ["1"]
        assert f"{tmp_path / 'default' / 'default' / 'v'} is in use: a new version is made" in caplog.text
        assert trainer.killed().rc == -9
    with opened(tmp_path, "v") as names:
        assert names == ["v"]


def test_ranks_share_one(tmp_path, template):
    """All who say ``shared=True`` have it, and see what one of them saves; who does not say so is refused."""
    with Trainer(template, HOLD, tmp_path, "shared") as trainer:
        trainer.heard("holds")
        with (
            CheckpointManager(tmp_path, version="v", shared=True) as first,
            CheckpointManager(tmp_path, version="v", shared=True) as second,
        ):
            first.save(1, state(1)).result(PATIENCE)
            assert number_in(second.load("latest")) == 1
            with pytest.raises(VersionInUseError, match="is in use by process"):
                CheckpointManager(tmp_path, version="v")
        assert trainer.killed().rc == -9
    with opened(tmp_path, "v") as names:
        assert names == ["v"]


def test_ranks_leave_each_others_unfinished_folders_alone(tmp_path):
    """A second rank that opens the version takes nothing for a dead writer's, nor a spare."""
    with CheckpointManager(tmp_path, version="v", shared=True) as first:
        unfinished = Path(first.path) / ".asyncsave-0123456789abcdef.tmp"
        unfinished.mkdir()
        fd = os.open(unfinished, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with CheckpointManager(tmp_path, version="v", shared=True):
            assert unfinished.exists()
        os.close(fd)
        with CheckpointManager(tmp_path, version="v", shared=True):
            assert not unfinished.exists(), "its writer is dead"


RACE = """
version, versioning = (None if sys.argv[2] == "None" else sys.argv[2]), sys.argv[3]
(go, start), (end, finish) = os.pipe(), os.pipe()
for _ in range(4):
    if not os.fork():
        os.close(finish)
        os.read(go, 1)
        manager = asyncsave.CheckpointManager(folder, version=version, versioning=versioning)
        manager.save(1, {"n": os.getpid()}).result()
        say("got", manager.version)
        os.read(end, 1)
        manager.close()
        os._exit(0)
os.write(start, b"goes")
sys.stdin = open(sys.argv[4])
sys.stdin.read()
os.close(finish)
statuses = {os.wait()[1] for _ in range(4)}
say("ended", *statuses)
"""


@pytest.mark.parametrize("versioning", ["number", "timestamp"])
@pytest.mark.parametrize("version", [None, "new"])
def test_processes_that_start_at_once(tmp_path, template, version, versioning):
    """Four that ask for a version in the same moment get one each, every time; without a name one goes on."""
    os.mkfifo(tmp_path / "go")
    root, before = tmp_path / "runs", set()
    for attempt in range(4):
        with Trainer(template, RACE, root, version, versioning, tmp_path / "go") as trainer:
            said = until(lambda trainer=trainer: len(found := trainer.said()) == 4 and found, trainer.said)
            names = {line.split()[1] for line in said}
            (tmp_path / "go").write_text("")
            assert trainer.heard("ended") == ["0"]
            assert trainer.wait().rc == 0
        assert len(names) == 4, said
        if attempt:
            assert len(names & before) == (1 if version is None else 0)
        before |= names
    experiment = root / "default" / "default"
    assert {path.name for path in experiment.iterdir()} == before
    assert len(list(experiment.glob("*/step-00000001"))) == len(before)


def test_a_forked_child_does_not_keep_it(tmp_path):
    """A child that outlives the manager holds no lock, and its copy of the manager refuses to save."""
    manager = CheckpointManager(tmp_path, version="v")
    manager.save(1, state(1)).result(PATIENCE)
    ours, theirs = multiprocessing.Pipe()
    with theirs, ours:
        child = os.fork()
        if not child:
            try:
                manager.save(2, state(2))
            except asyncsave.WriterClosedError:
                theirs.send("refused")
            manager.close()
            theirs.send([info.step for info in manager.list()])
            theirs.recv()
            os._exit(0)
        try:
            assert ours.poll(PATIENCE)
            assert ours.recv() == "refused"
            assert ours.recv() == [1]
            with pytest.raises(VersionInUseError):
                CheckpointManager(tmp_path, version="v")
            manager.save(2, state(2)).result(PATIENCE)
            manager.close()
            with opened(tmp_path, "v") as names:
                assert names == ["v"]
        finally:
            ours.send("go")
            assert os.waitpid(child, 0)[1] == 0


def test_a_writer_process_that_outlives_its_trainer_is_waited_for(folder, template, caplog):
    """A trainer killed with saves staged: the next manager waits for its writer process, and sees all of them."""
    program = """
    writer = asyncsave.Writer(backend="process", max_pending=3)
    manager = asyncsave.CheckpointManager(folder, version="v", writer=writer)
    manager.save(0, state(0)).result()
    say("service", service_of(writer))
    freeze(service_of(writer))
    for step in (1, 2, 3):
        manager.save(step, state(step))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    waiting = """
    with asyncsave.CheckpointManager(folder, version="v") as manager:
        say("steps", *(info.step for info in manager.list()))
    """
    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        assert trainer.wait().rc == -signal.SIGKILL
        with Trainer(template, waiting, folder) as next_one:
            until(lambda: "waiting for the writer process" in next_one._child._err.read_text(), next_one.said)
            assert not next_one.said()
            service.thaw()
            assert next_one.heard("steps") == ["0", "1", "2", "3"]
            assert next_one.wait().rc == 0
        assert service.has_ended()
    nobody_is_left(folder.parent)
    with CheckpointManager(folder, version="v") as manager:
        assert [number_in(manager.load(step)) for step in steps(manager)] == [0, 1, 2, 3]


def test_the_newest_version_is_taken_while_its_writer_process_finishes(folder, template):
    """``version=None`` goes on with it too, rather than make a new one: its trainer is dead."""
    program = """
    writer = asyncsave.Writer(backend="process")
    manager = asyncsave.CheckpointManager(folder, writer=writer)
    say("service", service_of(writer))
    manager.save(1, state(1, 16 << 20))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        assert trainer.wait().rc == -signal.SIGKILL
        with CheckpointManager(folder) as manager:
            assert manager.version == "1"
            assert number_in(manager.load("latest")) == 1
        assert service.has_ended()


def test_a_writer_process_that_is_killed_too_holds_nobody_up(folder, template):
    """Then nobody has the lock; what was not written is lost, what was is there."""
    program = """
    writer = asyncsave.Writer(backend="process")
    manager = asyncsave.CheckpointManager(folder, version="v", writer=writer)
    manager.save(0, state(0)).result()
    say("service", service_of(writer))
    freeze(service_of(writer))
    manager.save(1, state(1))
    say("staged")
    pause()
    """
    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        trainer.heard("staged")
        service.send(signal.SIGKILL)
        assert trainer.killed().rc == -9
        assert service.has_ended()
    with CheckpointManager(folder, version="v") as manager:
        assert steps(manager) == [0]
        assert manager.list(all=True) == manager.list()


def test_a_frozen_writer_process_of_another_version_is_not_waited_for(folder, open_writer):
    """Only who writes to a version keeps others from it."""
    writer = open_writer(backend="process")
    with CheckpointManager(folder, version="v", writer=writer) as manager:
        pid = service_of(writer)
        freeze(pid)
        handle = manager.save(1, state(1))
        with opened(folder, "w", "new") as names:
            assert names == ["w", "1"]
        os.kill(pid, signal.SIGCONT)
        handle.result(PATIENCE)
    record = json.loads((Path(manager.path) / "version.json").read_bytes())
    assert (record["format"], type(record["created"])) == (1, float)
