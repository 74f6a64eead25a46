"""Find the newest checkpoint that is sound, and put aside those that are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.names import CORRUPT, step_name
from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.runs.stored import damage
from asyncsave.storage.attempt import sync_folder
from asyncsave.storage.system import System

__all__ = ["newest_sound", "quarantine"]

T = TypeVar("T")

_log = logging.getLogger("asyncsave")


def newest_sound(
    listing: Listing, use: Callable[[CheckpointInfo], T], *, emergency: bool = False, strict: bool = False
) -> tuple[CheckpointInfo, T] | None:
    """Use the newest checkpoint; if it is damaged, put it aside and use the one before.

    Args:
        listing: The version's checkpoints.
        use: Reads one; raises a ``LoadError``.
        emergency: Whether those that were saved in the midst of a step count too.
        strict: Whether damage of the newest one is raised, and nothing put aside.

    Returns:
        The checkpoint, and what ``use`` has returned; None if the version has never had one.

    Raises:
        CorruptCheckpointError: None is sound.
        LoadError: The newest one cannot be used, though it is not damaged.
    """
    damaged: list[str] = []
    for step, found in _newest_first(listing, emergency=emergency):
        try:
            if isinstance(found, LoadError):
                raise found
            return found, use(found)
        except LoadError as error:
            if strict or not damage(error):
                raise
            path = found.path if isinstance(found, CheckpointInfo) else os.path.join(listing.folder, step_name(step))
            _log.error("checkpoint %s is damaged: %s. The one before is used", path, error)
            damaged.append(quarantine(path))
    aside = damaged or [info.path for info in listing.remnants() if info.kind == "corrupt"]
    if aside:
        message = (
            f"no checkpoint in {listing.folder!r} is sound; damaged ones were put aside: {', '.join(aside)}. "
            "Restore one from a copy, or start anew with version='new'"
        )
        raise CorruptCheckpointError(message, path=listing.folder, expected="a sound checkpoint", found="none")
    return None


def _newest_first(listing: Listing, *, emergency: bool) -> Iterator[tuple[int, CheckpointInfo | LoadError]]:
    look = listing.look()
    found: list[tuple[int, bool, CheckpointInfo | LoadError]] = [
        (info.step, info.complete, info) for info in look.infos if info.complete or emergency
    ]
    found += [(step, True, error) for step, error in look.problems.items()]
    for step, _, one in sorted(found, key=lambda entry: entry[:2], reverse=True):
        yield step, one


def quarantine(path: str) -> str:
    """Put a damaged step aside, under a name that nobody takes for a checkpoint; return where it is now."""
    system = System()
    folder, name = os.path.split(path)
    fd = system.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        turn = 1
        while True:
            aside = name + CORRUPT + (f"-{turn}" if turn > 1 else "")
            if not os.path.lexists(os.path.join(folder, aside)):
                break
            turn += 1
        try:
            system.rename(name, aside, dir_fd=fd)
            sync_folder(system, fd)
        except OSError as error:
            if isinstance(error, FileNotFoundError):  # another process of the run was quicker
                return path
            _log.error("cannot put %s aside: %s", path, error)
            return path
        return os.path.join(folder, aside)
    finally:
        system.close(fd)
