"""Remove what takes up room in a version without being a checkpoint, as far as it is ours and nobody's any more."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.names import STATE, file_of
from asyncsave.catalogue.upkeep import tidy
from asyncsave.errors import LoadError
from asyncsave.image.index import read_index
from asyncsave.storage.source import open_source
from asyncsave.storage.system import System

__all__ = ["clean"]

_log = logging.getLogger("asyncsave")
_PATIENCE = 2.0
_LOOK_AGAIN = 0.01


def clean(listing: Listing, drop_spare: Callable[[], None], *, dry_run: bool) -> list[str]:
    """Remove it, and return the paths.

    Unfinished folders of dead writers go, spare files, what is left of dropped steps, and in step folders without a
    manifest those files that have the name of a part of this version and bear asyncsave's seal. Checkpoints that
    were put aside stay, and so does everything that is not known to be ours.

    Args:
        listing: The version.
        drop_spare: Has the writer remove its spare.
        dry_run: Whether to remove nothing, and only return what would be tried.
    """
    before = [info for info in listing.remnants() if info.kind not in {"corrupt", "abandoned"}]
    if dry_run:
        return [info.path for info in before]
    system = System()
    drop_spare()
    deadline = time.monotonic() + _PATIENCE
    spares = [info.path for info in before if info.kind == "spare"]
    while any(map(os.path.lexists, spares)) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)
        tidy(system, listing.folder)
    tidy(system, listing.folder)
    parts = {file_of(STATE), *(name for info in listing.look().infos for name in info.files)}
    for info in before:
        if info.step >= 0 and info.kind == "unfinished":
            _remove_parts(system, info, parts)
    return [info.path for info in before if not os.path.lexists(info.path)]


def _remove_parts(system: System, info: CheckpointInfo, parts: set[str]) -> None:
    """Remove our files from a step folder that has no manifest, and the folder if nothing is left in it."""
    try:
        fd = system.open(info.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not system.lock(fd):
            return
        for name in parts.intersection(system.listdir(fd)):
            if stat.S_ISREG(system.stat(name, dir_fd=fd).st_mode) and _is_sealed(os.path.join(info.path, name)):
                system.unlink(name, dir_fd=fd)
        system.rmdir(info.path)
    except OSError as error:
        _log.info("%s stays: %s", info.path, error)
    finally:
        system.close(fd)


def _is_sealed(path: str) -> bool:
    """Tell whether a file is a checkpoint that asyncsave wrote."""
    with contextlib.suppress(LoadError), open_source(path) as source:
        return read_index(source).image_crc is not None
    return False
