"""What becomes of older steps after a save: dropped by the policy, in order, once the new one is durable."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

import pytest
import torch
from backends import make_writer
from gates import Failing, Wrapped
from managed import LARGE, PATIENCE, STEP, managed, needs_spares, number_in, others, state, step_folder, steps
from processes import Trainer

import asyncsave
from asyncsave import Retention

pytestmark = pytest.mark.usefixtures("backend")

LAST = Retention(last=1)


@pytest.mark.parametrize(
    ("policy", "rounds"),
    [
        (None, [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]]),
        (Retention(last=2), [[1], [1, 2], [2, 3], [3, 4], [4, 5]]),
        (Retention(every=3), [[1], [2], [3], [3, 4], [3, 5]]),
        (Retention(best=1, metric="loss"), [[1], [1, 2], [3], [3, 4], [3, 5]]),
        (Retention(best=1, metric="loss", mode="max"), [[1], [2], [2, 3], [2, 4], [2, 5]]),
        (Retention(last=1) | Retention(best=1, metric="loss"), [[1], [1, 2], [3], [3, 4], [3, 5]]),
        (Retention(hours=1), [[1], [1, 2], [1, 3], [1, 4], [1, 5]]),
    ],
    ids=["none", "last", "every", "best", "greatest", "two", "hours"],
)
def test_when_a_handle_resolves_the_policy_has_been_applied(tmp_path, policy, rounds):
    """After each save exactly what the policy keeps is there, the one just written always, and nothing else of ours."""
    with managed(tmp_path, retain=policy) as manager:
        for step, loss, kept in zip(range(1, 6), [2.0, 3.0, 1.0, 2.0, 1.5], rounds, strict=True):
            manager.save(step, state(step), metrics={"loss": loss}).result(PATIENCE)
            assert steps(manager) == kept
            assert {path.name for path in Path(manager.path).glob("step-*")} == {STEP.format(step) for step in kept}
        assert not others(manager)
        assert [number_in(manager.load(step)) for step in kept] == kept


def test_the_one_just_written_stays(tmp_path):
    """Also where the policy would rather keep others: a run that goes on from an older step."""
    with managed(tmp_path, retain=LAST) as manager:
        for step, kept in ((10, [10]), (3, [3, 10]), (4, [4, 10]), (11, [11])):
            manager.save(step, state(step)).result(PATIENCE)
            assert steps(manager) == kept


def test_saves_in_a_row_are_dropped_in_order(tmp_path):
    """Nobody waits between the saves: in the end the last ones are there, whatever the queue was."""
    with managed(tmp_path, retain=Retention(last=3), writing={"max_pending": 4}) as manager:
        for step in range(50):
            manager.save(step, state(step))
        manager.wait(PATIENCE)
        assert steps(manager) == [47, 48, 49]
        assert not others(manager)


def path_of(fd):
    """Return the path of an open file."""
    return Path(f"/proc/self/fd/{fd}").readlink()


class Noting(Wrapped):
    """Notes every flush, rename and removal: what kind, of which name."""

    def __init__(self):
        super().__init__()
        self.done = []

    def _call(self, name, *args, **kwargs):
        result = super()._call(name, *args, **kwargs)
        if name == "fsync":
            self.done.append(("fsync", path_of(args[0]).name))
        elif name in {"rename", "unlink", "rmdir"}:
            self.done.append((name, args[1] if name == "rename" else args[0]))
        return result


def test_nothing_is_dropped_before_the_new_one_is_durable(tmp_path):
    """First the version's folder is flushed, the new step in it; then the old step's manifest goes; its files last."""
    system = Noting()
    with managed(tmp_path, retain=LAST, system=system) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        system.done.clear()
        manager.save(2, state(2)).result(PATIENCE)
        done = list(system.done)
    order = [
        ("rename", STEP.format(2)),
        ("fsync", manager.version),
        ("rename", "dropped.json"),
        ("fsync", STEP.format(1)),
        ("unlink", "state.pt"),
        ("unlink", "dropped.json"),
        ("rmdir", STEP.format(1)),
    ]
    assert done[-len(order) :] == order
    assert ("fsync", "state.pt") in done[: -len(order)]
    assert ("fsync", "manifest.json") in done[: -len(order)]


@pytest.mark.parametrize("outcome", ["not_committed", "durability_unknown"])
def test_a_save_that_fails_drops_nothing(tmp_path, outcome):
    """Neither one that is not in place, nor one of which it is not known whether it survives a power cut."""

    def is_it(fd):
        return path_of(fd).name == ("1" if outcome == "durability_unknown" else "state.pt")

    system = Failing("fsync", errno.EIO, at=2, only=is_it)
    with managed(tmp_path, retain=LAST, system=system) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        error = manager.save(2, state(2)).exception(PATIENCE)
        assert (error.outcome, system.fired, system.after_failed_sync) == (outcome, 1, 0)
        assert number_in(manager.load(1)) == 1
        assert steps(manager) == ([1] if outcome == "not_committed" else [1, 2])
        manager.save(3, state(3)).result(PATIENCE)
        assert steps(manager) == [3]


@pytest.mark.parametrize("what", ["rename", "fsync", "unlink", "rmdir"])
def test_a_step_that_cannot_be_dropped(tmp_path, caplog, what):
    """It is logged, the save is as good as any, and the next one tries again."""
    only = {
        "rename": lambda _, target, **__: target == "dropped.json",
        "fsync": lambda fd: path_of(fd).name == STEP.format(1),
        "unlink": lambda name, **__: name == "state.pt",
        "rmdir": lambda name, **__: name == STEP.format(1),
    }[what]
    system = Failing(what, errno.EIO, only=only)
    with managed(tmp_path, retain=LAST, system=system) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        assert manager.save(2, state(2)).result(PATIENCE)
        assert system.fired == 1
        assert steps(manager) == ([1, 2] if what == "rename" else [2])
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(told) == 1
        assert f"cannot drop {step_folder(manager, 1)}" in told[0]
        assert "tried again at the next save" in told[0]
        manager.save(3, state(3)).result(PATIENCE)
        assert steps(manager) == [3]
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
        assert not others(manager)
        assert not step_folder(manager, 1).exists()


def test_what_is_the_users_stays_in_a_dropped_step(tmp_path, caplog):
    """Its own files go, those of the user stay, and the folder with them, now and after every later save."""
    with managed(tmp_path, retain=LAST) as manager:
        manager.save(1, state(1), parts={"ema": 1}).result(PATIENCE)
        (step_folder(manager, 1) / "notes.txt").write_text("mine")
        (step_folder(manager, 1) / "plots").mkdir()
        for step in (2, 3):
            manager.save(step, state(step)).result(PATIENCE)
            assert {path.name for path in step_folder(manager, 1).iterdir()} == {"notes.txt", "plots"}
            assert steps(manager) == [step]
        manager.clean()
        assert (step_folder(manager, 1) / "notes.txt").read_text() == "mine"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_what_is_the_users_stays_when_a_dropped_step_is_saved_again(tmp_path):
    """A run that goes on from an older step comes to that number once more: the user's file is there beside it."""
    with managed(tmp_path, retain=LAST) as manager:
        manager.save(5, state(5)).result(PATIENCE)
        (step_folder(manager, 5) / "notes.txt").write_text("mine")
        manager.save(6, state(6)).result(PATIENCE)
        manager.save(5, state(7)).result(PATIENCE)
        assert number_in(manager.load(5)) == 7
        assert (step_folder(manager, 5) / "notes.txt").read_text() == "mine"


def test_pinned_steps_stay(tmp_path):
    """As long as they are pinned; afterwards the next save drops them."""
    with managed(tmp_path, retain=LAST) as manager:
        for step, pins in ((1, [1]), (2, []), (3, [3]), (4, [])):
            manager.save(step, state(step)).result(PATIENCE)
            for pin in pins:
                manager.pin(pin)
        assert steps(manager) == [1, 3, 4]
        manager.unpin(1)
        assert steps(manager) == [1, 3, 4]
        manager.save(5, state(5)).result(PATIENCE)
        assert steps(manager) == [3, 5]


def test_the_step_that_the_run_resumed_from_stays(tmp_path):
    """Until another one is restored, or the next run restores another."""
    training = asyncsave.TrainingState(epoch=0, rng=False)
    with managed(tmp_path, retain=LAST) as manager:
        manager.save(1, training).result(PATIENCE)
        assert manager.restore(training) == 2
        for step in (2, 3):
            manager.save(step, training).result(PATIENCE)
            assert steps(manager) == [1, step]
        assert manager.restore(training) == 4
        manager.save(4, training).result(PATIENCE)
        assert steps(manager) == [3, 4]
    with managed(tmp_path, retain=LAST) as manager:
        manager.save(5, training).result(PATIENCE)
        assert steps(manager) == [5]


def test_a_step_of_another_run_stays(tmp_path):
    """The policy is applied in the version that is saved to, and in no other."""
    with make_writer() as writer:
        for experiment in "ab":
            with asyncsave.CheckpointManager(tmp_path, experiment=experiment, writer=writer, retain=LAST) as manager:
                for step in (1, 2):
                    manager.save(step, state(step)).result(PATIENCE)
                assert steps(manager) == [2]
        assert sorted(path.parts[-3] for path in tmp_path.rglob("step-*")) == ["a", "b"]


def test_a_dropped_file_is_overwritten_by_the_next_step(tmp_path):
    """Its blocks are used again, it bears no old bytes, and at the end none is left."""
    needs_spares(tmp_path)
    with managed(tmp_path, retain=LAST) as manager:
        numbers = {}
        for step in range(5):
            manager.save(step, state(step, LARGE - step * 1000)).result(PATIENCE)
            file = step_folder(manager, step) / "state.pt"
            numbers[step] = file.stat().st_ino
            assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~_umask()
            assert number_in(manager.load("latest")) == step
            assert [kind for kind, _ in others(manager)] == ([] if step == 0 else ["spare"])
        assert len(set(numbers.values())) == 2
        assert numbers[4] == numbers[2] == numbers[0]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("who", ["manager", "writer"])
def test_nothing_is_overwritten_where_that_is_not_wanted(tmp_path, who):
    """``recycle=False`` on either of them: dropped files are gone at once, and nothing is kept."""
    options = {"recycle": False} if who == "manager" else {"writing": {"recycle": False}}
    with managed(tmp_path, retain=LAST, **options) as manager:
        for step in range(3):
            manager.save(step, state(step, LARGE)).result(PATIENCE)
            assert not others(manager)
        assert number_in(manager.load("latest")) == 2


def test_a_dropped_step_that_is_mapped_does_not_change(tmp_path, template):
    """Readers in this process and in another one see their old checkpoint, whatever is saved after it."""
    needs_spares(tmp_path)
    program = """
    loaded = asyncsave.load(folder / "state.pt", mmap=True)
    say("mapped")
    sys.stdin = open(sys.argv[2])
    sys.stdin.read()
    say("number", int(loaded["number"]), bool((loaded["x"] == float(loaded["number"])).all()))
    """
    os.mkfifo(tmp_path / "go")
    with managed(tmp_path, retain=LAST) as manager:
        manager.save(1, state(1, LARGE)).result(PATIENCE)
        with Trainer(template, program, step_folder(manager, 1), tmp_path / "go") as reader:
            reader.heard("mapped")
            manager.save(2, state(2, LARGE)).result(PATIENCE)
            mapped = manager.load(2, mmap=True)
            for step in range(3, 7):
                manager.save(step, state(step, LARGE)).result(PATIENCE)
            assert number_in(mapped) == 2
            (tmp_path / "go").write_text("")
            assert reader.heard("number") == ["1", "True"]
            assert reader.wait().rc == 0
        assert torch.equal(mapped["x"], state(2, LARGE)["x"])
        assert number_in(manager.load("latest")) == 6
