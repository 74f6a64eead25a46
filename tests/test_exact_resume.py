"""100 steps in one go, and 50, a kill, and 50 in another process, end at the same bits."""

from __future__ import annotations

import pathlib

import pytest
import torch
from backends import VARIABLE
from equality import assert_same
from processes import Trainer
from programs import Template

import asyncsave

TRAINING = """
import random
import numpy as np
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader
from backends import make_writer

how, optimizer, place, workers, seeded = sys.argv[2:]
torch.set_num_threads(1)
if how != "rest":  # a new process has to draw what the old one would have drawn, whatever its own seeds are
    torch.manual_seed(1), random.seed(2), np.random.seed(3)

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 4 * (30 if place == "inside" else 25)
    def __getitem__(self, index):
        return torch.full((8,), float(index)) / 100

model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))
made = {
    "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True),
}[optimizer]()
scheduler = torch.optim.lr_scheduler.OneCycleLR(made, max_lr=0.05, total_steps=200)
scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=7)
generator = torch.Generator().manual_seed(4) if seeded == "seeded" else None
loader = StatefulDataLoader(Samples(), batch_size=4, shuffle=True, num_workers=int(workers), generator=generator)
state = asyncsave.TrainingState(
    generator=generator, model=model, optimizer=made, scheduler=scheduler, scaler=scaler, loader=loader,
    epoch=0, losses=[],
)
writer = make_writer()
manager = asyncsave.CheckpointManager(folder / how.replace("rest", "half"), version="run", writer=writer)
step = start = manager.restore(state)
stop = 50 if how == "half" else 100
while step < stop:
    for batch in loader:
        noise = (random.random() + float(np.random.randn())) / 100
        loss = model(batch + noise).square().mean()
        made.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(made)
        scaler.update()
        scheduler.step()
        state.losses.append(loss.item())
        step += 1
        if step == stop and place != "boundary":
            break
    else:
        state.epoch += 1
manager.save(step - 1, state).result()
say("reached", start, step)
if how == "half":
    pause()
manager.close()
writer.close()
"""


@pytest.fixture(scope="module")
def template():
    """Start an interpreter from which trainings are forked in milliseconds."""
    # What takes seconds in every training: torchdata, and what optimizers need.
    made = Template("numpy", "torch._dynamo", "torchdata.stateful_dataloader")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _processes_end(until_processes_end):
    """Let no writer process survive its trainer for long."""


def train(template, folder, how, *args):
    """Run a part of the training to its end, or until it has saved and is killed; return from where it came to where.

    Args:
        template: From which programs are forked.
        folder: For its checkpoints.
        how: ``"whole"``; ``"half"``, which is killed; or ``"rest"``.
        *args: Optimizer, where the kill falls, the loader's workers, whether the loader has a generator of its own.
    """
    with Trainer(template, TRAINING, folder, how, *args) as trainer:
        reached = tuple(map(int, trainer.heard("reached")))
        done = trainer.killed() if how == "half" else trainer.wait()
        assert done.rc == (-9 if how == "half" else 0), done.stderr
    return reached


def last_step(folder: pathlib.Path, how: str) -> dict[str, object]:
    """Return all that the training was after its last step."""
    return torch.load(folder / how / "default" / "default" / "run" / "step-00000099" / "state.pt")


@pytest.mark.parametrize(
    ("optimizer", "place", "workers", "seeded", "backend"),
    [
        ("sgd", "inside", 0, "", "thread"),
        ("adamw", "inside", 2, "", "process"),
        ("adamw", "boundary", 0, "", "process"),
        ("sgd", "boundary", 2, "", "thread"),
        ("adamw", "last batch", 0, "", "thread"),
        ("sgd", "inside", 0, "seeded", "thread"),
    ],
)
def test_a_resumed_training_ends_at_the_same_bits(
    tmp_path, template, monkeypatch, optimizer, place, workers, seeded, backend
):
    """Weights, buffers, optimizer, scheduler, scaler, loader, losses and random states are those of a run in one go.

    The kill falls inside an epoch of 30 steps; or between two epochs of 25; or behind the last batch of an epoch,
    whose end the loop has not seen yet.
    """
    monkeypatch.setenv(VARIABLE, backend)
    args = (optimizer, place, workers, seeded)
    assert train(template, tmp_path, "whole", *args) == (0, 100)
    assert train(template, tmp_path, "half", *args) == (0, 50)
    assert train(template, tmp_path, "rest", *args) == (50, 100)
    whole, resumed = last_step(tmp_path, "whole"), last_step(tmp_path, "half")
    assert len(whole["losses"]) == 100
    for name in ("losses", "model", "optimizer", "scheduler", "scaler", "rng", "epoch", "generator", "loader"):
        assert_same({name: whole[name]}, {name: resumed[name]})


def test_a_training_that_is_over_has_no_step_left(tmp_path, template):
    """Resumed exactly at the end, it says so by the step to go on with, and does none; its state stays as it was."""
    args = ("sgd", "boundary", 0, "")
    assert train(template, tmp_path, "whole", *args) == (0, 100)
    before = last_step(tmp_path, "whole")
    assert train(template, tmp_path, "whole", *args) == (100, 100)
    assert_same(before, last_step(tmp_path, "whole"))


def test_no_checkpoint_is_step_0(tmp_path):
    """The first start of a training goes through the same ``restore``: nothing is changed, and step 0 is next."""
    model = torch.nn.Linear(2, 2)
    before, drawn = model.weight.detach().clone(), torch.get_rng_state()
    with asyncsave.CheckpointManager(tmp_path) as manager:
        assert manager.restore(asyncsave.TrainingState(model=model)) == 0
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), drawn)
