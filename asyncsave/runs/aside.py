"""Put a step aside, under a name that nobody takes for a checkpoint; and back."""

from __future__ import annotations

import os

from asyncsave.storage.attempt import sync_folder
from asyncsave.storage.system import System

__all__ = ["put_aside", "put_back_from"]


def put_aside(path: str, suffix: str) -> str:
    """Give a step's folder a suffix, and a number if that is taken; return its path now.

    Raises:
        OSError: It cannot be renamed, or it is gone.
    """
    turn, aside = 1, path + suffix
    while os.path.lexists(aside):
        turn += 1
        aside = f"{path}{suffix}-{turn}"
    _rename(path, aside)
    return aside


def put_back_from(aside: str, path: str) -> None:
    """Give a folder its old name back.

    Raises:
        OSError: It cannot be renamed, or something else has that name.
    """
    _rename(aside, path)


def _rename(source: str, target: str) -> None:
    system = System()
    fd = system.open(os.path.dirname(source), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.rename(os.path.basename(source), os.path.basename(target), dir_fd=fd)
        sync_folder(system, fd)
    finally:
        system.close(fd)
