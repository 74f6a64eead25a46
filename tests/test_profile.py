"""A profile of a real loop: its saves, whatever writer made them, its steps, and the bench's table of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import asyncsave
from asyncsave import observers


class Loop:
    """A model that is really trained."""

    def __init__(self):
        self.model = nn.Linear(8, 8)
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def step(self):
        """Do one step."""
        self.model(torch.ones(2, 8)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self):
        """Return what is saved."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def test_a_loop_of_one_machine(tmp_path, capsys):
    """Steps end with the optimizer's; each save is there with its phases; the table is printed at the end."""
    loop = Loop()
    with asyncsave.profile() as report:
        for step in range(40):
            loop.step()
            if step % 10 == 9:
                asyncsave.save_async(loop.state(), tmp_path / "f.pt")
    timeline = report.timeline()
    assert len(timeline.steps) == 39
    assert len(timeline.saves) == 4
    assert all(save.called < save.returned <= save.completed for save in timeline.saves)
    assert all(before.ended == after.began for before, after in zip(timeline.steps, timeline.steps[1:], strict=False))
    document = report.document()
    json.dumps(document, allow_nan=False)
    assert document["training"]["saves"] == document["modes"]["thread"]["stall_ms"]["n"] == 4
    assert set(document["modes"]["thread"]["phases"]) == {
        "wait", "capture", "stage", "queue", "seal", "write", "sync",
    }  # fmt: skip
    assert document["modes"]["thread"]["promise"] == "file + folder"
    told = capsys.readouterr().out
    assert told == f"{report}\n"
    assert "What a save takes from the training" in told
    assert "4 saves\n" in told


def test_every_writer_counts_by_its_backend(tmp_path):
    """A writer process, the shared writer and a manager's; nothing is counted after the block."""
    with (
        asyncsave.Writer(backend="process") as process,
        asyncsave.CheckpointManager(tmp_path / "runs") as manager,
        asyncsave.profile(show=False) as report,
    ):
        process.save({"a": torch.ones(3)}, tmp_path / "a.pt")
        asyncsave.save_async({"a": torch.ones(3)}, tmp_path / "b.pt")
        manager.save(1, {"a": torch.ones(3)})
    with asyncsave.Writer() as writer:
        writer.save(1, tmp_path / "c.pt")
    modes = report.document()["modes"]
    assert {mode: of["stall_ms"]["n"] for mode, of in modes.items()} == {"process": 1, "thread": 2}
    assert not observers._observers


def test_steps_that_the_loop_tells_count_alone(tmp_path):
    """A loop with several optimizers, or with none, says where its steps end."""
    loop, other = Loop(), Loop()
    with asyncsave.profile(show=False) as report:
        for _ in range(6):
            loop.step()
            other.step()
        assert len(report.timeline().steps) == 5
        for _ in range(4):
            report.step()
        asyncsave.save({"a": 1}, tmp_path / "f.pt")
    assert len(report.timeline().steps) == 3


def test_an_optimizer_that_is_gone_makes_way(tmp_path):
    """A second training in the same block is counted too."""
    with asyncsave.profile(show=False) as report:
        for _ in range(2):
            loop = Loop()
            for _ in range(3):
                loop.step()
            del loop
    assert len(report.timeline().steps) == 5


def test_the_users_own_error_comes_through_and_nothing_is_printed(tmp_path, capsys):
    """The block's exception is not masked, and nobody is told of saves any more."""
    report = asyncsave.profile()
    with pytest.raises(ZeroDivisionError):
        _fail_within(report, tmp_path / "f.pt")
    assert capsys.readouterr().out == ""
    assert not observers._observers
    asyncsave.flush()
    assert report.document()["training"]["saves"] == 1


def test_a_failed_save_is_left_out_and_its_error_is_still_unread(tmp_path, capsys):
    """Looking on is not reading: the error is raised where it would have been without the profile."""
    with asyncsave.profile() as report:
        writer = asyncsave.Writer()
        folder = tmp_path / "gone"
        folder.mkdir()
        writer.save({"a": 1}, folder / "f.pt").result()
        writer.save({"a": 1}, _Refusing())
    assert report.document()["training"]["saves"] == 1
    with pytest.raises(asyncsave.SaveError):
        writer.close()


def test_no_saves_is_said(capsys):
    """There is nothing to put into a table."""
    with asyncsave.profile() as report:
        Loop().step()
    assert capsys.readouterr().out == "profile: 0 saves, none complete\n"
    with pytest.raises(asyncsave.AsyncSaveError, match="no save was made"):
        report.document()


def test_profiles_can_be_nested(tmp_path):
    """Each sees what happens in its own block."""
    with asyncsave.profile(show=False) as outer:
        asyncsave.save(1, tmp_path / "f.pt")
        with asyncsave.profile(show=False) as inner:
            asyncsave.save(2, tmp_path / "f.pt")
    assert outer.document()["training"]["saves"] == 2
    assert inner.document()["training"]["saves"] == 1


def _fail_within(report, path):
    with report:
        asyncsave.save_async({"a": 1}, path)
        raise ZeroDivisionError


class _Refusing:
    """A file object whose disk is full."""

    name = "refusing"

    def write(self, data):
        """Refuse."""
        raise OSError(28, "No space left on device")
