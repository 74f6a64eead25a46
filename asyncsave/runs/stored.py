"""Read one step of a run, and hold it against its manifest."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.names import STATE, file_of, part_of
from asyncsave.deferred import Deferred, check_identity
from asyncsave.errors import CheckpointNotFoundError, CorruptCheckpointError, LoadError, OptionError
from asyncsave.loading import load
from asyncsave.storage.source import FileSource, open_source

__all__ = ["damage", "load_part", "opened"]


def load_part(info: CheckpointInfo, part: str | None, map_location: Any, *, weights_only: bool, mmap: bool) -> Any:
    """Load one part of a checkpoint, checked.

    Args:
        info: The checkpoint.
        part: Its name; None: the object that was saved, or the only part.
        map_location: As for ``torch.load``.
        weights_only: As for ``torch.load``.
        mmap: Map the file; then only its size and seal are checked.

    Raises:
        OptionError: There is no such part, or there are several and none is named.
        CorruptCheckpointError: It is damaged, or not what the manifest says.
        LoadError: It cannot be loaded.
    """
    part = _chosen(info, part)
    with _source(info, part) as source:
        return load(source.path, map_location, weights_only=weights_only, mmap=mmap)


@contextlib.contextmanager
def opened(info: CheckpointInfo, part: str | None, *, weights_only: bool) -> Iterator[Deferred]:
    """Open one part of a checkpoint, to be read piece by piece; raises what :func:`load_part` does."""
    with _source(info, _chosen(info, part)) as source, Deferred(source, weights_only=weights_only) as deferred:
        yield deferred


def damage(error: LoadError) -> bool:
    """Tell whether an error says that a checkpoint is damaged, and not that it is of another kind."""
    cause = error.__cause__
    unreadable = isinstance(cause, OSError) and cause.errno == errno.EIO
    return isinstance(error, (CorruptCheckpointError, CheckpointNotFoundError)) or unreadable


def _chosen(info: CheckpointInfo, part: str | None) -> str:
    known = [part_of(name) for name in info.files]
    if part is None and (STATE in known or len(known) == 1):
        return STATE if STATE in known else known[0]
    if part not in known:
        which = "no part was named" if part is None else f"there is no part {part!r}"
        raise OptionError(f"{which}: {info.path!r} has {', '.join(map(repr, known))}")
    return part


@contextlib.contextmanager
def _source(info: CheckpointInfo, part: str) -> Iterator[FileSource]:
    name = file_of(part)
    with open_source(os.path.join(info.path, name)) as source:
        check_identity(source, *info.files[name])
        yield source
