"""Which files a path stands for, what is found in them, and that looking for it can be left at any time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from managed import PATIENCE, managed, state, step_folder

import asyncsave
from asyncsave.catalogue.info import CheckpointFile
from asyncsave.runs import checking
from asyncsave.runs.checking import Checked, File, check_all, check_file, files_at
from asyncsave.storage.system import System


@pytest.fixture
def run(tmp_path):
    """Make a run of three steps; return the version's folder."""
    with managed(tmp_path / "runs") as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step), parts={"ema": [step]}).result(PATIENCE)
        return step_folder(manager, 1).parent


def names(path, found):
    """Return what was found, from a folder on."""
    return [os.path.relpath(one.path, path) for one in found]


def kinds(checked):
    """Return the kinds of problems."""
    return [problem.kind for problem in checked.problems]


def nobody(_):
    """Hear of progress."""


def test_a_run_is_every_file_of_every_step(run, tmp_path):
    """By any folder from the root to the version; a step is its own files, a file itself."""
    all_files = [f"step-0000000{step}/{part}.pt" for step in (1, 2, 3) for part in ("state", "ema")]
    for above in (run, run.parent, run.parents[1], tmp_path / "runs"):
        assert names(run, files_at(str(above))) == all_files
    assert names(run, files_at(str(run / "step-00000002"))) == all_files[2:4]
    (found,) = files_at(str(run / all_files[0]))
    manifest = json.loads((run / "step-00000001" / "manifest.json").read_bytes())["files"]["state.pt"]
    assert found == File(str(run / all_files[0]), manifest["nbytes"], CheckpointFile(**manifest))
    lone = tmp_path / "lone.pt"
    shutil.copy(run / all_files[0], lone)
    assert list(files_at(str(lone))) == [File(str(lone), manifest["nbytes"])]


def test_what_was_put_aside_is_checked_only_if_it_is_named(run):
    """It is known to be damaged, or of a branch that was left."""
    (run / "step-00000002").rename(run / "step-00000002.corrupt")
    assert len(names(run, files_at(str(run)))) == 4
    assert len(names(run, files_at(str(run / "step-00000002.corrupt")))) == 2


@pytest.mark.parametrize(
    ("name", "expected"), [("nowhere", "not found"), ("empty", "not found"), ("a\0b", "unreadable")]
)
def test_what_is_none(tmp_path, name, expected):
    """It is told as a problem, not raised: others are to be checked beside it."""
    (tmp_path / "empty").mkdir()
    (found,) = files_at(str(tmp_path / name))
    assert (kinds(found), found.damaged, found.ok) == ([expected], False, False)


def test_a_step_without_a_manifest(run):
    """There is no checkpoint."""
    (run / "step-00000002" / "manifest.json").unlink()
    (found,) = files_at(str(run / "step-00000002"))
    assert (kinds(found), found.damaged) == (["not found"], False)
    assert len(list(files_at(str(run)))) == 4


def check(path):
    """Check what a path stands for."""
    found = list(files_at(str(path)))
    files = [one for one in found if isinstance(one, File)]
    return [one for one in found if isinstance(one, Checked)] + [one for _, one in sorted(check_all(files, nobody))]


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda path: path.unlink(), ["missing"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), ["container", "size"]),
        (lambda path: path.write_bytes(b""), ["container", "size"]),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), ["foreign", "digest"]),
        (lambda path: shutil.copy(path.parents[1] / "step-00000003" / path.name, path), ["digest"]),
        (lambda path: torch.save([1], path), ["size"]),
        (lambda path: os.truncate(path, path.stat().st_size + 4096), ["container", "size"]),
        (lambda path: (path.unlink(), path.mkdir()), ["missing"]),
        (lambda path: (path.unlink(), os.mkfifo(path)), ["missing"]),
    ],
)
def test_files_are_held_against_their_manifest(run, harm, expected):
    """A sound file that is another one, too."""
    path = run / "step-00000002" / "state.pt"
    harm(path)
    wrong = [one for one in check(run) if not one.ok]
    assert [(one.path, kinds(one)) for one in wrong] == [(str(path), expected)]
    assert wrong[0].damaged


def test_a_flipped_bit_is_named_by_its_record(run):
    """And the whole file is another one than the manifest says."""
    path = run / "step-00000002" / "state.pt"
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((1000,), 2.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    (wrong,) = (one for one in check(run) if not one.ok)
    assert [(problem.record, problem.kind) for problem in wrong.problems] == [("data/0", "checksum"), (None, "digest")]


def test_a_damaged_and_a_newer_manifest(run):
    """The one is damage, the other only cannot be read here; the steps beside them are checked."""
    (run / "step-00000001" / "manifest.json").write_text("{}")
    newer = run / "step-00000002" / "manifest.json"
    newer.write_text(newer.read_text().replace('"format": 1', '"format": 2'))
    found = check(run)
    assert [(kinds(one), one.damaged) for one in found] == [
        (["manifest"], True),
        (["foreign"], False),
        ([], False),
        ([], False),
    ]


def test_a_disk_that_fails_is_damage(run, monkeypatch):
    """No permission is not."""

    def fail(number):
        def read(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(System, "pread_into", read)

    path = run / "step-00000002" / "state.pt"
    for number, kind, damaged in ((errno.EIO, "disk", True), (errno.EACCES, "unreadable", False)):
        fail(number)
        (found,) = check(path)
        assert (kinds(found), found.damaged) == ([kind], damaged)


def test_a_step_that_is_dropped_meanwhile_is_no_finding(run):
    """Nor is one that is saved again: it is checked again."""
    files = [one for one in files_at(str(run)) if isinstance(one, File)]
    shutil.rmtree(run / "step-00000001")
    with managed(run.parents[2]) as manager:
        manager.save(2, state(20)).result(PATIENCE)
    found = [check_file(file, nobody) for file in files]
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert (found[2].ok, found[2].path) == (True, files[2].path)
    assert found[3] is None
    assert [one is not None and one.ok for one in found[4:]] == [True, True]


def test_progress_is_told_in_bytes(run):
    """All bytes of all files, once."""
    files = [one for one in files_at(str(run)) if isinstance(one, File)]
    told = []
    assert all(one is not None and one.ok for _, one in check_all(files, told.append))
    assert sum(told) == sum(file.nbytes for file in files)
    assert list(check_all([], told.append)) == []


def test_whoever_leaves_stops_the_others(run, monkeypatch):
    """A thread that is at work ends at its next block, and begins no other file."""
    monkeypatch.setattr(checking, "cores", lambda: 2)
    files = [one for one in files_at(str(run)) if isinstance(one, File)]
    gate, begun = threading.Event(), []

    def told(nbytes):
        begun.append(nbytes)
        if len(begun) > 1:
            assert gate.wait(PATIENCE)

    results = check_all(files, told)
    next(results)
    results.close()
    gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("asyncsave-files"):
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert len(begun) <= 3


def test_an_error_of_ours_comes_out(run):
    """It does not hang the caller."""
    files = [one for one in files_at(str(run)) if isinstance(one, File)]

    def told(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(check_all(files, told))


def test_verify_knows_nothing_of_manifests(run):
    """It is told what the file says itself."""
    shutil.copy(run / "step-00000003" / "state.pt", run / "step-00000002" / "state.pt")
    assert asyncsave.verify(run / "step-00000002" / "state.pt").ok


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    """What nobody could look at is not said to be right."""
    with asyncsave.CheckpointManager(tmp_path / "runs") as manager:
        manager.save(1, {"a": 1})
    (tmp_path / "runs" / "default" / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    kinds = {}
    for one in checking.files_at(str(tmp_path / "runs")):
        if isinstance(one, checking.Checked):
            kinds[Path(one.path).name] = [problem.kind for problem in one.problems]
        else:
            kinds[Path(one.path).name] = None
    assert kinds == {"closed": ["unreadable"], "state.pt": None}
