"""Which checkpoints a version has: a step exists if, and only if, its manifest does."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from steps import manifest_of, put_step

from asyncsave import CorruptCheckpointError, FormatVersionError, LoadError
from asyncsave.catalogue.info import CheckpointFile
from asyncsave.catalogue.listing import Listing, read_manifest
from asyncsave.catalogue.manifest import LONGEST
from asyncsave.catalogue.names import DROPPED, MANIFEST, PINNED, step_name

FILES = {"state.pt": b"state", "ema.pt": b"other bytes"}
TEMPORARY = ".asyncsave-0123456789abcdef.tmp"


def steps_of(version):
    """Return the steps that a fresh look finds, and the problems."""
    infos, problems = Listing(str(version)).look()
    return [(info.step, info.complete) for info in infos], problems


def open_descriptors():
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_known_of_a_step(tmp_path):
    """Everything that its manifest says, its folder, and the bytes of its files."""
    said = {"epoch": 2, "metrics": {"loss": 0.5, "acc": None}, "metadata": {"a": [1]}, "time": 5.5}
    path = put_step(tmp_path, 7, FILES, **said)
    (info,) = Listing(str(tmp_path)).look().infos
    assert (info.step, info.path, info.kind) == (7, str(path), "step")
    assert (info.epoch, info.metrics, info.metadata, info.time) == (2, {"loss": 0.5, "acc": None}, {"a": [1]}, 5.5)
    assert info.nbytes == sum(map(len, FILES.values()))
    assert info.files == manifest_of(7, FILES).files
    assert isinstance(info.files["state.pt"], CheckpointFile)
    assert (info.pinned, info.complete) == (False, True)
    assert Listing(str(tmp_path)).info(step_name(7)) == info


def test_steps_come_by_number(tmp_path):
    """The order is that of the numbers, past eight digits too; a state in the midst comes before its step."""
    steps = [3, 100_000_000, 20, 99_999_999, 1]
    random.Random(0).shuffle(steps)  # noqa: S311 - not a secret
    for step in steps:
        put_step(tmp_path, step, FILES)
    put_step(tmp_path, 20, FILES, complete=False)
    found, problems = steps_of(tmp_path)
    assert found == [(1, True), (3, True), (20, False), (20, True), (99_999_999, True), (100_000_000, True)]
    assert problems == {}


def test_a_folder_without_manifest_is_no_step(tmp_path):
    """Files alone are no checkpoint, whatever they are called."""
    folder = tmp_path / step_name(5)
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"state")
    (folder / DROPPED).write_bytes(manifest_of(5, FILES).to_json())
    assert steps_of(tmp_path) == ([], {})
    with pytest.raises(FileNotFoundError):
        Listing(str(tmp_path)).info(step_name(5))


def test_what_is_not_a_step_is_passed_over(tmp_path):
    """Temporary and damaged steps, foreign folders and files are no steps, and no problems."""
    put_step(tmp_path, 1, FILES)
    put_step(tmp_path, 2, FILES, name=TEMPORARY)
    put_step(tmp_path, 3, FILES, name=step_name(3) + ".corrupt")
    put_step(tmp_path, 4, FILES, name="step-4")
    put_step(tmp_path, 5, FILES, name="copy of " + step_name(5))
    (tmp_path / "version.json").write_bytes(b"{}")
    assert steps_of(tmp_path) == ([(1, True)], {})
    (tmp_path / TEMPORARY / MANIFEST).unlink()
    for path in (tmp_path / TEMPORARY).iterdir():
        path.unlink()
    (tmp_path / TEMPORARY).rmdir()


def test_a_file_that_is_called_like_a_step(tmp_path):
    """It has no manifest in it, so it is no step, and none that is damaged either."""
    (tmp_path / step_name(1)).write_bytes(b"notes")
    put_step(tmp_path, 2, FILES)
    assert steps_of(tmp_path) == ([(2, True)], {})


def test_a_copied_step_is_a_checkpoint(tmp_path):
    """The files of a step in another folder of its name are the same checkpoint."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    source = put_step(original, 9, FILES, metrics={"loss": 1.0})
    target = copy / source.name
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (info,) = Listing(str(copy)).look().infos
    assert (info.step, info.metrics, info.path) == (9, {"loss": 1.0}, str(target))


UNREADABLE = {
    "empty": b"",
    "half": manifest_of(2, FILES).to_json()[:100],
    "a list": b"[]",
    "not UTF-8": b"\xff" * 50,
    "too long": b" " * LONGEST + manifest_of(2, FILES).to_json(),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_manifest_is_a_problem_of_its_step(tmp_path, what):
    """It is told by number and path, and the other steps are found as ever."""
    for step in (1, 2, 3):
        put_step(tmp_path, step, FILES)
    (tmp_path / step_name(2) / MANIFEST).write_bytes(UNREADABLE[what])
    found, problems = steps_of(tmp_path)
    assert found == [(1, True), (3, True)]
    path = str(tmp_path / step_name(2))
    assert list(problems) == [path]
    assert isinstance(problems[path], CorruptCheckpointError)
    assert path in str(problems[path])


def test_a_manifest_of_a_newer_format(tmp_path):
    """It is a problem of its own kind: not damage, but an update that is due."""
    (put_step(tmp_path, 1, FILES) / MANIFEST).write_bytes(b'{"format": 99}')
    found, problems = steps_of(tmp_path)
    assert found == []
    assert list(map(type, problems.values())) == [FormatVersionError]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to nothing", "link to itself"])
def test_a_manifest_that_is_no_file(tmp_path, kind):
    """A folder, a FIFO or a broken link in its place is a problem or no step; nothing hangs, nothing stays open."""
    manifest = put_step(tmp_path, 1, FILES) / MANIFEST
    manifest.unlink()
    if kind == "folder":
        manifest.mkdir()
    elif kind == "fifo":
        os.mkfifo(manifest)
    else:
        manifest.symlink_to("nowhere" if kind == "link to nothing" else MANIFEST)
    before = open_descriptors()
    found, problems = steps_of(tmp_path)
    assert found == []
    assert list(problems) == ([] if kind == "link to nothing" else [str(tmp_path / step_name(1))])
    assert all(isinstance(problem, LoadError) for problem in problems.values())
    assert open_descriptors() == before


def test_a_folder_in_place_of_a_manifest_is_refused_without_a_leak(tmp_path):
    """Reading it is an error, and the descriptor that found out is closed."""
    before = open_descriptors()
    with pytest.raises((OSError, LoadError)):
        read_manifest(str(tmp_path))
    assert open_descriptors() == before


@pytest.mark.parametrize(("name", "complete"), [(step_name(8), True), (step_name(7, complete=False), True)])
def test_a_folder_that_was_renamed(tmp_path, name, complete):
    """A step under the name of another one is a problem that says so, and never the other one."""
    put_step(tmp_path, 7, FILES, name=name, complete=complete)
    found, problems = steps_of(tmp_path)
    assert found == []
    (problem,) = problems.values()
    assert "holds the manifest of step 7: was the folder renamed?" in str(problem)


def test_pins_are_seen_without_a_new_manifest(tmp_path):
    """A pin that comes and goes between two looks is seen, though the manifest is the same."""
    folder = put_step(tmp_path, 1, FILES)
    listing = Listing(str(tmp_path))
    assert not listing.look().infos[0].pinned
    (folder / PINNED).touch()
    assert listing.look().infos[0].pinned
    (folder / PINNED).unlink()
    assert not listing.look().infos[0].pinned


def test_a_second_look_sees_what_has_changed(tmp_path):
    """New steps, replaced ones, and those that have gone; what is the same is not read again."""
    listing = Listing(str(tmp_path))
    for step in (1, 2, 3):
        put_step(tmp_path, step, FILES, metrics={"loss": 1.0})
    assert len(listing.look().infos) == 3
    (tmp_path / step_name(1) / MANIFEST).unlink()
    replaced = tmp_path / step_name(2) / MANIFEST
    (tmp_path / "new").write_bytes(manifest_of(2, FILES, metrics={"loss": 2.5}).to_json())
    (tmp_path / "new").rename(replaced)
    put_step(tmp_path, 4, FILES)
    kept = listing.look().infos
    assert [info.step for info in kept] == [2, 3, 4]
    assert kept[0].metrics == {"loss": 2.5}
    unchanged = tmp_path / step_name(3) / MANIFEST
    before = unchanged.stat()
    unchanged.write_bytes(b"x" * before.st_size)
    os.utime(unchanged, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [info.step for info in listing.look().infos] == [2, 3, 4], "the manifest was read again"


def test_infos_are_the_callers_own(tmp_path):
    """Whoever changes what he was given changes nothing that others will be given."""
    put_step(tmp_path, 1, FILES, metrics={"loss": 1.0}, metadata={"a": [1]})
    listing = Listing(str(tmp_path))
    (info,) = listing.look().infos
    info.metrics.clear()
    info.files.clear()
    info.metadata["b"] = 2
    (again,) = listing.look().infos
    assert again.metrics == {"loss": 1.0}
    assert list(again.files) == list(FILES)
    assert again.metadata == {"a": [1]}


def test_a_missing_version(tmp_path):
    """A version that is not there is an error, not a run without steps."""
    with pytest.raises(FileNotFoundError):
        Listing(str(tmp_path / "missing")).look()


def test_what_else_takes_up_room(tmp_path):
    """Spare files, unfinished, dropped and damaged steps are told apart, with the bytes that they take."""
    put_step(tmp_path, 1, FILES)
    (tmp_path / TEMPORARY).write_bytes(bytes(1000))
    unfinished = tmp_path / TEMPORARY.replace("0", "9")
    unfinished.mkdir()
    (unfinished / "state.pt").write_bytes(bytes(30))
    dropped = put_step(tmp_path, 2, FILES)
    (dropped / MANIFEST).rename(dropped / DROPPED)
    put_step(tmp_path, 3, FILES, name=step_name(3) + ".corrupt")
    (tmp_path / step_name(4, complete=False)).mkdir()
    (tmp_path / step_name(4, complete=False) / "state.pt").write_bytes(bytes(7))
    (tmp_path / "notes.txt").write_bytes(b"mine")
    remnants = Listing(str(tmp_path)).remnants()
    found = {(info.kind, info.step, Path(info.path).name): info.nbytes for info in remnants}
    sizes = {
        path.name: sum(file.stat().st_size for file in path.iterdir()) for path in tmp_path.iterdir() if path.is_dir()
    }
    assert found == {
        ("spare", -1, TEMPORARY): 1000,
        ("unfinished", -1, unfinished.name): 30,
        ("dropped", 2, dropped.name): sizes[dropped.name],
        ("corrupt", 3, step_name(3) + ".corrupt"): sizes[step_name(3) + ".corrupt"],
        ("unfinished", 4, step_name(4, complete=False)): 7,
    }
    assert Listing(str(tmp_path)).dropped() == [dropped.name]
    (tmp_path / TEMPORARY).unlink()
    (unfinished / "state.pt").unlink()
    unfinished.rmdir()
