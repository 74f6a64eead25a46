"""What the commands on runs have in common: which version is meant, who may change it, what cannot be done or read."""

from __future__ import annotations

import json
import os

import pytest
from commands import on_terminal, run
from finished import everything, litter, save
from programs import run as run_program

import asyncsave

READ_ONLY = [["ls"], ["show"], ["prune", "--last", "1", "--dry-run"], ["clean", "--dry-run"]]
"""The commands that change nothing, each to be followed by a run."""
ODD = "a\x1b[31m[red]b\ud800"
"""A name with an escape sequence, with markup, and with half a character."""


def test_which_version_is_meant(quick, root):
    """Of several in one experiment that which a manager goes on with; of several experiments one is to be named."""
    experiment = root / "p" / "first"
    for name in ("b", "a"):
        with asyncsave.CheckpointManager(root, project="p", experiment="first", version=name) as manager:
            if name == "b":
                save(manager, 7)
    assert quick.documents("show", experiment)["path"] == str(experiment / "b" / "step-00000007")
    with asyncsave.CheckpointManager(root, project="p", experiment="first") as manager:
        assert manager.version == "b"
    done = quick.run("show", root)
    assert (done.rc, done.out) == (2, "")
    for path in (experiment / "1", experiment / "a", experiment / "b", root / "p" / "second" / "1"):
        assert repr(str(path)) in done.err


def test_a_version_that_is_being_trained(quick, version, tmp_path):
    """It can be looked at, checked and exported from; it is changed by whoever trains it, and by nobody else."""
    with asyncsave.CheckpointManager(version.parents[2], project="p", experiment="first") as manager:
        assert manager.path == str(version)
        litter(version)
        for words in READ_ONLY:
            assert quick.run(words[0], version, *words[1:]).rc == 0
        assert quick.run("verify", version).rc == 0
        assert quick.run("export", version, tmp_path / "w.pt", "--step", "10").rc == 0
        before = everything(version)
        for words in (["prune", version, "--last", "1", "--yes"], ["clean", version, "--yes"]):
            error = quick.documents(*words, rc=1)["error"]
            assert (error["kind"], error["path"]) == ("VersionInUseError", str(version))
            assert f"is in use by process {os.getpid()} on " in error["message"]
        assert everything(version) == before
    assert quick.run("prune", version, "--last", "1", "--yes").rc == 0


@pytest.mark.parametrize(
    ("words", "rc", "message"),
    [
        (["prune", "RUN"], 2, "keep nothing"),
        (["prune", "RUN", "--best", "2"], 2, "belong together"),
        (["prune", "RUN", "--best", "2", "--metric", "los", "--yes"], 2, "known are accuracy, loss"),
        (["prune", "RUN", "--last", "0", "--yes"], 2, "at least 1"),
        (["prune", "RUN", "--last", "many"], 2, "--last"),
        (["prune", "RUN", "--last", "1", "--mode", "most"], 2, "--mode"),
        (["show", "RUN", "newest"], 2, "latest, best, or the number of a step"),
        (["show", "RUN", "best"], 2, "--metric"),
        (["show", "RUN", "best", "--metric", "los"], 2, "known are accuracy, loss"),
        (["show", "RUN", "70"], 1, "its steps: 10, 20, 30, 40, 50, 60"),
        (["show", "RUN", "9" * 30], 2, "number of a step"),
        (["export", "RUN", "w.pt", "--step", "20", "--part", "modle"], 2, "only model, epoch"),
        (["export", "RUN", "w.pt", "--step", "70"], 1, "its steps: 10, 20"),
        (["export", "RUN", "nowhere/w.pt", "--step", "20"], 1, "nowhere"),
        (["export", "RUN", ".", "--step", "20"], 1, "folder"),
        (["ls", "nowhere"], 1, "No such file"),
        (["ls", "note.txt"], 1, "Not a directory"),
        (["ls", "empty"], 1, "no run"),
        (["clean", "nowhere", "--yes"], 1, "No such file"),
        (["prune", "empty", "--last", "1", "--yes"], 1, "no run"),
    ],
)
def test_what_cannot_be_done(quick, root, version, words, rc, message):
    """It is said why, for people and as a document, and nothing has changed."""
    (root / "empty").mkdir()
    (root / "note.txt").write_text("note")
    words = [str(version) if word == "RUN" else word for word in words]
    before = {name: data for name, data in everything(root).items() if not name.endswith((".lock", ".writing"))}
    done = quick.run(*words, "--json", cwd=root)
    assert done.rc == rc, done
    error = json.loads(done.out)["error"]
    assert set(error) == {"kind", "message", "path"}
    assert message in error["message"]
    assert done.err.startswith("error: ")
    assert {name: data for name, data in everything(root).items() if not name.endswith((".lock", ".writing"))} == before


def changed(**values):
    """Return a change of a manifest that sets some of its values."""

    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def replaced(text):
    """Return a change of a manifest into a text."""
    return lambda path: path.write_bytes(text)


def made_a_fifo(path):
    """Put a FIFO in its place, whose open would hang."""
    path.unlink()
    os.mkfifo(path)


FILE = {"nbytes": 1, "digest": "crc32:00000000"}
HOSTILE = {
    "no JSON": (replaced(b"\0\xff{"), 3),
    "empty": (replaced(b""), 3),
    "nested": (replaced(b"[" * 100_000), 3),
    "deep metadata": (changed(metadata={"a": json.loads("[" * 600 + "]" * 600)}), 3),
    "a newer format": (changed(format=2), 1),
    "a name with ..": (changed(files={"../../../escaped": FILE}), 3),
    "an absolute name": (changed(files={"/etc/passwd": FILE}), 3),
    "a negative size": (changed(files={"state.pt": {**FILE, "nbytes": -1}}), 3),
    "an absurd size": (changed(files={"state.pt": {**FILE, "nbytes": 10**4000}}), 3),
    "an absurd metric": (replaced(b'{"format": 1, "metrics": {"a": 1e999}}'), 3),
    "another step": (changed(step=21), 3),
    "a FIFO": (made_a_fifo, 3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests(quick, version, name):
    """They are told, whatever they are, and exit codes say so; the other steps are listed all the same."""
    change, rc = HOSTILE[name]
    folder = version / "step-00000020"
    change(folder / "manifest.json")
    found = quick.documents("ls", version, rc=rc)["versions"][0]
    assert [one["step"] for one in found["checkpoints"]] == [10, 30, 40, 50, 60]
    assert [one["path"] for one in found["problems"]] == [str(folder)]
    assert found["problems"][0]["kind"] == ("CorruptCheckpointError" if rc == 3 else "FormatVersionError")
    assert quick.documents("show", version, "20", rc=rc)["error"]["kind"] == found["problems"][0]["kind"]
    pruned = quick.documents("prune", version, "--last", "1", "--yes")
    assert [one["step"] for one in pruned["checkpoints"]] == [10, 30, 40, 50, 60]
    assert folder.exists()
    assert quick.documents("clean", version, "--yes")["removed"] == []
    assert (folder / "state.pt").exists()


def test_odd_values_are_told(quick, version):
    """Times beyond any calendar, infinite numbers, escape sequences, markup and half characters do no harm."""
    path = version / "step-00000020" / "manifest.json"
    changed(
        time=1e300, epoch=10**3000, metrics={ODD: "Infinity"}, metadata={ODD: [1]}, host=ODD, torch=ODD, commit=ODD
    )(path)
    path.write_text(path.read_text().replace("[1]", "[1e999]"))
    found = quick.documents("show", version, "20")
    assert (found["metadata"], found["metrics"], found["time"]) == ({ODD: ["Infinity"]}, {ODD: "Infinity"}, 1e300)
    for words in (["show", version, "20"], ["ls", version]):
        done = quick.run(*words)
        assert (done.rc, done.err) == (0, "")
        assert "a\\x1b[31m[red]b\\ud800 inf" in done.out
        rc, seen = on_terminal(*words, columns=200)
        assert rc == 0
        assert "a\\x1b[31m[red]b\\ud800 inf" in seen


@pytest.mark.parametrize("words", READ_ONLY)
def test_a_narrow_terminal(version, words):
    """No line is longer than the terminal, and what is looked for can be read on it."""
    litter(version)
    rc, seen = on_terminal(words[0], version, *words[1:], columns=60, NO_COLOR="1")
    lines = seen.splitlines()
    path = str(version)
    assert rc == 0
    assert [line for line in lines if len(line.rstrip()) > 60 and not line.startswith(path[:60])] == []
    for word in {"ls": ["10", "pinned", "accuracy"], "show": ["60", "accuracy 0.1", "ema.pt"]}.get(words[0], []):
        assert word in seen


def test_a_pipe_gets_whole_lines_without_colours(version):
    """Whatever the terminal's width."""
    for words in READ_ONLY:
        done = run(words[0], version, *words[1:], COLUMNS="20")
        assert (done.rc, done.err) == (0, "")
        assert "\x1b" not in done.out
    assert "the newest, one of the last 1" in run("prune", version, "--last", "1", "--dry-run", COLUMNS="20").out


@pytest.mark.parametrize("words", [*READ_ONLY, ["ls", "--json"]])
def test_a_closed_pipe_is_no_error(version, words):
    """``| head`` has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(words[0], version, *words[1:], stdout=writing)
    finally:
        os.close(writing)
    assert (done.rc, done.err) == (0, "")


WITHOUT_TORCH = """
import sys
from asyncsave.cli.entry import main
try:
    main()
except SystemExit as exit:
    print(exit.code, "torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [*READ_ONLY, ["prune", "--last", "1", "--yes"], ["clean", "--yes"], ["verify"]],
)
def test_torch_is_not_imported(version, words):
    """Reading a run, and tidying it up, needs no tensor."""
    litter(version)
    done = run_program(WITHOUT_TORCH, words[0], version, *words[1:])
    assert done.stderr.splitlines()[-1] == "0 False", done
