"""Find the newest checkpoint that is sound, and put aside those that are not."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import TypeVar

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing, read_manifest
from asyncsave.catalogue.names import CORRUPT, MANIFEST, STATE, file_of, parse
from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.runs.aside import put_aside, put_back_from
from asyncsave.runs.stored import damage

__all__ = ["newest_sound"]

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
    passed_over: set[str] = set()
    while (candidate := _newest(listing, passed_over, emergency=emergency)) is not None:
        path, found = candidate
        try:
            if isinstance(found, LoadError):
                raise found
            return found, _twice(use, found)
        except LoadError as error:
            if not _is_at(path, found):
                continue  # it was replaced or dropped while it was read
            if strict or not damage(error):
                raise
            now_at = _put_aside(path, found)
            if now_at is not None:
                _log.error("checkpoint %s is damaged: %s. The one before is used", path, error)
                passed_over.add(path)
                damaged.append(now_at)
    aside = damaged or [info.path for info in listing.remnants() if info.kind == "corrupt"]
    if aside:
        message = (
            f"no checkpoint in {listing.folder!r} is sound; damaged ones were put aside: {', '.join(aside)}. "
            "Restore one from a copy, or start anew with version='new'"
        )
        raise CorruptCheckpointError(message, path=listing.folder, expected="a sound checkpoint", found="none")
    return None


def _twice(use: Callable[[CheckpointInfo], T], info: CheckpointInfo) -> T:
    """Use a checkpoint; one that seems to be damaged is read once more, as the disk may have been in trouble."""
    try:
        return use(info)
    except LoadError as error:
        if not damage(error):
            raise
        return use(info)


def _newest(
    listing: Listing, passed_over: set[str], *, emergency: bool
) -> tuple[str, CheckpointInfo | LoadError] | None:
    """Return the newest checkpoint that was not passed over, and its path; or why its manifest cannot be read."""
    look = listing.look()
    found: list[tuple[int, bool, str, CheckpointInfo | LoadError]] = [
        # Beside a complete one of other parts only, the state of the step is in the other.
        (info.step, info.complete and (not emergency or file_of(STATE) in info.files), info.path, info)
        for info in look.infos
        if info.complete or emergency
    ]
    for path, error in look.problems.items():
        said = parse(os.path.basename(path))
        if said is not None and (said.complete or emergency):
            found.append((said.step, said.complete, path, error))
    left = [entry for entry in found if entry[2] not in passed_over]
    return max(left, key=lambda entry: entry[:2])[2:] if left else None


def _is_at(path: str, found: CheckpointInfo | LoadError) -> bool:
    """Tell whether what is in a folder is what was found before, and not another checkpoint of the same step."""
    try:
        manifest = read_manifest(os.path.join(path, MANIFEST))
    except OSError:
        return False
    except LoadError:
        return isinstance(found, LoadError)
    return not isinstance(found, CheckpointInfo) or (manifest.time, manifest.files) == (found.time, found.files)


def _put_aside(path: str, found: CheckpointInfo | LoadError) -> str | None:
    """Give a damaged step a name that nobody takes for a checkpoint; return its path now.

    None if another checkpoint has come into its place in this very moment: that one stays.
    """
    try:
        aside = put_aside(path, CORRUPT)
    except OSError as error:
        _log.error("cannot put %s aside: %s", path, error)
        return path
    if _is_at(aside, found):
        return aside
    with contextlib.suppress(OSError):  # it has been saved once more: then that one is newer still
        put_back_from(aside, path)
    return None
