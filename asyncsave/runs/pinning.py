"""Pin a step, so that retention never drops it: an empty file beside its manifest."""

from __future__ import annotations

import contextlib
import os
import time

from asyncsave.catalogue.names import MANIFEST, PINNED
from asyncsave.errors import CheckpointNotFoundError, SaveError
from asyncsave.storage.attempt import sync_folder
from asyncsave.storage.system import System

__all__ = ["pin", "unpin"]

_PATIENCE = 10.0
_LOOK_AGAIN = 0.005


def pin(path: str) -> None:
    """Pin the step in a folder.

    Raises:
        CheckpointNotFoundError: There is no such step, or it is dropped in this very moment.
        SaveError: The pin cannot be written.
    """
    _change(path, pinned=True)


def unpin(path: str) -> None:
    """Take the pin of a step away; raises what :func:`pin` does."""
    _change(path, pinned=False)


def _change(path: str, *, pinned: bool) -> None:
    system = System()
    try:
        fd = system.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(system, fd)
            system.stat(MANIFEST, dir_fd=fd)
            if pinned:
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                system.close(system.open(PINNED, flags, dir_fd=fd))
            else:
                with contextlib.suppress(FileNotFoundError):
                    system.unlink(PINNED, dir_fd=fd)
            sync_folder(system, fd)
        finally:
            system.close(fd)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFoundError(f"there is no checkpoint at {path!r}", path=path) from error
    except OSError as error:
        raise SaveError.of(error, path=path, phase="open") from error


def _lock(system: System, fd: int) -> None:
    """Keep retention from dropping the step meanwhile: it takes the same lock. Never waits for ever."""
    deadline = time.monotonic() + _PATIENCE
    with contextlib.suppress(OSError):  # a file system without locks
        while not system.lock(fd) and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN)
