"""Every way of saving that is measured, each as one object with the same four methods.

``save`` returns as soon as the state is the caller's again, or what that library calls so; the `Saving` it returns
tells how long the caller was held and when the file was complete. What "complete" means is in ``promise``, and the
table prints it: "file + folder" (synced both), "file" (synced, its name not), or "page cache" (nothing synced).
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import async_save as save_distributed

import asyncsave
from benchmarks.probes import RawDisk, WarmCopy, sync_file, sync_folder
from benchmarks.states import State, flatten, same_tensors


class Saving:
    """One save under way: how long the caller was held, and when it was complete."""

    def __init__(self, began: float, future: Future[Any]) -> None:
        """Take the time: the caller has been held from ``began`` (``time.perf_counter()``) until now."""
        self.blocked = time.perf_counter() - began
        self.future = future
        self._began = began
        self._ended = began
        self._stamped = threading.Event()
        future.add_done_callback(self._stamp)

    @classmethod
    def start(cls, call: Callable[[], Future[Any]]) -> Saving:
        """Make the call, which holds the caller and returns a future of the end; take the time."""
        began = time.perf_counter()
        return cls(began, call())

    def done(self) -> bool:
        """Say whether the save is complete, without waiting."""
        return self.future.done()

    def wait(self) -> float:
        """Wait for the end; return the seconds from the call to it. Raises what the save raised."""
        self.future.result()
        self._stamped.wait()  # result() may return before the callbacks have run
        return self._ended - self._began

    def _stamp(self, _: object) -> None:
        self._ended = time.perf_counter()
        self._stamped.set()


class Contestant(Protocol):
    """A way of saving a state of CPU tensors to a path, over what an earlier save left there."""

    name: str
    promise: str

    def save(self, state: State, path: Path) -> Saving:
        """Save; return when the state is the caller's again."""

    def check(self, state: State, path: Path) -> bool:
        """Read back what was written, with the library's own reader, and compare every tensor."""

    def close(self) -> None:
        """Give back threads and memory."""


class AsyncSave:
    """This package: a `Writer` of its own, with warm arenas; a thread writes, which is the default."""

    name = "asyncsave"
    promise = "file + folder"
    backend: Literal["thread", "process"] = "thread"

    def __init__(self, state: State) -> None:
        self.writer = asyncsave.Writer(backend=self.backend)
        self.writer.warmup(state)

    def save(self, state: State, path: Path) -> Saving:
        """Stage in the caller's thread, write in the background."""
        return Saving.start(lambda: self.writer.save(state, path))

    def check(self, state: State, path: Path) -> bool:
        """Load by `torch.load`, and check every CRC."""
        return asyncsave.verify(path).ok and _loads_as(state, path)

    def close(self) -> None:
        """Close the writer."""
        self.writer.close()


class AsyncSaveNewFile(AsyncSave):
    """The same to a path where there is nothing: no blocks of an older checkpoint to write into."""

    name = "asyncsave, new file"

    def save(self, state: State, path: Path) -> Saving:
        """Remove what is there, untimed, then save."""
        discard(path)
        return super().save(state, path)


class AsyncSaveProcess(AsyncSave):
    """The same with a writer process, which is there and ready."""

    name = "asyncsave, process"
    backend = "process"


class TorchSave:
    """`torch.save`, with or without a sync of the file."""

    def __init__(self, *, fsync: bool) -> None:
        self.name = "torch.save + fsync" if fsync else "torch.save"
        self.promise = "file" if fsync else "page cache"
        self._fsync = fsync

    def save(self, state: State, path: Path) -> Saving:
        """Save; the caller waits for all of it."""
        return Saving.start(lambda: _at_once(lambda: _torch_save(state, path, fsync=self._fsync)))

    def check(self, state: State, path: Path) -> bool:
        """Load by `torch.load`."""
        return _loads_as(state, path)

    def close(self) -> None:
        """Nothing to give back."""


class CopyThenThread:
    """The idiom: `copy.deepcopy` in the caller, `torch.save` and a sync in a thread."""

    name = "deepcopy + thread"
    promise = "file"

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def save(self, state: State, path: Path) -> Saving:
        """Copy in the caller's thread, save in the other."""
        return Saving.start(lambda: self._pool.submit(_torch_save, copy.deepcopy(state), path, fsync=True))

    def check(self, state: State, path: Path) -> bool:
        """Load by `torch.load`."""
        return _loads_as(state, path)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


class DistributedCheckpoint:
    """`torch.distributed.checkpoint.async_save`, its thread kind, in a group of one process.

    ``kept_stager`` hands it one stager for all saves, so that its staging memory is warm; otherwise it makes one for
    each save, which is the default.
    """

    promise = "file"

    def __init__(self, *, kept_stager: bool = False) -> None:
        self.name = "DCP async_save, kept stager" if kept_stager else "DCP async_save"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            store = dist.HashStore()  # type: ignore[attr-defined]  # public, not in __all__
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        options = StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
        self._stager = DefaultStager(options) if kept_stager else None

    def save(self, state: State, path: Path) -> Saving:
        """Stage in the caller's thread, write a folder of files in another."""
        return Saving.start(lambda: self._save(state, path))

    def check(self, state: State, path: Path) -> bool:
        """Load in place into a zeroed copy."""
        into = copy.deepcopy(state)
        for tensor in flatten(into).values():
            tensor.zero_()
        load_distributed(into, checkpoint_id=path)
        return same_tensors(state, into)

    def close(self) -> None:
        """Close the stager and leave the group."""
        if self._stager is not None:
            self._stager.close()
        if self._owns_group:
            dist.destroy_process_group()

    def _save(self, state: State, path: Path) -> Future[Any]:
        answer = save_distributed(state, checkpoint_id=path, async_stager=self._stager)
        return answer if isinstance(answer, Future) else answer.upload_completion


class Safetensors:
    """`safetensors.torch.save_file` of the flattened tensors, and a sync."""

    name = "safetensors + fsync"
    promise = "file"

    def save(self, state: State, path: Path) -> Saving:
        """Save; the caller waits for all of it."""
        return Saving.start(lambda: _at_once(lambda: self._save(state, path)))

    def check(self, state: State, path: Path) -> bool:
        """Load by `load_file`; it orders names in its own way."""
        ours, theirs = flatten(state), load_file(path)
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def close(self) -> None:
        """Nothing to give back."""

    def _save(self, state: State, path: Path) -> None:
        save_file(flatten(state), path)
        sync_file(path)


class BareMetal:
    """No library: a warm copy, then a raw direct write in a thread. The limit that a save can come near to."""

    name = "bare copy + raw write"
    promise = "file + folder"

    def __init__(self, state: State, folder: Path) -> None:
        self.copy = WarmCopy(state)
        self.disk = RawDisk(folder, self.copy.buffer)
        self._pool = ThreadPoolExecutor(1)

    def save(self, state: State, path: Path) -> Saving:  # noqa: ARG002 - it copies the state that it was made for
        """Copy in the caller's threads, write a new file in the background; the bytes are no checkpoint."""
        discard(path)
        return Saving.start(lambda: self._save(path))

    def check(self, state: State, path: Path) -> bool:  # noqa: ARG002
        """Compare the size only: there is nothing that could be loaded."""
        return path.stat().st_size >= self.copy.nbytes

    def close(self) -> None:
        """Give back threads and memory."""
        self._pool.shutdown()
        self.disk.close()
        self.copy.close()

    def _save(self, path: Path) -> Future[Any]:
        self.copy.run()
        return self._pool.submit(self.disk.write, path, self.copy.nbytes)


def discard(path: Path) -> None:
    """Remove what an earlier save left, if anything, and sync, so that the next one does not pay for it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    sync_folder(path.parent)


def _at_once(work: Callable[[], object]) -> Future[Any]:
    work()
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def _torch_save(state: State, path: Path, *, fsync: bool) -> None:
    torch.save(state, path)
    if fsync:
        sync_file(path)


def _loads_as(state: State, path: Path) -> bool:
    return same_tensors(state, torch.load(path, weights_only=True))
