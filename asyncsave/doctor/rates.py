"""How quick a folder's disk is: a raw probe, large and direct, and the flush of a small file."""

from __future__ import annotations

import statistics
import time

from asyncsave.bench.probes import RawDisk, warm_pages
from asyncsave.doctor.check import Check, fine, unknown, wrong
from asyncsave.doctor.scratch import Scratch
from asyncsave.storage.system import System

__all__ = ["RATES", "judge", "not_measured", "rates"]

RATES = ("write_mb_s", "read_mb_s", "flush_ms")

_FIRST = 16 << 20
_LONGEST = 10.0
"""Seconds that the large probe may take; on a disk where it would take longer the small one has to do."""
_FLUSHES = 5
_SLOWEST_MB_S, _SLOWEST_FLUSH_MS = 100.0, 100.0


def rates(scratch: Scratch, system: System, nbytes: int, *, free: int | None, headroom: int) -> list[Check]:
    """Measure the rates in a scratch folder that is there.

    Args:
        scratch: The folder.
        system: The operating system.
        nbytes: Size of the large probe's file, and of the memory that it is written from.
        free: Bytes that are free on the disk, if that is known.
        headroom: Bytes of memory that are free.

    Returns:
        Checks of :data:`RATES`.
    """
    if nbytes > headroom // 2:
        return not_measured("There is not enough memory for the probe: choose a smaller --size.")
    if free is not None and nbytes > free // 2:
        return not_measured("There is not enough room for the probe: free some, or choose a smaller --size.")
    try:
        write, read = _large(scratch, nbytes)
        return judge(write, read, _flush(scratch, system))
    except OSError as error:
        return not_measured(f"Look at this first, the probe failed: {error.strerror or error}.")


def judge(write: float, read: float, flush: float) -> list[Check]:
    """Say which rates are good enough.

    Args:
        write: MB/s, flush included.
        read: MB/s.
        flush: Seconds of one small file, written and flushed.
    """
    remedies = {
        "write_mb_s": "Save to a quicker disk, or less often: at this rate a checkpoint of 10 GB takes minutes.",
        "read_mb_s": "Look for a quicker disk: at this rate a restart waits minutes for a checkpoint of 10 GB.",
        "flush_ms": "Save to a disk that is not shared, or less often: every save has to wait for some flushes.",
    }
    found = dict(zip(RATES, (round(write, 1), round(read, 1), round(flush * 1e3, 3)), strict=True))
    good = {
        "write_mb_s": write >= _SLOWEST_MB_S,
        "read_mb_s": read >= _SLOWEST_MB_S,
        "flush_ms": flush * 1e3 <= _SLOWEST_FLUSH_MS,
    }
    return [fine(name, found[name]) if good[name] else wrong(name, found[name], remedies[name]) for name in RATES]


def not_measured(why: str) -> list[Check]:
    """Return the checks of rates that nobody has measured."""
    return [unknown(name, why) for name in RATES]


def _large(scratch: Scratch, nbytes: int) -> tuple[float, float]:
    """Return MB/s of writing and reading: of a small file if the disk is slow, else of one of ``nbytes``."""
    pages = warm_pages(nbytes)
    try:
        disk = RawDisk(scratch.path, pages)
        try:
            size = min(nbytes, _FIRST)
            seconds = disk.write("probe", size).total
            if size < nbytes and seconds * nbytes / size < _LONGEST:
                disk.remove("probe")
                size, seconds = nbytes, disk.write("probe", nbytes).total
            return size / seconds / 1e6, size / disk.read("probe") / 1e6
        finally:
            disk.close()
    finally:
        pages.close()


def _flush(scratch: Scratch, system: System) -> float:
    """Return the median seconds of writing and flushing a page."""
    fd = scratch.file("flush")
    try:
        times = []
        for number in range(_FLUSHES):
            began = time.perf_counter()
            system.pwrite(fd, memoryview(bytes(4096)), 4096 * number)
            system.fsync(fd)
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    finally:
        system.close(fd)
