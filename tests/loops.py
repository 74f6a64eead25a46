"""A loop that is saved when it has to end, as a program: what it does in its fourth step is the test's."""

from __future__ import annotations

import os
from pathlib import Path

from processes import Trainer
from programs import Result, Template

import asyncsave

__all__ = ["ALL_BACK", "PROTECTED", "UNTIL_INTERRUPTED", "UNTIL_PREEMPTED", "found", "protected"]

PROTECTED = """
import time
from backends import make_writer
from gates import Failing, Gated
end, options, extra = sys.argv[2], eval(sys.argv[3]), sys.argv[4]
manager = asyncsave.CheckpointManager(folder, version="run", writer=make_writer(**options))
state = asyncsave.TrainingState(rng=False, done=-1, inside=-1)

def wait_for(what):
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until, "no signal came"
        time.sleep(0.001)

def body(run, step):
    state.inside = step
    if step == 3:
        say("inside", step)
        exec(extra)
    state.done = step

try:
    with manager.protect(state) as run:
        for step in run.steps(0, 10):
            body(run, step)
            if step < 3 and step % 2 == 0:
                manager.save(step, state)
    say("left", run.stopped, run.preempted)
finally:
    say("handlers", signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL)
    manager.close()
    manager._writer.close()
"""

UNTIL_PREEMPTED = "wait_for(lambda: run.preempted)"
UNTIL_INTERRUPTED = "wait_for(lambda: run.stopped)"
ALL_BACK = ["True", "True", "True"]
"""What the loop says of the handlers of SIGINT, SIGTERM and SIGUSR1 if they are the old ones."""


def protected(
    template: Template,
    folder: Path,
    *signals: int,
    extra: str = "pass",
    options: str = "{}",
    before: str = "",
    source: str = PROTECTED,
) -> tuple[Result, dict[str, list[str]]]:
    """Run a protected loop of ten steps; return how it ended, and what it has said by the first word of each line.

    Args:
        template: From which it is forked.
        folder: For its checkpoints.
        signals: Sent to it in step 3.
        extra: What it does in step 3.
        options: Its writer's.
        before: What it does first of all.
        source: The program, if it is another one.
    """
    with Trainer(template, before + source, folder, "", options, extra) as trainer:
        trainer.heard("inside")
        for number in signals:
            os.kill(trainer.pid, number)
        done = trainer.wait()
    return done, {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


def found(folder: Path, **options: object) -> tuple[int, int, int]:
    """Restore what the loop has left; return the step to go on with, which step was done last, and begun last."""
    with asyncsave.CheckpointManager(folder, version="run") as manager:
        state = asyncsave.TrainingState(rng=False, done=-1, inside=-1)
        step = manager.restore(state, **options)
        assert [info for info in manager.list(all=True) if info.kind not in {"step", "emergency"}] == []
        return step, state.done, state.inside
