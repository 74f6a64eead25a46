"""A disk that is full for real, in the midst of a step: that one fails, all before it stay, the next one works."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest
from managed import LARGE, PATIENCE, damaged, managed, needs_spares, number_in, others, state, step_folder, steps

import asyncsave
from asyncsave import Retention, SaveError, TrainingState

pytestmark = pytest.mark.usefixtures("backend")

MIB = 1 << 18
"""Elements of a state of a MiB."""
LAST = Retention(last=1)


@contextlib.contextmanager
def disk(tmp_path, kind, mib):
    """Mount a small file system, without a reserve for root; skip the test where that is not allowed."""
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    commands = [["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", folder]]
    if kind == "ext4":
        with image.open("wb") as file:
            file.truncate(mib << 20)
        commands = [["mkfs.ext4", "-q", "-F", "-m", "0", image], ["mount", "-o", "loop", image, folder]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command[0]} is not possible here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request, tmp_path):
    """Return a file system of about 16 MiB."""
    with disk(tmp_path, request.param, 17) as folder:
        yield folder


def fill(folder, but):
    """Fill a disk up to so many bytes; return the file that does."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as ballast:
        free = os.statvfs(folder)
        for block in range(64):  # ext4 knows only roughly what it needs for itself
            with contextlib.suppress(OSError):
                os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize - but - (block << 12))
                return path
    raise AssertionError("it cannot be filled")


def content(folder):
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def two(number, mib=2):
    """Return two parts of so many MiB each."""
    return {"a": state(number, mib * MIB), "b": state(number, mib * MIB)}


@pytest.mark.parametrize("room", [64 << 10, 1 << 20, 3 << 20])
def test_a_disk_that_is_full_in_the_midst_of_a_step(small_disk, room):
    """ENOSPC for that one, and nothing of it is left, also of the part that did fit; with room the next one works."""
    with managed(small_disk) as manager:
        manager.save(1, parts=two(1)).result(PATIENCE)
        before = content(step_folder(manager, 1))
        ballast = fill(small_disk, room)
        error = manager.save(2, parts=two(2)).exception(PATIENCE)
        assert isinstance(error, SaveError)
        assert (error.errno, error.outcome, error.path) == (
            errno.ENOSPC,
            "not_committed",
            str(step_folder(manager, 2)),
        )
        assert "Free some space" in str(error)
        assert steps(manager) == [1]
        assert not others(manager)
        assert content(step_folder(manager, 1)) == before
        assert number_in(manager.load("latest", part="b")) == 1
        ballast.unlink()
        manager.save(3, parts=two(3)).result(PATIENCE)
        assert steps(manager) == [1, 3]


def test_a_step_that_is_saved_again_on_a_full_disk(small_disk):
    """The old one stays whole in its place, with what is the user's in it."""
    with managed(small_disk) as manager:
        manager.save(1, parts=two(1)).result(PATIENCE)
        (step_folder(manager, 1) / "notes.txt").write_text("mine")
        before = content(step_folder(manager, 1))
        fill(small_disk, 3 << 20)
        assert manager.save(1, parts=two(2)).exception(PATIENCE).errno == errno.ENOSPC
        assert content(step_folder(manager, 1)) == before
        assert not others(manager)


def test_retention_makes_no_room_for_what_is_not_durable(small_disk):
    """The one checkpoint that there is stays, though without it the next would fit; many failures change nothing."""
    with managed(small_disk, retain=LAST) as manager:
        manager.save(1, parts=two(1)).result(PATIENCE)
        fill(small_disk, 2 << 20)
        for step in range(2, 6):
            assert manager.save(step, parts=two(step)).exception(PATIENCE).errno == errno.ENOSPC
            assert steps(manager) == [1]
        assert number_in(manager.load("latest", part="a")) == 1


def test_wherever_the_disk_is_full(small_disk):
    """At whichever of its first bytes the room ends: either the step is there, whole, or nothing of it."""
    outcomes = set()
    with managed(small_disk) as manager:
        manager.save(0, parts={name: state(0) for name in "abc"}).result(PATIENCE)
        for step in range(1, 13):
            ballast = fill(small_disk, (step - 1) * 4096)
            error = manager.save(step, parts={name: state(step) for name in "abc"}).exception(PATIENCE)
            outcomes.add(error is None)
            assert error is None or error.errno == errno.ENOSPC
            assert (step in steps(manager)) == (error is None)
            assert not others(manager)
            for each in steps(manager):
                assert [number_in(manager.load(each, part=name)) for name in "abc"] == [each] * 3
            ballast.unlink()
    assert outcomes == {True, False}


def test_a_full_disk_keeps_nobody_from_going_on(small_disk):
    """A version on it is opened and restored from, a damaged step put aside; what is saved fails, and says so."""
    with managed(small_disk, version="v") as manager:
        for step in (0, 1):
            manager.save(step, TrainingState(rng=False, **state(step))).result(PATIENCE)
        damaged["flipped byte"](step_folder(manager, 1))
    ballast = fill(small_disk, 0)
    with managed(small_disk, version="v") as manager:
        training = TrainingState(rng=False, **state(5))
        assert manager.restore(training) == 1
        assert number_in(training.parts) == 0
        assert others(manager) == [("corrupt", "step-00000001.corrupt")]
        assert manager.save(1, parts=two(1)).exception(PATIENCE).errno == errno.ENOSPC
        ballast.unlink()
        manager.save(1, training).result(PATIENCE)
    with managed(small_disk, version="v") as manager:
        assert steps(manager) == [0, 1]


def test_a_new_version_on_a_full_disk(tmp_path):
    """It cannot be made, which is a SaveError; nothing is held, and with room it can."""
    with disk(tmp_path, "tmpfs", 4) as folder:
        ballast = fill(folder, 0)
        with pytest.raises(SaveError) as raised:
            asyncsave.CheckpointManager(folder, version="v")
        assert raised.value.errno == errno.ENOSPC
        assert not list(folder.rglob(".asyncsave-*"))
        ballast.unlink()
        asyncsave.CheckpointManager(folder, version="v").close()


def test_no_inodes_for_a_pin(tmp_path):
    """A pin that cannot be written is a SaveError, and the step is not pinned."""
    with disk(tmp_path, "tmpfs", 16) as folder, managed(folder) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        subprocess.run(["mount", "-o", "remount,nr_inodes=20", folder], check=True)
        with contextlib.suppress(OSError):
            for number in range(20):
                (folder / str(number)).touch()
        with pytest.raises(SaveError) as raised:
            manager.pin(1)
        assert raised.value.errno == errno.ENOSPC
        assert [info.pinned for info in manager.list()] == [False]


def test_a_spare_gives_way(tmp_path):
    """What is kept to be overwritten is given up for a step that would not fit otherwise."""
    with disk(tmp_path, "ext4", 160) as folder:
        needs_spares(folder)
        with managed(folder, retain=LAST) as manager:
            for step in (1, 2):
                manager.save(step, state(step, LARGE)).result(PATIENCE)
            assert [kind for kind, _ in others(manager)] == ["spare"]
            fill(folder, 10 << 20)
            manager.save(3, parts=two(3, 18)).result(PATIENCE)
            assert steps(manager) == [3]
            assert number_in(manager.load("latest", part="b")) == 3


def test_a_failed_step_gives_the_spare_up(tmp_path):
    """On a disk that is too full even so, no room is held back from the user."""
    with disk(tmp_path, "ext4", 160) as folder:
        needs_spares(folder)
        with managed(folder, retain=LAST) as manager:
            for step in (1, 2):
                manager.save(step, state(step, LARGE)).result(PATIENCE)
            fill(folder, 1 << 20)
            assert manager.save(3, state(3, 2 * LARGE)).exception(PATIENCE).errno == errno.ENOSPC
            assert not others(manager)
            assert number_in(manager.load("latest")) == 2
            manager.save(4, state(4, 1000)).result(PATIENCE)
            assert steps(manager) == [4]
    assert Path(manager.path).name == "1"
