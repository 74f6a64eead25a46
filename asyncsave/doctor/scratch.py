"""A folder for trials, in the folder that is looked at; it goes with all that is in it, whatever happens."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from asyncsave.storage.system import System
from asyncsave.storage.temporary import new_name

__all__ = ["Scratch"]


class Scratch:
    """A temporary folder that asyncsave's own sweeping leaves alone for as long as it is locked.

    Use it as a context manager, twice at once (``with scratch, scratch:``): Ctrl-C between two lines of the first
    removal then finds the second one still to come.

    Args:
        system: The operating system.
        folder: Where it is to be, absolute.

    Attributes:
        path: The temporary folder; nothing is there before :meth:`make`.
    """

    def __init__(self, system: System, folder: str) -> None:
        self.path = os.path.join(folder, new_name(system))
        self.fd = -1
        self._system = system

    def make(self) -> None:
        """Make the folder.

        Raises:
            OSError: It cannot be made.
        """
        self._system.mkdir(self.path)
        self.fd = self._system.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks is a finding, not the end
            self._system.lock(self.fd)

    def file(self, name: str) -> int:
        """Make a file in it; return it, open for reading and writing. Whoever asks closes it.

        Raises:
            OSError: It cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return self._system.open(name, flags, 0o600, dir_fd=self.fd)

    def __enter__(self) -> Scratch:  # noqa: PYI034 - not made for subclasses
        """Return it; nothing is made yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it and what is in it."""
        with contextlib.suppress(FileNotFoundError):
            fd = self._system.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                for name in self._system.listdir(fd):
                    with contextlib.suppress(FileNotFoundError):
                        self._system.unlink(name, dir_fd=fd)
            finally:
                self._system.close(fd)
            self._system.rmdir(self.path)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._system.close(fd)
