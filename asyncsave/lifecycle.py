"""What happens to open writers at exit and after a fork.

At exit every open writer is drained, with a deadline. A program whose save failed, or was lost, and
where nobody read that, does not exit with 0.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.util
import os
import sys
from typing import Protocol

__all__ = ["adopt", "exiting", "is_open", "release", "spoil", "watch"]

_log = logging.getLogger("asyncsave")


class Owner(Protocol):
    """An open writer."""

    def _drain_at_exit(self) -> bool:
        """Finish what is in flight; False if something was lost or failed unread."""

    def _orphan_in_child(self) -> None:
        """Become a closed writer, in a forked child."""


_open: dict[int, Owner] = {}
_exiting = False
_watches_child = False


def watch() -> None:
    """Register the exit hook; the one call of this is made when the package is imported."""
    atexit.register(_at_exit)


def adopt(owner: Owner) -> None:
    """Look after an open writer until it is released."""
    global _watches_child  # noqa: PLW0603 - a process is a child of multiprocessing's or it is not
    _open[id(owner)] = owner
    if multiprocessing.parent_process() is not None and not _watches_child:
        # Such a process ends without atexit. A negative priority comes last, after the queues' own.
        _watches_child = True
        multiprocessing.util.Finalize(None, _at_exit_of_child, exitpriority=-1)


def release(owner: Owner) -> None:
    """Stop looking after a writer."""
    _open.pop(id(owner), None)


def is_open(owner: Owner) -> bool:
    """Tell whether a writer has not been released yet."""
    return id(owner) in _open


def exiting() -> bool:
    """Tell whether the exit hook has run: from then on nobody waits for a save but its caller."""
    return _exiting


class _ExitCode:
    """Makes the exit code 1, after everybody else's exit handlers have run.

    ``atexit`` cannot change the exit code, and leaving from its midst would skip the handlers that
    were registered before ours. So an instance is left in this module, to be destroyed when the
    interpreter tears the modules down: standard output is flushed by then, no handler is left.
    """

    def __init__(self) -> None:
        # What C libraries have printed and not flushed; Python's own modules are gone by then, os perhaps too.
        self._flush, self._exit = ctypes.CDLL(None).fflush, os._exit

    def __del__(self) -> None:
        self._flush(None)
        self._exit(1)


_exit_code: list[_ExitCode] = []


def spoil() -> None:
    """Make the exit code 1; for use while the interpreter exits."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, broken or closed
            stream.flush()
    _exit_code.append(_ExitCode())


def _at_exit() -> None:
    global _exiting  # noqa: PLW0603 - there is one exit
    clean = True
    try:
        for owner in list(_open.values()):
            clean = owner._drain_at_exit() and clean  # noqa: SLF001 - Owner is ours
    except KeyboardInterrupt:
        _log.critical("interrupted while waiting for the last saves: unless a writer process has them, they are lost")
        clean = False
    except BaseException:
        clean = False
        raise
    finally:
        _exiting = True
        if not clean:
            spoil()


def _at_exit_of_child() -> None:
    _at_exit()
    if _exit_code:
        os._exit(1)


def _after_fork_in_child() -> None:
    global _watches_child  # noqa: PLW0603 - the child has no finalizers yet
    _watches_child = False
    for owner in list(_open.values()):
        owner._orphan_in_child()  # noqa: SLF001 - Owner is ours
    _open.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
