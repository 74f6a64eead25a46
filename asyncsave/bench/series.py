"""What the plots show, as tables: a measurement in, rows of numbers out. What is drawn is what is in the CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncsave.bench.advice import BUDGET, Advice, Plan, advise, lost
from asyncsave.units import duration, rate, share, short, size

__all__ = ["HELD_PHASES", "MTBF_S", "Plot", "plan_of", "plots_of"]

Document = Mapping[str, Any]

MTBF_S = 12 * 3600.0
"""How often runs are taken to fail where the plots need to know."""

HELD_PHASES = ("wait", "capture", "stage")
"""What the caller waits for; the phases after these are the background's."""

_GRID = 49
_SPAN = 30.0
_PART = 0.02
_LEAST_S = 1e-9


@dataclass(frozen=True)
class Plot:
    """One plot's content.

    Attributes:
        name: Of its files.
        title: What it shows.
        caption: What is to be seen, in words: also for those who see no picture.
        header: Names of the columns, with units.
        rows: The numbers.
        notes: What is said beside a way of saving, by its name.
        marks: Single values that are drawn: a ceiling, a budget, an optimum.
    """

    name: str
    title: str
    caption: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    notes: dict[str, str] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)

    def csv(self) -> bytes:
        """Return header and rows as CSV in UTF-8."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue().encode()


def plots_of(document: Document) -> list[Plot]:
    """Return all plots that a measurement has numbers for."""
    sweeps = document["sweeps"] or {}
    made = [_timeline(document), _phases(document)]
    if sweeps.get("size"):
        made.append(_sizes(sweeps["size"]))
    if sweeps.get("tensors"):
        made.append(_tensors(sweeps["tensors"]))
    if sweeps.get("threads"):
        made.append(_threads(sweeps["threads"], sweeps["ceiling_mb_s"]))
    made.append(_interval(document))
    return [plot for plot in made if plot.rows]


def plan_of(document: Document, mode: str) -> Plan:
    """Return what is known of a way of saving for an advice: with the default budget, and ``MTBF_S``.

    A save costs at least what the call held the loop: steps are not quicker for being beside a save.
    """
    found = document["modes"][mode]
    cost_ms = max(found["cost_ms"]["median"], found["stall_ms"]["median"])
    step_ms = document["training"]["quiet_ms"]["median"]
    cost, durable, step = (max(value, _LEAST_S) for value in (cost_ms / 1e3, found["durable_s"], step_ms / 1e3))
    return Plan(cost, durable, step, MTBF_S)


def _timeline(document: Document) -> Plot:
    rows: list[tuple[Any, ...]] = []
    notes = {}
    for mode, found in document["modes"].items():
        timeline = found["timeline"]
        saves = timeline["saves"]
        zero = saves[0][0] if saves else 0.0
        for called, returned, complete in saves:
            rows.append((short(mode), "save", called - zero, returned - zero, complete - zero, ""))
        for began, ended in timeline["steps"]:
            # A step may hold the call of a save; what the call took is not the step's.
            held = sum(max(0.0, min(ended, returned) - max(began, called)) for called, returned, _ in saves)
            rows.append((short(mode), "step", began - zero, ended - zero, "", 1e3 * (ended - began - held)))
        notes[short(mode)] = f"held {duration(found['stall_ms']['median'] / 1e3)}{_slower(found['inflation'])}"
    quiet = duration(document["training"]["quiet_ms"]["median"] / 1e3)
    return Plot(
        "timeline",
        "Steps around a save",
        f"How long each step took, from the call of a save on; a quiet one takes {quiet}. In the dark band the call "
        "held the loop and there are no steps; in the light band the save was written beside them.",
        ("mode", "kind", "began_s", "ended_s", "complete_s", "step_ms"),
        rows,
        notes,
    )


def _slower(inflation: float | None) -> str:
    return "" if inflation is None else f", steps beside it {100 * (inflation - 1):+.0f} %"


def _phases(document: Document) -> Plot:
    rows = [(short(mode), *part) for mode, found in document["modes"].items() for part in _parts(found)]
    notes = {short(mode): duration(found["durable_s"]) for mode, found in document["modes"].items()}
    said = "; ".join(
        f"{short(mode)} holds the loop for {duration(found['stall_ms']['median'] / 1e3)} of {notes[short(mode)]}"
        for mode, found in document["modes"].items()
    )
    return Plot(
        "phases",
        "What a save's time is made of",
        f"Medians from the call of a save until it is complete. {said}.",
        ("mode", "phase", "holds_the_loop", "ms"),
        rows,
        notes,
    )


def _parts(found: Mapping[str, Any]) -> Iterator[tuple[str, bool, float]]:
    """Yield phases with whether they hold the loop, and milliseconds; ways without known phases have two parts."""
    phases = {name: ms for name, ms in found["phases"].items() if name != "save"}
    if phases:
        yield from ((short(name), name in HELD_PHASES, ms) for name, ms in phases.items())
        return
    whole, held = 1e3 * found["durable_s"], found["stall_ms"]["median"]
    yield "held", True, held
    if whole - held > _PART * whole:
        yield "background", False, whole - held


def _sizes(points: list[dict[str, Any]]) -> Plot:
    rows = [(short(one["mode"]), one["nbytes"], one["stall_ms"], one["durable_s"]) for one in points]
    least, most = min(row[1] for row in rows), max(row[1] for row in rows)
    return Plot(
        "size",
        "Stall and size of the state",
        f"How long the call held the loop, for states from {size(least)} to {size(most)}; both axes are logarithmic, "
        f"so a line that is lower by one mark is ten times as quick. {_at_most(rows, 'at the largest state')}",
        ("mode", "nbytes", "stall_ms", "durable_s"),
        rows,
    )


def _tensors(points: list[dict[str, Any]]) -> Plot:
    rows = [(short(one["mode"]), one["tensors"], one["stall_ms"], one["durable_s"], one["nbytes"]) for one in points]
    return Plot(
        "tensors",
        "Stall and number of tensors",
        f"How long the call held the loop, with {size(max(row[4] for row in rows))} in more and more tensors: "
        f"what each tensor costs, besides its bytes. {_at_most(rows, 'with most tensors')}",
        ("mode", "tensors", "stall_ms", "durable_s", "nbytes"),
        rows,
    )


def _at_most(rows: list[tuple[Any, ...]], where: str) -> str:
    most = max(row[1] for row in rows)
    said = ", ".join(f"{mode} {duration(stall / 1e3)}" for mode, x, stall, *_ in rows if x == most)
    return f"{where[0].upper()}{where[1:]}: {said}."


def _threads(points: list[dict[str, Any]], ceiling: float) -> Plot:
    rows = [(one["block_bytes"], one["threads"], one["mb_s"]) for one in points]
    block, threads, best = max(rows, key=lambda row: row[2])
    return Plot(
        "threads",
        "Writing: threads and blocks",
        f"What bare writes to this folder reach with several threads and sizes of blocks, flushed. Most: {rate(best)} "
        f"with {threads} threads and blocks of {size(block)}; the ceiling is {rate(ceiling)}.",
        ("block_bytes", "threads", "mb_s"),
        rows,
        marks={"ceiling_mb_s": ceiling},
    )


def _interval(document: Document) -> Plot:
    """Overhead, and all that is lost, over the interval: of the way that the verdict names, and of its baseline."""
    verdict = document["verdict"] or {}
    named = dict.fromkeys(str(verdict.get(role)) for role in ("mode", "baseline"))
    modes = [mode for mode in named if mode in document["modes"]] or list(document["modes"])[-1:]
    advices = {mode: advise(plan_of(document, mode)) for mode in modes}
    chosen = advices[modes[0]]
    middle = chosen.prospect.interval_s
    rows = [
        (short(mode), interval, 100 * one.plan.cost_s / interval, 100 * lost(one.plan, interval))
        for mode, one in advices.items()
        for interval in _intervals(middle, one)
    ]
    found = chosen.prospect
    return Plot(
        "interval",
        "How often to save",
        f"What saving by {short(modes[0])} costs, and what is lost in all with the work that a failure undoes, if runs "
        f"fail once in {duration(MTBF_S)}. Best is a save every {duration(middle)} ({chosen.reason}): an overhead of "
        f"{share(found.overhead)}, {share(found.lost)} lost in all. The optimum is flat: twice or half of it does "
        f"little harm. The budget is {share(BUDGET)}. For other figures: asyncsave advise.",
        ("mode", "interval_s", "overhead_percent", "lost_percent"),
        rows,
        marks={
            "budget_percent": 100 * BUDGET,
            "optimum_s": chosen.optimum_s,
            "advised_s": middle,
            "advised_lost_percent": 100 * found.lost,
            "disk_s": chosen.disk_s,
        },
    )


def _intervals(middle: float, advice: Advice) -> Iterator[float]:
    """Yield intervals around one, from a thirtieth to the thirtyfold, but none that the disk cannot keep up with."""
    for number in range(_GRID):
        interval = middle * _SPAN ** (2 * number / (_GRID - 1) - 1)
        if interval >= advice.disk_s:
            yield interval
