"""Move an image between memory and a file in large blocks, in parallel and past the page cache.

Direct I/O costs training a fifteenth of the CPU time that the page cache does, and reaches the
disk's own rate with two threads of large blocks (measured, see docs/benchmarks.md). Where a file
system refuses it, at run time and for this one file, the same blocks go through the page cache.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from asyncsave.image.layout import PAGE
from asyncsave.storage.system import System
from asyncsave.workers import Workers

__all__ = ["BLOCK", "DIRECT_FROM", "read_into", "write_all", "write_image"]

BLOCK = 64 << 20
"""Bytes of one write. Of 16 MiB blocks training feels a fifth more, each wakes a thread (measured)."""
DIRECT_FROM = 1 << 20
"""Files of fewer bytes go through the page cache: one flush of it is quicker than two writes."""


def write_all(system: System, fd: int, data: memoryview, offset: int) -> None:
    """Write every byte, however many calls that takes."""
    while data:
        written = system.pwrite(fd, data, offset)
        if written <= 0:
            raise OSError(errno.EIO, "a write wrote nothing")
        data, offset = data[written:], offset + written


def write_image(
    system: System,
    fd: int,
    image: memoryview,
    nbytes: int,
    workers: Workers,
    progress: Callable[[int], None],
) -> None:
    """Write the first ``nbytes`` bytes of an image into an empty file, and nothing behind them.

    Args:
        system: The operating system.
        fd: The file, open for writing.
        image: Page-aligned, at least ``nbytes`` rounded up to a page.
        nbytes: The file's size.
        workers: Who writes.
        progress: Called with the bytes of each block when they are written, on the worker's thread.
    """
    direct = threading.Event()
    if nbytes >= DIRECT_FROM and system.set_direct(fd, direct=True):
        direct.set()
    # A direct write moves whole pages; what it writes behind the end is cut off below.
    padded = (nbytes + PAGE - 1) & -PAGE if direct.is_set() else nbytes

    def write(offset: int) -> None:
        block = image[offset : min(offset + BLOCK, padded)]
        try:
            write_all(system, fd, block, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct.is_set():
                raise
            # The file system took the flag and refuses the write. One thread finds out first; the
            # others, whose blocks fail meanwhile, find the flag cleared and write again too.
            system.set_direct(fd, direct=False)
            write_all(system, fd, block, offset)
        progress(min(offset + BLOCK, nbytes) - offset)

    workers.each(write, range(0, padded, BLOCK))
    if direct.is_set():
        system.set_direct(fd, direct=False)
    if padded != nbytes:
        system.truncate(fd, nbytes)


def read_into(system: System, fd: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from a file; return the bytes read, fewer only where the file ends."""
    done = 0
    while done < len(buffer):
        count = system.pread_into(fd, buffer[done:], offset + done)
        if count == 0:
            break
        done += count
        if count % PAGE:
            # A direct read that stopped inside a page has met the file's end; going on from here
            # would be unaligned. A buffered one is allowed another turn, which finds the end.
            end = system.fstat(fd).st_size
            if offset + done >= end:
                break
    return done
