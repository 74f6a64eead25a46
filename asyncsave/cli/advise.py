"""``asyncsave advise``: how often to save?"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table

from asyncsave.bench.advice import Advice, Bound, Plan, Prospect, advise, young
from asyncsave.bench.measured import MOST_BYTES, Measured, measured, parsed
from asyncsave.cli.measuring import measure_now
from asyncsave.cli.sizes import nbytes_of, seconds_of, share_of
from asyncsave.cli.terminal import FINDINGS, Json, Terminal, answering
from asyncsave.errors import CheckpointNotFoundError, LoadError
from asyncsave.storage.source import open_source
from asyncsave.units import duration, plain, share

__all__ = ["how_often"]

_MODES = ("torch.save+fsync", "thread", "process")
"""What a fresh run measures: the durable ways."""

_WORDS: dict[Bound, str] = {"mtbf": "best", "budget": "by budget", "disk": "by disk", "step": "by step"}

Bench = Annotated[
    str | None,
    typer.Argument(metavar="BENCH.json", help="What bench --json said, or - for stdin; without it, measure now."),
]
Mtbf = Annotated[str, typer.Option(help="Mean time between failures of a run: 12h, 2d.", show_default=False)]
StepTime = Annotated[str | None, typer.Option(help="How long your step takes: 350ms. Else that of the measurement.")]
Budget = Annotated[str, typer.Option(help="The share of the time that saves may cost.")]
Mode = Annotated[str | None, typer.Option(help="A mode that was measured. Else the one that bench recommends.")]
Queue = Annotated[int, typer.Option(help="Saves that are written at the same time; asyncsave writes one by one.")]
Restart = Annotated[str | None, typer.Option(help="From a failure until steps are made again: 60s.")]
Folder = Annotated[str, typer.Option("--dir", help="Where to measure, without a BENCH.json.")]
Size = Annotated[str, typer.Option(help="The size of the state to measure with, without a BENCH.json.")]
Like = Annotated[str | None, typer.Option(metavar="FILE", help="Measure with the state of this checkpoint.")]
StepKind = Annotated[
    str | None,
    typer.Option("--step", metavar="KIND", help="Measure with this training: cpu, python, gpu, module:function."),
]


def how_often(
    bench: Bench = None,
    *,
    mtbf: Mtbf,
    step_time: StepTime = None,
    budget: Budget = "3.5%",
    mode: Mode = None,
    queue: Queue = 1,
    restart: Restart = None,
    folder: Folder = ".",
    size: Size = "256MB",
    like: Like = None,
    step: StepKind = None,
    json: Json = False,
) -> None:
    """Say how often to save."""
    with answering(json=json) as terminal:
        plan = partial(
            Plan,
            mtbf_s=seconds_of(mtbf),
            budget=share_of(budget),
            queue=queue,
            restart_s=seconds_of(restart) if restart is not None else 0.0,
        )
        step_s = seconds_of(step_time) if step_time is not None else None
        plan(1.0, 1.0, step_s or 1.0)  # a wrong option is told before anything is measured
        if bench is None:
            document, path = _measured_now(terminal, folder, nbytes_of(size), like, step), "the measurement"
        else:
            document, path = _read(bench)
        found = measured(document, mode, path)
        advice = advise(plan(found.charged_s, found.durable_s, step_s or found.step_s))
        notes = list(_notes(found, advice, own_step=step_s is not None))
        terminal.document(_document(found, advice, notes))
        terminal.show(*_told(found, advice))
        for note in notes:
            terminal.note(f"note: {note}")
        if not advice.sound:
            terminal.leave(FINDINGS)


def _measured_now(terminal: Terminal, folder: str, nbytes: int, like: str | None, step: str | None) -> Any:
    from asyncsave.bench.loops import usual_kind
    from asyncsave.bench.plan import Plan as Measurement

    plan = Measurement(os.path.abspath(folder), nbytes, like=like, step=step or usual_kind(), modes=_MODES)
    return measure_now(terminal, plan)


def _read(path: str) -> tuple[Any, str]:
    if path == "-":
        data, path = sys.stdin.buffer.read(MOST_BYTES + 1), "stdin"
    else:
        try:
            with open_source(path) as source:
                path = source.path
                data = source.read(0, min(source.nbytes, MOST_BYTES + 1))
        except CheckpointNotFoundError as error:
            message = f"there is no file {error.path!r}: make one with asyncsave bench --json > bench.json"
            raise CheckpointNotFoundError(message, path=error.path) from error
    if len(data) > MOST_BYTES:
        raise LoadError(f"{path!r} is no measurement: it has more than {MOST_BYTES:,} bytes", path=path)
    return parsed(data, path), path


def _notes(found: Measured, advice: Advice, *, own_step: bool) -> Iterator[str]:
    plan = advice.plan
    if not advice.sound:
        yield (
            f"{share(advice.prospect.lost)} of all time would be lost: save in a cheaper or quicker way, "
            f"{'allow a larger budget, ' if advice.bound == 'budget' else ''}or find out why runs fail so often"
        )
    if found.helps is False:
        yield "the measurement says that background saving does not help here"
    if found.promise == "page cache":
        yield (
            f"{plain(found.mode)} does not say when a save is durable: the times count until it is in the page cache, "
            "which a power cut undoes"
        )
    if found.cost_ci95_s is None:
        yield "there were too few saves for an interval of the cost: it may be far off"
    if found.cost_s < found.stall_s:
        yield (
            f"the cost was measured as {duration(found.cost_s)}, less than the call itself: the steps were too uneven "
            "to tell, and the time of the call is what is counted"
        )
    if not own_step:
        yield f"no --step-time: counting with the measured training's step of {duration(plan.step_s)}"
    if plan.queue > 1 and advice.disk_s < plan.durable_s:
        yield "asyncsave writes one save after another: a queue evens out slow saves, it does not make them quicker"


def _document(found: Measured, advice: Advice, notes: list[str]) -> dict[str, Any]:
    plan = advice.plan
    by_mtbf = [{"factor": factor, "mtbf_s": one.plan.mtbf_s} | _advised(one) for factor, one in advice.by_mtbf()]
    by_cost = [{"factor": factor, "cost_s": one.plan.cost_s} | _advised(one) for factor, one in advice.by_cost()]
    by_interval = [{"factor": factor} | _expected(one) for factor, one in advice.by_interval()]
    return {
        "mode": plain(found.mode),
        "promise": plain(found.promise),
        "helps": found.helps,
        "inputs": {
            "cost_s": plan.cost_s,
            "cost_ci95_s": list(found.cost_ci95_s or (None, None)),
            "durable_s": plan.durable_s,
            "step_s": plan.step_s,
            "mtbf_s": plan.mtbf_s,
            "budget": plan.budget,
            "queue": plan.queue,
            "restart_s": plan.restart_s,
        },
        "advice": _advised(advice) | {"reason": advice.reason, "sound": advice.sound},
        "bounds": {
            "mtbf_s": advice.optimum_s,
            "budget_s": advice.budget_s,
            "disk_s": advice.disk_s,
            "young_s": young(plan.cost_s, plan.mtbf_s),
        },
        "sensitivity": {"mtbf": by_mtbf, "cost": by_cost, "interval": by_interval},
        "notes": notes,
    }


def _advised(advice: Advice) -> dict[str, Any]:
    return _expected(advice.prospect) | {"bound": advice.bound}


def _expected(prospect: Prospect) -> dict[str, Any]:
    return {
        "steps": prospect.steps,
        "interval_s": prospect.interval_s,
        "overhead": prospect.overhead,
        "lost_per_failure_s": prospect.lost_s,
        "lost_share": prospect.lost,
        "in_budget": prospect.in_budget,
        "writable": prospect.writable,
    }


def _told(found: Measured, advice: Advice) -> Iterator[str | Table]:
    plan, prospect = advice.plan, advice.prospect
    steps = "step" if prospect.steps == 1 else f"{prospect.steps:,} steps"
    yield f"Save every {steps}, which is every {duration(prospect.interval_s)}: {advice.reason}.\n"
    yield f"{plain(found.mode)}: a save costs {duration(plan.cost_s)}, and is durable after {duration(plan.durable_s)}"
    yield f"saves take {share(prospect.overhead)} of the time"
    yield f"a failure, once in {duration(plan.mtbf_s)}, loses {duration(prospect.lost_s)} of work"
    yield f"lost in all: {share(prospect.lost)} of the time\n"
    yield _limits(advice)
    yield "\nIf you save more or less often:"
    around = advice.by_interval()
    yield _sensitivity("", [(f"x {factor:.2g}", one, _objection(one)) for factor, one in around])
    yield "\nIf runs fail more or less often:"
    by_mtbf = [one for _, one in advice.by_mtbf()]
    yield _sensitivity("MTBF", [(duration(one.plan.mtbf_s), one.prospect, _WORDS[one.bound]) for one in by_mtbf])
    yield "\nIf a save costs more or less:"
    by_cost = [one for _, one in advice.by_cost()]
    yield _sensitivity("cost", [(duration(one.plan.cost_s), one.prospect, _WORDS[one.bound]) for one in by_cost])


def _objection(prospect: Prospect) -> str:
    if not prospect.writable:
        return "disk too slow"
    return "" if prospect.in_budget else "over budget"


def _limits(advice: Advice) -> Table:
    """Show the shortest interval that each limit allows, and the one that the MTBF wants."""
    table = Table("limit", "interval", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row(f"overhead within {share(advice.plan.budget)}", duration(advice.budget_s))
    table.add_row("as quick as the disk", duration(advice.disk_s))
    table.add_row("best for the MTBF", duration(advice.optimum_s))
    return table


def _sensitivity(title: str, rows: list[tuple[str, Prospect, str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in (title, "steps", "every", "overhead", "lost"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("")
    for label, one, word in rows:
        table.add_row(label, f"{one.steps:,}", duration(one.interval_s), share(one.overhead), share(one.lost), word)
    return table
