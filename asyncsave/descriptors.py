"""Descriptors that no forked child may keep: sockets, pipes and memory shared with one other process.

A copy of them in a child would keep the other process from seeing that this one has died, and would
let the child speak in its name. Close-on-exec does not help: such a child never calls exec. So they
are entered here, and closed in the child; while one is being made nobody forks.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

__all__ = ["drop", "held_back", "keep"]

_lock = threading.RLock()
_private: set[int] = set()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold every ``os.fork`` back until the block is left: what it makes is kept, or closed, by then."""
    with _lock:
        yield


def keep(fd: int) -> int:
    """Enter a descriptor; to be called inside :func:`held_back`, where it was made. Return it."""
    _private.add(fd)
    return fd


def drop(fd: int) -> None:
    """Close a descriptor that was entered; in a forked child it is closed already."""
    with _lock:
        if fd in _private:
            _private.remove(fd)
            with contextlib.suppress(OSError):
                os.close(fd)


def _close_in_child() -> None:
    global _lock  # noqa: PLW0603 - held by the fork itself
    _lock = threading.RLock()
    for fd in _private:
        with contextlib.suppress(OSError):
            os.close(fd)
    _private.clear()


def _let_go() -> None:
    _lock.release()


def _hold() -> None:
    _lock.acquire()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_close_in_child)
