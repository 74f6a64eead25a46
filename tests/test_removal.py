"""A step is taken out with its manifest first, and never with a file that asyncsave did not write."""

from __future__ import annotations

import errno
import fcntl
import logging
import os

import pytest
from gates import METHODS, Failing, Recording
from steps import Killed, Mortal, content, put_step, whole

from asyncsave import CorruptCheckpointError, FormatVersionError
from asyncsave.catalogue import removal
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.names import DROPPED, MANIFEST, PINNED, step_name
from asyncsave.catalogue.removal import Removal
from asyncsave.catalogue.upkeep import tidy
from asyncsave.storage.system import System

FILES = {"state.pt": b"state" * 100, "ema.pt": b"ema"}


def drop(version, step=1, *, system=None, sync=True):
    """Drop a step."""
    with Removal(system or System(), str(version), sync=sync) as gone:
        return gone.drop(step_name(step))


def finish(version):
    """Go on with removals that were not finished, as the next save does."""
    with Removal(System(), str(version), sync=True) as gone:
        for name in Listing(str(version)).dropped():
            gone.drop(name)


def is_step(version, step=1):
    """Tell whether there is such a step; if there is, all of it is."""
    folder = version / step_name(step)
    if not (folder / MANIFEST).exists():
        return False
    assert whole(folder) == FILES
    return True


def test_nothing_is_left(tmp_path):
    """A dropped step is gone with its folder; the others are as they were."""
    put_step(tmp_path, 1, FILES)
    other = content(put_step(tmp_path, 2, FILES))
    assert drop(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [step_name(2)]
    assert content(tmp_path / step_name(2)) == other


def test_a_state_in_the_midst_of_a_step(tmp_path):
    """It is dropped by its own name, and the complete one of the same number stays."""
    put_step(tmp_path, 1, FILES)
    put_step(tmp_path, 1, FILES, complete=False)
    with Removal(System(), str(tmp_path), sync=True) as gone:
        assert gone.drop(step_name(1, complete=False))
    assert is_step(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_manifest_goes_first(tmp_path):
    """It is renamed, and that is flushed, before the first file goes; what tells that files are left goes last."""
    put_step(tmp_path, 1, FILES)
    system = Recording()
    drop(tmp_path, system=system)
    does = [(call.name, call.kind) for call in system.trace if call.name in {"rename", "fsync", "unlink", "rmdir"}]
    assert does[:2] == [("rename", MANIFEST), ("fsync", "folder")]
    assert sorted(does[2:-2]) == [("unlink", name) for name in sorted(FILES)]
    assert does[-2:] == [("unlink", DROPPED), ("rmdir", step_name(1))]


def test_without_sync_nothing_is_flushed(tmp_path):
    """The order is the same, the flush is left out."""
    put_step(tmp_path, 1, FILES)
    system = Recording()
    drop(tmp_path, system=system, sync=False)
    assert not [call for call in system.trace if call.name == "fsync"]
    assert not list(tmp_path.iterdir())


def test_what_is_the_users_stays(tmp_path, caplog):
    """Files and folders of the user's stay where they are, and so does the step's folder; the checkpoint is gone."""
    caplog.set_level(logging.INFO, "asyncsave")
    folder = put_step(tmp_path, 1, FILES)
    (folder / "notes.txt").write_bytes(b"mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.png").write_bytes(b"mine too")
    (folder / "log.txt").symlink_to("/nowhere")
    assert drop(tmp_path)
    assert content(folder) == {"notes.txt": b"mine", "plots/loss.png": b"mine too"}
    assert (folder / "log.txt").is_symlink()
    assert f"{step_name(1)} stays" in caplog.text
    assert "notes.txt" in caplog.text
    assert Listing(str(tmp_path)).look() == ([], {})
    assert Listing(str(tmp_path)).dropped() == []


def test_a_pinned_step_stays(tmp_path):
    """It is not touched, and whoever asked is told; with the pin gone it can be dropped."""
    folder = put_step(tmp_path, 1, FILES)
    (folder / PINNED).touch()
    before = content(folder)
    assert not drop(tmp_path)
    assert content(folder) == before
    (folder / PINNED).unlink()
    assert drop(tmp_path)


def test_a_step_that_is_being_pinned_stays(tmp_path):
    """While somebody holds the folder's lock, it is not touched."""
    folder = put_step(tmp_path, 1, FILES)
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not drop(tmp_path)
    assert is_step(tmp_path)
    os.close(fd)
    assert drop(tmp_path)


def test_files_that_are_gone_already(tmp_path):
    """A file that somebody removed by hand is no hindrance."""
    (put_step(tmp_path, 1, FILES) / "state.pt").unlink()
    assert drop(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["a folder", "a link"])
def test_a_step_elsewhere_is_not_followed(tmp_path, at):
    """A link that has a step's name leads nowhere: what lies behind it is not touched."""
    elsewhere, version = tmp_path / "elsewhere", tmp_path / "version"
    elsewhere.mkdir()
    version.mkdir()
    folder = put_step(elsewhere, 1, FILES)
    if at == "a link":
        (version / step_name(1)).symlink_to(folder)
    with pytest.raises(OSError, match="step-00000001"):
        drop(version)
    assert is_step(elsewhere)


def test_a_folder_without_manifest_is_not_ours(tmp_path):
    """What never was a checkpoint, or is none any more, keeps all of its files."""
    folder = tmp_path / step_name(1)
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"mine")
    with pytest.raises(FileNotFoundError):
        drop(tmp_path)
    assert content(folder) == {"state.pt": b"mine"}


@pytest.mark.parametrize(
    ("data", "kind"), [(b"garbage", CorruptCheckpointError), (b'{"format": 99}', FormatVersionError)]
)
def test_a_manifest_that_cannot_be_read_is_left_alone(tmp_path, data, kind):
    """Where it is not known what is ours nothing is changed: a newer asyncsave will still find its checkpoint."""
    folder = put_step(tmp_path, 1, FILES)
    (folder / MANIFEST).write_bytes(data)
    before = content(folder)
    with pytest.raises(kind):
        drop(tmp_path)
    assert content(folder) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault_of_a_drop(tmp_path, method, number):
    """Whichever call fails: the step is whole or none; the user's file stays; and the next attempt finishes."""
    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        put_step(version, 1, FILES)
        (put_step(version, 2, FILES) / "notes.txt").write_bytes(b"mine")
        system = Failing(method, number, at=at)
        for step in (1, 2):
            try:
                assert drop(version, step, system=system) or is_step(version, step)
            except OSError:
                assert system.fired
        if is_step(version, 1):
            drop(version, 1)
        if (version / step_name(2) / MANIFEST).exists():
            drop(version, 2)
        finish(version)
        assert content(version) == {f"{step_name(2)}/notes.txt": b"mine"}, f"{method} #{at}"
        if not system.fired:
            return


@pytest.mark.parametrize("by", ["the next save", "the next run"])
def test_a_drop_that_is_cut_off(tmp_path, by):
    """Before whatever call the process is killed, the step is whole or none, and the next one finishes it."""
    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        (put_step(version, 1, FILES) / "notes.txt").write_bytes(b"mine")
        put_step(version, 2, FILES)
        system = Mortal(at)
        for step in (1, 2):
            try:
                drop(version, step, system=system)
            except Killed:
                break
        system.bury()
        for step in (1, 2):
            if (version / step_name(step) / MANIFEST).exists():
                assert whole(version / step_name(step)) == FILES
                drop(version, step)
        if by == "the next save":
            finish(version)
        else:
            tidy(System(), str(version))
        assert content(version) == {f"{step_name(1)}/notes.txt": b"mine"}, f"killed before {system.last}"
        if not system.is_dead:
            assert at > 10, "it was never killed"
            return


def test_blocks_are_freed_on_leaving(tmp_path, monkeypatch):
    """A large file is held until the block is left: its release is nothing that anybody has to wait for."""
    monkeypatch.setattr(removal, "SPARE_FROM", 100)
    put_step(tmp_path, 1, FILES)
    with Removal(System(), str(tmp_path), sync=True) as gone:
        assert gone.drop(step_name(1))
        assert not list(tmp_path.iterdir())
        (held,) = gone._held
        assert os.fstat(held).st_nlink == 0
        assert os.pread(held, 5, 0) == b"state"
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(held)


def test_what_is_held_is_let_go_of_whatever_fails(tmp_path, monkeypatch):
    """Where the close of the version's folder fails, that raises nothing, and nothing stays open."""
    monkeypatch.setattr(removal, "SPARE_FROM", 100)
    put_step(tmp_path, 1, FILES)
    system = Failing("close", errno.EIO, at=2)
    with Removal(system, str(tmp_path), sync=True) as gone:
        assert gone.drop(step_name(1))
        held = list(gone._held)
    assert system.fired
    assert held
    for fd in held:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)
