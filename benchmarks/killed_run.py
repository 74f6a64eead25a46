"""A training that goes on from its newest checkpoint: run it, kill it, run it again.

`python -m benchmarks.killed_run FOLDER STEPS EVERY` prints a line for the step that it begins with, one for the loss of
each step, exact to the last bit, and one for each checkpoint that is durable.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncsave
from benchmarks.charlm import Trainer, standard_library


@dataclass
class Life:
    """What was heard of one process of the training."""

    began: int = -1  # the step that it went on with
    losses: dict[int, float] = field(default_factory=dict)
    durable: list[int] = field(default_factory=list)  # steps whose checkpoints were reported durable
    returncode: int = 0


def main() -> None:
    """Train; print what happens as it happens."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.killed_run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("every", type=int)
    options = parser.parse_args()
    trainer = Trainer(standard_library())
    state = trainer.training_state()
    with asyncsave.CheckpointManager(
        options.folder,
        project="demo",
        experiment="killed",
        retain=asyncsave.Retention(last=2),
        on_durable=lambda info: _say("durable", info.step),
    ) as manager:
        start = manager.restore(state)
        _say("began", start)
        with manager.protect(state) as run:
            for step in run.steps(start, options.steps):
                loss = trainer.step()
                _say("loss", step, loss.hex())
                if (step + 1) % options.every == 0 or step + 1 == options.steps:
                    manager.save(step, state, metrics={"loss": loss})


def live(folder: Path, steps: int, every: int, *, kill_after: int | None = None, delay: float = 0.0) -> Iterator[Life]:
    """Run the training in a process of its own; yield what is known of it after each line that it prints.

    Args:
        folder: where the checkpoints go.
        steps: how many steps in all.
        every: save after each so many.
        kill_after: kill the process ``delay`` seconds after this step; None: let it end.
        delay: seconds.
    """
    life = Life()
    command = [sys.executable, "-m", "benchmarks.killed_run", str(folder), str(steps), str(every)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own module
        try:
            for line in process.stdout or ():
                what, step, *rest = line.split()
                if what == "began":
                    life.began = int(step)
                elif what == "durable":
                    life.durable.append(int(step))
                else:
                    life.losses[int(step)] = float.fromhex(rest[0])
                if what == "loss" and int(step) == kill_after:
                    time.sleep(delay)
                    process.kill()
                yield life
        finally:
            process.kill()
    life.returncode = process.returncode
    yield life


def _say(*words: object) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    main()
