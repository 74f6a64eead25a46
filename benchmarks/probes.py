"""What this machine can do without any checkpoint library: copies of memory, writes and reads of one file.

The figures of every other module are ratios to these. Each probe is as plain as it can be and uses what the best
program would use: two threads, warm memory on huge pages, ``O_DIRECT`` in blocks of 16 MiB.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.states import flatten

THREADS = 2
BLOCK = 16 * 1024 * 1024
PAGE = 4096
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python's mmap module has no name for it.
_libc = ctypes.CDLL(None, use_errno=True)

Item = TypeVar("Item")


class HugeBuffer:
    """Private anonymous memory on huge pages, every page touched: what an arena that is in use looks like.

    Where the kernel knows no huge pages or no populating, the pages are touched one by one instead.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-nbytes // PAGE) * PAGE
        self._map = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            for offset in range(0, self.nbytes, PAGE):
                self._map[offset] = 0
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Give the memory back."""
        self.view.release()
        del self._anchor
        self._map.close()


class WarmCopy:
    """Copies every tensor of one state into one warm buffer, with two threads, in blocks of at most 16 MiB.

    The list of addresses is made up front, so that a run is the copying and nothing else. The state must outlive
    this object and its tensors must be contiguous.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        tensors = list(flatten(state).values())
        self.nbytes = sum(t.nbytes for t in tensors)
        self.buffer = HugeBuffer(sum(-(-t.nbytes // PAGE) * PAGE for t in tensors))
        self._moves: list[tuple[int, int, int]] = []
        target = self.buffer.address
        for tensor in tensors:
            for offset in range(0, tensor.nbytes, BLOCK):
                size = min(BLOCK, tensor.nbytes - offset)
                self._moves.append((target + offset, tensor.data_ptr() + offset, size))
            target += -(-tensor.nbytes // PAGE) * PAGE
        self._pool = ThreadPoolExecutor(THREADS)
        self.run()

    def run(self) -> float:
        """Copy once; return the seconds it took."""
        began = time.perf_counter()
        share(self._pool, self._moves, lambda move: ctypes.memmove(*move))
        return time.perf_counter() - began

    def close(self) -> None:
        """Give memory and threads back."""
        self._pool.shutdown()
        self.buffer.close()


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
    """Writes and reads whole files with direct I/O from one warm buffer, two threads, blocks of 16 MiB.

    Where the file system refuses ``O_DIRECT``, the probe is buffered, as any program would have to be, and
    ``direct`` is False.
    """

    def __init__(self, folder: Path, buffer: HugeBuffer) -> None:
        self.buffer = buffer
        self.direct = takes_direct(folder)
        self._flag = os.O_DIRECT if self.direct else 0
        self._pool = ThreadPoolExecutor(THREADS)

    def write(self, path: Path, nbytes: int) -> WriteTimes:
        """Write a new file of ``nbytes``, rounded up to whole pages, and sync it and its folder."""
        nbytes = min(-(-nbytes // PAGE) * PAGE, self.buffer.nbytes)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | self._flag, 0o644)
        try:
            began = time.perf_counter()
            os.posix_fallocate(fd, 0, nbytes)
            allocated = time.perf_counter()
            share(self._pool, blocks(nbytes), lambda part: self._write_block(fd, part))
            written = time.perf_counter()
            os.fsync(fd)
            sync_folder(path.parent)
            synced = time.perf_counter()
        finally:
            os.close(fd)
        return WriteTimes(allocated - began, written - allocated, synced - written)

    def read(self, path: Path) -> float:
        """Read the whole file into the buffer; return the seconds it took."""
        nbytes = path.stat().st_size
        fd = os.open(path, os.O_RDONLY | self._flag)
        try:
            began = time.perf_counter()
            share(self._pool, blocks(nbytes), lambda part: self._read_block(fd, part))
            return time.perf_counter() - began
        finally:
            os.close(fd)

    def close(self) -> None:
        """End the threads; the buffer stays the caller's."""
        self._pool.shutdown()

    def _write_block(self, fd: int, part: tuple[int, int]) -> None:
        offset, size = part
        written = os.pwrite(fd, self.buffer.view[offset : offset + size], offset)
        if written != size:
            message = f"the raw probe wrote {written} of {size} bytes at {offset}"
            raise OSError(message)

    def _read_block(self, fd: int, part: tuple[int, int]) -> None:
        offset, size = part
        room = -(-size // PAGE) * PAGE  # a direct read asks for whole pages; the last one ends early
        read = os.preadv(fd, [self.buffer.view[offset : offset + room]], offset)
        if read != size:
            message = f"the raw probe read {read} of {size} bytes at {offset}"
            raise OSError(message)


def bare_write(path: Path, payload: bytes) -> None:
    """Replace a small file durably and atomically, with nothing else: write, fsync, rename, fsync of the folder."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, payload)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable, as seen from a program that wrote it through another descriptor."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def drop_cache(path: Path) -> float:
    """Drop a file from the page cache; return the share of it that is still resident (0.0 is cold)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return _resident(fd)
    finally:
        os.close(fd)


def takes_direct(folder: Path) -> bool:
    """Say whether the file system of a folder takes ``O_DIRECT``."""
    path = folder / ".direct-probe"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    except OSError:
        return False
    else:
        os.close(fd)
        return True
    finally:
        path.unlink(missing_ok=True)


def mapped(pid: int) -> dict[str, int]:
    """Return what a process has mapped, as the kernel adds it up by kind ("Pss_Anon", ...), in bytes.

    Nothing where there is no such sum: it is Linux that keeps it.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        return {}
    lines = rollup.read_text().splitlines()[1:]
    return {name: int(figure.split()[0]) * 1024 for name, _, figure in (line.partition(":") for line in lines)}


def blocks(nbytes: int) -> list[tuple[int, int]]:
    """Cut ``nbytes`` into ``(offset, size)`` blocks of at most 16 MiB."""
    return [(offset, min(BLOCK, nbytes - offset)) for offset in range(0, nbytes, BLOCK)]


def share(pool: ThreadPoolExecutor, items: Sequence[Item], work: Callable[[Item], object]) -> None:
    """Let every thread of the pool take the next item until none is left; raise the first error."""
    queue = iter(items)  # one iterator for all threads: its `next` is atomic under the GIL

    def drain() -> None:
        for item in queue:
            work(item)

    for done in [pool.submit(drain) for _ in range(THREADS)]:
        done.result()


def _resident(fd: int) -> float:
    """Return the share of a file's pages that lie in the page cache."""
    nbytes = os.fstat(fd).st_size
    pages = -(-nbytes // PAGE)
    with mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY) as view:
        anchor = ctypes.c_char.from_buffer(view)
        flags = (ctypes.c_ubyte * pages)()
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(nbytes), flags)
        del anchor
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(flag & 1 for flag in flags) / pages
