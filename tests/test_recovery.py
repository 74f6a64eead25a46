"""Going on from the newest sound checkpoint: damaged ones are named and put aside, none is passed over silently."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from managed import PATIENCE, STEP, damaged, managed, manifest, number_in, state, step_folder, steps

import asyncsave
from asyncsave import CorruptCheckpointError, FormatVersionError, Retention, TrainingState

pytestmark = pytest.mark.usefixtures("backend")

EVERY_DAMAGE = pytest.mark.parametrize("damage", damaged)


def training(number=-1):
    """Return a training that knows one number, and has a tensor of it."""
    return TrainingState(rng=False, **state(number))


@pytest.fixture
def manager(tmp_path):
    """Return a manager with steps 0 to 3."""
    with managed(tmp_path) as made:
        for step in range(4):
            made.save(step, training(step), parts={"ema": state(step + 100)})
        made.wait(PATIENCE)
        yield made


def used(manager, way):
    """Go on from the newest sound checkpoint, in one of two ways; return which state it is."""
    if way == "load":
        return number_in(manager.load("latest"))
    live = training()
    start = manager.restore(live)
    number = number_in(live.parts)
    assert start == number + 1
    return number


def errors(caplog):
    """Return the errors in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def names(manager):
    """Return the names of all folders of steps."""
    return sorted(path.name for path in Path(manager.path).glob("step-*"))


@EVERY_DAMAGE
@pytest.mark.parametrize("way", ["restore", "load"])
def test_a_damaged_newest_one(manager, caplog, way, damage):
    """It is named in the log and put aside whole, and the one before is used; the next look finds nothing to say."""
    folder = step_folder(manager, 3)
    damaged[damage](folder)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert used(manager, way) == 2
    (said,) = errors(caplog)
    assert f"checkpoint {folder} is damaged: " in said
    aside = folder.with_name("step-00000003.corrupt")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == content
    assert not folder.exists()
    assert steps(manager) == [0, 1, 2]
    assert manager.latest().step == 2
    assert [(info.kind, info.step) for info in manager.list(all=True)[3:]] == [("corrupt", 3)]
    assert used(manager, way) == 2
    assert len(errors(caplog)) == 1


@EVERY_DAMAGE
def test_a_damaged_newest_one_that_must_not_be(manager, damage):
    """``strict_latest=True`` raises what is wrong, by path, puts nothing aside, and again when asked again."""
    damaged[damage](step_folder(manager, 3))
    live = training()
    for _ in range(2):
        with pytest.raises(asyncsave.LoadError) as raised:
            manager.restore(live, strict_latest=True)
        assert isinstance(raised.value, (CorruptCheckpointError, asyncsave.CheckpointNotFoundError))
        assert str(step_folder(manager, 3)) in str(raised.value)
    assert live.number == -1
    assert names(manager) == [STEP.format(step) for step in range(4)]
    damaged[damage](step_folder(manager, 2))
    with pytest.raises(asyncsave.LoadError, match="step-00000003"):
        manager.restore(live, strict_latest=True)
    assert used(manager, "load") == 1


@EVERY_DAMAGE
def test_one_that_is_asked_for(manager, damage):
    """A damaged step that was named is an error, not another step; and it stays where it is."""
    damaged[damage](step_folder(manager, 3))
    for call in (lambda: manager.load(3), lambda: manager.restore(training(), 3)):
        with pytest.raises(asyncsave.LoadError, match="step-00000003"):
            call()
    assert len(names(manager)) == 4
    assert number_in(manager.load(2)) == 2


def test_an_undamaged_part_of_a_damaged_step(manager):
    """Only what is loaded is checked: a part that is sound can still be had."""
    damaged["flipped byte"](step_folder(manager, 3))
    assert number_in(manager.load("latest", part="ema")) == 103
    assert number_in(manager.load(3, part="ema")) == 103
    assert used(manager, "restore") == 2


@pytest.mark.parametrize("way", ["restore", "load"])
def test_several_damaged_ones(manager, caplog, way):
    """Each is named and put aside, newest first; those that are older than the one in use are not looked at."""
    for step, damage in ((3, "truncated"), (2, "empty manifest"), (0, "empty")):
        damaged[damage](step_folder(manager, step))
    assert used(manager, way) == 1
    assert [message.split(" is damaged")[0] for message in errors(caplog)] == [
        f"checkpoint {step_folder(manager, step)}" for step in (3, 2)
    ]
    assert names(manager) == [STEP.format(0), STEP.format(1), "step-00000002.corrupt", "step-00000003.corrupt"]


@pytest.mark.parametrize("way", ["restore", "load"])
def test_all_are_damaged(manager, tmp_path, way):
    """That is an error, the first time, the second time, and in the next run: never a start from zero."""
    for step, damage in ((3, "truncated"), (2, "no manifest in it"), (1, "missing"), (0, "empty")):
        damaged[damage](step_folder(manager, step))
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError, match=r"put aside: .*step-00000003\.corrupt") as raised:
            used(manager, way)
        assert raised.value.path == manager.path
    manager.close()
    with managed(tmp_path) as later:
        with pytest.raises(CorruptCheckpointError, match="start anew with version='new'"):
            used(later, way)
        assert names(later) == [f"step-0000000{step}.corrupt" for step in range(4)]
    with managed(tmp_path, version="new") as anew:
        assert anew.restore(training()) == 0


def test_one_from_a_copy(manager):
    """A sound copy that is put in the place of the damaged one is used again."""
    shutil.copytree(step_folder(manager, 3), Path(manager.path).parent / "copy")
    damaged["flipped byte"](step_folder(manager, 3))
    assert used(manager, "load") == 2
    shutil.copytree(Path(manager.path).parent / "copy", step_folder(manager, 3))
    assert used(manager, "restore") == 3


def test_a_step_that_is_damaged_twice(manager):
    """A second damaged folder of one step is put beside the first."""
    for number in (3, 4):
        manager.save(3, training(number)).result(PATIENCE)
        damaged["truncated"](step_folder(manager, 3))
        assert used(manager, "restore") == 2
    assert names(manager)[-2:] == ["step-00000003.corrupt", "step-00000003.corrupt-2"]
    assert manager.clean() == []
    assert names(manager)[-2:] == ["step-00000003.corrupt", "step-00000003.corrupt-2"]


def test_a_folder_without_manifest_is_no_checkpoint(manager, caplog):
    """It is neither used nor an error: it was never finished, or it is being dropped."""
    (step_folder(manager, 3) / "manifest.json").unlink()
    assert used(manager, "restore") == used(manager, "load") == 2
    assert not errors(caplog)
    assert step_folder(manager, 3).exists()


def make_newer(folder):
    """Make a step one of a newer asyncsave."""
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "other": manifest(folder)["files"]}))


def test_a_newer_format_is_never_passed_over(manager):
    """Where the newest step has one, everything that would take an older one for the newest raises."""
    make_newer(step_folder(manager, 3))
    live = training()
    calls = {
        "restore": lambda: manager.restore(live),
        "strict": lambda: manager.restore(live, strict_latest=True),
        "emergency": lambda: manager.restore(live, emergency=True),
        "load": lambda: manager.load("latest"),
        "latest": manager.latest,
        "step": lambda: manager.load(3),
        "export": lambda: manager.export("latest", Path(manager.path).parent / "x", part="x"),
    }
    for name, call in calls.items():
        with pytest.raises(FormatVersionError, match="update asyncsave") as raised:
            pytest.fail(f"{name}: {call()}")
        assert str(step_folder(manager, 3)) in str(raised.value)
    assert live.number == -1
    assert len(names(manager)) == 4
    assert number_in(manager.load(2)) == 2


def test_an_older_step_of_a_newer_format(manager, caplog):
    """It is told of, and in nobody's way as long as newer ones can be read."""
    make_newer(step_folder(manager, 1))
    assert used(manager, "restore") == used(manager, "load") == manager.latest().step == 3
    assert steps(manager) == [0, 2, 3]
    assert "step-00000001/manifest.json' has manifest format 2" in caplog.text
    for step in (3, 2):
        damaged["truncated"](step_folder(manager, step))
    with pytest.raises(FormatVersionError):
        used(manager, "restore")


def test_retention_drops_no_newer_format(manager, tmp_path):
    """It is not known what is in it, so it stays, whatever the policy, and so does a manifest that cannot be read."""
    make_newer(step_folder(manager, 1))
    damaged["no manifest in it"](step_folder(manager, 2))
    kept = {path: path.read_bytes() for step in (1, 2) for path in step_folder(manager, step).iterdir()}
    manager.close()
    with managed(tmp_path, retain=Retention(last=1)) as later:
        for step in (4, 5):
            later.save(step, training(step)).result(PATIENCE)
        later.clean()
        assert names(later) == [STEP.format(step) for step in (1, 2, 5)]
        assert {path: path.read_bytes() for path in kept} == kept


class Broken(Exception):  # noqa: N818 - it is no error of anybody's
    """A loop ends by it."""


def save_in_the_midst(manager, step, number):
    """Leave a loop by an exception in the midst of a step: that saves the state as it is."""

    def loop():
        with manager.protect(training(number)) as run:
            for _ in run.steps(step, step + 1):
                raise Broken

    with pytest.raises(Broken):
        loop()


def test_a_state_in_the_midst_of_a_step(manager, tmp_path):
    """It is used only where that is asked for; then its step is the one to go on with, once more."""
    save_in_the_midst(manager, 4, 40)
    assert "step-00000004.emergency" in names(manager)
    assert [(info.step, info.complete, info.kind) for info in manager.list()][-1] == (4, False, "emergency")
    assert manager.latest().step == 3
    assert used(manager, "load") == used(manager, "restore") == 3
    live = training()
    assert manager.restore(live, emergency=True) == 4
    assert number_in(live.parts) == 40
    manager.save(4, training(4)).result(PATIENCE)
    assert manager.restore(live, emergency=True) == 5
    assert number_in(live.parts) == 4


def test_a_damaged_state_in_the_midst_of_a_step(manager):
    """It is put aside as others are, and the complete one before is used."""
    save_in_the_midst(manager, 4, 40)
    damaged["flipped byte"](Path(manager.path) / "step-00000004.emergency")
    live = training()
    assert manager.restore(live, emergency=True) == 4
    assert number_in(live.parts) == 3
    assert names(manager)[-1] == "step-00000004.emergency.corrupt"
    assert manager.restore(live, emergency=True) == 4


def test_nothing_but_a_state_in_the_midst_of_a_step(tmp_path, caplog):
    """Without ``emergency=True`` the run starts anew, and that is said."""
    with managed(tmp_path) as manager:
        save_in_the_midst(manager, 0, 7)
        live = training()
        assert manager.restore(live) == 0
        assert live.number == -1
        assert "starting anew: " in caplog.text
        assert manager.restore(live, emergency=True) == 0
        assert number_in(live.parts) == 7
