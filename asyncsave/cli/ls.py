"""``asyncsave ls``: which checkpoints the runs in a folder have."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing, Look
from asyncsave.catalogue.names import parse
from asyncsave.cli.plain import shortest
from asyncsave.cli.runs import Run, about, age, epoch_of, kind_of, metrics_of, versions_in
from asyncsave.cli.terminal import FAILED, FINDINGS, Json, Terminal, answering, new_table
from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.runs.selection import look_at
from asyncsave.units import size

__all__ = ["ls"]

All = Annotated[bool, typer.Option("--all", "-a", help="Also what takes up room without being a checkpoint.")]


def ls(run: Run = ".", all: All = False, json: Json = False) -> None:  # noqa: A002 - as in all of them
    """List the checkpoints of a run, or of all runs in a folder."""
    with answering(json=json) as terminal:
        said: list[dict[str, Any]] = []
        errors: list[LoadError] = []
        for folder in versions_in(run):
            listing = Listing(folder)
            look = look_at(listing)
            others = listing.remnants() if all else []
            _tell(terminal, folder, look, others)
            errors += look.problems.values()
            said.append(_document(folder, look, others if all else None))
        terminal.document({"versions": said})
        for error in errors:
            terminal.note(f"error: {error}", style="red")
        if errors:
            corrupt = any(isinstance(error, CorruptCheckpointError) for error in errors)
            terminal.leave(FINDINGS if corrupt else FAILED)


def _tell(terminal: Terminal, folder: str, look: Look, others: list[CheckpointInfo]) -> None:
    infos = look.infos + others
    total = size(sum(info.nbytes for info in infos))
    terminal.show(f"{shortest(folder)}: {_count(len(look.infos), 'checkpoint')}, {total}")
    if not infos and not look.problems:
        return
    table = new_table()
    for name in ("step", "saved", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("epoch, metrics", overflow="fold", min_width=14)
    for info in infos:
        step = str(info.step) if info.step >= 0 else "-"
        ago = age(info.time) if info.time else "-"
        table.add_row(step, ago, size(info.nbytes), kind_of(info) or "-", _figures(info))
    for path in sorted(look.problems):
        said = parse(os.path.basename(path))
        table.add_row(str(said.step) if said else "-", "-", "-", "unreadable", "")
    terminal.show(table)


def _figures(info: CheckpointInfo) -> str:
    epoch = epoch_of(info)
    return ", ".join(filter(None, (epoch and f"epoch {epoch}", metrics_of(info))))


def _document(folder: str, look: Look, others: list[CheckpointInfo] | None) -> dict[str, Any]:
    return {
        "path": folder,
        "name": os.path.basename(folder),
        "checkpoints": [about(info) for info in look.infos],
        "others": None
        if others is None
        else [{"step": info.step, "path": info.path, "kind": info.kind, "nbytes": info.nbytes} for info in others],
        "problems": [
            {"path": path, "kind": type(error).__name__, "message": str(error)}
            for path, error in sorted(look.problems.items())
        ],
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
