"""Managers over the backend that is being tested, steps that say which one they are, and damage done to them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import make_writer

import asyncsave
from asyncsave.storage.mounts import file_system
from asyncsave.storage.system import System

__all__ = [
    "LARGE",
    "PATIENCE",
    "STEP",
    "damaged",
    "managed",
    "manifest",
    "needs_spares",
    "number_in",
    "others",
    "state",
    "step_folder",
    "steps",
]

PATIENCE = 30.0
LARGE = 9 << 20
"""Elements of a state whose file is worth keeping as a spare."""
STEP = "step-{:08d}"


def state(number: int, numel: int = 1000) -> dict[str, Any]:
    """Return a state that says in every byte which one it is."""
    return {"number": number, "x": torch.full((numel,), float(number))}


def number_in(loaded: dict[str, Any]) -> int:
    """Return which state was loaded; every byte of it must be that one's."""
    assert bool((loaded["x"] == float(loaded["number"])).all()), "mixed"
    return int(loaded["number"])


@contextlib.contextmanager
def managed(
    root: Path, *, system: System | None = None, writing: dict[str, Any] | None = None, **options: Any
) -> Iterator[asyncsave.CheckpointManager]:
    """Open a manager over a writer with the backend that is being tested.

    Args:
        root: Where.
        system: The writer's operating system; None: the real one.
        writing: Further options of the writer.
        options: Those of the manager.
    """
    with (
        make_writer(system=system, **(writing or {})) as writer,
        asyncsave.CheckpointManager(root, writer=writer, **options) as manager,
    ):
        yield manager


def step_folder(manager: asyncsave.CheckpointManager, step: int) -> Path:
    """Return the folder of a step, whether it is there or not."""
    return Path(manager.path) / STEP.format(step)


def manifest(folder: Path) -> dict[str, Any]:
    """Return what a step's manifest says, as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return dict(json.loads((folder / "manifest.json").read_bytes(), parse_constant=refuse))


def steps(manager: asyncsave.CheckpointManager) -> list[int]:
    """Return the steps that are in place."""
    return [info.step for info in manager.list()]


def others(manager: asyncsave.CheckpointManager) -> list[tuple[str, str]]:
    """Return what takes up room without being a checkpoint: kind and name."""
    return [(info.kind, Path(info.path).name) for info in manager.list(all=True) if info.kind != "step"]


def needs_spares(folder: Path) -> None:
    """Skip a test where no file is ever kept to be overwritten."""
    kind = file_system(str(folder))[0]
    if kind not in {"ext3", "ext4", "xfs"}:
        pytest.skip(f"no spare files on {kind}")


def _flip(folder: Path) -> None:
    path = folder / "state.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(folder: Path) -> None:
    path = folder / "state.pt"
    path.write_bytes(path.read_bytes()[:-100])


def _swap(folder: Path) -> None:
    """Put the file of the step before in its place: sound in itself, of the same size."""
    before = folder.parent / STEP.format(int(folder.name.removeprefix("step-")) - 1)
    path = folder / "state.pt"
    assert (before / "state.pt").stat().st_size == path.stat().st_size
    path.write_bytes((before / "state.pt").read_bytes())


damaged: dict[str, Callable[[Path], object]] = {
    "flipped byte": _flip,
    "truncated": _truncate,
    "empty": lambda folder: (folder / "state.pt").write_bytes(b""),
    "missing": lambda folder: (folder / "state.pt").unlink(),
    "of another step": _swap,
    "no manifest in it": lambda folder: (folder / "manifest.json").write_bytes(b"\0garbage"),
    "empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "manifest of another step": lambda folder: (folder / "manifest.json").write_bytes(
        (folder.parent / STEP.format(0) / "manifest.json").read_bytes()
    ),
}
"""Ways to damage a step, by name. Steps 0, 1, ... of equal size must be there."""
