"""Descriptors that no forked child may keep: sockets, pipes and memory shared with one other process.

A copy of them in a child would keep the other process from seeing that this one has died, and would
let the child speak in its name. Close-on-exec does not help: such a child never calls exec. So they
are entered here, and closed in the child; while one is being made nobody forks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from collections import deque
from collections.abc import Iterator

__all__ = ["drop", "held_back", "is_readable", "keep"]

_PATIENCE = 1.0
"""Seconds after which the lock is done without: who holds it so long is code that a signal handler has
interrupted, and that handler may be waiting for this very thread."""
_LOWEST = 3

_lock = threading.RLock()
_forking = threading.local()
_private: set[int] = set()
_doomed: deque[int] = deque()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold every ``os.fork`` back until the block is left: what it makes is kept, or closed, by then."""
    lock = _lock  # a child that is forked inside the block has another one
    held = lock.acquire(timeout=_PATIENCE)
    try:
        yield
    finally:
        if held:
            lock.release()
        _close_doomed()


def keep(fd: int) -> int:
    """Enter a descriptor, inside :func:`held_back`, where it was made; return it, or another one in its place.

    That is so where standard streams are closed: what is printed must not end up in one of ours.
    """
    if fd < _LOWEST:
        low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST)
        os.close(low)
    _private.add(fd)
    return fd


def drop(fd: int) -> None:
    """Close a descriptor that was entered; in a forked child it is closed already.

    Never waits. Where a fork is under way, or held back, whoever that is closes it.
    """
    if fd in _private:
        _doomed.append(fd)
        _close_doomed()


def _close_doomed() -> None:
    while _doomed and _lock.acquire(blocking=False):
        try:
            with contextlib.suppress(IndexError, KeyError, OSError):
                fd = _doomed.popleft()
                _private.remove(fd)
                os.close(fd)
        finally:
            _lock.release()


def is_readable(fd: int) -> bool:
    """Tell whether a read would return at once, with an end perhaps; ``select`` knows small numbers only."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _before_fork() -> None:
    _forking.held = _lock.acquire(timeout=_PATIENCE)


def _after_fork_in_parent() -> None:
    if _forking.held:
        _lock.release()
    _close_doomed()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - held by the fork itself, or by a thread that does not exist here
    _lock = threading.RLock()
    for fd in _private:
        with contextlib.suppress(OSError):
            os.close(fd)
    _private.clear()
    _doomed.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)  # fmt: skip
