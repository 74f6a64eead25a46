"""The peak of memory, as the kernel counts it: what was held, is held, and was there before."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

import pytest

from asyncsave.bench import footprint
from asyncsave.bench.footprint import Footprint
from asyncsave.memory import Pages, SharedPages

MIB = 1 << 20
SIZE = 64 * MIB
SLACK = 24 * MIB
"""What an interpreter takes meanwhile, and pages that come and go."""

HOLDS = """
import sys
held = bytearray(int(sys.argv[1]))
held[:] = b"x" * len(held)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _can_be_told():
    if Footprint().peak() is None:
        pytest.skip("this system cannot be asked for a peak anew")


def touched(kind):
    """Return memory that is there."""
    pages = kind(SIZE)
    pages.touch(0, SIZE)
    pages.view[:] = b"x" * SIZE
    return pages


@pytest.mark.parametrize("kind", [Pages, SharedPages])
def test_what_was_given_back_counts(kind):
    """The peak is what was held at once, not what is left: private memory and shared."""
    counted = Footprint()
    touched(kind).close()
    assert SIZE <= counted.peak() <= 2 * SIZE + SLACK  # the bytes that were copied, too


def test_what_was_there_before_does_not_count():
    """Neither what is still held, nor an earlier peak."""
    with closing(touched(Pages)):
        counted = Footprint()
        assert counted.peak() <= SLACK
        touched(Pages).close()
        assert counted.peak() >= SIZE
        assert Footprint().peak() <= SLACK


def test_a_child_counts_by_what_it_has_more_than_before():
    """A writer process is a part of a way of saving; a data loader that was there before is none."""

    def start():
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(SIZE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        return child

    with start() as before:
        counted = Footprint()
        assert counted.peak() <= SLACK
        with start() as during:
            assert SIZE <= counted.peak() <= 2 * SIZE + 2 * SLACK
            during.stdin.close()
        assert counted.peak() <= SLACK
        before.stdin.close()


@pytest.mark.parametrize("name", ["_PEAK", "_STATUS"])
def test_where_the_kernel_does_not_say(name, monkeypatch, tmp_path):
    """There is no figure, and no error."""
    monkeypatch.setattr(footprint, name, str(tmp_path / "missing"))
    assert Footprint().peak() is None
