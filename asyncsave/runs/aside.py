"""Put a step aside, under a name that nobody takes for a checkpoint; and back."""

from __future__ import annotations

import logging
import os

from asyncsave.catalogue.names import ABANDONED, parse
from asyncsave.storage.attempt import sync_folder
from asyncsave.storage.system import System

__all__ = ["leave_branch", "put_aside", "put_back_from"]

_log = logging.getLogger("asyncsave")


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


def leave_branch(ahead: list[str], step: int) -> None:
    """Put aside what is ahead of the checkpoint that was restored, once the run goes on from there.

    Else the next restore would go on with a newer step of the branch that was left.

    Args:
        ahead: The folders of the steps that are ahead.
        step: The one that is about to be saved; if it is newer than all of them, they stay.
    """
    newest = max((said.step for path in ahead if (said := parse(os.path.basename(path)))), default=-1)
    for path in ahead if step <= newest else ():
        try:
            _log.warning("the run goes on from before %s, which is put aside: %s", path, put_aside(path, ABANDONED))
        except FileNotFoundError:
            continue  # it was dropped meanwhile
        except OSError as error:
            _log.error("cannot put %s aside: %s", path, error)


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
