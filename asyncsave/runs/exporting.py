"""Take one part out of a checkpoint, to be written to a file of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.names import STATE, file_of
from asyncsave.errors import OptionError
from asyncsave.options import text
from asyncsave.runs.stored import opened
from asyncsave.runs.training_state import OBJECTS

__all__ = ["one_part"]


@contextlib.contextmanager
def one_part(info: CheckpointInfo, part: str) -> Iterator[Any]:
    """Read one part of a checkpoint, and nothing else of it; every record is checked as it is read.

    Args:
        info: The checkpoint.
        part: A part of the training state, or one of the step's own parts.

    Raises:
        OptionError: There is no such part.
        CorruptCheckpointError: It is damaged.
        LoadError: It cannot be read.
    """
    text("part", part)
    own = file_of(part) in info.files
    with opened(info, part if own else STATE, weights_only=True) as deferred:
        found = deferred.obj
        if not own:
            if not isinstance(found, dict) or part not in found:
                known = ", ".join(str(name) for name in found if name != OBJECTS) if isinstance(found, dict) else ""
                raise OptionError(f"there is no part {part!r} in {info.path!r}, only {known or 'none by name'}")
            found = found[part]
        deferred.read(found)
        yield found
