"""What a writer is asked to save: objects, where to, and how."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asyncsave.catalogue.brief import Brief
from asyncsave.storage.sink import Sink
from asyncsave.storage.target import Target

__all__ = ["Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """One save: a file, or the files of a step.

    Attributes:
        objects: What is saved, one for each file.
        target: Where to: a file, a file object, or the folder of a step.
        path: How the result names that.
        pickle_module: As for ``torch.save``.
        pickle_protocol: As for ``torch.save``.
        compact: Store only the part of each storage that the saved tensors can see.
        describe: Of a step: returns its brief, given how many tensors there are.
        recycle: Whether it may leave files to be overwritten, and overwrite one.
        lock: A descriptor that is held until the save has ended, by whoever writes; -1: none.
        wanted: Called after every wait, and last before the save is queued; raises if it is not wanted any more.
    """

    objects: Sequence[object]
    target: Target | Sink
    path: str
    pickle_module: Any = pickle
    pickle_protocol: int = 2
    compact: bool = False
    describe: Callable[[int], Brief] | None = None
    recycle: bool = True
    lock: int = -1
    wanted: Callable[[], None] = lambda: None
