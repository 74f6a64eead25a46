"""``asyncsave clean``: remove what takes up room in a run without being a checkpoint."""

from __future__ import annotations

import contextlib
import os

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing
from asyncsave.cli.plain import shortest
from asyncsave.cli.runs import DryRun, Run, held, the_version
from asyncsave.cli.terminal import FAILED, Json, Terminal, Yes, answering, new_table
from asyncsave.runs.cleaning import clean as remove
from asyncsave.units import size

__all__ = ["clean"]


def clean(run: Run, dry_run: DryRun = False, yes: Yes = False, json: Json = False) -> None:
    """Remove what dead writers left in a run, spare files, and rests of dropped steps; never a checkpoint."""
    with answering(json=json) as terminal:
        folder = the_version(run)
        listing = Listing(folder)
        with contextlib.nullcontext() if dry_run else held(folder):
            found = listing.remnants()
            tried = set(remove(listing, _nobody_has_one, dry_run=True))
            _tell(terminal, folder, found, tried)
            if tried and not dry_run:
                total = size(sum(info.nbytes for info in found if info.path in tried))
                terminal.confirm(f"Remove {len(tried)} of these ({total})?", yes=yes)
                remove(listing, _nobody_has_one, dry_run=False)
        gone = [info for info in found if info.path in tried and (dry_run or not os.path.lexists(info.path))]
        terminal.document(_document(folder, found, gone, dry_run=dry_run))
        total, would = size(sum(info.nbytes for info in gone)), "would be removed" if dry_run else "removed"
        terminal.show(f"{len(gone)} of {len(found)} {would}, {total}" if found else "there is nothing to clean")
        if len(gone) < len(tried):
            terminal.leave(FAILED)


def _nobody_has_one() -> None:
    """Stand for a writer that drops its spare file: whoever holds the version knows that there is no writer."""


def _tell(terminal: Terminal, folder: str, found: list[CheckpointInfo], tried: set[str]) -> None:
    terminal.show(shortest(folder))
    if not found:
        return
    table = new_table()
    table.add_column("name", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("", no_wrap=True)
    for info in found:
        name = shortest(os.path.basename(info.path))
        table.add_row(name, size(info.nbytes), info.kind, "remove" if info.path in tried else "stays: look at it")
    terminal.show(table)


def _document(
    folder: str, found: list[CheckpointInfo], gone: list[CheckpointInfo], *, dry_run: bool
) -> dict[str, object]:
    def said(infos: list[CheckpointInfo]) -> list[dict[str, object]]:
        return [{"path": info.path, "kind": info.kind, "step": info.step, "nbytes": info.nbytes} for info in infos]

    return {
        "path": folder,
        "dry_run": dry_run,
        "freed_bytes": sum(info.nbytes for info in gone),
        "removed": said(gone),
        "left": said([info for info in found if info not in gone]),
    }
