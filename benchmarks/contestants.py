"""The ways of saving that only the benchmarks measure, beside those of `asyncsave.bench.savers` and with their methods.

Other libraries, the bare machine, and this package where no older checkpoint lends its blocks.
"""

from __future__ import annotations

import copy
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import async_save as save_distributed

from asyncsave.bench.probes import RawDisk
from asyncsave.bench.savers import AsyncSave, Promise, Saving, discard
from asyncsave.bench.states import State, flatten, same_tensors
from benchmarks.probes import WarmCopy, sync


class NewFile(AsyncSave):
    """This package, to a path where there is nothing: no blocks of an older checkpoint to write into."""

    def __init__(self, state: State) -> None:
        super().__init__("thread", state)
        self.name = "thread, new file"

    def save(self, state: State, path: str) -> Saving:
        """Remove what is there, untimed, then save."""
        discard(path)
        return super().save(state, path)


class DistributedCheckpoint:
    """`torch.distributed.checkpoint.async_save`, its thread kind, in a group of one process.

    ``kept_stager`` hands it one stager for all saves, so that its staging memory is warm; otherwise it makes one for
    each save, which is the default.
    """

    promise: Promise = "file"

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

    def save(self, state: State, path: str) -> Saving:
        """Stage in the caller's thread, write a folder of files in another."""
        return Saving.start(lambda: self._save(state, path))

    def check(self, state: State, path: str) -> bool:
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

    def _save(self, state: State, path: str) -> Future[Any]:
        answer = save_distributed(state, checkpoint_id=path, async_stager=self._stager)
        return answer if isinstance(answer, Future) else answer.upload_completion


class Safetensors:
    """`safetensors.torch.save_file` of the flattened tensors, and a sync."""

    name = "safetensors + fsync"
    promise: Promise = "file"

    def save(self, state: State, path: str) -> Saving:
        """Save; the caller waits for all of it."""
        return Saving.at_once(lambda: self._save(state, path))

    def check(self, state: State, path: str) -> bool:
        """Load by `load_file`; it orders names in its own way."""
        ours, theirs = flatten(state), load_file(path)
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def close(self) -> None:
        """Nothing to give back."""

    def _save(self, state: State, path: str) -> None:
        save_file(flatten(state), path)
        sync(path)


class BareMetal:
    """No library: a warm copy, then a raw direct write in a thread. The limit that a save can come near to."""

    name = "bare copy + raw write"
    promise: Promise = "file + folder"

    def __init__(self, state: State, folder: Path) -> None:
        self.copy = WarmCopy(state)
        self.disk = RawDisk(folder, self.copy.memory)
        self._pool = ThreadPoolExecutor(1)

    def save(self, state: State, path: str) -> Saving:  # noqa: ARG002 - it copies the state that it was made for
        """Copy in the caller's threads, write a new file in the background; the bytes are no checkpoint."""
        name = Path(path).name
        self.disk.remove(name)
        return Saving.start(lambda: self._save(name))

    def check(self, state: State, path: str) -> bool:  # noqa: ARG002
        """Compare the size only: there is nothing that could be loaded."""
        return Path(path).stat().st_size >= self.copy.nbytes

    def close(self) -> None:
        """Give back threads and memory."""
        self._pool.shutdown()
        self.disk.close()
        self.copy.close()

    def _save(self, name: str) -> Future[Any]:
        self.copy.run()
        return self._pool.submit(self.disk.write, name, self.copy.nbytes)
