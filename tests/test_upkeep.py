"""A version's folder after a save, a failure, and a death: what is wanted, whole, and nothing of the dead."""

from __future__ import annotations

import errno
import fcntl
import logging
import os

import pytest
from gates import METHODS, Failing, Recording
from steps import clear, content, manifest_of, put_step, temporaries, whole

from asyncsave import Retention
from asyncsave.catalogue.brief import Brief
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.names import MANIFEST, PINNED, step_name
from asyncsave.catalogue.upkeep import Upkeep, tidy
from asyncsave.storage.assembly import UNFINISHED
from asyncsave.storage.spare import Spares
from asyncsave.storage.system import System

FILES = {"state.pt": b"state" * 100, "ema.pt": b"ema"}
OLD = {"state.pt": b"old" * 50, "gone.pt": b"old"}
NEW = {"state.pt": b"newer" * 100}
TEMPORARY = ".asyncsave-0123456789abcdef.tmp"
OTHER = ".asyncsave-fedcba9876543210.tmp"
LAST = Retention(last=2)


def after(version, step, *, system=None, upkeep=None, replaced=None, **brief):
    """Keep a version in order after a save; return whether the block was entered."""
    system = system or System()
    told = Brief(tuple(FILES), manifest_of(step), brief.pop("retain", LAST), **brief)
    written = str(version / step_name(step))
    entered = []
    with (upkeep or Upkeep(system, Spares(system))).after(told, written, sync=True, recycle=True, replaced=replaced):
        entered.append(True)
    return len(entered) == 1


def steps_of(version):
    """Return the steps there are, every one of which is whole."""
    infos, problems = Listing(str(version)).look()
    assert not problems
    for info in infos:
        whole(version / step_name(info.step, complete=info.complete))
    return [info.step for info in infos]


def test_the_policy_is_applied(tmp_path):
    """What it keeps is untouched, what it drops is gone, and the block is entered once."""
    kept = {step: content(put_step(tmp_path, step, FILES)) for step in (1, 2, 3, 4)}
    assert after(tmp_path, 4)
    assert steps_of(tmp_path) == [3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [step_name(3), step_name(4)]
    for step in (3, 4):
        assert content(tmp_path / step_name(step)) == kept[step]


def test_without_a_policy_everything_stays(tmp_path):
    """Retention is the user's to ask for."""
    for step in range(5):
        put_step(tmp_path, step, FILES)
    assert after(tmp_path, 4, retain=None)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4]


def test_what_stays_whatever_the_policy(tmp_path):
    """Pinned steps, protected ones, and the one just written, though it is the oldest."""
    for step in range(8):
        put_step(tmp_path, step, FILES)
    (tmp_path / step_name(2) / PINNED).touch()
    assert after(tmp_path, 0, protected=(str(tmp_path / step_name(4)),))
    assert steps_of(tmp_path) == [0, 2, 4, 6, 7]


def test_damaged_steps_are_not_dropped_and_not_in_the_way(tmp_path):
    """A step whose manifest cannot be read stays as it is, and the policy is applied to the others."""
    for step in range(5):
        put_step(tmp_path, step, FILES)
    (tmp_path / step_name(1) / MANIFEST).write_bytes(b"garbage")
    damaged = content(tmp_path / step_name(1))
    assert after(tmp_path, 4)
    assert [info.step for info in Listing(str(tmp_path)).look().infos] == [3, 4]
    assert content(tmp_path / step_name(1)) == damaged


@pytest.mark.parametrize(
    "lie",
    [
        b'"metrics": {"loss": %s}' % (b"1" + b"0" * 400),
        b'"metrics": {"loss": NaN}',
        b'"metrics": {"loss": "no number"}',
    ],
    ids=["beyond all floats", "no JSON", "text"],
)
def test_a_manifest_that_lies_is_no_failure_of_the_save(tmp_path, lie):
    """Whatever an older manifest says, the block is entered, and other steps are dropped."""
    for step in (1, 2, 3):
        put_step(tmp_path, step, FILES)
    manifest = tmp_path / step_name(1) / MANIFEST
    said = manifest.read_bytes()
    assert b'"metrics": {}' in said
    manifest.write_bytes(said.replace(b'"metrics": {}', lie))
    assert after(tmp_path, 3, retain=Retention(best=1, metric="loss"))
    assert not (tmp_path / step_name(2)).exists(), "one manifest that lies keeps every other step for ever"


def test_files_with_impossible_names_are_no_failure_of_the_save(tmp_path):
    """A manifest that names files which no system can have harms nobody but its own step."""
    for step in (1, 2, 3):
        put_step(tmp_path, step, FILES)
    manifest = tmp_path / step_name(1) / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"ema.pt"', b'"\\ud800"'))
    assert after(tmp_path, 3, retain=Retention(last=1))
    assert 3 in [info.step for info in Listing(str(tmp_path)).look().infos]


def test_a_failed_deletion_is_logged_and_tried_again(tmp_path, caplog):
    """It is no failure of the save; the next save finishes it."""
    for step in (1, 2, 3):
        put_step(tmp_path, step, FILES)
    system = Failing("unlink", errno.EIO, forever=True)
    upkeep = Upkeep(system, Spares(system))
    assert after(tmp_path, 3, upkeep=upkeep)
    assert f"cannot drop {tmp_path / step_name(1)}" in caplog.text
    assert "tried again at the next save" in caplog.text
    assert steps_of(tmp_path) == [2, 3]
    assert (tmp_path / step_name(1)).exists()
    system.heal()
    assert after(tmp_path, 3, upkeep=upkeep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [step_name(2), step_name(3)]


def test_a_failed_deletion_of_a_replaced_step_is_tried_again(tmp_path, caplog):
    """What the log promises holds for the folder whose place was taken, too."""
    put_step(tmp_path, 1, NEW)
    put_step(tmp_path, 1, OLD, name=TEMPORARY)
    system = Failing("unlink", errno.EIO, forever=True)
    upkeep = Upkeep(system, Spares(system))
    assert after(tmp_path, 1, upkeep=upkeep, replaced=TEMPORARY)
    assert "tried again at the next save" in caplog.text
    system.heal()
    assert after(tmp_path, 1, upkeep=upkeep)
    left = temporaries(tmp_path)
    clear(tmp_path)
    assert not left


@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault_after_a_save(tmp_path, caplog, method):
    """Whichever call fails: nothing is raised, what is to stay is whole, and the next save finishes."""
    caplog.set_level(logging.CRITICAL, "asyncsave")
    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        for step in (1, 2, 3):
            put_step(version, step, FILES)
        put_step(version, 4, NEW)
        put_step(version, 4, OLD, name=TEMPORARY)
        system = Failing(method, errno.EIO, at=at)
        upkeep = Upkeep(system, Spares(system))
        assert after(version, 4, upkeep=upkeep, replaced=TEMPORARY), f"{method} #{at}"
        assert set(steps_of(version)) >= {3, 4}, f"{method} #{at}"
        system.heal()
        assert after(version, 4, upkeep=upkeep)
        tidy(System(), str(version))
        assert sorted(path.name for path in version.iterdir()) == [step_name(3), step_name(4)], f"{method} #{at}"
        assert whole(version / step_name(4)) == NEW
        if not system.fired:
            return


def test_a_version_that_is_gone(tmp_path):
    """Somebody who removes the whole version is no reason to raise."""
    assert after(tmp_path / "gone", 1)
    assert tidy(System(), str(tmp_path / "gone")) == []


# What the dead left.


def test_nothing_to_do(tmp_path):
    """A version in order is left as it is."""
    put_step(tmp_path, 1, FILES)
    (tmp_path / step_name(2)).mkdir()
    (tmp_path / step_name(2) / "notes.txt").write_bytes(b"mine")
    put_step(tmp_path, 3, FILES, name=step_name(3) + ".corrupt")
    before = content(tmp_path)
    assert tidy(System(), str(tmp_path)) == []
    assert content(tmp_path) == before


def test_what_the_dead_left_goes(tmp_path, caplog):
    """Spare files, unfinished folders and half removals go, are named in the result, and the log says so."""
    put_step(tmp_path, 1, FILES)
    (tmp_path / TEMPORARY).write_bytes(b"spare")
    (put_step(tmp_path, 2, FILES, name=OTHER) / UNFINISHED).touch()
    dropped = put_step(tmp_path, 3, FILES)
    (dropped / MANIFEST).rename(dropped / "dropped.json")
    gone = tidy(System(), str(tmp_path))
    assert sorted(gone) == sorted(str(tmp_path / name) for name in (TEMPORARY, OTHER, step_name(3)))
    assert [path.name for path in tmp_path.iterdir()] == [step_name(1)]
    assert "removed an unfinished checkpoint of a dead writer" in caplog.text


def test_what_the_living_are_at_stays(tmp_path):
    """A folder or file whose lock somebody holds is left alone, whatever is in it."""
    (tmp_path / TEMPORARY).write_bytes(b"spare")
    put_step(tmp_path, 2, FILES, name=OTHER)
    before = content(tmp_path)
    fds = [os.open(tmp_path / name, os.O_RDONLY) for name in (TEMPORARY, OTHER)]
    for fd in fds:
        fcntl.flock(fd, fcntl.LOCK_EX)
    assert tidy(System(), str(tmp_path)) == []
    assert content(tmp_path) == before
    for fd in fds:
        os.close(fd)
    tidy(System(), str(tmp_path))
    assert steps_of(tmp_path) == [2]
    assert not temporaries(tmp_path)


@pytest.mark.parametrize("complete", [True, False])
def test_a_step_that_lacked_nothing_but_its_name_gets_it(tmp_path, caplog, complete):
    """It is as if its writer had lived a moment longer."""
    put_step(tmp_path, 5, FILES, name=TEMPORARY, complete=complete)
    assert tidy(System(), str(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == [step_name(5, complete=complete)]
    assert steps_of(tmp_path) == [5]
    assert "finished" in caplog.text


def test_what_is_finished_is_flushed_before_it_gets_its_name(tmp_path):
    """Its writer died before it could say that the folder is on the disk, so that is seen to first."""
    put_step(tmp_path, 5, FILES, name=TEMPORARY)
    system = Recording()
    tidy(system, str(tmp_path))
    names = [call.name if call.kind != "folder" else f"{call.name} folder" for call in system.trace]
    assert names.count("rename") == 1
    assert "fsync folder" in names[: names.index("rename")]
    assert "fsync folder" in names[names.index("rename") :]


def test_of_two_that_are_one_step_the_later_gets_the_name(tmp_path):
    """The new one takes the place, and the old one, which had stepped aside, goes; what is the user's comes along."""
    for names in ((TEMPORARY, OTHER), (OTHER, TEMPORARY)):
        old = put_step(tmp_path, 5, OLD, name=names[0], time=1.0)
        (old / "notes.txt").write_bytes(b"mine")
        put_step(tmp_path, 5, NEW, name=names[1], time=2.0)
        tidy(System(), str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [step_name(5)]
        assert whole(tmp_path / step_name(5)) == NEW
        assert (tmp_path / step_name(5) / "notes.txt").read_bytes() == b"mine"
        for file in (tmp_path / step_name(5)).iterdir():
            file.unlink()
        (tmp_path / step_name(5)).rmdir()


def test_what_cannot_be_removed_is_logged(tmp_path, caplog):
    """A folder that holds what cannot be unlinked stays, is not called gone, and the rest is seen to."""
    (tmp_path / TEMPORARY).mkdir()
    (tmp_path / TEMPORARY / UNFINISHED).touch()
    (tmp_path / TEMPORARY / "nested").mkdir()
    (put_step(tmp_path, 2, FILES, name=OTHER) / UNFINISHED).touch()
    assert tidy(System(), str(tmp_path)) == [str(tmp_path / OTHER)]
    assert f"cannot remove {tmp_path / TEMPORARY}" in caplog.text
    clear(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault_while_tidying(tmp_path, caplog, method):
    """Whichever call fails, nothing is raised; and the next tidying does what is left to do."""
    caplog.set_level(logging.CRITICAL, "asyncsave")
    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        put_step(version, 1, FILES)
        (put_step(version, 1, OLD, name=OTHER) / "notes.txt").write_bytes(b"mine")
        put_step(version, 2, FILES, name=TEMPORARY)
        (put_step(version, 4, FILES, name=OTHER.replace("0", "1")) / UNFINISHED).touch()
        dropped = put_step(version, 3, FILES)
        (dropped / MANIFEST).rename(dropped / "dropped.json")
        system = Failing(method, errno.EIO, at=at)
        tidy(system, str(version))
        tidy(System(), str(version))
        assert steps_of(version) == [1, 2], f"{method} #{at}"
        assert sorted(path.name for path in version.iterdir()) == [step_name(1), step_name(2)], f"{method} #{at}"
        assert (version / step_name(1) / "notes.txt").read_bytes() == b"mine", f"{method} #{at}"
        if not system.fired:
            return
