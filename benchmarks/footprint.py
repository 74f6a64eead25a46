"""The memory of one process that saves, measured from inside and told as one line of JSON.

``python -m benchmarks.footprint peak FOLDER ARENAS`` saves the standard state with ``max_pending=ARENAS``, faster
than it can be written, and tells the peak above what the process had before its first writer.
``python -m benchmarks.footprint flat FOLDER SAVES`` saves a small state again and again and tells the resident
memory after a tenth of the saves and after the last.
A process of its own, because memory that earlier benchmarks gave back to the allocator would hide what a save takes.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import psutil

import asyncsave
from benchmarks.states import megabytes, tensor_bytes, transformer_with_adamw


def peak(folder: Path, arenas: int) -> dict[str, int]:
    """Save three times as often as there are arenas, without a pause; return the peak in bytes."""
    state = transformer_with_adamw()
    gc.collect()
    before = _reset_peak()
    with asyncsave.Writer(max_pending=arenas) as writer:
        for _ in range(3 * arenas):
            writer.save(state, folder / "footprint")
        writer.flush()
        above = _peak() - before
    return {"arenas": arenas, "state": tensor_bytes(state), "above": above}


def flat(folder: Path, saves: int) -> dict[str, int]:
    """Save a state of 16 MB ``saves`` times to one path; return resident bytes early and late."""
    state = megabytes(16)
    process = psutil.Process()
    early = 0
    with asyncsave.Writer() as writer:
        for index in range(saves):
            writer.save(state, folder / "footprint").result()
            if index == saves // 10:
                gc.collect()
                early = process.memory_info().rss
        gc.collect()
        late = process.memory_info().rss
    return {"saves": saves - 1 - saves // 10, "early": early, "late": late}


def _reset_peak() -> int:
    """Make the kernel count the peak anew; return the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    kind, where, number = sys.argv[1:]
    print(json.dumps({"peak": peak, "flat": flat}[kind](Path(where), int(number))))
