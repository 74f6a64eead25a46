"""Seal images and store them: what every backend calls. No tensor is known here.

Order is what makes a save safe: checksums of the bytes in memory first, then the file, then its
sync, then its name. The files of a step get their manifest when they are synced, and their place all at
once; only then older steps are dropped. The result is handed over while the blocks of what is gone are
still held, because nobody needs to wait for their release.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from asyncsave.catalogue.brief import Brief
from asyncsave.catalogue.info import CheckpointFile
from asyncsave.catalogue.names import MANIFEST
from asyncsave.catalogue.upkeep import Upkeep
from asyncsave.errors import SaveError
from asyncsave.image.crc import crc32
from asyncsave.image.layout import Layout
from asyncsave.image.torchzip import DIGEST_PREFIX, seal
from asyncsave.result import SaveResult
from asyncsave.storage.assembly import Assembly
from asyncsave.storage.blocks import DIRECT_FROM, write_all, write_image
from asyncsave.storage.replacement import Replacement
from asyncsave.storage.sink import Sink, write_stream
from asyncsave.storage.spare import Spares
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.workers import Workers

__all__ = ["Image", "Job", "Persister"]

_AT_ONCE = 128
"""Files of a step that are written, the small ones several at once, and then flushed together."""


class Image(NamedTuple):
    """A staged file.

    Attributes:
        memory: Page-aligned, the records' bytes in place, headers not yet.
        layout: Where everything lies.
        crcs: CRC-32 of each record, None where it is still to be taken.
        offset: Where it begins in the memory of all images.
    """

    memory: memoryview
    layout: Layout
    crcs: list[int | None]
    offset: int = 0


@dataclass(slots=True)
class Job:
    """One staged checkpoint, and where it is to go.

    Attributes:
        images: Its files; one, unless it is a step of a run.
        target: A file, or the folder of a step, to be replaced whole; or a file object to be written to.
        path: How the result names the target.
        sync: Whether to flush to the medium.
        timings: Seconds per phase so far; the phases below are added.
        started: ``time.perf_counter()`` of the call.
        brief: What else belongs to a step; None: this is a file.
        after: Earlier saves of the same target, which must come first.
        memory: A descriptor of the images' memory, for who shares it; -1 where nobody can.
        view: All of that memory.
        lock: A descriptor that is held as long as the job is not done, by whoever does it; -1: none.
        recycle: Whether replaced files may be overwritten by later ones, and a spare by this one.
    """

    images: list[Image]
    target: Target | Sink
    path: str
    sync: bool
    timings: dict[str, float]
    started: float
    brief: Brief | None = None
    after: Sequence[concurrent.futures.Future[SaveResult]] = ()
    memory: int = -1
    view: memoryview = field(default_factory=lambda: memoryview(b""))
    lock: int = -1
    recycle: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(image.layout.nbytes for image in self.images)


class Persister:
    """Makes checkpoints of staged images. Used by one thread at a time.

    Args:
        system: The operating system.
        workers: Who takes checksums, writes blocks and flushes files.
    """

    def __init__(self, system: System, workers: Workers) -> None:
        self._system = system
        self._workers = workers
        self._spares = Spares(system)
        self._upkeep = Upkeep(system, self._spares)

    def persist(self, job: Job, progress: Callable[[int], None], finish: Callable[[SaveResult], None]) -> None:
        """Make staged images a checkpoint; call ``finish`` once it is in place.

        Args:
            job: What to store.
            progress: Called with the bytes of each block that was written.
            finish: Called with the result when the checkpoint is in place, before the blocks of what is gone
                are freed.

        Raises:
            SaveError: Nothing was committed, or the durability of what was is unknown. ``finish`` has
                not been called then.
        """
        clock = _Phases(job.timings)
        digests = [seal(image.memory, image.layout, self._checksums(image)) for image in job.images]
        clock.end("seal")
        concurrent.futures.wait(job.after)
        if not isinstance(job.target, Target):
            write_stream(job.target, job.images[0].memory[: job.nbytes], progress)
            clock.end("write")
            finish(_result(job, clock, digests[0], durable=False))
        elif job.brief is None:
            self._put_file(job, job.target, digests[0], clock, progress, finish)
        else:
            self._put_step(job, job.target, job.brief, digests, clock, progress, finish)

    def _put_file(
        self,
        job: Job,
        target: Target,
        digest: str,
        clock: _Phases,
        progress: Callable[[int], None],
        finish: Callable[[SaveResult], None],
    ) -> None:
        with Replacement(self._system, target, job.nbytes, sync=job.sync, spares=self._spares_for(job)) as new:
            self._write(job, new.fd, job.images[0], progress)
            clock.end("write")
            new.commit()
            clock.end("sync")
            finish(_result(job, clock, digest, durable=new.durable))

    def _put_step(
        self,
        job: Job,
        target: Target,
        brief: Brief,
        digests: list[str],
        clock: _Phases,
        progress: Callable[[int], None],
        finish: Callable[[SaveResult], None],
    ) -> None:
        largest = max(image.layout.nbytes for image in job.images)
        files = {
            name: CheckpointFile(image.layout.nbytes, digest)
            for name, image, digest in zip(brief.files, job.images, digests, strict=True)
        }
        with Assembly(self._system, target, self._workers, sync=job.sync, spares=self._spares_for(job)) as new:

            def put(file: tuple[str, Image]) -> None:
                name, image = file
                nbytes = image.layout.nbytes
                fd = new.add(name, nbytes, recycle=nbytes == largest)
                self._write(job, fd, image, progress)
                new.hand_over(fd)

            everything = list(zip(brief.files, job.images, strict=True))
            for start in range(0, len(everything), _AT_ONCE):
                batch = everything[start : start + _AT_ONCE]
                for file in filter(_is_large, batch):
                    put(file)  # its blocks in parallel
                self._workers.each(put, [file for file in batch if not _is_large(file)])
                new.flush()
            manifest = brief.manifest.with_files(files).to_json()
            with _describing(job):
                write_all(self._system, new.add(MANIFEST, len(manifest)), memoryview(manifest), 0)
            clock.end("write")
            new.commit()
            clock.end("sync")
            with self._upkeep.after(brief, target.real, sync=job.sync, recycle=job.recycle, replaced=new.replaced):
                finish(_result(job, clock, f"{DIGEST_PREFIX}{crc32(manifest):08x}", durable=new.durable))

    def drop_spare(self) -> None:
        """Remove the file that is kept to be overwritten."""
        self._spares.drop()

    def close(self) -> None:
        """Remove what is kept, and keep no more."""
        self._spares.close()

    def abandon(self) -> None:
        """Forget what is kept, in a forked child."""
        self._spares.abandon()

    def _spares_for(self, job: Job) -> Spares | None:
        return self._spares if job.recycle else None

    def _write(self, job: Job, fd: int, image: Image, progress: Callable[[int], None]) -> None:
        with _describing(job):
            write_image(self._system, fd, image.memory, image.layout.nbytes, self._workers, progress)

    def _checksums(self, image: Image) -> list[int]:
        """Take the checksums that staging left out (bytes that came off an accelerator)."""
        missing = [number for number, crc in enumerate(image.crcs) if crc is None]

        def take(number: int) -> None:
            record = image.layout.records[number]
            image.crcs[number] = crc32(image.memory[record.offset : record.offset + record.nbytes])

        self._workers.each(take, missing)
        return [crc or 0 for crc in image.crcs]


def _is_large(file: tuple[str, Image]) -> bool:
    return file[1].layout.nbytes >= DIRECT_FROM


@contextlib.contextmanager
def _describing(job: Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, SaveError):
            raise
        raise SaveError.of(error, path=job.path, phase="write") from error


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
    return SaveResult(job.path, job.nbytes, digest, durable, timings)
