"""Remove the temporary files that dead writers left behind, and no others.

A living writer holds the lock of its temporary file; a lock dies with its process, whatever killed
it and in whatever container it ran. So a file of ours that can be locked is nobody's.
"""

from __future__ import annotations

import contextlib
import logging
import os

from asyncsave.storage.system import System
from asyncsave.storage.temporary import is_temporary

__all__ = ["sweep"]

_log = logging.getLogger("asyncsave")


def sweep(system: System, folder: str) -> list[str]:
    """Remove dead temporary files of asyncsave from a folder; return their names.

    Never raises: a folder that cannot be swept is one that cannot be saved to either, and the save
    will say so better.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError):
        folder_fd = system.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in system.listdir(folder_fd):
                if is_temporary(name):
                    with contextlib.suppress(OSError):
                        if _remove_if_dead(system, name, folder_fd):
                            removed.append(name)
        finally:
            system.close(folder_fd)
    if removed:
        _log.warning("removed %d unfinished file(s) of a dead writer in %s", len(removed), folder)
    return removed


def _remove_if_dead(system: System, name: str, folder_fd: int) -> bool:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = system.open(name, flags, dir_fd=folder_fd)
    try:
        if not system.lock(fd):
            return False
        # Its writer may have renamed it between our open and our lock; then the name is gone, or
        # stands for another file.
        if not os.path.samestat(system.stat(name, dir_fd=folder_fd), system.fstat(fd)):
            return False
        system.unlink(name, dir_fd=folder_fd)
        return True
    finally:
        system.close(fd)
