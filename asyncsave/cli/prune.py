"""``asyncsave prune``: drop what a policy does not keep from a run that nobody trains."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.retention import Retention, Verdict
from asyncsave.cli.plain import plain, shortest
from asyncsave.cli.runs import DryRun, Metric, Mode, Run, held, the_version
from asyncsave.cli.terminal import FAILED, Json, Terminal, Yes, answering, new_table
from asyncsave.runs.pruning import carry_out, judge
from asyncsave.runs.selection import look_at
from asyncsave.units import size

__all__ = ["prune"]

Last = Annotated[int | None, typer.Option(help="Keep so many of the newest.", show_default=False)]
BestOf = Annotated[int | None, typer.Option("--best", help="Keep so many of the best by --metric.", show_default=False)]
Every = Annotated[int | None, typer.Option(help="Keep steps that are a multiple of this.", show_default=False)]
Hours = Annotated[float | None, typer.Option(help="Keep one for every so many hours.", show_default=False)]


def prune(
    run: Run,
    last: Last = None,
    best: BestOf = None,
    metric: Metric = None,
    mode: Mode = "min",
    every: Every = None,
    hours: Hours = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Drop the checkpoints of a run that none of the rules keeps. The newest and pinned ones stay in any case."""
    with answering(json=json) as terminal:
        retain = Retention(last, best, metric, mode, every, hours)
        folder = the_version(run)
        listing = Listing(folder)
        with contextlib.nullcontext() if dry_run else held(folder):
            look = look_at(listing)
            for error in look.problems.values():
                terminal.note(f"it stays: {error}", style="yellow")
            planned = judge(look.infos, retain)
            _tell(terminal, folder, planned)
            done = planned
            if not dry_run and (dropped := [verdict for verdict in planned if not verdict.kept]):
                terminal.confirm(f"Remove {len(dropped)} of {len(planned)} checkpoints ({_size(dropped)})?", yes=yes)
                done = carry_out(listing, planned)
        terminal.document(_document(folder, done, dry_run=dry_run))
        left = [now for before, now in zip(planned, done, strict=True) if now.kept and not before.kept]
        for verdict in left:
            terminal.note(f"error: {verdict.info.path} is still there: {'; '.join(verdict.reasons)}", style="red")
        gone = [verdict for verdict in done if not verdict.kept]
        would = "would be removed" if dry_run else "removed"
        terminal.show(f"{len(gone)} of {len(done)} checkpoints {would}, {_size(gone)}")
        if left:
            terminal.leave(FAILED)


def _size(verdicts: list[Verdict]) -> str:
    return size(sum(verdict.info.nbytes for verdict in verdicts))


def _tell(terminal: Terminal, folder: str, verdicts: list[Verdict]) -> None:
    terminal.show(shortest(folder))
    if not verdicts:
        return
    table = new_table()
    for name in ("step", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("because", overflow="fold")
    for verdict in verdicts:
        info = verdict.info
        reasons = plain(", ".join(verdict.reasons)) or "no rule keeps it"
        step = f"{info.step}" if info.complete else f"{info.step} (emergency)"
        table.add_row(step, size(info.nbytes), "keep" if verdict.kept else "drop", reasons)
    terminal.show(table)


def _document(folder: str, verdicts: list[Verdict], *, dry_run: bool) -> dict[str, object]:
    return {
        "path": folder,
        "dry_run": dry_run,
        "freed_bytes": sum(verdict.info.nbytes for verdict in verdicts if not verdict.kept),
        "checkpoints": [
            {
                "step": verdict.info.step,
                "path": verdict.info.path,
                "kind": verdict.info.kind,
                "nbytes": verdict.info.nbytes,
                "kept": verdict.kept,
                "reasons": list(verdict.reasons),
            }
            for verdict in verdicts
        ],
    }
