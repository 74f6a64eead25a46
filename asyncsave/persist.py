"""Seal an image and store it: what every backend calls. No tensor is known here.

Order is what makes a save safe: checksums of the bytes in memory first, then the file, then its
sync, then its name. The result is handed over while the old file's blocks are still held, because
nobody needs to wait for their release.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncsave.errors import SaveError
from asyncsave.image.crc import crc32
from asyncsave.image.layout import Layout
from asyncsave.image.torchzip import seal
from asyncsave.result import SaveResult
from asyncsave.storage.blocks import write_image
from asyncsave.storage.replacement import Replacement
from asyncsave.storage.sink import Sink, write_stream
from asyncsave.storage.spare import Spares
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.workers import Workers

__all__ = ["Job", "persist"]


@dataclass(slots=True)
class Job:
    """One staged checkpoint, and where it is to go.

    Attributes:
        image: The arena: page-aligned, the records' bytes in place, headers not yet.
        layout: Where everything lies.
        crcs: CRC-32 of each record, None where it is still to be taken.
        target: A file to be replaced whole, or a file object to be written to.
        path: How the result names the target.
        sync: Whether to flush to the medium.
        timings: Seconds per phase so far; the phases below are added.
        started: ``time.perf_counter()`` of the call.
        after: Earlier saves of the same target, which must come first.
        memory: A descriptor of the image's memory, for who shares it; -1 where nobody can.
    """

    image: memoryview
    layout: Layout
    crcs: list[int | None]
    target: Target | Sink
    path: str
    sync: bool
    timings: dict[str, float]
    started: float
    after: Sequence[concurrent.futures.Future[SaveResult]] = ()
    memory: int = -1


def persist(
    job: Job,
    system: System,
    workers: Workers,
    *,
    spares: Spares | None = None,
    progress: Callable[[int], None],
    finish: Callable[[SaveResult], None],
) -> None:
    """Make a staged image a checkpoint; call ``finish`` once it is in place.

    Args:
        job: What to store.
        system: The operating system.
        workers: Who takes checksums and writes blocks.
        spares: Replaced files whose blocks may be written again.
        progress: Called with the bytes of each block that was written.
        finish: Called with the result when the checkpoint is in place, before the old one's blocks
            are freed.

    Raises:
        SaveError: Nothing was committed, or the durability of what was is unknown. ``finish`` has
            not been called then.
    """
    clock = _Phases(job.timings)
    digest = seal(job.image, job.layout, _checksums(job, workers))
    clock.end("seal")
    concurrent.futures.wait(job.after)
    if not isinstance(job.target, Target):
        write_stream(job.target, job.image[: job.layout.nbytes], progress)
        clock.end("write")
        finish(_result(job, clock, digest, durable=False))
        return
    target, nbytes = job.target, job.layout.nbytes
    with Replacement(system, target, nbytes, sync=job.sync, spares=spares) as new:
        try:
            write_image(system, new.fd, job.image, nbytes, workers, progress)
        except OSError as error:
            raise SaveError.of(error, path=job.path, phase="write") from error
        clock.end("write")
        new.commit()
        clock.end("sync")
        finish(_result(job, clock, digest, durable=new.durable))


class _Phases:
    """Notes how long each phase took, from the end of the one before."""

    def __init__(self, timings: dict[str, float]) -> None:
        self._timings = timings
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self._timings[phase] = now - self._last
        self._last = now

    def total(self, started: float) -> dict[str, float]:
        self._timings.setdefault("sync", 0.0)
        self._timings["total"] = self._last - started
        return dict(self._timings)


def _result(job: Job, clock: _Phases, digest: str, *, durable: bool) -> SaveResult:
    timings = clock.total(job.started)
    return SaveResult(job.path, job.layout.nbytes, digest, durable, timings)


def _checksums(job: Job, workers: Workers) -> list[int]:
    """Take the checksums that staging left out (bytes that came off an accelerator)."""
    missing = [number for number, crc in enumerate(job.crcs) if crc is None]

    def take(number: int) -> None:
        record = job.layout.records[number]
        job.crcs[number] = crc32(job.image[record.offset : record.offset + record.nbytes])

    workers.each(take, missing)
    return [crc or 0 for crc in job.crcs]
