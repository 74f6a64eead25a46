"""A folder whose place was taken, or that was never finished, goes; what is the user's in it does not."""

from __future__ import annotations

import contextlib
import errno

import pytest
from gates import METHODS, Failing
from steps import Killed, Mortal, assemble, clear, content, put_step, target_of, temporaries, whole

from asyncsave.catalogue.names import MANIFEST, PINNED, step_name
from asyncsave.catalogue.removal import Removal
from asyncsave.catalogue.upkeep import tidy
from asyncsave.storage.assembly import UNFINISHED
from asyncsave.storage.system import System

FILES = {"state.pt": b"state" * 100, "ema.pt": b"ema"}
NEW = {"state.pt": b"newer" * 100}
TEMPORARY = ".asyncsave-0123456789abcdef.tmp"


def drop(version, step=1, *, system=None, sync=True):
    """Drop a step."""
    with Removal(system or System(), str(version), sync=sync) as gone:
        return gone.drop(step_name(step))


def discard(version, name=TEMPORARY, *, system=None, home=None):
    """Remove a temporary folder; tell whether it is gone."""
    with Removal(system or System(), str(version), sync=True) as gone:
        return gone.discard(name, home)


def test_what_is_the_users_moves_into_the_new_step(tmp_path):
    """Files of the user's in a replaced step, and its pin, are in the new one; the rest is gone."""
    put_step(tmp_path, 1, NEW)
    old = put_step(tmp_path, 1, FILES, name=TEMPORARY)
    (old / "notes.txt").write_bytes(b"mine")
    (old / "plots").mkdir()
    (old / "plots" / "loss.png").write_bytes(b"mine too")
    (old / PINNED).touch()
    discard(tmp_path)
    assert not temporaries(tmp_path)
    found = content(tmp_path / step_name(1))
    assert found.pop("notes.txt") == b"mine"
    assert found.pop("plots/loss.png") == b"mine too"
    assert found.pop(PINNED) == b""
    assert whole(tmp_path / step_name(1)) == NEW
    assert set(found) == {MANIFEST, *NEW}


def unfinished(version, files=FILES):
    """Put a folder there in which a writer has died."""
    folder = put_step(version, 1, files, name=TEMPORARY)
    (folder / UNFINISHED).touch()
    return folder


def test_what_was_never_finished_goes(tmp_path):
    """A folder that a dead writer left is removed with all that is in it; so is an empty one."""
    unfinished(tmp_path)
    assert discard(tmp_path)
    (tmp_path / TEMPORARY).mkdir()
    assert discard(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_nobody_knows_stays(tmp_path):
    """A folder without manifest and mark may be the user's: it stays, and whoever asked is told."""
    (tmp_path / TEMPORARY).mkdir()
    (tmp_path / TEMPORARY / "notes.txt").write_bytes(b"mine")
    assert not discard(tmp_path)
    assert content(tmp_path) == {f"{TEMPORARY}/notes.txt": b"mine"}
    clear(tmp_path)


def test_what_was_never_finished_never_becomes_a_step(tmp_path):
    """Cut off at whatever call, the removal of an unfinished folder is finished by the next run; no step is made."""
    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        unfinished(version)
        system = Mortal(at)
        with contextlib.suppress(Killed):
            discard(version, system=system)
        system.bury()
        tidy(System(), str(version))
        assert content(version) == {}, f"killed before {system.last}"
        if not system.is_dead:
            return


@pytest.mark.parametrize("name", ["notes.txt", "ema.pt"])
def test_a_file_of_the_users_that_has_no_room_at_home(tmp_path, name):
    """A file of the user's whose name is taken in the new step stays, through every later tidying."""
    files = NEW | {"ema.pt": b"the new step's"}
    (put_step(tmp_path, 1, files) / "notes.txt").write_bytes(b"mine too")
    (put_step(tmp_path, 1, {"state.pt": b"old"}, name=TEMPORARY) / name).write_bytes(b"mine")
    discard(tmp_path, home=step_name(1))
    for _ in range(2):
        tidy(System(), str(tmp_path))
    assert {b"mine", b"mine too"} <= set(content(tmp_path).values())
    assert whole(tmp_path / step_name(1)) == files
    clear(tmp_path)


def saved_over(version):
    """Save step 1 over what is in its place; return the temporary name of that."""
    new = assemble(System(), target_of(version, 1), NEW)
    assert whole(version / step_name(1)) == NEW
    return new.replaced


def users_files_of(version, kind):
    """Put a folder there that has the name of a step, and a file of the user's in it."""
    folder = put_step(version, 1, FILES)
    (folder / "notes.txt").write_bytes(b"mine")
    if kind == "dropped":
        drop(version)
    else:
        (folder / MANIFEST).write_bytes({"damaged": b"garbage", "newer": b'{"format": 99}'}[kind])


@pytest.mark.parametrize("kind", ["dropped", "damaged", "newer"])
def test_the_users_files_outlive_a_step_saved_anew(tmp_path, kind):
    """What a dropped or damaged step's folder holds of the user's is in the new one when that step is saved again."""
    users_files_of(tmp_path, kind)
    assert discard(tmp_path, saved_over(tmp_path), home=step_name(1))
    assert not temporaries(tmp_path)
    assert (tmp_path / step_name(1) / "notes.txt").read_bytes() == b"mine"
    assert whole(tmp_path / step_name(1)) == NEW


@pytest.mark.parametrize("kind", ["dropped", "damaged", "newer"])
def test_the_users_files_outlive_a_kill(tmp_path, kind):
    """The same where the writer was killed before it could clear up: the next run removes nothing of the user's."""
    users_files_of(tmp_path, kind)
    saved_over(tmp_path)
    for _ in range(2):
        tidy(System(), str(tmp_path))
    assert b"mine" in content(tmp_path).values()
    assert whole(tmp_path / step_name(1)) == NEW
    clear(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault_of_a_discard(tmp_path, method):
    """Whichever call fails: the new step is whole, the user's file is somewhere, and the next attempt finishes."""
    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        put_step(version, 1, NEW)
        (put_step(version, 1, FILES, name=TEMPORARY) / "notes.txt").write_bytes(b"mine")
        system = Failing(method, errno.EIO, at=at)
        try:
            discard(version, system=system)
        except OSError:
            assert system.fired
        assert b"mine" in content(version).values(), f"{method} #{at}"
        tidy(System(), str(version))
        assert not temporaries(version), f"{method} #{at}"
        assert whole(version / step_name(1)) == NEW
        assert (version / step_name(1) / "notes.txt").read_bytes() == b"mine"
        if not system.fired:
            return
