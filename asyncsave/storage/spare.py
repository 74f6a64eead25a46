"""The blocks of a replaced checkpoint, kept for the next one.

Blocks that are allocated already are written at twice the speed of new ones, and freeing those of a
large file takes a tenth of a second per gigabyte (measured, docs/benchmarks.md). So a large file that
was replaced stays as a temporary file, one per folder, locked by its writer like any other; the next
save of that folder overwrites it.

Safe because of three conditions. The replacing of it was synced: after a power cut the target cannot
be this file again. It has no other name. And nobody else has it open or mapped: a reader of the old
version goes on reading the old version. The kernel tells the last by granting a write lease.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from asyncsave.storage.system import System

__all__ = ["SPARE_FROM", "Spare", "Spares"]

SPARE_FROM = 32 << 20
"""Files of fewer bytes are not worth keeping."""


class Spare(NamedTuple):
    """A replaced file under a temporary name, open for writing and locked."""

    folder: str
    name: str
    fd: int


class Spares:
    """At most one spare per folder. Used by one thread at a time.

    Args:
        system: The operating system.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._kept: dict[str, Spare] = {}
        self._closed = False

    def keep(self, spare: Spare) -> None:
        """Put a spare away; one that the folder has already is removed."""
        self.drop(spare.folder)
        if self._closed:
            self._remove(spare)
        else:
            self._kept[spare.folder] = spare

    def take(self, folder: str) -> Spare | None:
        """Take the spare of a folder if it may be overwritten; remove it if it may not."""
        spare = self._kept.pop(folder, None)
        if spare is None:
            return None
        with contextlib.suppress(OSError):
            if self.is_ours(spare.fd) and self._system.is_unshared(spare.fd):
                return spare
        self._remove(spare)
        return None

    def is_ours(self, fd: int) -> bool:
        """Tell whether a file has one name, and nothing on it that a new file would not have."""
        found = self._system.fstat(fd)
        return found.st_nlink == 1 and found.st_uid == os.geteuid() and not self._system.has_attributes(fd)

    def drop(self, folder: str) -> bool:
        """Remove the spare of a folder, to make room; False if there is none."""
        spare = self._kept.pop(folder, None)
        if spare is None:
            return False
        self._remove(spare)
        return True

    def close(self) -> None:
        """Remove all spares, and keep no more."""
        self._closed = True
        for folder in list(self._kept):
            self.drop(folder)

    def abandon(self) -> None:
        """Forget all spares, in a forked child: they are the parent's."""
        for spare in self._kept.values():
            self._system.close(spare.fd)
        self._kept.clear()

    def _remove(self, spare: Spare) -> None:
        with contextlib.suppress(OSError):
            self._system.unlink(os.path.join(spare.folder, spare.name))
        with contextlib.suppress(OSError):
            self._system.close(spare.fd)
