"""asyncsave for asyncio programs: the same saves, loads and checks, without blocking the event loop.

Blocking work runs in threads; the file streams of :func:`copy` are ``aiofiles``' own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import aiofiles

from asyncsave import api, loading, pending, verification
from asyncsave.errors import CorruptCheckpointError, LoadError, SaveError
from asyncsave.handle import SaveHandle
from asyncsave.image.crc import crc32
from asyncsave.image.index import promised_nbytes
from asyncsave.image.torchzip import DIGEST_PREFIX
from asyncsave.options import file_path
from asyncsave.result import SaveResult, VerifyReport
from asyncsave.storage.replacement import Replacement
from asyncsave.storage.sink import Sink
from asyncsave.storage.source import FileSource, open_source
from asyncsave.storage.system import System
from asyncsave.storage.target import Target, resolve
from asyncsave.writer import OnBusy, Writer

__all__ = ["copy", "load", "save", "verify"]

T = TypeVar("T")

_CHUNK = 8 << 20

_log = logging.getLogger("asyncsave")
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Lock]] = weakref.WeakKeyDictionary()


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
    in the background. Either way ``obj`` is the caller's again when the cancellation arrives.

    Raises:
        concurrent.futures.CancelledError: The save was skipped or replaced, by ``on_busy``.
        AsyncSaveError: As :func:`asyncsave.save_async` and its handle.
    """
    cancelled = threading.Event()

    def wanted() -> None:
        if cancelled.is_set():
            raise concurrent.futures.CancelledError

    def stage() -> SaveHandle:
        return (writer or api.default_writer()).save_if_wanted(
            obj, f, pickle_module, pickle_protocol, on_busy=on_busy, compact=compact, wanted=wanted
        )

    # First come, first served: were the saves staged in any order, an older one could replace a newer
    # one; and all threads of the loop's pool could be waiting for a slot.
    turns = _turns.setdefault(asyncio.get_running_loop(), {})
    async with turns.setdefault(id(writer), asyncio.Lock()):
        staging = asyncio.ensure_future(asyncio.to_thread(stage))
        try:
            handle = await asyncio.shield(staging)
        except asyncio.CancelledError:
            cancelled.set()
            await _stop(staging)
            raise
    try:
        return await handle
    except asyncio.CancelledError:
        handle.cancel()
        raise


async def _stop(staging: asyncio.Future[SaveHandle]) -> None:
    """Wait until a cancelled save no longer looks at the state, and withdraw what it has queued."""
    while not staging.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([staging])
    error = staging.exception()
    if error is None:
        staging.result().cancel()
    elif not isinstance(error, concurrent.futures.CancelledError):
        _log.error("while a save was cancelled: %s", error)


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
        dst: Where to; replaced whole or not at all. A save of it that is under way comes first.

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
    source, target = await asyncio.to_thread(lambda: (os.path.abspath(file_path(src)), resolve(file_path(dst))))
    for path in (source, target.real):
        await asyncio.to_thread(pending.wait_for, path)
    opened = contextlib.ExitStack()
    try:
        original = await _finish(lambda: opened.enter_context(open_source(source)))
        new = Replacement(System(), target, original.nbytes, sync=True)
        opened.callback(new.close)
        await _finish(new.open)
        crc = await _stream(original, new.fd, target)
        await _finish(lambda: _check_copy(new, source, crc))
        await _finish(new.commit)
    finally:
        await _finish(opened.close)
    timings = {"total": loop.time() - started}
    return SaveResult(target.path, original.nbytes, f"{DIGEST_PREFIX}{crc:08x}", new.durable, timings)


async def _stream(source: FileSource, fd: int, target: Target) -> int:
    """Copy all chunks; return their CRC-32."""
    crc = 0
    async with (
        aiofiles.open(source.fd, "rb", buffering=0, closefd=False) as reader,
        aiofiles.open(fd, "wb", buffering=0, closefd=False) as writer,
    ):
        while True:
            try:
                chunk = await reader.read(_CHUNK)
            except OSError as error:
                raise LoadError(f"cannot read {source.path!r}: {error}", path=source.path) from error
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
        # A file that only begins like a zip archive may be anything; ours say what they are.
        kinds = {"checksum"} if promised_nbytes(copy_) is None else {"checksum", "container"}
    damaged = next((one for one in report.problems if one.kind in kinds), None)
    if damaged is not None:
        where = f"record {damaged.record!r} of " if damaged.record else ""
        message = f"not copied: {where}{source!r} is damaged: expected {damaged.expected}, found {damaged.found}"
        raise CorruptCheckpointError(
            message, path=source, record=damaged.record, expected=damaged.expected, found=damaged.found
        )
    if found != crc:
        expected, actual = f"{crc:08x}", f"{found:08x}"
        message = f"not copied: the copy, read back from the disk, has CRC-32 {actual}, expected {expected}"
        raise CorruptCheckpointError(message, path=source, expected=expected, found=actual)
