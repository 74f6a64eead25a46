"""Take a step out of a version: its manifest first, then its files, and never a file that is not its own.

The manifest is not removed but renamed, in one step, so that the checkpoint is gone and what is to be
removed is still known: a removal that fails, or is cut off, is taken up again where it stopped. Files
that the manifest does not name are the user's: they stay, and the folder with them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from asyncsave import descriptors
from asyncsave.catalogue.listing import read_manifest
from asyncsave.catalogue.manifest import Manifest
from asyncsave.catalogue.names import DROPPED, MANIFEST, PINNED, step_name
from asyncsave.errors import LoadError
from asyncsave.storage.assembly import UNFINISHED
from asyncsave.storage.spare import SPARE_FROM, Spares
from asyncsave.storage.system import System

__all__ = ["Removal"]

_log = logging.getLogger("asyncsave")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Removal:
    """Removes steps from one version. Use it as a context manager.

    The blocks of what was removed are freed when the ``with`` block is left: freeing those of a large
    file takes a tenth of a second, and nobody needs to wait for that.

    Args:
        system: The operating system.
        folder: The version's folder, absolute.
        sync: Whether to flush.
        spares: Who takes the largest file of a step, to have it overwritten; None: nobody.
    """

    def __init__(self, system: System, folder: str, *, sync: bool, spares: Spares | None = None) -> None:
        self._system = system
        self._folder = folder
        self._sync = sync
        self._spares = spares if sync else None
        self._folder_fd = -1
        self._held: list[int] = []

    def __enter__(self) -> Removal:  # noqa: PYI034 - not made for subclasses
        """Open the folder."""
        self._folder_fd = self._system.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        """Free what was removed."""
        with contextlib.suppress(OSError):
            self._system.close(self._folder_fd)
        for fd in self._held:
            descriptors.drop(fd)
        self._held = []

    def drop(self, name: str) -> bool:
        """Remove a step that is not pinned, or go on removing one.

        Returns:
            Whether it is gone; a folder with files of the user's may be left.

        Raises:
            OSError: Something could not be removed. The step is no checkpoint any more, unless the first
                thing has failed.
            LoadError: Its manifest cannot be read, so it is not known what is ours.
        """
        with self._opened(name) as step_fd:
            with contextlib.suppress(OSError):  # a file system without locks
                if not self._system.lock(step_fd):
                    return False  # somebody is pinning it
            if self._has(PINNED, step_fd):
                return False
            names = self._system.listdir(step_fd)
            if not names:  # cut off before the very last call
                self._system.rmdir(name, dir_fd=self._folder_fd)
                return True
            manifest = read_manifest(os.path.join(self._folder, name, MANIFEST if MANIFEST in names else DROPPED))
            if MANIFEST in names:
                self._system.rename(MANIFEST, DROPPED, dir_fd=step_fd)
            if self._sync:
                self._system.fsync(step_fd)  # before anything of it is overwritten
            self._remove_files(manifest, step_fd)
            self._remove_folder(name, step_fd)
        return True

    def discard(self, temporary: str, home: str | None = None) -> bool:
        """Remove a temporary folder: one that was never finished, or one whose place has been taken by a new one.

        Args:
            temporary: Its name.
            home: The folder that has taken its place, if that is known: what is the user's moves there.

        Returns:
            Whether it is gone. It is not where it holds what may be the user's, and nobody knows where that belongs.

        Raises:
            OSError: Something could not be removed.
        """
        with self._opened(temporary) as old_fd:
            names = self._system.listdir(old_fd)
            manifest = self._manifest(temporary)
            if UNFINISHED in names or not names:
                for name in sorted(names, key=UNFINISHED.__eq__):  # the marker last
                    self._system.unlink(name, dir_fd=old_fd)
            elif manifest is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._system.rename(MANIFEST, DROPPED, dir_fd=old_fd)
                if self._sync:
                    self._system.fsync(old_fd)
                self._remove_files(manifest, old_fd)
                self._take_home(step_name(manifest.step, complete=manifest.complete), old_fd, ours={PINNED})
            elif home is not None:
                there = self._manifest(home)
                self._take_home(home, old_fd, ours={MANIFEST, PINNED, *(there.files if there else ())})
            else:
                return False
            self._remove_folder(temporary, old_fd)
        return True

    def _manifest(self, name: str) -> Manifest | None:
        """Return the manifest of a folder, also of a dropped one; None if there is none that can be read."""
        for manifest in (MANIFEST, DROPPED):
            with contextlib.suppress(OSError, LoadError):
                return read_manifest(os.path.join(self._folder, name, manifest))
        return None

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        fd = self._system.open(name, _FOLDER, dir_fd=self._folder_fd)
        try:
            yield fd
        finally:
            self._system.close(fd)

    def _has(self, name: str, dir_fd: int) -> bool:
        try:
            self._system.stat(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return False
        return True

    def _remove_files(self, manifest: Manifest, dir_fd: int) -> None:
        """Remove the files of a step; the largest may go on as a spare."""
        by_size = sorted(manifest.files, key=lambda name: manifest.files[name].nbytes, reverse=True)
        spares = self._spares
        for name in by_size:
            if spares is not None and spares.salvage(self._folder, self._folder_fd, name, dir_fd=dir_fd):
                spares = None
                continue
            if manifest.files[name].nbytes >= SPARE_FROM:
                with contextlib.suppress(OSError), descriptors.held_back():
                    self._held.append(descriptors.keep(self._system.open(name, _FILE, dir_fd=dir_fd)))
            with contextlib.suppress(FileNotFoundError):
                self._system.unlink(name, dir_fd=dir_fd)

    def _take_home(self, name: str, old_fd: int, *, ours: set[str]) -> None:
        """Move what is not ours out of a folder that is going, into the one that is in its place.

        What has the name of a file of the step is an older version of that. What the user has in both places stays.
        """
        with self._opened(name) as home_fd:
            there = set(self._system.listdir(home_fd))
            for left in self._system.listdir(old_fd):
                if left not in there and left != DROPPED:
                    self._system.rename(left, left, dir_fd=old_fd, target_dir_fd=home_fd)
                elif left in ours:
                    self._system.unlink(left, dir_fd=old_fd)

    def _remove_folder(self, name: str, dir_fd: int) -> None:
        """Remove the last file of ours, and the folder if nothing of anybody's is left in it."""
        with contextlib.suppress(FileNotFoundError):
            self._system.unlink(DROPPED, dir_fd=dir_fd)
        try:
            self._system.rmdir(name, dir_fd=self._folder_fd)
        except OSError:
            if not (rest := self._system.listdir(dir_fd)):
                raise
            _log.info("%s stays: it holds files that asyncsave did not write: %s", name, ", ".join(sorted(rest)))
