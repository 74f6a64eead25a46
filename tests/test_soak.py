"""Long runs: nothing grows, nothing is lost."""

from __future__ import annotations

import errno
import io
import random
import threading
from pathlib import Path

import psutil
import pytest
import torch
from backends import make_writer
from gates import Failing

import asyncsave

pytestmark = pytest.mark.soak


def at_rest(writer):
    """Wait until the writer has let go of its last file; return how much this process holds."""
    writer.save({}, io.BytesIO()).result()
    process = psutil.Process()
    return process.num_fds(), threading.active_count(), process.memory_info().rss


def test_memory_is_flat(tmp_path):
    """Over 300 saves of 40 MB neither memory nor descriptors nor threads grow."""
    state = {"x": torch.ones(10 << 20)}
    with asyncsave.Writer() as writer:

        def save(count):
            for number in range(count):
                writer.save({**state, "number": number}, tmp_path / "ckpt")
            return at_rest(writer)

        *before, memory = save(50)
        *after, later = save(250)
        assert after == before
        assert later < memory + (8 << 20), f"grew by {later - memory} bytes"
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
        *before, _ = at_rest(writer)
        for number in range(10_000):
            path = tmp_path / str(number % 10)
            error = writer.save({"number": number, "x": torch.ones(100)}, path).exception()
            if error is None or error.outcome == "durability_unknown":
                kept[path] = number
            failed += error is not None
        *after, _ = at_rest(writer)
        assert after == before
        assert writer.stats.saved + writer.stats.failed == 10_003
    assert 0 < failed <= system.failures
    for path, number in kept.items():
        assert asyncsave.load(path)["number"] == number
    assert not list(tmp_path.glob(".asyncsave-*"))
