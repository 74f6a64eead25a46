"""``ls`` and ``show`` as a user runs them: all that the library knows, for people and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from commands import command, documents
from finished import infos_of, litter, said, steps


def test_ls_of_a_version(version):
    """All that the library knows, key by key; NaN is a text."""
    found = documents("ls", version)
    listed = [said(info) for info in infos_of(version)]
    assert found == {
        "versions": [{"path": str(version), "name": "1", "checkpoints": listed, "others": None, "problems": []}]
    }
    assert listed[2]["metrics"] == {"loss": "NaN", "accuracy": 0.3}
    assert [one["pinned"] for one in listed] == [True, False, False, False, False, False]


@pytest.mark.parametrize("at", [".", "p"])
def test_ls_of_a_folder_above(quick, root, at):
    """Every version below it has a section."""
    found = quick.documents("ls", at, cwd=root)
    assert [Path(one["path"]).relative_to(root).as_posix() for one in found["versions"]] == ["p/first/1", "p/second/1"]
    shown = quick.run("ls", at, cwd=root)
    assert shown.rc == 0
    assert [line for line in shown.out.splitlines() if line.startswith("p/")] == [
        f"p/first/1: 6 checkpoints, {shown.out.split('6 checkpoints, ')[1].splitlines()[0]}",
        f"p/second/1: 1 checkpoint, {shown.out.split('1 checkpoint, ')[1].splitlines()[0]}",
    ]
    assert "loss 0.25, accuracy 0.2" in shown.out


def test_ls_all(quick, version):
    """What takes up room without being a checkpoint, by its kind; and a state in the midst of a step."""
    (version / "step-00000050").rename(version / "step-00000050.emergency")
    manifest = version / "step-00000050.emergency" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    left = litter(version)
    found = quick.documents("ls", version, "--all")["versions"][0]
    assert found["others"] == left
    assert [(one["step"], one["kind"]) for one in found["checkpoints"]] == [
        (10, "step"),
        (50, "emergency"),
        (60, "step"),
    ]
    shown = quick.run("ls", version, "--all").out
    for kind in ("unfinished", "spare", "corrupt", "abandoned", "dropped", "emergency", "pinned"):
        assert shown.count(kind) == 1, shown
    assert "spare" not in quick.run("ls", version).out


def test_show(quick, version):
    """The latest unless told otherwise: what ``ls`` says, and what else the manifest knows."""
    found = documents("show", version)
    manifest = json.loads((version / "step-00000060" / "manifest.json").read_bytes())
    assert found == {
        **said(infos_of(version)[-1]),
        **{name: manifest[name] for name in ("tensors", "asyncsave", "torch", "host", "commit")},
    }
    assert found["step"] == 60
    shown = quick.run("show", version, "20").out
    for word in ("20", "loss 0.25, accuracy 0.2", '{"note": ["a", 1]}', "state.pt", torch.__version__):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["latest"], 60),
        (["10"], 10),
        (["best", "--metric", "loss"], 40),
        (["best", "--metric", "accuracy", "--mode", "max"], 50),
    ],
)
def test_which_checkpoint_is_shown(quick, version, words, step):
    """A number, the latest, or the best by a metric: the least, or the greatest."""
    assert quick.documents("show", version, *words)["step"] == step


def test_a_step_folder_is_shown_itself(quick, version):
    """One that was put aside, too."""
    assert quick.documents("show", version / "step-00000020")["step"] == 20
    (version / "step-00000020").rename(version / "step-00000020.corrupt")
    found = quick.documents("show", version / "step-00000020.corrupt")
    assert (found["step"], found["kind"]) == (20, "corrupt")


def test_an_emergency_is_shown_where_there_is_no_complete_one(quick, version):
    """A state in the midst of a step has that step's number."""
    (version / "step-00000050").rename(version / "step-00000050.emergency")
    manifest = version / "step-00000050.emergency" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    assert quick.documents("show", version, "50")["kind"] == "emergency"


def test_undecodable_paths(tmp_path, version):
    """A folder whose name is no text is found, and JSON stays JSON."""
    odd = os.fsencode(tmp_path) + b"/\xff\n\x1b[31m"
    version.rename(os.fsdecode(odd))
    done = subprocess.run([*command("ls"), odd, "--json"], check=True, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["versions"][0]["path"] == os.fsdecode(odd)
    done = subprocess.run([*command("ls"), odd], check=True, capture_output=True, timeout=60)
    assert b"\x1b" not in done.stdout


def test_a_copy_without_its_record_is_a_run(quick, version, tmp_path):
    """Steps are enough."""
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copytree(version / "step-00000020", copy / "step-00000020")
    assert quick.documents("show", tmp_path / "copy")["step"] == 20
    assert steps(copy) == [20]
