"""What dead writers left is removed, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest
import torch
from gates import Failing, Gated, Recording

import asyncsave
from asyncsave.storage.sweep import sweep
from asyncsave.storage.system import System

DEAD = ".asyncsave-0123456789abcdef.tmp"
FOREIGN = [
    ".asyncsave-0123456789abcde.tmp",
    ".asyncsave-0123456789ABCDEF.tmp",
    ".asyncsave-0123456789abcdef.tmp~",
    "x.asyncsave-0123456789abcdef.tmp",
    "ckpt.tmp",
]


def test_dead_files_are_removed(tmp_path, caplog):
    """A temporary file that nobody holds is removed, and the log says so."""
    (tmp_path / DEAD).write_bytes(b"half")
    assert sweep(System(), str(tmp_path)) == [DEAD]
    assert not list(tmp_path.iterdir())
    assert "removed 1 unfinished file" in caplog.text
    assert sweep(System(), str(tmp_path)) == []


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_stay(tmp_path, name):
    """A name that is not exactly one of ours is not touched."""
    (tmp_path / name).write_bytes(b"")
    assert sweep(System(), str(tmp_path)) == []
    (tmp_path / name).unlink()


def test_living_files_stay(tmp_path):
    """A temporary file whose writer holds its lock is left alone."""
    path = tmp_path / DEAD
    with path.open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert sweep(System(), str(tmp_path)) == []
        assert path.exists()
    assert sweep(System(), str(tmp_path)) == [DEAD]


def test_links_and_fifos_are_not_followed(tmp_path):
    """What bears our name and is no file costs nothing but itself: no target, no hang."""
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / DEAD).symlink_to("precious")
    os.mkfifo(tmp_path / DEAD.replace("0", "9"))
    (tmp_path / DEAD.replace("0", "8")).mkdir()
    sweep(System(), str(tmp_path))
    assert (tmp_path / "precious").read_bytes() == b"mine"
    for name in (DEAD, DEAD.replace("0", "9")):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / DEAD.replace("0", "8")).rmdir()


def test_a_file_that_was_renamed_meanwhile_stays(tmp_path):
    """A file that takes its final name between our look and our lock is not removed under it."""
    (tmp_path / DEAD).write_bytes(b"whole")

    class Racing(System):
        def lock(self, fd):
            locked = super().lock(fd)
            (tmp_path / DEAD).rename(tmp_path / "ckpt")
            (tmp_path / DEAD).write_bytes(b"another writer's")
            return locked

    assert sweep(Racing(), str(tmp_path)) == []
    assert (tmp_path / "ckpt").read_bytes() == b"whole"
    (tmp_path / DEAD).unlink()


@pytest.mark.parametrize("method", ["open", "listdir", "lock", "stat", "unlink"])
def test_a_sweep_never_raises(tmp_path, method):
    """Whatever fails, the sweep goes on and holds nothing open."""
    (tmp_path / DEAD).write_bytes(b"")
    sweep(Failing(method, errno.EIO, forever=True), str(tmp_path))
    (tmp_path / DEAD).unlink()
    assert sweep(System(), str(tmp_path / "missing")) == []


@pytest.mark.usefixtures("backend")
def test_the_first_save_sweeps_its_folder_once(tmp_path, open_writer):
    """A writer sweeps every folder that it writes to, the first time it does."""
    system = Recording()
    writer = open_writer(system=system)
    (tmp_path / DEAD).write_bytes(b"")
    for number in range(3):
        writer.save({"n": number}, tmp_path / "ckpt").result(30)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]
    assert [call.name for call in system.trace].count("listdir") == 1


@pytest.mark.usefixtures("backend")
def test_a_sweep_leaves_a_save_in_flight_alone(tmp_path, open_writer):
    """Another writer's first save in the folder does not take away a file that is being written."""
    gate = Gated("fsync")
    handle = open_writer(system=gate).save({"x": torch.ones(10)}, tmp_path / "slow")
    gate.arrival()
    assert len(list(tmp_path.glob(".asyncsave-*"))) == 1
    assert open_writer().save({"n": 1}, tmp_path / "quick").result(30).durable
    assert len(list(tmp_path.glob(".asyncsave-*"))) == 1
    gate.release()
    assert handle.result(30).durable
    assert asyncsave.verify(tmp_path / "slow").ok
