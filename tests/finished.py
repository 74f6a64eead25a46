"""Two runs that are over, whole, with all that a run can say of a step; and what the library itself says of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from asyncsave import CheckpointInfo, CheckpointManager
from asyncsave.catalogue.listing import Listing
from asyncsave.storage.assembly import UNFINISHED

__all__ = ["everything", "infos_of", "litter", "make_runs", "said", "save", "steps"]


def save(manager: CheckpointManager, step: int, **options: Any) -> None:
    """Save a step and wait for it."""
    manager.save(step, {"model": {"w": torch.full((100,), float(step))}, "epoch": 1}, **options).result(30)


def make_runs(root: Path) -> None:
    """Make the runs: ``p/first/1`` of six steps, ``p/second/1`` of one."""
    with CheckpointManager(root, project="p", experiment="first") as manager:
        for step, loss in ((10, 0.5), (20, 0.25), (30, math.nan), (40, 0.125), (50, None)):
            save(manager, step, metrics={"loss": loss, "accuracy": step / 100}, metadata={"note": ["a", 1]})
        manager.pin(10)
        manager.save(60, parts={"ema": torch.zeros(3)}, metrics={"accuracy": 0.1}).result(30)
    with CheckpointManager(root, project="p", experiment="second", version="new") as manager:
        save(manager, 1)


def infos_of(version: Path) -> list[CheckpointInfo]:
    """Return what the library says of a version's checkpoints."""
    return Listing(str(version)).look().infos


def said(info: CheckpointInfo) -> dict[str, Any]:
    """Return the document of a checkpoint, from the library's own value."""
    return {
        "step": info.step,
        "path": info.path,
        "kind": info.kind,
        "complete": info.complete,
        "pinned": info.pinned,
        "time": info.time,
        "epoch": info.epoch,
        "metrics": {name: "NaN" if value != value else value for name, value in info.metrics.items()},  # noqa: PLR0124
        "metadata": info.metadata,
        "nbytes": info.nbytes,
        "files": [{"name": name, "nbytes": file.nbytes, "digest": file.digest} for name, file in info.files.items()],
    }


def steps(version: Path) -> list[int]:
    """Return the steps that are in place."""
    return [info.step for info in infos_of(version)]


def everything(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, with its bytes."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def litter(version: Path) -> list[dict[str, Any]]:
    """Leave one of everything behind that is no checkpoint; return it as ``ls --all`` tells it."""
    (version / "step-00000020").rename(version / "step-00000020.corrupt")
    (version / "step-00000030").rename(version / "step-00000030.abandoned")
    (version / "step-00000040" / "manifest.json").rename(version / "step-00000040" / "dropped.json")
    unfinished, spare = version / ".asyncsave-0123456789abcdef.tmp", version / ".asyncsave-fedcba9876543210.tmp"
    unfinished.mkdir()
    (unfinished / UNFINISHED).touch()
    (unfinished / "state.pt").write_bytes(b"half")
    spare.write_bytes(b"blocks")

    def one(path: Path, kind: str, step: int) -> dict[str, Any]:
        nbytes = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
        return {"path": str(path), "kind": kind, "step": step, "nbytes": nbytes}

    return [
        one(unfinished, "unfinished", -1),
        one(spare, "spare", -1),
        one(version / "step-00000020.corrupt", "corrupt", 20),
        one(version / "step-00000030.abandoned", "abandoned", 30),
        one(version / "step-00000040", "dropped", 40),
    ]
