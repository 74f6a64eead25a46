"""``ls``, ``show``, ``prune``, ``clean`` and ``export`` as a user runs them, on real runs, whole and broken ones."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from commands import Commands, command, documents, on_terminal, run
from programs import run as run_program

import asyncsave
from asyncsave.storage.assembly import UNFINISHED

READ_ONLY = [["ls"], ["show"], ["prune", "--last", "1", "--dry-run"], ["clean", "--dry-run"]]
"""The commands that change nothing, each to be followed by a run."""
ODD = "a\x1b[31m[red]b\ud800"
"""A name with an escape sequence, with markup, and with half a character."""


def save(manager, step, **options):
    """Save a step and wait for it."""
    manager.save(step, {"model": {"w": torch.full((100,), float(step))}, "epoch": 1}, **options).result(30)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make two runs, once."""
    root = tmp_path_factory.mktemp("made")
    with asyncsave.CheckpointManager(root, project="p", experiment="first") as manager:
        for step, loss in ((10, 0.5), (20, 0.25), (30, math.nan), (40, 0.125), (50, None)):
            save(manager, step, metrics={"loss": loss, "accuracy": step / 100}, metadata={"note": ["a", 1]})
        manager.pin(10)
        manager.save(60, parts={"ema": torch.zeros(3)}, metrics={"accuracy": 0.1}).result(30)
    with asyncsave.CheckpointManager(root, project="p", experiment="second", version="new") as manager:
        save(manager, 1)
    return root


@pytest.fixture(scope="module")
def quick():
    """Run commands in forked processes."""
    made = Commands()
    yield made
    made.close()


@pytest.fixture
def root(made, tmp_path):
    """Copy the two runs, for a test that may change them and leave litter in them."""
    yield Path(shutil.copytree(made, tmp_path / "runs"))
    shutil.rmtree(tmp_path / "runs")


@pytest.fixture
def version(root):
    """Return the folder of the first run's only version."""
    return root / "p" / "first" / "1"


def infos_of(version):
    """Return what the library says of a version's checkpoints."""
    from asyncsave.catalogue.listing import Listing  # noqa: PLC0415 - the other way to look at it

    return Listing(str(version)).look().infos


def said(info):
    """Return the document of a checkpoint, from the library's own value."""
    return {
        "step": info.step,
        "path": info.path,
        "kind": info.kind,
        "complete": info.complete,
        "pinned": info.pinned,
        "time": info.time,
        "epoch": info.epoch,
        "metrics": {name: "NaN" if value != value else value for name, value in info.metrics.items()},  # noqa: PLR0124
        "metadata": info.metadata,
        "nbytes": info.nbytes,
        "files": [{"name": name, "nbytes": file.nbytes, "digest": file.digest} for name, file in info.files.items()],
    }


def steps(version):
    """Return the steps that are in place."""
    return [info.step for info in infos_of(version)]


def everything(folder):
    """Return every file below a folder, with its bytes."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def litter(version):
    """Leave one of everything behind that is no checkpoint; return it as ``ls --all`` tells it."""
    (version / "step-00000020").rename(version / "step-00000020.corrupt")
    (version / "step-00000030").rename(version / "step-00000030.abandoned")
    (version / "step-00000040" / "manifest.json").rename(version / "step-00000040" / "dropped.json")
    unfinished, spare = version / ".asyncsave-0123456789abcdef.tmp", version / ".asyncsave-fedcba9876543210.tmp"
    unfinished.mkdir()
    (unfinished / UNFINISHED).touch()
    (unfinished / "state.pt").write_bytes(b"half")
    spare.write_bytes(b"blocks")

    def one(path, kind, step):
        nbytes = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
        return {"path": str(path), "kind": kind, "step": step, "nbytes": nbytes}

    return [
        one(unfinished, "unfinished", -1),
        one(spare, "spare", -1),
        one(version / "step-00000020.corrupt", "corrupt", 20),
        one(version / "step-00000030.abandoned", "abandoned", 30),
        one(version / "step-00000040", "dropped", 40),
    ]


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


def verdicts(version, **kept):
    """Return what prune is to say: the reasons by step; none: it is dropped."""
    return [
        {
            "step": info.step,
            "path": info.path,
            "kind": info.kind,
            "nbytes": info.nbytes,
            "kept": bool(kept[f"s{info.step}"]),
            "reasons": kept[f"s{info.step}"],
        }
        for info in infos_of(version)
    ]


def test_prune(quick, version):
    """It says the reason of each decision; tried first, then done."""
    before = everything(version)
    rules = ["--last", "1", "--every", "20", "--best", "1", "--metric", "loss"]
    expected = verdicts(
        version,
        s10=["pinned"],
        s20=["a multiple of 20"],
        s30=[],
        s40=["one of the best 1 by loss", "a multiple of 20"],
        s50=[],
        s60=["the newest", "one of the last 1", "a multiple of 20"],
    )
    freed = sum(one["nbytes"] for one in expected if not one["kept"])
    document = {"path": str(version), "checkpoints": expected, "freed_bytes": freed}
    assert documents("prune", version, *rules, "--dry-run") == {**document, "dry_run": True}
    assert everything(version) == before
    shown = quick.run("prune", version, *rules, "--dry-run").out
    assert [line.split() for line in shown.splitlines() if " drop " in line] == [
        [str(step), *shown_size, "drop", "no", "rule", "keeps", "it"]
        for step in (30, 50)
        for shown_size in [next(line for line in shown.splitlines() if f" {step} " in f" {line}").split()[1:3]]
    ]
    assert "2 of 6 checkpoints would be removed" in shown
    assert quick.documents("prune", version, *rules, "--yes") == {**document, "dry_run": False}
    assert steps(version) == [10, 20, 40, 60]
    left = {name: data for name, data in before.items() if "00000030" not in name and "00000050" not in name}
    assert {name: data for name, data in everything(version).items() if Path(name).name != ".lock"} == {
        name: data for name, data in left.items() if Path(name).name != ".lock"
    }


def test_nothing_is_removed_unasked(quick, version):
    """Without a terminal and without ``--yes`` that is a usage error; in JSON, too."""
    before = everything(version / "step-00000020")
    for words in (["prune", version, "--last", "1"], ["prune", version, "--last", "1", "--json"]):
        done = quick.run(*words)
        assert (done.rc, "say --yes" in done.err) == (2, True)
    assert json.loads(done.out)["error"]["kind"] == "UsageError"
    assert everything(version / "step-00000020") == before
    assert len(steps(version)) == 6


@pytest.mark.parametrize(("typed", "rc", "left"), [("y\n", 0, [10, 60]), ("n\n", 1, [10, 20, 30, 40, 50, 60])])
def test_on_a_terminal_it_asks(version, typed, rc, left):
    """Yes removes, no does not."""
    found, seen = on_terminal("prune", version, "--last", "1", typed=typed, after="Remove 4 of 6")
    assert (found, steps(version)) == (rc, left), seen
    assert "Remove 4 of 6 checkpoints" in seen


def test_nothing_to_prune_is_fine(quick, version):
    """There is no question, then."""
    assert "0 of 6 checkpoints removed" in quick.run("prune", version, "--last", "10").out


def test_clean(quick, version):
    """Litter goes; what was put aside stays, and is told."""
    left = litter(version)
    aside = [one for one in left if one["kind"] in {"corrupt", "abandoned"}]
    gone = [one for one in left if one not in aside]
    document = {
        "path": str(version), "removed": gone, "left": aside, "freed_bytes": sum(one["nbytes"] for one in gone),
    }  # fmt: skip
    before = everything(version)
    assert documents("clean", version, "--dry-run") == {**document, "dry_run": True}
    assert quick.run("clean", version).rc == 2
    assert {name for name in everything(version) if ".lock" not in name} == {
        name for name in before if ".lock" not in name
    }
    assert quick.documents("clean", version, "--yes") == {**document, "dry_run": False}
    assert not any(Path(one["path"]).exists() for one in gone)
    assert all(Path(one["path"]).exists() for one in aside)
    assert steps(version) == [10, 50, 60]
    shutil.rmtree(version / "step-00000020.corrupt")
    shutil.rmtree(version / "step-00000030.abandoned")
    assert "there is nothing to clean" in quick.run("clean", version).out


def test_export(quick, version, tmp_path):
    """One part, in a file that any torch.load reads; an old file is replaced only when that was agreed to."""
    file = tmp_path / "model.pt"
    found = documents("export", version, file, "--step", "20")
    digest = found.pop("digest")
    assert found == {
        "path": str(file), "nbytes": file.stat().st_size, "durable": found["durable"], "part": "model", "step": 20,
        "checkpoint": str(version / "step-00000020"),
    }  # fmt: skip
    assert asyncsave.verify(file).ok
    assert digest.startswith("crc32:")
    assert torch.load(file, weights_only=True)["w"].tolist() == [20.0] * 100
    words = ["export", version, file, "--step", "best", "--metric", "loss"]
    assert "is there: replace it?" in quick.run(*words).err
    assert torch.load(file, weights_only=True)["w"].tolist() == [20.0] * 100
    assert quick.run(*words, "--yes").out.startswith(f"{file}: 'model' of step 40, ")
    assert torch.load(file, weights_only=True)["w"].tolist() == [40.0] * 100
    assert quick.documents("export", version, tmp_path / "ema.pt", "--part", "ema")["step"] == 60
    assert torch.load(tmp_path / "ema.pt", weights_only=True).tolist() == [0.0] * 3


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


KILLED = """
import os, signal, sys
from asyncsave.storage.system import System

left, name = int(sys.argv.pop(1)), sys.argv.pop(1)
real = getattr(System, name)

def call(self, *args, **options):
    global left
    if name != "rename" or args[0] == "manifest.json":
        left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **options)

setattr(System, name, call)
from asyncsave.cli.entry import main
main()
"""


@pytest.mark.parametrize("call", ["rename", "fsync", "unlink", "rmdir"])
def test_a_kill_in_between(quick, version, call):
    """What is there is whole, what was dropped is gone, and the next prune finishes it."""
    dead = run_program(KILLED, 1, call, "prune", version, "--last", "1", "--yes")
    assert dead.rc == -signal.SIGKILL
    assert quick.run("verify", version).rc == 0
    assert set(steps(version)) in ({10, 30, 40, 50, 60}, {10, 40, 50, 60})
    assert quick.run("prune", version, "--last", "1", "--yes").rc == 0
    assert steps(version) == [10, 60]
    assert sorted(path.name for path in version.glob("step-*")) == ["step-00000010", "step-00000060"]


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


def test_ctrl_c_at_the_question(quick, version):
    """Nothing is removed, and the version is free again."""
    rc, seen = on_terminal("prune", version, "--last", "1", typed="\x03", after="Remove 4 of 6")
    assert (rc in {1, 130}, "Traceback" in seen) == (True, False), seen
    assert len(steps(version)) == 6
    assert quick.run("prune", version, "--last", "1", "--yes").rc == 0


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
