"""What a folder's disk can do without any checkpoint library: one file written, flushed and read.

A probe is as plain as it can be and uses what the best program would use: a few threads, warm memory on huge pages,
``O_DIRECT`` in large blocks. Every other rate is a share of its rates.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from asyncsave.memory import Pages
from asyncsave.storage.system import System

__all__ = ["BLOCK", "THREADS", "RawDisk", "WriteTimes", "blocks", "share", "takes_direct", "warm_pages"]

THREADS = 2
BLOCK = 16 << 20
"""Bytes of one write or read."""
_PAGE = 4096
_NOISE = 1 << 20

Item = TypeVar("Item")


@dataclass(frozen=True)
class WriteTimes:
    """Seconds of the phases of one raw write."""

    allocate: float
    write: float
    sync: float

    @property
    def total(self) -> float:
        """All phases."""
        return self.allocate + self.write + self.sync


class RawDisk:
    """Writes and reads whole files of one folder from warm memory, with direct I/O.

    Where the file system refuses ``O_DIRECT`` the probe is buffered, as any program would have to be.

    Args:
        folder: The folder.
        memory: What is written, and where what is read goes: see :func:`warm_pages`.
        threads: How many write or read at once.
        block: Bytes that each of them moves in one call, a multiple of the page size.

    Attributes:
        direct: Whether the file system takes ``O_DIRECT``.
    """

    def __init__(
        self, folder: str | os.PathLike[str], memory: Pages, *, threads: int = THREADS, block: int = BLOCK
    ) -> None:
        self._folder = os.fspath(folder)
        self._view = memory.view
        self._block = block
        self._threads = threads
        self._system = System()
        self.direct = takes_direct(self._folder)
        self._flag = os.O_DIRECT if self.direct else 0
        self._pool = ThreadPoolExecutor(threads)

    def write(self, name: str, nbytes: int) -> WriteTimes:
        """Write a new file of ``nbytes``, rounded up to whole pages, and flush it and its folder.

        A file is no larger than the memory that it is written from. One that fails is removed.

        Raises:
            OSError: The disk is full, or whatever else it has to say.
        """
        nbytes = min(-(-nbytes // _PAGE) * _PAGE, len(self._view))
        path = os.path.join(self._folder, name)
        fd = self._system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | self._flag, 0o600)
        try:
            began = time.perf_counter()
            self._system.allocate(fd, nbytes)
            allocated = time.perf_counter()
            share(self._pool, blocks(nbytes, self._block), lambda part: self._write(fd, part), self._threads)
            written = time.perf_counter()
            self._system.fsync(fd)
            self._sync_folder()
            synced = time.perf_counter()
        except BaseException:
            self.remove(name)
            raise
        finally:
            self._system.close(fd)
        return WriteTimes(allocated - began, written - allocated, synced - written)

    def read(self, name: str) -> float:
        """Read a whole file into the memory; return the seconds it took. Without direct I/O the page cache answers."""
        path = os.path.join(self._folder, name)
        fd = self._system.open(path, os.O_RDONLY | os.O_CLOEXEC | self._flag)
        try:
            nbytes = self._system.fstat(fd).st_size
            self._system.uncache(fd)
            began = time.perf_counter()
            share(self._pool, blocks(nbytes, self._block), lambda part: self._read(fd, part), self._threads)
            return time.perf_counter() - began
        finally:
            self._system.close(fd)

    def remove(self, name: str) -> None:
        """Remove a file, and flush the folder, so that the next one does not pay for it."""
        with contextlib.suppress(FileNotFoundError):
            self._system.unlink(os.path.join(self._folder, name))
        self._sync_folder()

    def close(self) -> None:
        """End the threads; the memory stays the caller's."""
        self._pool.shutdown()

    def _sync_folder(self) -> None:
        fd = self._system.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._system.fsync(fd)
        finally:
            self._system.close(fd)

    def _write(self, fd: int, part: tuple[int, int]) -> None:
        offset, size = part
        written = self._system.pwrite(fd, self._view[offset : offset + size], offset)
        if written != size:
            raise OSError(f"the raw probe wrote {written} of {size} bytes at {offset}")

    def _read(self, fd: int, part: tuple[int, int]) -> None:
        offset, size = part
        room = -(-size // _PAGE) * _PAGE  # a direct read asks for whole pages; the last one ends early
        read = self._system.pread_into(fd, self._view[offset : offset + room], offset)
        if read != size:
            raise OSError(f"the raw probe read {read} of {size} bytes at {offset}")


def warm_pages(nbytes: int) -> Pages:
    """Return memory on huge pages, every page touched: what an arena that is in use looks like.

    Raises:
        OSError: There is not enough memory.
    """
    pages = Pages(-(-nbytes // _PAGE) * _PAGE)
    pages.touch(0, len(pages.view))
    noise = os.urandom(_NOISE)  # a disk that compresses gains nothing
    for offset in range(0, len(pages.view), _NOISE):
        room = pages.view[offset : offset + _NOISE]
        room[:] = noise[: len(room)]
    for offset in range(0, len(pages.view), _PAGE):  # and no two pages alike
        pages.view[offset : offset + 8] = (offset | 1).to_bytes(8, "little")
    return pages


def takes_direct(folder: str | os.PathLike[str]) -> bool:
    """Say whether the file system of a folder takes ``O_DIRECT``."""
    system = System()
    path = os.path.join(os.fspath(folder), f".asyncsave-{system.token()}.direct")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = system.open(path, flags | getattr(os, "O_DIRECT", 0), 0o600)
    except OSError:
        return False
    else:
        system.close(fd)
        return hasattr(os, "O_DIRECT")
    finally:
        with contextlib.suppress(OSError):
            system.unlink(path)


def blocks(nbytes: int, size: int = BLOCK) -> list[tuple[int, int]]:
    """Cut ``nbytes`` into ``(offset, nbytes)`` blocks of at most ``size`` bytes."""
    return [(offset, min(size, nbytes - offset)) for offset in range(0, nbytes, size)]


def share(
    pool: ThreadPoolExecutor, items: Sequence[Item], work: Callable[[Item], object], threads: int = THREADS
) -> None:
    """Let ``threads`` threads of a pool take the next item until none is left; raise the first error."""
    queue: Iterator[Item] = iter(items)  # one iterator for all threads: its `next` is atomic under the GIL

    def drain() -> None:
        for item in queue:
            work(item)

    running = [pool.submit(drain) for _ in range(threads)]
    try:
        wait(running)  # all: who works on is not left with a descriptor that the caller closes
    except BaseException:  # Ctrl-C: what has been begun is finished, and no more
        for _ in queue:
            pass
        wait(running)
        raise
    for done in running:
        done.result()
