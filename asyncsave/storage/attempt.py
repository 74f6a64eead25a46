"""What every attempt to put something at a target has in common: its folder, its errors, and forks."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from asyncsave.errors import SaveError
from asyncsave.storage.spare import Spares
from asyncsave.storage.system import System
from asyncsave.storage.target import Target

__all__ = ["FULL", "Attempt", "sync_folder"]

Self = TypeVar("Self", bound="Attempt")

FULL = {errno.ENOSPC, errno.EDQUOT}
"""The errors of a disk, or a quota, that is used up."""

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
_under_way: weakref.WeakSet[Attempt] = weakref.WeakSet()


def sync_folder(system: System, fd: int) -> bool:
    """Flush an open folder; False where the file system has no such thing."""
    try:
        system.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        return False
    return True


class Attempt(abc.ABC):
    """One attempt to put something at a target. Use it as a context manager.

    A forked child closes what it inherits of it: it would hold its locks, and the blocks of what is replaced.

    Args:
        system: The operating system.
        target: What is to be replaced or made.
        sync: Whether to flush to the medium.
        spares: Files that nobody needs any more, to write over; None: there are none.

    Attributes:
        durable: After a commit: whether what was made survives a power cut, as far as can be told.
    """

    durable: bool

    def __init__(self, system: System, target: Target, *, sync: bool, spares: Spares | None) -> None:
        self._spares = spares
        self._system = system
        self._target = target
        self._sync = sync
        self._folder = -1
        self.durable = False
        _under_way.add(self)

    def __enter__(self: Self) -> Self:  # noqa: PYI019 - Python 3.10 has no typing.Self
        """Open it."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    @abc.abstractmethod
    def open(self) -> None:
        """Make what is temporary."""

    @abc.abstractmethod
    def close(self) -> None:
        """Remove what was not committed. Idempotent; raises nothing."""

    @abc.abstractmethod
    def descriptors(self) -> list[int]:
        """Return what is open; -1 for what is not."""

    def _close_all(self) -> None:
        """Close what is open. The one close that has something to report is in the commit."""
        for fd in self.descriptors():
            if fd >= 0:
                with contextlib.suppress(OSError):
                    self._system.close(fd)

    def _open_folder(self) -> int:
        """Open the target's folder; one that may be written to but not listed cannot be synced either."""
        flags = os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return self._system.open(self._target.folder, os.O_RDONLY | flags)
        except PermissionError:
            if not hasattr(os, "O_PATH"):
                raise
            return self._system.open(self._target.folder, os.O_PATH | flags)

    def _allocate(self, fd: int, nbytes: int) -> None:
        """Reserve the blocks of a file, at the cost of the spare if need be."""
        if not nbytes:
            return
        try:
            self._system.allocate(fd, nbytes)
        except OSError as error:
            if error.errno not in FULL or self._spares is None or not self._spares.drop():
                raise
            self._system.allocate(fd, nbytes)

    def _sync_folder(self, fd: int, *, outcome: str) -> bool:
        """Flush an open folder; False where the file system has no such thing."""
        with self._phase("sync folder", outcome=outcome):
            return sync_folder(self._system, fd)

    def _take_the_name(self, name: str, fd: int) -> None:
        """Give what has a temporary name that of the target; ``fd`` is the same, open."""
        try:
            self._system.rename(name, self._target.name, dir_fd=self._folder)
        except FileNotFoundError:
            # A network file system may send a rename twice and report the second one's failure.
            there = self._system.stat(self._target.name, dir_fd=self._folder)
            if not os.path.samestat(there, self._system.fstat(fd)):
                raise

    @contextlib.contextmanager
    def _phase(self, phase: str, *, outcome: str = "not_committed") -> Iterator[None]:
        try:
            yield
        except SaveError:
            raise
        except OSError as error:
            raise SaveError.of(error, path=self._target.path, phase=phase, outcome=outcome) from error


def _let_go_in_child() -> None:
    for attempt in list(_under_way):
        for fd in attempt.descriptors():
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
    _under_way.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
