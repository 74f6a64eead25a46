"""A checkpoint to be read: a file (past the page cache where that works), or bytes in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Protocol

from asyncsave.errors import AsyncSaveError, CheckpointNotFoundError, CorruptCheckpointError, LoadError
from asyncsave.storage.blocks import DIRECT_FROM, read_into
from asyncsave.storage.system import System

__all__ = ["FileSource", "MemorySource", "Source", "open_source"]


class Source(Protocol):
    """Bytes of known size."""

    path: str
    nbytes: int

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``."""

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill a page-aligned buffer from a page-aligned offset, up to the end of the source."""


class MemorySource:
    """A checkpoint that is in memory already."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.nbytes = len(data)
        self._data = memoryview(data)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return a copy of some of the bytes."""
        return bytes(self._data[offset : offset + nbytes])

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Copy bytes into a buffer."""
        part = self._data[offset : offset + len(buffer)]
        buffer[: len(part)] = part


class FileSource:
    """A regular file. Large reads go past the page cache where the file system lets them.

    Args:
        system: The operating system.
        path: The file, absolute.
        fd: The file, open for reading.
        direct_fd: The same with direct I/O, or None.
    """

    def __init__(self, system: System, path: str, fd: int, direct_fd: int | None) -> None:
        self.path = path
        self.nbytes = system.fstat(fd).st_size
        self._system = system
        self.fd = fd
        self._direct_fd = direct_fd

    def read(self, offset: int, nbytes: int) -> bytes:
        """Read a few bytes through the page cache."""
        buffer = bytearray(nbytes)
        self._check(read_into(self._system, self.fd, memoryview(buffer), offset), nbytes, offset)
        return bytes(buffer)

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Read a large block, straight into the buffer."""
        expected = min(len(buffer), self.nbytes - offset)
        if self._direct_fd is not None:
            try:
                found = read_into(self._system, self._direct_fd, buffer, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                self._check(found, expected, offset)
                return
        found = read_into(self._system, self.fd, buffer[:expected], offset)
        self._check(found, expected, offset)

    def _check(self, found: int, expected: int, offset: int) -> None:
        if found < expected:
            message = (
                f"{self.path!r} became shorter while it was read: expected {expected} bytes at {offset}, found {found}"
            )
            raise CorruptCheckpointError(message, path=self.path, expected=f"{expected} bytes", found=f"{found} bytes")


@contextlib.contextmanager
def open_source(path: str, *, system: System | None = None) -> Iterator[FileSource]:
    """Open a checkpoint for reading.

    Its clean pages are asked to leave the page cache first, so that what is read, and checked, is
    what the disk holds.

    Raises:
        CheckpointNotFoundError: There is no such file.
        LoadError: It is a folder, a FIFO or a device, may not be read, or the disk failed.
    """
    system = system or System()
    absolute = os.path.abspath(path)
    with contextlib.ExitStack() as opened:
        try:
            # Without O_NONBLOCK the open of a FIFO would hang.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            fd = system.open(absolute, flags)
            opened.callback(system.close, fd)
            if not stat.S_ISREG(mode := system.fstat(fd).st_mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a socket or a device"
                message = f"cannot load {absolute!r}: it is {kind}, not a file"
                raise LoadError(message, path=absolute)
            direct_fd = None
            if system.fstat(fd).st_size >= DIRECT_FROM:
                system.uncache(fd)
                with contextlib.suppress(OSError):
                    direct_fd = system.open(absolute, flags | getattr(os, "O_DIRECT", 0))
                    opened.callback(system.close, direct_fd)
            yield FileSource(system, absolute, fd, direct_fd)
        except AsyncSaveError:  # of whoever reads, or of what he does with it
            raise
        except FileNotFoundError as error:
            message = f"there is no checkpoint at {absolute!r}"
            raise CheckpointNotFoundError(message, path=absolute) from error
        except OSError as error:
            message = f"cannot read {absolute!r}: {error.strerror or error}"
            raise LoadError(message, path=absolute) from error
        except ValueError as error:
            message = f"cannot load {path!r}: {error}"
            raise LoadError(message, path=path) from error
