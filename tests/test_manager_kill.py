"""A managed run, killed at any instant: at every restart there is a checkpoint to go on from, and it is new enough.

Each program opens the same version, restores, says what it found, and saves on, with retention, every step twice
(so steps are replaced, too), until it is killed with SIGKILL at a random moment. What it says is written outside the
folder. The next one must find what was last said to be durable, or something later; over a writer process, what was
last staged. The wait before the kill is the experiment itself, not a wait for something to happen.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from backends import process_is_tested
from managed import number_in, steps
from processes import Trainer, nobody_is_left, until

import asyncsave
from asyncsave import CheckpointManager, Retention

pytestmark = pytest.mark.usefixtures("backend")

SIZES = {"small": 1000, "large": 1 << 20, "recycled": 9 << 20}
RETAIN = Retention(last=2, every=10) | Retention(best=1, metric="loss")

RUN = """
from backends import make_writer
from asyncsave import Retention
numel, pending = int(sys.argv[2]), int(sys.argv[3])
say("opens")
retain = Retention(last=2, every=10) | Retention(best=1, metric="loss")
manager = asyncsave.CheckpointManager(
    folder, version="v", retain=retain, writer=make_writer(max_pending=pending), on_durable=lambda info: None)
training = asyncsave.TrainingState(rng=False, number=-1, x=torch.full((1,), -1.0))
say("left", *(info.kind for info in manager.list(all=True) if info.kind != "step"))
start = manager.restore(training)
whole = bool((training.x == float(training.number)).all())
say("restored", training.number, start, whole, manager.load("latest", part="ema") if start else -1)
number = training.number
while True:
    number += 1
    training.number, training.x = number, torch.full((numel,), float(number))
    say("begins", number)
    handle = manager.save(number // 2, training, parts={"ema": number}, metrics={"loss": 100 - number})
    say("staged", number)
    handle.add_done_callback(lambda handle, number=number: say(handle.status, number))
    if pending == 1:
        handle.result()
"""


class Run:
    """A version that one program after the other goes on with."""

    def __init__(self, template, root, numel):
        self.root = root
        self._template = template
        self._numel = numel
        self._least = self._most = -1

    def kill_one(self, choose, *, wait):
        """Let a program go on, and kill it; what it found must fit what the ones before had said."""
        with Trainer(self._template, RUN, self.root, self._numel, choose.choice((1, 1, 2, 3))) as trainer:
            self._let_run(trainer, choose)
            result = trainer.killed()
        assert result.rc == -9, result
        if wait:
            nobody_is_left(self.root.parent)
        said = [line.split() for line in result.stdout.splitlines()]
        for word, *rest in said:
            if word == "left":  # a writer process that is about to end may still have its spare
                assert set(rest) <= ({"spare"} if process_is_tested() else set()), said
            if word == "restored":
                number, start, whole, ema = rest
                assert self._least <= int(number) <= self._most, (self._least, rest, self._most)
                assert (int(start), whole, ema) == (int(number) // 2 + 1 if int(number) >= 0 else 0, "True", number)
                self._least = self._most = int(number)
            if word == "durable" or (word == "staged" and process_is_tested()):
                self._least = max(self._least, int(rest[0]))
            if word == "begins":
                self._most = max(self._most, int(rest[0]))

    def _let_run(self, trainer, choose):
        rounds = choose.choice((0, 0, 1, 2, 3, 6) if self._numel < SIZES["recycled"] else (0, 1, 3))
        word = "durable" if rounds else choose.choice(("opens", "restored", "begins", "staged"))
        until(lambda: sum(line.startswith(word) for line in trainer.said()) >= rounds, trainer.said)
        if not rounds:
            trainer.heard(word)
        time.sleep(choose.uniform(0, 0.03))

    def check(self):
        """Open what is left: every step in it is whole, nothing that is nobody's stays, and saving goes on."""
        with CheckpointManager(self.root, version="v", retain=RETAIN, recycle=False) as manager:
            assert manager.list(all=True) == manager.list()
            for step in steps(manager):
                training = manager.load(step)
                assert number_in(training) // 2 == step
                assert manager.load(step, part="ema") == training["number"]
                for name in manager.list()[0].files:
                    assert asyncsave.verify(Path(manager.path) / f"step-{step:08d}" / name).ok
            latest = -1 if manager.latest() is None else manager.latest().step
            assert self._least // 2 <= latest <= self._most // 2
            manager.save(latest + 1, {"number": 0}, metrics={"loss": 0.0}).result(30)
            kept = {step for step in range(latest) if step % 10 == 0} | {max(latest, 0), latest + 1}
            assert set(steps(manager)) == kept
            assert manager.clean() == []
            found = {path.name for path in Path(manager.path).iterdir()}
        assert found == {".lock", ".writing", "version.json", *(f"step-{step:08d}" for step in kept)}
        assert not [path for path in self.root.rglob("*") if "corrupt" in path.name]


def kill_many(template, folder, kills):
    """Kill so many programs, of runs of several sizes."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - to run it again
    choose = random.Random(seed)  # noqa: S311 - no secret
    runs = {name: Run(template, folder / name, numel) for name, numel in SIZES.items()}
    for kill in range(kills):
        name = "recycled" if kill % 20 == 9 else ("small", "small", "large")[kill % 3]
        runs[name].kill_one(choose, wait=kill % 4 == 0)
    nobody_is_left(folder.parent)
    for run in runs.values():
        run.check()


def test_kills(folder, template):
    """A hundred kills for each backend: never nothing to go on from, never too old, never torn, nothing left over."""
    kill_many(template, folder, 100)


def test_the_check_fails_for_a_run_that_lies(folder, template, monkeypatch):
    """Programs that say "durable" too early are caught: the check can fail."""
    lying = RUN.replace('say("staged", number)', 'say("durable", number + 1)')
    monkeypatch.setitem(globals(), "RUN", lying)
    run, choose = Run(template, folder / "run", 1000), random.Random(1)  # noqa: S311 - no secret

    def kill():
        for _ in range(20):
            run.kill_one(choose, wait=True)

    with pytest.raises(AssertionError):
        kill()
    nobody_is_left(folder.parent)
    with CheckpointManager(folder / "run", version="v") as manager:
        manager.clean()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_kills(folder, template):
    """Two thousand kills for each backend."""
    kill_many(template, folder, 2000)
