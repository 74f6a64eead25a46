"""Long runs: nothing grows, nothing is lost."""

from __future__ import annotations

import errno
import io
import operator
import random
from pathlib import Path

import psutil
import pytest
import torch
from backends import make_writer
from gates import Failing
from processes import until

import asyncsave

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("backend")]


def held():
    """Return how many descriptors and threads this process and its writer process have, and how much memory."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return (
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
        sum(process.memory_info().rss for process in processes),
    )


def at_rest(writer):
    """Wait until the writer has let go of its last file; return what is held then."""
    writer.flush()
    writer.save({}, io.BytesIO()).result()
    return held()


def settle(before, room=8 << 20):
    """Wait until no more is held than before, and ``room`` bytes.

    A writer process has its last file open, and its memory mapped, for a moment after it has said that it is done.
    """
    most = (*before[:2], before[2] + room)
    until(lambda: all(map(operator.le, held(), most)), lambda: f"at most {most}: {held()}")


def test_memory_is_flat(tmp_path):
    """Over 300 saves of 40 MB neither memory nor descriptors nor threads grow."""
    state = {"x": torch.ones(10 << 20)}
    with make_writer() as writer:

        def save(count):
            for number in range(count):
                writer.save({**state, "number": number}, tmp_path / "ckpt")
            return at_rest(writer)

        before = save(50)
        save(250)
        settle(before)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


class Unreliable(Failing):
    """One call in a few hundred fails."""

    def __init__(self, seed):
        super().__init__("", 0)
        self._choose = random.Random(seed)  # noqa: S311 - no secret
        self.failures = 0

    def _call(self, name, *args, **kwargs):
        if name in {"open", "allocate", "pwrite", "fsync", "rename"} and self._choose.random() < 0.002:
            self.failures += 1
            raise OSError(self._choose.choice([errno.EIO, errno.ENOSPC]), "injected")
        return super()._call(name, *args, **kwargs)


def test_ten_thousand_saves_of_which_some_fail(tmp_path):
    """10,000 small saves with faults: each ends, each file is whole, and nothing is left over."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - to run it again
    system = Unreliable(seed)
    kept: dict[Path, int] = {}
    failed = 0
    with make_writer(system=system) as writer:
        writer.save({"number": -1}, tmp_path / "first").exception()
        before = at_rest(writer)
        for number in range(10_000):
            path = tmp_path / str(number % 10)
            error = writer.save({"number": number, "x": torch.ones(100)}, path).exception()
            if error is None or error.outcome == "durability_unknown":
                kept[path] = number
            failed += error is not None
        at_rest(writer)
        settle(before, room=64 << 20)
        assert writer.stats.saved + writer.stats.failed == 10_003
    assert 0 < failed <= system.failures
    for path, number in kept.items():
        assert asyncsave.load(path)["number"] == number
    assert not list(tmp_path.glob(".asyncsave-*"))
