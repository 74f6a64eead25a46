"""asyncsave for asyncio programs: the same saves, loads and checks, without blocking the event loop.

Blocking work runs in threads; the file streams of :func:`copy` are ``aiofiles``' own.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import aiofiles

from asyncsave import api, loading, pending, verification
from asyncsave.errors import CorruptCheckpointError, LoadError, SaveError
from asyncsave.handle import SaveHandle
from asyncsave.image.crc import crc32
from asyncsave.image.torchzip import DIGEST_PREFIX
from asyncsave.result import SaveResult, VerifyReport
from asyncsave.storage.replacement import Replacement
from asyncsave.storage.sink import Sink
from asyncsave.storage.source import open_source
from asyncsave.storage.system import System
from asyncsave.storage.target import Target, resolve
from asyncsave.writer import OnBusy, Writer

__all__ = ["copy", "load", "save", "verify"]

T = TypeVar("T")

_CHUNK = 8 << 20

_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()


async def save(
    obj: object,
    f: str | os.PathLike[str] | Sink,
    pickle_module: Any = pickle,
    pickle_protocol: int = 2,
    *,
    writer: Writer | None = None,
    on_busy: OnBusy | None = None,
    compact: bool = False,
) -> SaveResult:
    """Save ``obj`` and wait until it is in place; the loop runs on meanwhile.

    Unlike :func:`asyncsave.save_async`, the copy is made in a thread: do not change ``obj`` before
    this has returned. Saves of one loop are staged one after the other, in the order of the calls.

    Cancelling it withdraws the save if it is not being written yet; one that is goes on to its end,
    in the background.

    Raises:
        concurrent.futures.CancelledError: The save was skipped or replaced, by ``on_busy``.
        AsyncSaveError: As :func:`asyncsave.save_async` and its handle.
    """

    def stage() -> SaveHandle:
        return api.save_async(obj, f, pickle_module, pickle_protocol, writer=writer, on_busy=on_busy, compact=compact)

    loop = asyncio.get_running_loop()
    # One lock per loop, first come, first served: were the saves staged in any order, an older one
    # could replace a newer one; and all threads of the loop's pool could be waiting for a slot.
    async with _turns.setdefault(loop, asyncio.Lock()):
        staging = asyncio.ensure_future(asyncio.to_thread(stage))
        try:
            handle = await asyncio.shield(staging)
        except asyncio.CancelledError:
            staging.add_done_callback(_withdraw)
            raise
    try:
        return await handle
    except asyncio.CancelledError:
        handle.cancel()
        raise


def _withdraw(staging: asyncio.Future[SaveHandle]) -> None:
    if not staging.cancelled() and staging.exception() is None:
        staging.result().cancel()


async def load(
    f: str | os.PathLike[str] | BinaryIO,
    map_location: Any = None,
    *,
    weights_only: bool = True,
    mmap: bool = False,
    verify: bool | None = None,
) -> Any:
    """Load a checkpoint in a thread; takes and raises what :func:`asyncsave.load` does."""
    return await asyncio.to_thread(loading.load, f, map_location, weights_only=weights_only, mmap=mmap, verify=verify)


async def verify(f: str | os.PathLike[str]) -> VerifyReport:
    """Verify a checkpoint in a thread; takes and raises what :func:`asyncsave.verify` does."""
    return await asyncio.to_thread(verification.verify, f)


async def copy(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> SaveResult:
    """Copy a checkpoint, or any other file: in chunks, verified, atomic and durable.

    The copy is read back from the disk before it takes its name: its bytes must be those that were
    read from ``src``, and if it is a checkpoint with checksums, all of them must hold. A cancelled or
    failed copy leaves nothing behind, and what was at ``dst`` stays.

    Args:
        src: The file to copy. If this process is still writing it, it is waited for.
        dst: Where to; replaced whole or not at all.

    Returns:
        The copy's size and digest. ``timings`` has ``total`` only.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CorruptCheckpointError: ``src`` is a damaged checkpoint, or the disk did not keep the bytes.
        LoadError: ``src`` cannot be read.
        SaveError: ``dst`` cannot be written.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    source, target = await asyncio.to_thread(lambda: (os.path.abspath(os.fspath(src)), resolve(os.fspath(dst))))
    await asyncio.to_thread(pending.wait_for, source)
    nbytes = await asyncio.to_thread(_size, source)
    new = Replacement(System(), target, nbytes, sync=True)
    try:
        await _finish(new.open)
        crc = await _stream(source, new.fd, target)
        await _finish(lambda: _check_copy(new, source, crc))
        await _finish(new.commit)
    finally:
        await _finish(new.close)
    timings = {"total": loop.time() - started}
    return SaveResult(target.path, nbytes, f"{DIGEST_PREFIX}{crc:08x}", new.durable, timings)


def _size(path: str) -> int:
    with open_source(path) as source:
        return source.nbytes


async def _stream(source: str, fd: int, target: Target) -> int:
    """Copy all chunks; return their CRC-32."""
    crc = 0
    async with (
        aiofiles.open(source, "rb", buffering=0) as reader,
        aiofiles.open(fd, "wb", buffering=0, closefd=False) as writer,
    ):
        while True:
            try:
                chunk = await reader.read(_CHUNK)
            except OSError as error:
                raise LoadError(f"cannot read {source!r}: {error}", path=source) from error
            if not chunk:
                return crc
            crc = crc32(chunk, crc)
            try:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[await writer.write(rest) :]
            except OSError as error:
                raise SaveError.of(error, path=target.path, phase="write") from error


async def _finish(function: Callable[[], T]) -> T:
    """Run a step in a thread to its end, also if this task is cancelled meanwhile: then, raise."""
    step = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        step.exception()  # seen: the cancellation is what the caller hears of
        raise


def _check_copy(new: Replacement, source: str, crc: int) -> None:
    """Read a copy back and compare it with what was read from the source."""
    new.sync()
    with open_source(new.temporary) as copy_:
        report, found = verification.check(copy_)
    damaged = [problem for problem in report.problems if problem.kind == "checksum"]
    if found != crc or damaged:
        expected = damaged[0].expected if damaged else f"{crc:08x}"
        actual = damaged[0].found if damaged else f"{found:08x}"
        record = damaged[0].record if damaged else None
        where = f"record {record!r} of {source!r}" if damaged else "the copy, read back from the disk,"
        message = f"not copied: {where} has CRC-32 {actual}, expected {expected}"
        raise CorruptCheckpointError(message, path=source, record=record, expected=expected, found=actual)
