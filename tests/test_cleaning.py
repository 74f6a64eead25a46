"""What takes up room without being a checkpoint: listed by kind, and removed where it is ours and nobody's any more."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from gates import Failing, Gated
from managed import LARGE, PATIENCE, STEP, damaged, managed, needs_spares, number_in, others, state, step_folder, steps

import asyncsave
from asyncsave import Retention
from asyncsave.storage.assembly import UNFINISHED

pytestmark = pytest.mark.usefixtures("backend")

LAST = Retention(last=1)
DEAD = ".asyncsave-0123456789abcdef.tmp"
DEAD_FILE = ".asyncsave-fedcba9876543210.tmp"


def names(manager):
    """Return all names in the version's folder that are not the manager's own three."""
    return {path.name for path in Path(manager.path).iterdir()} - {".lock", ".writing", "version.json"}


def leave_unfinished(folder):
    """Leave what a writer that is killed in the midst of a step does."""
    folder.mkdir()
    (folder / UNFINISHED).touch()
    (folder / "state.pt").write_bytes(b"half")


def litter(manager):
    """Leave one of everything behind, as dead writers and an unlucky run would; return the paths by kind."""
    path = Path(manager.path)
    for step in range(4):
        manager.save(step, state(step)).result(PATIENCE)
    damaged["truncated"](step_folder(manager, 3))
    assert number_in(manager.load("latest")) == 2
    (step_folder(manager, 1) / "manifest.json").rename(step_folder(manager, 1) / "dropped.json")
    (step_folder(manager, 0) / "manifest.json").unlink()
    leave_unfinished(path / DEAD)
    (path / DEAD_FILE).write_bytes(b"blocks")
    return {
        "corrupt": path / "step-00000003.corrupt",
        "dropped": step_folder(manager, 1),
        "unfinished step": step_folder(manager, 0),
        "unfinished": path / DEAD,
        "spare": path / DEAD_FILE,
    }


def test_a_clean_version_has_nothing_to_clean(tmp_path):
    """Checkpoints, pinned or not, and the files of the version itself are no litter."""
    with managed(tmp_path) as manager:
        assert manager.clean() == manager.clean(dry_run=True) == []
        for step in (1, 2):
            manager.save(step, state(step))
        manager.wait(PATIENCE)
        manager.pin(1)
        assert manager.list(all=True) == manager.list()
        assert manager.clean() == manager.clean(dry_run=True) == []
        assert steps(manager) == [1, 2]


def test_every_kind_is_listed(tmp_path):
    """``list(all=True)`` has the checkpoints, then the rest with kind, step and size."""
    with managed(tmp_path) as manager:
        left = litter(manager)
        listed = manager.list(all=True)
        assert [(info.kind, info.step) for info in listed[:1]] == [("step", 2)]
        assert {(info.kind, info.path, info.step) for info in listed[1:]} == {
            ("corrupt", str(left["corrupt"]), 3),
            ("dropped", str(left["dropped"]), 1),
            ("unfinished", str(left["unfinished step"]), 0),
            ("unfinished", str(left["unfinished"]), -1),
            ("spare", str(left["spare"]), -1),
        }
        sizes = {info.path: info.nbytes for info in listed[1:]}
        assert sizes[str(left["spare"])] == len(b"blocks")
        assert sizes[str(left["unfinished"])] == len(b"half")
        assert sizes[str(left["corrupt"])] == sum(path.stat().st_size for path in left["corrupt"].iterdir())
        assert manager.list() == listed[:1]
        manager.clean()


def test_a_dry_run_removes_nothing(tmp_path):
    """It returns what a real one then removes."""
    with managed(tmp_path) as manager:
        left = litter(manager)
        before = names(manager)
        promised = manager.clean(dry_run=True)
        assert set(promised) == {str(path) for kind, path in left.items() if kind != "corrupt"}
        assert names(manager) == before
        assert set(manager.clean()) == set(promised)


def test_what_is_nobodys_goes(tmp_path):
    """All of it, but for checkpoints and for damaged ones that were put aside; the paths are returned."""
    with managed(tmp_path) as manager:
        left = litter(manager)
        gone = manager.clean()
        assert set(gone) == {str(path) for kind, path in left.items() if kind != "corrupt"}
        assert names(manager) == {STEP.format(2), "step-00000003.corrupt"}
        assert others(manager) == [("corrupt", "step-00000003.corrupt")]
        assert number_in(manager.load("latest")) == 2
        assert manager.clean() == []


def test_the_next_manager_and_the_next_writer_sweep(tmp_path):
    """What dead writers left goes when a version is opened, but for a step's folder without a manifest."""
    with managed(tmp_path) as manager:
        left = litter(manager)
    with managed(tmp_path) as manager:
        assert names(manager) == {STEP.format(2), STEP.format(0), "step-00000003.corrupt"}
        assert manager.clean() == [str(left["unfinished step"])]


def test_a_whole_step_of_a_dead_writer_gets_its_name(tmp_path):
    """One that lacked nothing but the rename is a checkpoint; of two for one step the later one is."""
    with managed(tmp_path) as manager:
        for step in (1, 2):
            manager.save(step, state(step)).result(PATIENCE)
        path = Path(manager.path)
        step_folder(manager, 2).rename(path / DEAD)
    with managed(tmp_path) as manager:
        assert steps(manager) == [1, 2]
        step_folder(manager, 2).rename(path / DEAD)
        manager.save(2, state(3)).result(PATIENCE)
        step_folder(manager, 2).rename(path / DEAD_FILE)
    with managed(tmp_path) as manager:
        assert [number_in(manager.load(step)) for step in steps(manager)] == [1, 3]
        assert not others(manager)


def test_a_whole_step_of_a_dead_writer_that_was_replaced(tmp_path):
    """Its place is taken by the newer one: the old one goes, and the user's own file in it moves."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        (step_folder(manager, 1) / "notes.txt").write_text("mine")
        manager.pin(1)
        step_folder(manager, 1).rename(Path(manager.path) / DEAD)
        manager.save(1, state(2)).result(PATIENCE)
        manager.clean()
        assert names(manager) == {STEP.format(1)}
        assert (step_folder(manager, 1) / "notes.txt").read_text() == "mine"
        assert [info.pinned for info in manager.list()] == [True]
        assert number_in(manager.load(1)) == 2


def test_the_users_files_stay(tmp_path):
    """Whatever asyncsave did not write: in a step without manifest, in one that was dropped, and beside the steps."""
    with managed(tmp_path) as manager:
        litter(manager)
        mine = [
            step_folder(manager, 0) / "notes.txt",
            step_folder(manager, 1) / "notes.txt",
            Path(manager.path) / "README",
            Path(manager.path) / "plots" / "a.png",
            Path(manager.path) / ".asyncsave-notes",
            Path(manager.path) / "step-7" / "state.pt",
            Path(manager.path) / "step-00000009" / "state.pt",
        ]
        for path in mine:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"mine")
        gone = manager.clean()
        assert set(gone) == {str(Path(manager.path) / name) for name in (DEAD, DEAD_FILE)}
        assert [path.read_bytes() for path in mine] == [b"mine"] * len(mine)
        assert {path.name for path in step_folder(manager, 0).iterdir()} == {"notes.txt"}
        assert {path.name for path in step_folder(manager, 1).iterdir()} == {"notes.txt"}
        mine[4].unlink()


def test_what_a_link_points_to_stays(tmp_path):
    """A link in the place of anything of ours is never followed, nor is a folder or a FIFO in one removed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "state.pt").write_bytes(b"mine")
    with managed(tmp_path / "runs") as manager:
        manager.save(1, state(1)).result(PATIENCE)
        path = Path(manager.path)
        (path / DEAD).symlink_to(outside, target_is_directory=True)
        (path / DEAD_FILE).symlink_to(outside / "state.pt")
        step_folder(manager, 5).mkdir()
        (step_folder(manager, 5) / "state.pt").symlink_to(step_folder(manager, 1) / "state.pt")
        os.mkfifo(step_folder(manager, 5) / "ema.pt")
        step_folder(manager, 6).symlink_to(outside, target_is_directory=True)
        manager.clean()
        assert (outside / "state.pt").read_bytes() == b"mine"
        assert {entry.name for entry in step_folder(manager, 5).iterdir()} == {"state.pt", "ema.pt"}
        assert number_in(manager.load(1)) == 1
        for name in (DEAD, DEAD_FILE):
            (path / name).unlink(missing_ok=True)


def test_what_living_writers_are_at_work_on_stays(tmp_path):
    """A folder that another writer is filling is listed, promised to nobody, and not removed: its save ends well."""
    gate = Gated("fsync")
    with managed(tmp_path, version="v", shared=True, system=gate) as manager:
        handle = manager.save(1, state(1))
        gate.arrival()
        with managed(tmp_path, version="v", shared=True) as other:
            ((kind, _),) = others(other)
            assert kind == "unfinished"
            assert other.clean() == []
            assert len(others(other)) == 1
        gate.release()
        handle.result(PATIENCE)
        assert number_in(manager.load(1)) == 1
        assert not others(manager)


def test_cleaning_waits_for_the_saves_under_way(tmp_path):
    """A manager never takes its own save for a dead one's."""
    with managed(tmp_path, retain=LAST, writing={"max_pending": 4}) as manager:
        for step in range(4):
            manager.save(step, state(step, 1 << 20))
        assert manager.clean() == []
        assert steps(manager) == [3]


@pytest.mark.parametrize("real", [True, False], ids=["real", "with a system"])
def test_a_spare_is_listed_and_cleaned(tmp_path, real):
    """The dropped file that is kept to be overwritten: one, the size of a state; ``clean`` has its writer remove it."""
    needs_spares(tmp_path)
    with managed(tmp_path, retain=LAST, system=None if real else Failing("mkdir", 5, at=1 << 30)) as manager:
        for step in range(3):
            manager.save(step, state(step, LARGE)).result(PATIENCE)
        (spare,) = manager.list(all=True)[1:]
        assert (spare.kind, spare.step) == ("spare", -1)
        assert spare.nbytes == manager.latest().nbytes
        assert manager.clean(dry_run=True) == [spare.path]
        assert Path(spare.path).exists()
        assert manager.clean() == [spare.path]
        assert names(manager) == {STEP.format(2)}
        for step in (3, 4):
            manager.save(step, state(step, LARGE)).result(PATIENCE)
        assert [kind for kind, _ in others(manager)] == ["spare"]
        assert number_in(manager.load("latest")) == 4
    assert names(manager) == {STEP.format(4)}


def test_the_spare_of_another_writer_stays(tmp_path):
    """It is that writer's to overwrite; ``clean`` does not wait for it for ever, and says what has gone."""
    needs_spares(tmp_path)
    with managed(tmp_path, version="v", shared=True, retain=LAST) as manager:
        for step in range(2):
            manager.save(step, state(step, LARGE)).result(PATIENCE)
        (spare,) = [path for kind, path in others(manager) if kind == "spare"]
        with managed(tmp_path, version="v", shared=True) as other:
            assert other.clean() == []
            assert ("spare", spare) in others(other)
        manager.save(2, state(2, LARGE)).result(PATIENCE)
        assert number_in(manager.load("latest")) == 2


def test_a_step_that_somebody_holds_is_not_taken_apart(tmp_path):
    """The lock of its folder keeps ``clean`` from a step without a manifest."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        (step_folder(manager, 1) / "manifest.json").unlink()
        fd = os.open(step_folder(manager, 1), os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert manager.clean() == []
        assert (step_folder(manager, 1) / "state.pt").exists()
        os.close(fd)
        assert manager.clean() == [str(step_folder(manager, 1))]


def test_hundreds_of_leftovers(tmp_path):
    """All of them go at once, and what is whole among them is finished."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        for number in range(300):
            leave_unfinished(Path(manager.path) / f".asyncsave-{number:016x}.tmp")
        step_folder(manager, 1).rename(Path(manager.path) / f".asyncsave-{300:016x}.tmp")
        assert len(manager.clean()) == 301
        assert steps(manager) == [1]
        assert not others(manager)


def test_a_manager_of_a_folder_that_is_gone(tmp_path):
    """A version that somebody removed while it was open: a save says so, at the call."""
    with managed(tmp_path) as manager:
        for path in Path(manager.path).iterdir():
            path.unlink()
        Path(manager.path).rmdir()
        with pytest.raises(asyncsave.SaveError, match="target"):
            manager.save(1, state(1))
