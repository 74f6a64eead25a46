"""What makes no sense is refused at the call, by name; nothing is written, nothing is held."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from managed import PATIENCE, managed, number_in, state, steps

import asyncsave
from asyncsave import CheckpointManager, OptionError

LOOP: list[object] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("said", "options"),
    [
        *[
            (f"{name} must be", {name: value})
            for name in ("project", "experiment", "version")
            for value in (
                "",
                "a/b",
                "a\\b",
                "..",
                ".hidden",
                "a\0b",
                "x" * 256,
                "ü" * 128,
                "\ud800",
                3,
                b"bytes",
                Path("a"),
            )
        ],
        *[(f"{name} must be", {name: None}) for name in ("project", "experiment")],
        *[("versioning must be one of 'number', 'timestamp'", {"versioning": value}) for value in ("date", None, 1)],
        *[("retain must be a Retention", {"retain": value}) for value in (3, "last", {"last": 1}, asyncsave.Retention)],
        *[("writer must be a Writer", {"writer": value}) for value in ("process", asyncsave.Writer, 1)],
        *[(f"{name} must be True or False", {name: v}) for name in ("shared", "recycle") for v in (1, None, "yes")],
        *[("on_durable must be a function", {"on_durable": value}) for value in (3, "print", [print])],
        *[("shared=True needs a version", {"shared": True, "version": value}) for value in (None, "new")],
    ],
    ids=str,
)
def test_managers(tmp_path, said, options):
    """Every option of a wrong type or value; no folder is made."""
    with pytest.raises(OptionError, match=said) as raised:
        CheckpointManager(tmp_path / "runs", **options)
    assert isinstance(raised.value, ValueError)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("root", [3, None, b"runs", ["runs"]], ids=str)
def test_roots(tmp_path, monkeypatch, root):
    """What is no path is no root."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="expected a path"):
        CheckpointManager(root)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["root", "root/default", "root/default/default", "root/default/default/v"])
def test_a_file_in_the_way(tmp_path, where):
    """Where a folder has to be and a file is, that is a SaveError with the path; the file is untouched."""
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(asyncsave.SaveError, match=str(tmp_path / "root")) as raised:
        CheckpointManager(tmp_path / "root", version="v")
    assert raised.value.phase == "target"
    assert path.read_text() == "mine"


@pytest.fixture
def manager(tmp_path):
    """Return a manager with one step, which must be all that is there afterwards."""
    retain = asyncsave.Retention(every=1, best=1, metric="loss")
    with managed(tmp_path / "runs", retain=retain) as made:
        made.save(1, state(1), metrics={"loss": 1.0}).result(PATIENCE)
        yield made
        made.wait(PATIENCE)
        assert steps(made) == [1]
        assert number_in(made.load(1)) == 1
        assert made.list(all=True) == made.list()


NO_STEPS = [-1, True, False, None, 1.0, math.nan, b"1", [1], 10**18, np.float64(1), torch.tensor(1.0), object()]


@pytest.mark.parametrize("step", NO_STEPS, ids=repr)
def test_steps(manager, step):
    """Negative, fractional, true or no numbers at all: no step to save, load, pin or restore."""
    training = asyncsave.TrainingState(epoch=1)
    for call in (
        lambda: manager.save(step, 1),
        lambda: manager.load(step),
        lambda: manager.pin(step),
        lambda: manager.unpin(step),
        lambda: manager.export(step, "x", part="x"),
        lambda: manager.restore(training, step),
    ):
        with pytest.raises(OptionError, match="step must be a whole number, at least 0, not"):
            call()


@pytest.mark.parametrize("step", [0, np.int64(5), np.uint8(5), torch.tensor(5), torch.tensor([5])], ids=repr)
def test_whole_numbers_of_any_type(tmp_path, step):
    """Whatever Python takes for an index is a step."""
    with managed(tmp_path) as manager:
        manager.save(step, state(1)).result(PATIENCE)
        assert steps(manager) == [int(step)]
        assert type(manager.list()[0].step) is int
        assert number_in(manager.load(step)) == 1


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("there is nothing to save", {}),
        ("there is nothing to save", {"parts": {}}),
        ("there is nothing to save", {"parts": None}),
        ("part 'state' is the object itself", {"obj": 1, "parts": {"state": 2}}),
        *[("parts must be a dict", {"parts": value}) for value in (3, "ema", [("ema", 1)], {"ema"})],
        *[("names in parts must be texts", {"parts": {value: 1}}) for value in (1, None, b"ema", ("a",), "")],
        *[
            (f"a part cannot be called {value!r}".replace("\\", "."), {"parts": {value: 1}})
            for value in ("a/b", "../a", "/a", ".", "..", ".hidden", "a\\b", "a\0b", "x" * 300, "x" * 253, "\ud800")
        ],
        *[("metrics must be a dict", {"obj": 1, "metrics": value}) for value in (3, "loss", [("loss", 1)], 0.5)],
        *[("names in metrics must be texts", {"obj": 1, "metrics": {value: 1}}) for value in (1, None, b"l", "")],
        *[
            ("metric 'loss' must be a number or None", {"obj": 1, "metrics": {"loss": value}})
            for value in (
                "0.5", b"1", True, False, [1], {}, 1j, object(), torch.ones(2), torch.tensor(1, device="meta"),
                torch.tensor(1j), 10**400, Fraction(10**400), lambda: 1,
            )
        ],
        *[("metadata must be", {"obj": 1, "metadata": value}) for value in (3, "note", ["note"], 0.5)],
        *[
            ("metadata must be what JSON can say", {"obj": 1, "metadata": {"a": value}})
            for value in (
                object(), {1, 2}, b"bytes", math.nan, math.inf, 1j, torch.ones(1), np.float32(1), Path("a"),
                {("a",): 1}, LOOP, [[object()]], lambda: 1,
            )
        ],
        ("metadata may be nested in at most 100", {"obj": 1, "metadata": {"a": json.loads("[" * 100 + "]" * 100)}}),
        ("names in metadata must be texts", {"obj": 1, "metadata": {1: 2}}),
        ("names in metadata must be texts", {"obj": 1, "metadata": {"": 2}}),
        *[("only_if_best must be True or False", {"obj": 1, "only_if_best": value}) for value in (1, None, "loss")],
        *[("on_busy must be one of", {"obj": 1, "on_busy": value}) for value in ("drop", True, 3)],
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_saves(manager, said, arguments):
    """Every argument of a wrong type or value; the writer is free for the next save."""
    with pytest.raises(OptionError, match=said):
        manager.save(2, **arguments)
    assert "2/2 free" in repr(manager._writer)


def test_a_metric_of_several_numbers(manager):
    """An array of numpy of more than one number is none."""
    with pytest.raises(OptionError, match="metric 'loss' must be a number"):
        manager.save(2, 1, metrics={"loss": np.ones(2)})


def test_what_cannot_be_pickled(manager):
    """It is a StagingError at the call, also when it is one part of several."""
    with pytest.raises(asyncsave.StagingError, match="lambda"):
        manager.save(2, state(2), parts={"ema": state(3), "bad": lambda: 1})


def test_the_longest_names(tmp_path):
    """What a file system can just have is taken: a part of 252 bytes, a metric and metadata of any text."""
    longest, odd = "ü" * 126, "\ud800 \n\0\"'/é"
    with managed(tmp_path, project="x" * 255) as manager:
        manager.save(10**18 - 1, parts={longest: state(7), "a b": 1}, metrics={odd: 1.0}, metadata={odd: odd})
        manager.wait(PATIENCE)
        (info,) = manager.list()
        assert number_in(manager.load(10**18 - 1, part=longest)) == 7
        assert (info.metrics, info.metadata) == ({odd: 1.0}, {odd: odd})


@pytest.mark.parametrize(
    ("said", "call"),
    [
        ("mode must be one of 'min', 'max'", lambda manager: manager.best("loss", "least")),
        ("mode must be one of 'min', 'max'", lambda manager: manager.best("loss", 1)),
        ("metric must be a text, not 3", lambda manager: manager.best(3)),
        ("metric must be a text", lambda manager: manager.best(["loss"])),
        ("all must be True or False", lambda manager: manager.list(all="yes")),
        ("which must be", lambda manager: manager.load("newest")),
        ("which must be", lambda manager: manager.load("1")),
        ("step must be a whole number", lambda manager: manager.save("1", 1)),
        ("there is no part 3", lambda manager: manager.load(1, part=3)),
        ("mmap must be True or False", lambda manager: manager.load(1, mmap="yes")),
        ("part must be a text", lambda manager: manager.export(1, "x", part=3)),
        ("format must be one of 'torch'", lambda manager: manager.export(1, "x", format="onnx")),
        ("dry_run must be True or False", lambda manager: manager.clean(dry_run="yes")),
        ("timeout must be a number of seconds", lambda manager: manager.wait("soon")),
        ("timeout must be a number of seconds", lambda manager: manager.wait(-1)),
        ("timeout must be a number of seconds", lambda manager: manager.close("soon")),
        ("timeout must be a number of seconds", lambda manager: manager.close(math.nan)),
        ("state must be a TrainingState", lambda manager: manager.restore({"x": 1})),
        ("state must be a TrainingState", lambda manager: manager.restore(None)),
        ("guard must be a PreemptionGuard", lambda manager: manager.protect(asyncsave.TrainingState(a=1), 25.0)),
    ],
)
def test_other_calls(manager, said, call):
    """Every argument of a wrong type or value; the manager is open afterwards."""
    with pytest.raises(OptionError, match=said):
        call(manager)
    assert "closed" not in repr(manager)


def test_a_file_in_the_place_of_a_step(tmp_path):
    """A save to there fails with the path, and the file stays; other steps are not touched."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        mine = Path(manager.path) / "step-00000002"
        mine.write_text("mine")
        with pytest.raises(asyncsave.SaveError, match="step-00000002"):
            manager.save(2, state(2)).result(PATIENCE)
        assert mine.read_text() == "mine"
        assert [info.step for info in manager.list()] == [1]
        mine.unlink()
        manager.save(2, state(2)).result(PATIENCE)
        assert steps(manager) == [1, 2]


def test_a_file_in_the_place_of_a_step_is_nobodys_checkpoint(tmp_path):
    """It hides none of the others: the newest one that is a checkpoint is restored."""
    with managed(tmp_path) as manager:
        manager.save(1, asyncsave.TrainingState(epoch=5, rng=False)).result(PATIENCE)
        (Path(manager.path) / "step-00000002").write_text("mine")
        training = asyncsave.TrainingState(epoch=0, rng=False)
        assert manager.latest().step == 1
        assert manager.restore(training) == 2
        assert training.epoch == 5
        assert manager.clean() == []
        assert (Path(manager.path) / "step-00000002").read_text() == "mine"
