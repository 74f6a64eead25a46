"""What the kernel can do with memory, small files and the page cache, without any checkpoint library.

The figures of every other module are ratios to these and to those of `asyncsave.bench.probes`. Each probe is as plain
as it can be and uses what the best program would use.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from asyncsave.bench.probes import THREADS, blocks, share, warm_pages
from asyncsave.bench.states import flatten

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class WarmCopy:
    """Copies every tensor of one state into one warm buffer, with two threads, in blocks of at most 16 MiB.

    The list of addresses is made up front, so that a run is the copying and nothing else. The state must outlive
    this object and its tensors must be contiguous.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        tensors = list(flatten(state).values())
        self.nbytes = sum(t.nbytes for t in tensors)
        self.memory = warm_pages(sum(-(-t.nbytes // PAGE) * PAGE for t in tensors))
        self._moves: list[tuple[int, int, int]] = []
        target = self.memory.address
        for tensor in tensors:
            for offset, size in blocks(tensor.nbytes):
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
        self.memory.close()


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
    sync(path.parent)


def sync(path: str | Path) -> None:
    """Make durable the bytes of a file that were written through another descriptor, or the names in a folder."""
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


def mapped(pid: int) -> dict[str, int]:
    """Return what a process has mapped, as the kernel adds it up by kind ("Pss_Anon", ...), in bytes.

    Nothing where there is no such sum: it is Linux that keeps it.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        return {}
    lines = rollup.read_text().splitlines()[1:]
    return {name: int(figure.split()[0]) * 1024 for name, _, figure in (line.partition(":") for line in lines)}


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
