"""The checkpoints that are in place: which there are, which is best, what is in them, and which are pinned."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from gates import Gated
from managed import PATIENCE, managed, manifest, number_in, state, step_folder, steps

import asyncsave

pytestmark = pytest.mark.usefixtures("backend")

BEST = asyncsave.Retention(every=1, best=1, metric="loss")


def save_all(manager, metrics):
    """Save a step for each value of ``loss``; a step whose value is ``...`` has no such metric."""
    for step, value in enumerate(metrics):
        manager.save(step, state(step), metrics={} if value is ... else {"loss": value})
    manager.wait(PATIENCE)


def test_there_is_none(tmp_path):
    """A run without checkpoints has no latest and no best one, and nothing to load."""
    with managed(tmp_path, retain=BEST) as manager:
        assert manager.list() == manager.list(all=True) == []
        assert manager.latest() is manager.best() is manager.best("acc", "max") is None
        for which in ("latest", "best", 3):
            with pytest.raises(asyncsave.CheckpointNotFoundError, match="its steps: none") as raised:
                manager.load(which)
            assert isinstance(raised.value, FileNotFoundError)
        assert manager.restore(asyncsave.TrainingState(epoch=1)) == 0


def test_the_latest_is_the_greatest_number(tmp_path):
    """Whatever the order of the saves and of the names: by number, also with more than eight digits."""
    with managed(tmp_path) as manager:
        for step in (10**9, 99_999_999, 0, 10, 9, 100_000_000):
            manager.save(step, state(step % 1000))
        manager.wait(PATIENCE)
        assert steps(manager) == [0, 9, 10, 99_999_999, 100_000_000, 10**9]
        assert manager.latest().step == 10**9
        assert manager.latest() == manager.list()[-1]
        os.utime(step_folder(manager, 9) / "manifest.json", (2e9, 2e9))
        assert manager.latest().step == 10**9


def test_another_manager_sees_the_same(tmp_path):
    """All that is known of the checkpoints lies on the disk."""
    with managed(tmp_path, retain=BEST) as manager:
        save_all(manager, [3.0, 1.0, 2.0])
        before = manager.list()
    with managed(tmp_path, retain=BEST) as manager:
        assert manager.list() == before
        assert (manager.latest().step, manager.best().step) == (2, 1)


@pytest.mark.parametrize(
    ("values", "least", "greatest"),
    [
        ([3.0, 1.0, 2.0], 1, 0),
        ([1.0, 1.0, 1.0], 2, 2),
        ([math.nan, 5.0, None, ..., 7.0], 1, 4),
        ([math.nan, None, ..., -math.nan], None, None),
        ([math.inf, 0.0, -math.inf], 2, 0),
        ([10, 9, 10**300], 1, 2),
        ([-0.0, 0.0], 1, 1),
    ],
)
def test_the_best(tmp_path, values, least, greatest):
    """By the metric; of equals the later step. NaN, None and a missing metric are no candidates."""

    def step_of(info):
        return None if info is None else info.step

    with managed(tmp_path, retain=BEST) as manager:
        save_all(manager, values)
        assert step_of(manager.best()) == step_of(manager.best("loss", "min")) == least
        assert step_of(manager.best(mode="max")) == greatest
        if least is None:
            with pytest.raises(asyncsave.CheckpointNotFoundError, match="no checkpoint 'best'"):
                manager.load("best")
        else:
            assert number_in(manager.load("best")) == least


def test_the_mode_is_that_of_the_policy(tmp_path):
    """``best()`` goes by the policy's metric and mode, also in a policy put together of two; a metric may be named."""
    policy = asyncsave.Retention(every=1) | asyncsave.Retention(best=1, metric="acc", mode="max")
    with managed(tmp_path, retain=policy) as manager:
        for step, (acc, loss) in enumerate([(0.5, 1.0), (0.9, 3.0), (0.1, 2.0)]):
            manager.save(step, state(step), metrics={"acc": acc, "loss": loss})
        manager.wait(PATIENCE)
        assert [manager.best().step, manager.best("acc").step, manager.best("loss").step] == [1, 1, 0]
        assert [manager.best("acc", "min").step, manager.best("loss", "max").step] == [2, 1]


def test_a_metric_that_nobody_knows(tmp_path):
    """It is a ValueError that names the known ones; without a policy a metric has to be named."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1), metrics={"val_loss": 1.0}).result(PATIENCE)
        manager.save(2, state(2), metrics={"acc": 1.0}).result(PATIENCE)
        with pytest.raises(ValueError, match="no checkpoint has a metric 'loss'; known are acc, val_loss"):
            manager.best("loss")
        with pytest.raises(asyncsave.OptionError, match="name a metric"):
            manager.best()
        assert manager.best("acc").step == 2


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (torch.tensor(0.5), 0.5),
        (torch.tensor([[0.5]], requires_grad=True), 0.5),
        (torch.tensor(3), 3.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.array(0.5), 0.5),
        (7, 7.0),
        (2**70, float(2**70)),
        (Fraction(1, 2), 0.5),
        (-0.0, -0.0),
        (math.inf, math.inf),
        (math.nan, math.nan),
        (torch.tensor(math.nan), math.nan),
        (None, None),
    ],
    ids=repr,
)
def test_metrics(tmp_path, given, known):
    """Whatever ``float()`` takes becomes a number that JSON can say, and comes back as it was."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1), metrics={"loss": given}).result(PATIENCE)
        (info,) = manager.list()
        assert list(info.metrics) == list(manifest(step_folder(manager, 1))["metrics"]) == ["loss"]
    found = info.metrics["loss"]
    assert type(found) is type(known)
    assert repr(found) == repr(known)


def test_only_if_best(tmp_path):
    """A step that does not improve on all before it is skipped, and nothing of it written."""
    policy = asyncsave.Retention(last=1, best=1, metric="loss")
    statuses = {}
    with managed(tmp_path, retain=policy) as manager:
        for step, loss in enumerate([3.0, 4.0, 3.0, 2.0, math.nan, None, 1.0]):
            handle = manager.save(step, state(step), metrics={"loss": loss}, only_if_best=True)
            handle.durable.wait(PATIENCE)
            statuses[step] = handle.status
        assert {step for step, status in statuses.items() if status == "durable"} == {0, 3, 6}
        assert {status for step, status in statuses.items() if step not in {0, 3, 6}} == {"skipped"}
        assert steps(manager) == [6]
        with pytest.raises(asyncsave.OptionError, match="needs the metric 'loss'; given are los"):
            manager.save(7, state(7), metrics={"los": 0.5}, only_if_best=True)


def test_only_if_best_knows_those_under_way(tmp_path):
    """A better one that is still being written counts; the greatest is best where the policy says so."""
    gate = Gated("mkdir")
    policy = asyncsave.Retention(every=1, best=1, metric="acc", mode="max")
    with managed(tmp_path, retain=policy, system=gate, writing={"max_pending": 4}) as manager:
        handles = [
            manager.save(step, state(step), metrics={"acc": acc}, only_if_best=True)
            for step, acc in enumerate([1.0, 3.0, 2.0, 4.0])
        ]
        gate.release()
        manager.wait(PATIENCE)
        assert [handle.status for handle in handles] == ["durable", "durable", "skipped", "durable"]
        assert steps(manager) == [0, 1, 3]


def test_only_if_best_needs_a_metric(tmp_path):
    """Without a policy that knows a metric there is nothing to be best by."""
    for retain in (None, asyncsave.Retention(last=1)):
        with managed(tmp_path, retain=retain) as manager, pytest.raises(asyncsave.OptionError, match="name a metric"):
            manager.save(1, state(1), metrics={"loss": 1.0}, only_if_best=True)


def test_loading(tmp_path):
    """The latest, the best, or a step; the object, or a part by name; as ``torch.load`` maps and restricts it."""
    with managed(tmp_path, retain=BEST) as manager:
        save_all(manager, [1.0, 2.0])
        manager.save(2, parts={"only": state(2)}, metrics={"loss": 3.0})
        manager.save(3, parts={"a": 1, "b": 2}, metrics={"loss": 4.0})
        assert manager.load("latest", part="b") == 2
        assert [number_in(manager.load(which)) for which in ("best", 0, 1, 2)] == [0, 0, 1, 2]
        assert manager.load(1, map_location="meta")["x"].is_meta
        assert number_in(manager.load(1, mmap=True)) == 1
        with pytest.raises(asyncsave.OptionError, match=r"there is no part 'ema': .* has 'state'"):
            manager.load(1, part="ema")
        with pytest.raises(asyncsave.OptionError, match=r"no part was named: .* has 'a', 'b'"):
            manager.load("latest")
        with pytest.raises(asyncsave.CheckpointNotFoundError, match=r"no checkpoint 9 .* its steps: 0, 1, 2, 3"):
            manager.load(9)
        assert steps(manager) == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*weights_only=False")
def test_loading_what_weights_only_refuses(tmp_path):
    """Such a checkpoint is not damaged: the error goes through, and nothing is put aside."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1)).result(PATIENCE)
        manager.save(2, {"path": Path("x")}).result(PATIENCE)
        with pytest.raises(asyncsave.LoadError, match="weights_only"):
            manager.load("latest")
        assert manager.load("latest", weights_only=False) == {"path": Path("x")}
        assert steps(manager) == [1, 2]


def test_loading_waits_for_what_is_under_way(tmp_path):
    """``load("latest")`` after ``save`` is that save's, though it was not written yet; ``list`` does not wait."""
    gate = Gated("mkdir")
    with managed(tmp_path, system=gate) as manager:
        handle = manager.save(1, state(1))
        gate.arrival()
        assert manager.list() == []
        handle.add_done_callback(lambda _: None)
        gate.release()
        assert number_in(manager.load("latest")) == 1
        assert handle.done()


def test_exporting(tmp_path):
    """One part becomes a plain file of ``torch.save``: of the training state, or of the step's own."""
    model = torch.nn.Linear(3, 2)
    training = asyncsave.TrainingState(model=model, epoch=1)
    with managed(tmp_path / "runs", retain=BEST) as manager:
        manager.save(1, training, parts={"ema": {"w": torch.ones(2)}}, metrics={"loss": 1.0}).result(PATIENCE)
        with torch.no_grad():
            model.weight.zero_()
        manager.save(2, training, metrics={"loss": 2.0})
        result = manager.export("best", tmp_path / "model.pt")
        weights = torch.load(tmp_path / "model.pt", weights_only=True)
        assert set(weights) == {"weight", "bias"}
        assert not torch.equal(weights["weight"], model.weight)
        assert (result.path, result.nbytes) == (str(tmp_path / "model.pt"), (tmp_path / "model.pt").stat().st_size)
        manager.export("latest", tmp_path / "model.pt")
        torch.nn.Linear(3, 2).load_state_dict(torch.load(tmp_path / "model.pt"))
        assert torch.equal(torch.load(tmp_path / "model.pt")["weight"], model.weight)
        manager.export(1, tmp_path / "ema.pt", part="ema", format="torch")
        assert torch.equal(torch.load(tmp_path / "ema.pt")["w"], torch.ones(2))
        assert steps(manager) == [1, 2]


def test_exporting_what_is_not_there(tmp_path):
    """A part, a step, a format or a folder that does not exist is named; no file is made."""
    with managed(tmp_path / "runs") as manager:
        manager.save(1, asyncsave.TrainingState(model=torch.nn.Linear(1, 1), rng=False)).result(PATIENCE)
        manager.save(2, torch.ones(1)).result(PATIENCE)
        with pytest.raises(asyncsave.OptionError, match=r"no part 'ema' in .*, only model"):
            manager.export(1, tmp_path / "x", part="ema")
        with pytest.raises(asyncsave.OptionError, match=r"no part 'model' in .*, only none by name"):
            manager.export(2, tmp_path / "x")
        with pytest.raises(asyncsave.CheckpointNotFoundError):
            manager.export(3, tmp_path / "x")
        with pytest.raises(asyncsave.OptionError, match="format must be one of 'torch'"):
            manager.export(1, tmp_path / "x", format="safetensors")
        with pytest.raises(asyncsave.SaveError, match="Make the folder first"):
            manager.export(1, tmp_path / "no" / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_pinning(tmp_path):
    """A pinned step says so, to every manager; pinning twice is pinning; what is not there cannot be pinned."""
    with managed(tmp_path) as manager:
        for step in (1, 2):
            manager.save(step, state(step)).result(PATIENCE)
        manager.pin(1)
        manager.pin(1)
        assert [info.pinned for info in manager.list()] == [True, False]
        assert (step_folder(manager, 1) / "pinned").read_bytes() == b""
    with managed(tmp_path) as manager:
        assert [info.pinned for info in manager.list()] == [True, False]
        manager.unpin(1)
        manager.unpin(2)
        assert [info.pinned for info in manager.list()] == [False, False]
        for change in (manager.pin, manager.unpin):
            with pytest.raises(asyncsave.CheckpointNotFoundError, match="its steps: 1, 2"):
                change(3)


def test_reading_needs_no_open_manager(tmp_path):
    """A closed manager still lists and loads; it does not write."""
    with managed(tmp_path) as manager:
        manager.save(1, state(1))
    assert steps(manager) == [1]
    assert number_in(manager.load("latest")) == 1
    for call in (lambda: manager.save(2, 1), manager.clean, lambda: manager.export(1, tmp_path / "x")):
        with pytest.raises(asyncsave.WriterClosedError, match="this manager is closed"):
            call()


def test_what_is_no_checkpoint_is_no_step(tmp_path):
    """Files and folders of other names, and folders without a manifest, are not listed."""
    with managed(tmp_path) as manager:
        manager.save(5, state(5)).result(PATIENCE)
        path = Path(manager.path)
        for name in ("step-7", "step-00000008x", "step-0000000000009", "best", "step-00000010"):
            (path / name).mkdir()
        (path / "README").write_text("hello")
        (path / "step-0000000000009" / "manifest.json").write_bytes(
            (step_folder(manager, 5) / "manifest.json").read_bytes()
        )
        assert steps(manager) == [5]
        assert manager.latest().step == 5
