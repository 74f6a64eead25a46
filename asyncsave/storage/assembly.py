"""A folder of files on its way to its place: all of them appear at once, durable, or none does.

The steps, each after all of the step before:

1. a temporary folder beside the target, locked while it lives;
2. its files, new (``O_EXCL``), their blocks reserved before a byte is written;
3. one flush for many: every file is handed to the disk as soon as it is written, all are flushed
   together, several at once, so that they share the journal's commits (measured: a quarter of the time of one
   durable file after the other). A failed flush gives up the whole folder;
4. the size of each, and a checked ``close``;
5. ``fsync`` of the temporary folder, ``rename`` to its place, ``fsync`` of the folder above.

A folder that is there already changes places with the new one in one step (``RENAME_EXCHANGE``). Where
the system has no such call, it steps aside first: whoever is killed in between leaves both under
temporary names, whole, for the next to find.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

from asyncsave.storage.attempt import Attempt
from asyncsave.storage.blocks import DIRECT_FROM
from asyncsave.storage.mounts import is_durable
from asyncsave.storage.spare import SPARE_FROM, Spares
from asyncsave.storage.system import System
from asyncsave.storage.target import Target, umask
from asyncsave.storage.temporary import new_name
from asyncsave.workers import Workers

__all__ = ["UNFINISHED", "Assembly"]

UNFINISHED = ".unfinished"
"""An empty file in every temporary folder until all else is in it: where it is, everything is ours."""

_MANY = 16
"""From so many files on more threads are worth their start."""
_FLUSHING = 8
"""Files that are flushed at once then (measured: four at once take a third longer)."""
_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Added(NamedTuple):
    """A file that is not flushed yet."""

    name: str
    fd: int
    nbytes: int


class Assembly(Attempt):
    """One attempt to put a new folder at a target. Use it as a context manager.

    Several threads may add files at once; everything else is for one.

    Leaving the ``with`` block without :meth:`commit` removes what was made and leaves a folder that
    is at the target untouched.

    Args:
        system: The operating system.
        target: What is to be replaced or made.
        workers: Who flushes.
        sync: Whether to flush.
        spares: Files that nobody needs any more, to overwrite; None: make new ones.

    Attributes:
        replaced: After a commit: the temporary name of the folder that was at the target; None: there was none.
            It is the caller's to remove.
    """

    def __init__(
        self, system: System, target: Target, workers: Workers, *, sync: bool, spares: Spares | None = None
    ) -> None:
        super().__init__(system, target, sync=sync, spares=spares)
        self._workers = workers
        self._name: str | None = None
        self._fd = self._old = -1
        self._names: list[str] = []
        self._added: list[_Added] = []
        self._is_marked = False
        self.replaced: str | None = None

    def open(self) -> None:
        """Make the temporary folder.

        Raises:
            SaveError: That failed, and nothing is left of it.
        """
        try:
            with self._phase("open"):
                self._folder = self._open_folder()
                while not self._make():
                    pass
        except BaseException:
            self.close()
            raise

    def _make(self) -> bool:
        """Make and lock a folder; False if a sweeper took it for a dead one before it was locked."""
        name = new_name(self._system)
        self._system.mkdir(name, dir_fd=self._folder)
        self._name = name
        try:
            self._fd = self._system.open(name, _FOLDER, dir_fd=self._folder)
        except FileNotFoundError:
            self._name = None
            return False
        try:
            alive = self._system.lock(self._fd) and self._system.fstat(self._fd).st_nlink > 0
        except OSError:  # a file system without locks: then nobody sweeps there either
            alive = True
        if not alive:
            self._system.close(self._fd)
            self._name, self._fd = None, -1
            return False
        self._mark()
        return True

    def _mark(self) -> None:
        self._is_marked = True
        self._system.close(self._system.open(UNFINISHED, _FILE, dir_fd=self._fd))

    def close(self) -> None:
        """Remove what was not committed. Idempotent; raises nothing."""
        if self._name is not None:
            with contextlib.suppress(OSError):
                self._clear(self._name)
            self._name = None
        self._close_all()
        self._added = []
        self._folder = self._fd = self._old = -1

    def _clear(self, name: str) -> None:
        """Remove the temporary folder. Until the last file has gone the marker says that all of it is ours."""
        if self._fd >= 0 and not self._is_marked:
            self._mark()
        left = False
        for file in self._names:
            try:
                self._system.unlink(file, dir_fd=self._fd)
            except FileNotFoundError:
                pass
            except OSError:
                left = True
        if not left:
            if self._fd >= 0:
                with contextlib.suppress(FileNotFoundError):
                    self._system.unlink(UNFINISHED, dir_fd=self._fd)
            self._system.rmdir(name, dir_fd=self._folder)

    def descriptors(self) -> list[int]:
        """Return what is open; -1 for what is not."""
        return [*(added.fd for added in self._added), self._fd, self._old, self._folder]

    def add(self, name: str, nbytes: int, *, recycle: bool = False) -> int:
        """Make a file; return it, open for writing until the next :meth:`flush`.

        Args:
            name: Its name in the folder.
            nbytes: How many bytes will be written to it.
            recycle: Whether it may be made of a spare.

        Raises:
            SaveError: That failed.
        """
        with self._phase("open"):
            fd = self._recycled(name, nbytes) if recycle else -1
            if fd < 0:
                fd = self._system.open(name, _FILE, 0o666, dir_fd=self._fd)
                self._names.append(name)
            self._added.append(_Added(name, fd, nbytes))
        if nbytes >= DIRECT_FROM:  # a smaller one gets its blocks as it goes
            with self._phase("allocate"):
                self._allocate(fd, nbytes)
        return fd

    def hand_over(self, fd: int) -> None:
        """Let the disk begin with a file whose bytes are there, before it is flushed."""
        if self._sync:
            with contextlib.suppress(OSError):  # what fails is found by the flush
                self._system.write_back(fd)

    def flush(self) -> None:
        """Flush every file that was added since the last time, hold its size against what was promised, and close it.

        Raises:
            SaveError: That failed: the folder must be given up.
        """
        added, system = self._added, self._system
        with self._phase("write"):
            for name, fd, nbytes in added:
                found = system.fstat(fd).st_size
                if found != nbytes:
                    raise OSError(errno.EIO, f"wrote {nbytes} bytes of {name}, the file has {found}")
        if self._sync:
            # Whoever flushes waits for the disk, and flushes that wait together are one to it.
            many = Workers(_FLUSHING, "asyncsave-flush") if len(added) >= _MANY else None
            try:
                with self._phase("sync"):
                    (many or self._workers).each(lambda file: system.fsync(file.fd), added)
            finally:
                if many is not None:
                    many.close()
        with self._phase("close"):
            while added:
                system.close(added.pop().fd)

    def commit(self) -> None:
        """Put the folder in its place.

        Raises:
            SaveError: It is not, with outcome ``"not_committed"``; or it is, but the sync of the
                folder above failed: ``"durability_unknown"``.
        """
        name = self._name
        if name is None:
            return
        self.flush()
        with self._phase("rename"):
            self._system.unlink(UNFINISHED, dir_fd=self._fd)
            self._is_marked = False
        synced = self._sync and self._sync_folder(self._fd, outcome="not_committed")
        with self._phase("rename"):
            self.replaced = self._change_places(name)
            self._name = None
        synced = self._sync and self._sync_folder(self._folder, outcome="durability_unknown") and synced
        self.durable = synced and is_durable(self._target.folder)
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            self._system.close(fd)  # and with it goes the lock: it is a step like any other from here on

    def _change_places(self, name: str) -> str | None:
        """Take the target's place; return the temporary name of what was there."""
        try:
            self._old = self._system.open(self._target.name, _FOLDER, dir_fd=self._folder)
        except FileNotFoundError:
            self._take_the_name(name, self._fd)
            return None
        with contextlib.suppress(OSError):
            self._system.lock(self._old)  # as long as it is being taken apart
        if self._system.exchange(name, self._target.name, dir_fd=self._folder):
            return name
        aside = new_name(self._system)
        self._system.rename(self._target.name, aside, dir_fd=self._folder)
        try:
            self._take_the_name(name, self._fd)
        except BaseException:
            self._system.rename(aside, self._target.name, dir_fd=self._folder)
            raise
        return aside

    def _recycled(self, name: str, nbytes: int) -> int:
        """Make a file of the spare; -1 if there is none that may be overwritten."""
        if self._spares is None or nbytes < SPARE_FROM or (mask := umask()) < 0:
            return -1
        spare = self._spares.take(self._folder)
        if spare is None:
            return -1
        temporary, fd = spare
        try:
            try:
                self._system.rename(temporary, name, dir_fd=self._folder, target_dir_fd=self._fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._system.unlink(temporary, dir_fd=self._folder)
                raise
            self._names.append(name)
            self._system.chmod(fd, 0o666 & ~mask)
            if self._system.fstat(fd).st_size > nbytes:
                self._system.truncate(fd, nbytes)
        except BaseException:
            self._system.close(fd)
            raise
        return fd
