"""A file on its way to take its target's place: whole or not at all, and durable when it says so.

The steps, each on the descriptor of the step before (P1 to P6 of docs/guarantees.md):

1. a temporary file beside the target, new (``O_EXCL``), no link followed, locked while it lives;
2. its blocks reserved, so that a full disk is known before a byte is written;
3. the bytes, and a look at the size they made;
4. ``fsync`` of this very descriptor. The kernel reports a failed write-back once and then lies, so a
   failed sync is never repeated: the file is given up, and a later save writes a new one;
5. a ``close`` of a duplicate, because some file systems report a full disk only there. The
   descriptor itself stays open, since its lock is what tells a sweeper that the file is alive;
6. ``rename`` over the target, ``fsync`` of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from asyncsave.storage.attempt import Attempt
from asyncsave.storage.mounts import is_durable
from asyncsave.storage.spare import SPARE_FROM, Spares
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.storage.temporary import new_name

__all__ = ["Replacement"]

_ATTEMPTS = 16


class Replacement(Attempt):
    """One attempt to put a new file at a target. Use it as a context manager.

    Leaving the ``with`` block without :meth:`commit` removes the temporary file and leaves the old
    one untouched. After a commit, the old file's blocks are freed on leaving the block: freeing a
    large file takes a tenth of a second, and nobody needs to wait for that.

    Args:
        system: The operating system.
        target: What is to be replaced or made.
        nbytes: Size of the new file.
        sync: Whether to flush file and folder.
        spares: Replaced files to overwrite, and where to keep this one's; None: neither.

    Attributes:
        fd: The temporary file, open for reading and writing.
        durable: After a commit: whether the new file survives a power cut, as far as can be told.
    """

    fd: int

    def __init__(
        self, system: System, target: Target, nbytes: int, *, sync: bool, spares: Spares | None = None
    ) -> None:
        super().__init__(system, target, sync=sync, spares=spares)
        self._nbytes = nbytes
        self._synced = False
        self._name: str | None = None
        self._old = self.fd = -1
        self._old_mode: int | None = None

    @property
    def temporary(self) -> str:
        """Path of the temporary file, while there is one."""
        return os.path.join(self._target.folder, self._name or "")

    def open(self) -> None:
        """Make the temporary file and reserve its blocks.

        Raises:
            SaveError: That failed, and nothing is left of it.
        """
        try:
            with self._phase("open"):
                self._folder = self._open_folder()
                self._old_mode = self._mode_of_target()
                if not self._recycle():
                    self._create()
            with self._phase("allocate"):
                self._allocate(self.fd, self._nbytes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove what was not committed, and let go of the old file. Idempotent; raises nothing."""
        if self._name is not None:
            with contextlib.suppress(OSError):
                self._system.unlink(self._name, dir_fd=self._folder)
            self._name = None
        self._close_all()
        self._folder = self._old = self.fd = -1

    def descriptors(self) -> list[int]:
        """Return what is open; -1 for what is not."""
        return [self.fd, self._old, self._folder]

    def _mode_of_target(self) -> int | None:
        """Return the mode bits of the file to be replaced, if there is one."""
        try:
            found = self._system.stat(self._target.name, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        return stat.S_IMODE(found.st_mode)

    def _recycle(self) -> bool:
        """Take the folder's spare as the temporary file, if there is one that may be overwritten."""
        if self._spares is None or self._old_mode is None or self._nbytes < SPARE_FROM:
            return False
        spare = self._spares.take(self._folder)
        if spare is None:
            return False
        self._name, self.fd = spare
        self._system.chmod(self.fd, self._old_mode)
        if self._system.fstat(self.fd).st_size > self._nbytes:
            self._system.truncate(self.fd, self._nbytes)
        return True

    def _create(self) -> None:
        """Open and lock a temporary file, with the mode that the final file is to have."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(_ATTEMPTS):
            name = new_name(self._system)
            try:
                mode = 0o666 if self._old_mode is None else self._old_mode
                fd = self._system.open(name, flags, mode, dir_fd=self._folder)
            except FileExistsError:
                continue
            try:
                if self._old_mode is not None:
                    self._system.chmod(fd, self._old_mode)  # what the umask took away
                # Between the open and the lock a sweeper may have taken the file for a dead one
                # and removed it: it has no name then, and another one is made.
                alive = self._system.lock(fd) and self._system.fstat(fd).st_nlink > 0
            except BaseException:
                self._system.close(fd)
                with contextlib.suppress(OSError):
                    self._system.unlink(name, dir_fd=self._folder)
                raise
            if alive:
                self.fd, self._name = fd, name
                return
            self._system.close(fd)
        raise OSError(errno.EEXIST, "no free name for a temporary file")

    def sync(self) -> None:
        """Flush the file, once; before the commit, for who wants to read it back from the disk.

        Raises:
            SaveError: That failed: the file must be given up.
        """
        if self._sync and not self._synced:
            with self._phase("sync"):
                self._system.fsync(self.fd)
            self._synced = True

    def commit(self) -> None:
        """Make the new file the target.

        Raises:
            SaveError: It is not, with outcome ``"not_committed"``; or it is, but the sync of the
                folder failed: ``"durability_unknown"``.
        """
        name = self._name
        if name is None:
            return
        with self._phase("write"):
            found = self._system.fstat(self.fd).st_size
            if found != self._nbytes:
                raise OSError(errno.EIO, f"wrote {self._nbytes} bytes, the file has {found}")
        self.sync()
        with self._phase("close"):
            self._system.close(self._system.duplicate(self.fd))
        with self._phase("rename"):
            keeps_old = self._replace_old(name)
        synced = self._sync and self._sync_folder(self._folder, outcome="durability_unknown")
        self.durable = synced and is_durable(self._target.folder)
        if keeps_old and synced and self._spares is not None:
            with contextlib.suppress(OSError):
                self._system.chmod(self._old, 0o600)  # nobody may go on reading what was replaced
            if self._spares.keep(self._folder, name, self._old):
                self._name, self._old = None, -1

    def _replace_old(self, name: str) -> bool:
        """Become the target; tell whether the old file has the temporary name now, as a spare."""
        self._old = self._open_old()
        if self._old >= 0 and self._may_keep_old():
            with contextlib.suppress(FileNotFoundError):
                if self._system.exchange(name, self._target.name, dir_fd=self._folder):
                    return True
        self._take_the_name(name, self.fd)
        self._name = None
        return False

    def _open_old(self) -> int:
        """Open the file to be replaced, so that its blocks outlive the rename; -1 if that fails."""
        flags = os.O_RDONLY if self._spares is None else os.O_RDWR
        try:
            return self._system.open(
                self._target.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder
            )
        except OSError:
            return -1

    def _may_keep_old(self) -> bool:
        """Tell whether the old file is one of ours alone, and take the lock that a spare needs."""
        with contextlib.suppress(OSError):
            return (
                self._spares is not None
                and self._sync
                and self._nbytes >= SPARE_FROM
                and self._system.fstat(self._old).st_size >= SPARE_FROM
                and self._spares.may_keep(self._target.folder, self._old)
                and self._system.lock(self._old)
            )
        return False
