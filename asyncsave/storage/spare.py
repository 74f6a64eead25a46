"""The blocks of a replaced checkpoint, kept for the next one.

Blocks that are allocated already are written at twice the speed of new ones, and freeing those of a
large file takes a tenth of a second per gigabyte (measured, docs/benchmarks.md). So a large file that
was replaced, or that belonged to a dropped step of a run, stays as a temporary file, one per writer,
locked like any other; the next save of its folder overwrites it.

Safe because of four conditions. The replacing or dropping of it was synced: after a power cut the
target cannot be this file again. It has no other name. It lies on a local file system, of a kind whose word on this
is known. And nobody else has it open or mapped, which that kind tells by granting a write lease: a
reader of the old version goes on reading the old version.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from asyncsave.storage.mounts import file_system
from asyncsave.storage.system import System
from asyncsave.storage.temporary import new_name

__all__ = ["SPARE_FROM", "Spare", "Spares"]

SPARE_FROM = 32 << 20
"""Files of fewer bytes are not worth keeping."""

_TRUSTED = {"ext3", "ext4", "xfs"}
"""Here a lease speaks for every opener and mapping. Not on an overlay, whose mappings hold the file
below it; not over a network, where others are not seen; not in memory, where nothing is gained."""


class Spare(NamedTuple):
    """A replaced file under a temporary name, open for writing and locked; and its folder, open."""

    folder_fd: int
    name: str
    fd: int


class Spares:
    """Keeps one spare. Used by one thread at a time.

    Args:
        system: The operating system.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._kept: Spare | None = None
        self._closed = False

    def may_keep(self, folder: str, fd: int) -> bool:
        """Tell whether a file that is about to be replaced may be kept."""
        return file_system(folder)[0] in _TRUSTED and self._is_ours(fd)

    def keep(self, folder_fd: int, name: str, fd: int) -> bool:
        """Put a file away; one that is kept already is removed.

        Args:
            folder_fd: Its folder; a duplicate is taken.
            name: Its temporary name in there.
            fd: The file, open for writing and locked.

        Returns:
            Whether the name and the descriptor are the spare's from now on.
        """
        self.drop()
        if self._closed:
            return False
        try:
            spare = Spare(self._system.duplicate(folder_fd), name, fd)
        except OSError:
            return False
        if self._is_another(spare):
            self._close(spare.folder_fd)
            return False
        self._kept = spare
        return True

    def salvage(self, folder: str, folder_fd: int, name: str, *, dir_fd: int) -> bool:
        """Put a file away that nobody needs any more, and that lies in a folder beside or below.

        Args:
            folder: The folder that the spare is for.
            folder_fd: The same, open.
            name: The file.
            dir_fd: Its own folder, of the same file system.

        Returns:
            Whether the file has left its folder.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = self._system.open(name, flags, dir_fd=dir_fd)
        except OSError:
            return False
        with contextlib.suppress(OSError):
            found = self._system.fstat(fd)
            large = stat.S_ISREG(found.st_mode) and found.st_size >= SPARE_FROM
            if large and self.may_keep(folder, fd) and self._system.lock(fd):
                temporary = new_name(self._system)
                self._system.rename(name, temporary, dir_fd=dir_fd, target_dir_fd=folder_fd)
                with contextlib.suppress(OSError):
                    self._system.chmod(fd, 0o600)  # nobody may go on reading what was dropped
                if self.keep(folder_fd, temporary, fd):
                    return True
                self._system.unlink(temporary, dir_fd=folder_fd)
                self._close(fd)
                return True
        self._close(fd)
        return False

    def take(self, folder_fd: int) -> tuple[str, int] | None:
        """Take the spare, as its name and descriptor, if it lies in this folder and may be overwritten.

        One that may not is removed; one of another folder stays.
        """
        spare = self._kept
        if spare is None:
            return None
        with contextlib.suppress(OSError):
            if not self._same(spare.folder_fd, folder_fd):
                return None
            unshared = self._is_ours(spare.fd) and self._system.is_unshared(spare.fd)
            if unshared and not self._is_another(spare):
                self._kept = None
                self._close(spare.folder_fd)
                return spare.name, spare.fd
        self.drop()
        return None

    def drop(self) -> bool:
        """Remove the spare, to make room; False if there is none."""
        spare, self._kept = self._kept, None
        if spare is None:
            return False
        with contextlib.suppress(OSError):
            if not self._is_another(spare):
                self._system.unlink(spare.name, dir_fd=spare.folder_fd)
        self._close(spare.fd)
        self._close(spare.folder_fd)
        return True

    def close(self) -> None:
        """Remove the spare, and keep no more."""
        self._closed = True
        self.drop()

    def abandon(self) -> None:
        """Forget the spare, in a forked child: it is the parent's."""
        if self._kept is not None:
            self._close(self._kept.fd)
            self._close(self._kept.folder_fd)
        self._kept = None

    def _is_ours(self, fd: int) -> bool:
        """Tell whether a file has one name, and nothing on it that a new file would not have."""
        found = self._system.fstat(fd)
        return found.st_nlink == 1 and found.st_uid == os.geteuid() and not self._system.has_attributes(fd)

    def _is_another(self, spare: Spare) -> bool:
        """Tell whether the spare's name is known to stand for another file, or for none."""
        try:
            found = self._system.stat(spare.name, dir_fd=spare.folder_fd)
            return not os.path.samestat(found, self._system.fstat(spare.fd))
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def _same(self, fd: int, other_fd: int) -> bool:
        return os.path.samestat(self._system.fstat(fd), self._system.fstat(other_fd))

    def _close(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._system.close(fd)
