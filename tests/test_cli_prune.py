"""``prune`` and ``clean`` as a user runs them: what goes, what stays and why, and nothing unasked."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from commands import documents, on_terminal
from finished import everything, infos_of, litter, steps
from programs import run as run_program


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


def test_ctrl_c_at_the_question(quick, version):
    """Nothing is removed, and the version is free again."""
    rc, seen = on_terminal("prune", version, "--last", "1", typed="\x03", after="Remove 4 of 6")
    assert (rc in {1, 130}, "Traceback" in seen) == (True, False), seen
    assert len(steps(version)) == 6
    assert quick.run("prune", version, "--last", "1", "--yes").rc == 0
