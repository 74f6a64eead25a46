"""What changes with size, number of tensors, threads and blocks: the measurements behind the plots."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import Any

from asyncsave.bench.grid import SAVES_EACH, Grid, SavePoint, WritePoint
from asyncsave.bench.probes import RawDisk
from asyncsave.bench.savers import SAVERS, Saver, discard
from asyncsave.bench.states import State, synthetic, tensor_bytes
from asyncsave.errors import SaveError
from asyncsave.memory import Pages

__all__ = ["sweep"]


def sweep(folder: str, points: Grid, dtype: str, memory: Pages, done: Callable[[], object]) -> dict[str, Any]:
    """Measure it all; return it as ``bench --json`` shows it.

    Args:
        folder: Where to write.
        points: What to measure.
        dtype: Of the tensors.
        memory: What the raw writes take, warm.
        done: Called after each point.

    Raises:
        SaveError: The disk is full, or whatever else it has to say.
    """
    sizes = [{"nbytes": nbytes} | found for nbytes, found in _saves(folder, points.sizes, dtype, done)]
    counts = [
        {"tensors": point.tensors, "nbytes": nbytes} | found
        for point, (nbytes, found) in zip(points.counts, _saves(folder, points.counts, dtype, done), strict=True)
    ]
    writes = [_written(folder, point, memory, done) for point in points.writes]
    return {
        "size": sizes,
        "tensors": counts,
        "threads": writes,
        "ceiling_mb_s": max(point["mb_s"] for point in writes),
    }


def _saves(
    folder: str, points: tuple[SavePoint, ...], dtype: str, done: Callable[[], object]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Measure points; yield for each how many bytes its state really has, and what was found."""
    made = lru_cache(1)(synthetic)  # ways of saving that follow one another save the same state
    for point in points:
        state = made(point.nbytes, point.tensors, dtype)
        yield tensor_bytes(state), _measured(point.mode, state, folder)
        done()


def _measured(mode: str, state: State, folder: str) -> dict[str, Any]:
    """Save a few times without training, warm; return the medians."""
    path = os.path.join(folder, f"sweep-{mode}")
    with closing(SAVERS[mode](state)) as saver:
        taken = [_once(saver, state, path) for _ in range(SAVES_EACH)][1:]
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


def _written(folder: str, point: WritePoint, memory: Pages, done: Callable[[], object]) -> dict[str, Any]:
    try:
        with closing(RawDisk(folder, memory, threads=point.threads, block=point.block)) as disk:
            seconds = disk.write("sweep-raw", point.nbytes).total
            disk.remove("sweep-raw")
    except OSError as error:
        raise SaveError.of(error, path=folder, phase="write") from error
    done()
    return {"threads": point.threads, "block_bytes": point.block, "mb_s": point.nbytes / seconds / 1e6}
