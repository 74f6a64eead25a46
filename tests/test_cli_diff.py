"""``asyncsave diff`` as a user runs it: a process, on real files."""

from __future__ import annotations

import json
import os

import pytest
import torch
from commands import run

import asyncsave


@pytest.fixture
def files(tmp_path):
    """Return two checkpoints, one of asyncsave's and one of torch's, with a difference of each kind."""
    weight = torch.zeros(2, 3)
    a = {"w": weight, "shape": torch.ones(2), "dtype": torch.ones(2), "kind": 1, "n": 1, "gone": 0}
    b = {"w": weight.clone(), "shape": torch.ones(3), "dtype": torch.ones(2).long(), "kind": "1", "n": 2, "new": 0}
    b["w"][1, 1] = 0.25
    asyncsave.save(a, tmp_path / "a.pt")
    torch.save(b, tmp_path / "b.pt")
    return tmp_path / "a.pt", tmp_path / "b.pt"


CHANGED = [
    {"name": "shape", "what": "shape", "a": [2], "b": [3]},
    {"name": "dtype", "what": "dtype", "a": "float32", "b": "int64"},
    {"name": "kind", "what": "kind", "a": "int", "b": "str"},
]
VALUES = [
    {"name": "n", "what": "value", "a": "1", "b": "2"},
    {"name": "w", "what": "value", "a": "0.0", "b": "0.25", "elements": 6, "differing": 1, "greatest": 0.25},
]


def test_the_document_is_as_documented(files):
    """Keys, shapes, types, kinds; exit code 3; without a word on stderr."""
    done = run("diff", *files, "--json")
    assert (done.rc, done.err) == (3, "")
    assert json.loads(done.out) == {"equal": False, "only_a": ["gone"], "only_b": ["new"], "changed": CHANGED}


def test_with_values(files):
    """And by how much."""
    done = run("diff", *files, "--values", "--json")
    assert (done.rc, done.err) == (3, "")
    assert json.loads(done.out) == {
        "equal": False,
        "only_a": ["gone"],
        "only_b": ["new"],
        "changed": CHANGED + VALUES,
    }


def test_what_is_equal(files, quick):
    """Exit code 0, whoever wrote it."""
    a, _ = files
    torch.save(asyncsave.load(a), a.with_name("c.pt"), _use_new_zipfile_serialization=False)
    done = quick.run("diff", a, a.with_name("c.pt"), "--values", "--json")
    assert done.rc == 0
    assert json.loads(done.out) == {"equal": True, "only_a": [], "only_b": [], "changed": []}
    assert quick.run("diff", a, a).out == "equal in keys, shapes and types (--values compares what they hold)\n"


def test_infinite_differences_are_json(tmp_path, quick):
    """As text, since JSON has no number for them; none at all where there is only NaN."""
    torch.save([torch.tensor([0.0]), torch.tensor([0.0])], tmp_path / "a.pt")
    torch.save([torch.tensor([float("inf")]), torch.tensor([float("nan")])], tmp_path / "b.pt")
    done = quick.run("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--values", "--json")
    changed = json.loads(done.out)["changed"]
    assert [(one["greatest"], one["b"]) for one in changed] == [("Infinity", "inf"), (None, "nan")]


def test_for_people(files):
    """A line for what only one has, a table for the rest."""
    done = run("diff", *files, "--values")
    assert (done.rc, done.err) == (3, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["only", "in", "A:", "gone"] in lines
    assert ["only", "in", "B:", "new"] in lines
    assert ["shape", "shape", "2", "3"] in lines
    assert ["w", "value", "0.0", "0.25", "0.25", "at", "most,", "1", "of", "6"] in lines
    assert "were not compared" in run("diff", *files).out


def test_torch_is_imported_for_values_only(files):
    """Names and shapes need none."""
    assert "| torch\n" not in run("diff", *files, PYTHONPROFILEIMPORTTIME="1").err
    assert " torch\n" in run("diff", *files, "--values", PYTHONPROFILEIMPORTTIME="1").err


def test_steps_of_a_run(tmp_path, quick):
    """A folder with one file is that file; of several one has to be named."""
    with asyncsave.CheckpointManager(tmp_path, project="p", experiment="e") as manager:
        for step in (1, 2):
            manager.save(step, asyncsave.TrainingState(n=torch.full((1,), step), rng=False))
        manager.save(3, asyncsave.TrainingState(n=1, rng=False), parts={"ema": {}})
        manager.wait()
        one, two, several = (info.path for info in sorted(manager.list(), key=lambda info: info.step))
    found = json.loads(quick.run("diff", one, two, "--values", "--json").out)
    assert [change["greatest"] for change in found["changed"] if change["name"].endswith("n")] == [1.0]
    done = quick.run("diff", one, several, "--json")
    assert done.rc == 1
    assert "'ema.pt', 'state.pt'" in json.loads(done.out)["error"]["message"]


def test_missing_damaged_and_foreign_files(files, quick):
    """Exit codes 1 and 3, and which of the two it was."""
    a, b = files
    done = quick.run("diff", a, a.with_name("absent.pt"), "--json")
    assert done.rc == 1
    assert json.loads(done.out)["error"]["path"] == str(a.with_name("absent.pt"))
    os.truncate(b, b.stat().st_size - 100)
    done = quick.run("diff", a, b, "--json")
    assert done.rc == 3
    assert json.loads(done.out)["error"]["kind"] == "CorruptCheckpointError"
    b.write_bytes(b"hello")
    assert quick.run("diff", b, a).rc == 1
