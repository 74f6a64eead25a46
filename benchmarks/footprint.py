"""The memory of one process that saves, measured from inside and told as one line of JSON.

``python -m benchmarks.footprint peak FOLDER ARENAS`` saves the standard state with ``max_pending=ARENAS``, faster
than it can be written, and tells the peak above what the process had before its first writer.
``python -m benchmarks.footprint flat FOLDER SAVES`` saves a small state again and again and tells the resident
memory after a tenth of the saves and after the last.
``python -m benchmarks.footprint both FOLDER SAVES`` does so with a writer process, and tells memory and descriptors of
both processes, at the same two moments.
A process of its own, because memory that earlier benchmarks gave back to the allocator would hide what a save takes.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import psutil
import torch

import asyncsave
from asyncsave.bench.footprint import Footprint
from asyncsave.bench.states import same_tensors, tensor_bytes
from benchmarks.probes import mapped
from benchmarks.states import megabytes, transformer_with_adamw

_AT_REST = 0.5


def peak(folder: Path, arenas: int) -> dict[str, int]:
    """Save three times as often as there are arenas, without a pause; return the peak in bytes."""
    state = transformer_with_adamw()
    footprint = Footprint()
    with asyncsave.Writer(max_pending=arenas) as writer:
        for _ in range(3 * arenas):
            writer.save(state, folder / "footprint")
        writer.flush()
        above = footprint.peak()
    assert above is not None, "the kernel counts no peak"
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


def both(folder: Path, saves: int) -> dict[str, int]:
    """Save a state of 8 MB ``saves`` times to one path; return what trainer and writer process hold, early and late."""
    state = megabytes(8)
    told = {"saves": saves - 1 - saves // 10}
    with asyncsave.Writer(backend="process") as writer:
        for index in range(saves):
            writer.save(state, folder / "footprint").result()
            if index in {saves // 10, saves - 1}:
                moment = "late" if index == saves - 1 else "early"
                told |= {f"{moment} {name}": number for name, number in _holdings().items()}
    assert same_tensors(state, torch.load(folder / "footprint", weights_only=True))
    return told


def _holdings() -> dict[str, int]:
    """Return the memory (bytes) and the descriptors of this process and its only child, when both are at rest.

    USS is what nobody else maps. ``shared once`` is the anonymous and the shared memory of both, by their
    proportional set sizes: what they share counts once, whichever of them maps it just now; files (libraries, which
    other processes may map or not) are left out.
    """
    gc.collect()
    time.sleep(_AT_REST)  # a save's end is told before all that it held has been let go
    trainer = psutil.Process()
    (service,) = trainer.children()
    shared = [mapped(process.pid) for process in (trainer, service)]
    return {
        "trainer uss": trainer.memory_full_info().uss,
        "service uss": service.memory_full_info().uss,
        "shared once": sum(of["Pss_Anon"] + of["Pss_Shmem"] for of in shared),
        "trainer descriptors": trainer.num_fds(),
        "service descriptors": service.num_fds(),
    }


if __name__ == "__main__":
    kind, where, number = sys.argv[1:]
    print(json.dumps({"peak": peak, "flat": flat, "both": both}[kind](Path(where), int(number))))
