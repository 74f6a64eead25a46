"""Which files a path stands for: a checkpoint, or those of a step."""

from __future__ import annotations

import os

from asyncsave.catalogue.listing import read_manifest
from asyncsave.catalogue.names import MANIFEST
from asyncsave.errors import CheckpointNotFoundError

__all__ = ["files_of"]


def files_of(path: str) -> list[str]:
    """Return the files of a step, if a path is that of its folder; else the path itself.

    Raises:
        CheckpointNotFoundError: It is a folder, but not that of a step.
        CorruptCheckpointError: The step's manifest is damaged.
    """
    if not os.path.isdir(path):
        return [path]
    absolute = os.path.abspath(path)
    manifest = os.path.join(absolute, MANIFEST)
    if not os.path.isfile(manifest):
        message = (
            f"{absolute!r} is a folder, but not that of a step (it has no {MANIFEST}): name a file, or such a folder"
        )
        raise CheckpointNotFoundError(message, path=absolute)
    names = sorted(read_manifest(manifest).files)
    if not names:
        message = f"{absolute!r} is a step without files"
        raise CheckpointNotFoundError(message, path=absolute)
    return [os.path.join(absolute, name) for name in names]
