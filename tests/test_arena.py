"""Host memory that is filled, written to disk, and used again."""

from __future__ import annotations

import os
import resource

import pytest

from asyncsave.staging.arena import Arena
from asyncsave.workers import Workers

PAGE = resource.getpagesize()


@pytest.fixture
def workers():
    """Return two workers."""
    made = Workers(2, "test")
    yield made
    made.close()


@pytest.mark.parametrize("nbytes", [0, 1, PAGE, PAGE + 1, (2 << 20) - 1, 2 << 20, (64 << 20) + 1, 200 << 20])
def test_memory(workers, nbytes):
    """An arena is page-aligned, large enough, little larger, and writable to its last byte."""
    arena = Arena(nbytes, workers)
    assert nbytes <= arena.capacity <= nbytes + nbytes // 64 + 2 * PAGE
    assert len(arena.view) == arena.capacity
    assert arena.address % PAGE == arena.capacity % PAGE == 0
    arena.view[0] = arena.view[-1] = 7
    assert repr(arena) == f"<Arena {arena.capacity} bytes>"
    arena.close()
    arena.close()


def test_a_state_may_grow_a_little(workers):
    """A state that grows by a hundredth stays in its arena."""
    arena = Arena(100 << 20, workers)
    assert arena.capacity >= 101 << 20
    arena.close()


def test_close_while_a_piece_is_held(workers):
    """Closing is no error while somebody still holds a piece; the piece stays valid."""
    arena = Arena(1000, workers)
    arena.view[:3] = b"abc"
    piece = arena.view[:3]
    arena.close()
    assert bytes(piece) == b"abc"


def test_more_than_there_is(workers):
    """Memory that the system refuses is an error, not a crash."""
    with pytest.raises((OSError, MemoryError, ValueError, OverflowError)):
        Arena(1 << 62, workers)


def test_a_forked_child_does_not_get_it(workers):
    """A child neither has the memory nor crashes for lack of it, also when it drops the arena."""
    arena = Arena(4 << 20, workers)
    arena.view[:] = b"x" * arena.capacity
    address = arena.address
    pid = os.fork()
    if not pid:
        try:
            with open("/proc/self/maps", encoding="ascii") as table:  # noqa: PTH123 - least code in a child
                spans = [line.split()[0].split("-") for line in table]
            inherited = any(int(start, 16) <= address < int(end, 16) for start, end in spans)
            del arena
            os._exit(int(inherited))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    arena.close()
