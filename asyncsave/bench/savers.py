"""The ways of saving that are measured side by side, each as one object with the same methods.

``save`` returns as soon as the state is the caller's again, or what that way calls so; the :class:`Saving` it returns
tells how long the caller was held and when the file was complete. What "complete" means is in ``promise``: "file +
folder" (both flushed), "file" (flushed, its name not), or "page cache" (nothing flushed).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, Literal, Protocol

import aiofiles
import torch

from asyncsave.bench.states import State, same_tensors
from asyncsave.bench.timeline import SaveMark
from asyncsave.errors import SaveError
from asyncsave.handle import SaveHandle
from asyncsave.storage.system import System
from asyncsave.verification import verify
from asyncsave.writer import Writer

__all__ = ["SAVERS", "Aiofiles", "AsyncSave", "NaiveThread", "Promise", "Saver", "Saving", "TorchSave", "discard"]

Promise = Literal["file + folder", "file", "page cache"]
_system = System()


class Saving:
    """One save under way: how long the caller was held, and when it was complete.

    Args:
        began: When the caller called, by ``time.perf_counter()``; it has been held from then until now.
        future: Resolves when the save is complete.
    """

    def __init__(self, began: float, future: Future[Any]) -> None:
        self.returned = time.perf_counter()
        self.called = began
        self.future = future
        self._ended = self.returned
        self._stamped = threading.Event()
        future.add_done_callback(self._stamp)

    @classmethod
    def start(cls, call: Callable[[], Future[Any]]) -> Saving:
        """Make the call, which holds the caller and returns a future of the end; take the time."""
        began = time.perf_counter()
        return cls(began, call())

    @classmethod
    def at_once(cls, work: Callable[[], object]) -> Saving:
        """Do the whole work in the caller."""

        def done() -> Future[Any]:
            work()
            future: Future[Any] = Future()
            future.set_result(None)
            return future

        return cls.start(done)

    @property
    def blocked(self) -> float:
        """Seconds that the caller was held."""
        return self.returned - self.called

    def done(self) -> bool:
        """Say whether the save is complete, without waiting."""
        return self.future.done()

    def wait(self) -> float:
        """Wait for the end; return the seconds from the call to it. Raises what the save raised."""
        self.future.result()
        self._stamped.wait()  # result() may return before the callbacks have run
        return self._ended - self.called

    def mark(self) -> SaveMark:
        """Wait for the end; return the moments of the save. Raises what the save raised."""
        self.wait()
        phases = self.future.timings if isinstance(self.future, SaveHandle) else {}
        return SaveMark(self.called, self.returned, self._ended, phases)

    def _stamp(self, _: object) -> None:
        self._ended = time.perf_counter()
        self._stamped.set()


class Saver(Protocol):
    """A way of saving a state to a path, over what an earlier save left there."""

    name: str
    promise: Promise

    def save(self, state: State, path: str) -> Saving:
        """Save; return when the state is the caller's again."""

    def check(self, state: State, path: str) -> bool:
        """Read back what was written, and compare every tensor, bit by bit."""

    def close(self) -> None:
        """Give back threads and memory."""


class AsyncSave:
    """This package: a :class:`asyncsave.Writer` of its own.

    Args:
        backend: ``"thread"`` or ``"process"``, which is the name too.
        state: Make the memory for this one now; None: the first save does.
    """

    promise: Promise = "file + folder"

    def __init__(self, backend: Literal["thread", "process"], state: State | None = None) -> None:
        self.name: str = backend
        self.writer = Writer(backend=backend)
        try:
            if state is not None:
                self.writer.warmup(state)
        except BaseException:
            self.writer.close()
            raise

    def save(self, state: State, path: str) -> Saving:
        """Stage in the caller's thread, write in the background."""
        return Saving.start(lambda: self.writer.save(state, path))

    def check(self, state: State, path: str) -> bool:
        """Load by ``torch.load``, and check every CRC."""
        return verify(path).ok and _loads_as(state, path)

    def close(self) -> None:
        """Close the writer."""
        self.writer.close()


class TorchSave:
    """``torch.save``, with or without a flush of the file."""

    def __init__(self, *, fsync: bool) -> None:
        self.name = "torch.save+fsync" if fsync else "torch.save"
        self.promise: Promise = "file" if fsync else "page cache"
        self._fsync = fsync

    def save(self, state: State, path: str) -> Saving:
        """Save; the caller waits for all of it."""
        return Saving.at_once(lambda: _torch_save(state, path, fsync=self._fsync))

    def check(self, state: State, path: str) -> bool:
        """Load by ``torch.load``."""
        return _loads_as(state, path)

    def close(self) -> None:
        """Nothing to give back."""


class NaiveThread:
    """The idiom: ``copy.deepcopy`` in the caller, ``torch.save`` and a flush in a thread."""

    name = "naive-thread"
    promise: Promise = "file"

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def save(self, state: State, path: str) -> Saving:
        """Copy in the caller's thread, save in the other."""
        return Saving.start(lambda: self._save(state, path))

    def check(self, state: State, path: str) -> bool:
        """Load by ``torch.load``."""
        return _loads_as(state, path)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()

    def _save(self, state: State, path: str) -> Future[Any]:
        with _failing_at(path):  # some tensors cannot be copied deeply
            copied = copy.deepcopy(state)
        return self._pool.submit(_torch_save, copied, path, fsync=True)


class Aiofiles:
    """The other idiom: ``torch.save`` into memory in the caller, written by a coroutine with ``aiofiles``, flushed."""

    name = "aiofiles"
    promise: Promise = "file"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._saves: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncsave-bench-aiofiles")
        self._thread.start()

    def save(self, state: State, path: str) -> Saving:
        """Serialise in the caller's thread, write on the event loop's."""
        return Saving.start(lambda: self._save(state, path))

    def check(self, state: State, path: str) -> bool:
        """Load by ``torch.load``."""
        return _loads_as(state, path)

    def close(self) -> None:
        """End the event loop, with its threads, and its thread; what is being written is finished first."""
        wait_for(self._saves)
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _save(self, state: State, path: str) -> Future[Any]:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        future = asyncio.run_coroutine_threadsafe(_write(buffer, path), self._loop)
        self._saves = {save for save in self._saves if not save.done()} | {future}
        return future


SAVERS: Mapping[str, Callable[[State | None], Saver]] = {
    "torch.save": lambda _: TorchSave(fsync=False),
    "torch.save+fsync": lambda _: TorchSave(fsync=True),
    "naive-thread": lambda _: NaiveThread(),
    "aiofiles": lambda _: Aiofiles(),
    "thread": lambda state: AsyncSave("thread", state),
    "process": lambda state: AsyncSave("process", state),
}
"""How each is made: warm for a state, or cold."""


def discard(path: str) -> None:
    """Remove a file that an earlier save left, if any, and flush the folder, so that the next one does not pay."""
    with contextlib.suppress(FileNotFoundError):
        _system.unlink(path)
    _sync(os.path.dirname(path), os.O_DIRECTORY)


def _torch_save(state: State, path: str, *, fsync: bool) -> None:
    with _failing_at(path):
        torch.save(state, path)
        if fsync:
            _sync(path)


async def _write(buffer: io.BytesIO, path: str) -> None:
    with _failing_at(path):
        async with aiofiles.open(path, "wb") as file:
            await file.write(buffer.getbuffer())
            await file.flush()
            await asyncio.to_thread(_system.fsync, file.fileno())


@contextlib.contextmanager
def _failing_at(path: str) -> Iterator[None]:
    """Name the file that could not be written: where the disk is full, torch says no more than "unexpected pos"."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else OSError(None, f"{type(error).__name__}: {error}")
        raise SaveError.of(cause, path=path, phase="write", outcome="incomplete") from error


def _sync(path: str, flags: int = 0) -> None:
    fd = _system.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        _system.fsync(fd)
    finally:
        _system.close(fd)


def _loads_as(state: State, path: str) -> bool:
    return same_tensors(state, torch.load(path, map_location="cpu", weights_only=True))
