"""What changes with size, number of tensors, threads and blocks: the measurements behind the plots."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from asyncsave.bench.probes import RawDisk
from asyncsave.bench.savers import SAVERS, Saver, discard
from asyncsave.bench.states import State, synthetic, tensor_bytes
from asyncsave.memory import Pages

__all__ = ["sweep"]

_SAVES = 3
_MODES = ("torch.save", "thread", "process")
_SHARES = (64, 16, 4, 1)
_COUNTS = (10, 100, 1_000, 10_000)
_LEAST_VALUES = 64
_THREADS = (1, 2, 4, 8)
_BLOCKS = (1 << 20, 4 << 20, 16 << 20, 64 << 20)


def sweep(
    folder: str, nbytes: int, dtype: str, memory: Pages, modes: tuple[str, ...], done: Callable[[], object]
) -> dict[str, Any]:
    """Measure it all; return it as ``bench --json`` shows it.

    Args:
        folder: Where to write.
        nbytes: Bytes of the largest state.
        dtype: Of its tensors.
        memory: What the raw writes take, warm.
        modes: Which ways of saving may be measured.
        done: Called after each point.
    """
    chosen = [mode for mode in _MODES if mode in modes]
    sizes, counts = [], []
    for share in _SHARES:
        state = synthetic(max(nbytes // share, _LEAST_VALUES * 8), min(100, max(1, nbytes // share // 4096)), dtype)
        for mode in chosen:
            sizes.append({"nbytes": tensor_bytes(state)} | _measured(mode, state, folder))
            done()
    for count in _COUNTS:
        if nbytes < count * _LEAST_VALUES * 8:
            break
        state = synthetic(min(nbytes, 64_000_000), count, dtype)
        for mode in chosen:
            counts.append({"tensors": count, "nbytes": tensor_bytes(state)} | _measured(mode, state, folder))
            done()
    points = list(_raw(folder, memory, done))
    return {
        "size": sizes,
        "tensors": counts,
        "threads": points,
        "ceiling_mb_s": max(point["mb_s"] for point in points),
    }


def _measured(mode: str, state: State, folder: str) -> dict[str, Any]:
    """Save a few times without training, warm; return the medians."""
    path = os.path.join(folder, f"sweep-{mode}")
    with closing(SAVERS[mode](state)) as saver:
        _once(saver, state, path)
        taken = [_once(saver, state, path) for _ in range(_SAVES)]
    discard(path)
    return {
        "mode": mode,
        "stall_ms": 1e3 * statistics.median(stall for stall, _ in taken),
        "durable_s": statistics.median(durable for _, durable in taken),
    }


def _once(saver: Saver, state: State, path: str) -> tuple[float, float]:
    saving = saver.save(state, path)
    durable = saving.wait()
    return saving.blocked, durable


def _raw(folder: str, memory: Pages, done: Callable[[], object]) -> Iterator[dict[str, Any]]:
    for block in _BLOCKS:
        for threads in _THREADS:
            with closing(RawDisk(folder, memory, threads=threads, block=block)) as disk:
                nbytes = len(memory.view)
                seconds = disk.write("sweep-raw", nbytes).total
                disk.remove("sweep-raw")
            yield {"threads": threads, "block_bytes": block, "mb_s": nbytes / seconds / 1e6}
            done()
