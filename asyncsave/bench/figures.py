"""The plots, drawn: a table of numbers in, a figure out. Needs matplotlib, and none of its global state."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from asyncsave.bench.labels import label_ends, text_on, whole_decades
from asyncsave.bench.palette import INK, PAPER, PHASES, RULE, SOFT, colour_of
from asyncsave.bench.series import HELD_PHASES, Plot
from asyncsave.units import duration, rate, size

__all__ = ["STYLE", "draw"]

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 2.2,
    "lines.markersize": 5.5,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
}
"""Upon matplotlib's own defaults, whatever the user's are."""

_WIDTH = 8.0
_MARKERS = "osD^vPX*"
_BLOCKS = ("#00886a", "#0069a8", "#5a4fa2", "#8c4a2f", "#b5659a", "#6c757d")
_WIDE_ENOUGH = 0.085
"""A part of a bar takes a label if it is so wide, as a share of the axis."""
_MOMENTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 60, 600, 3600, 6 * 3600, 86400, 864_000, 8_640_000)
"""Round times, about ten times apart."""
_MANY_TIMES = 8.0
"""Steps that differ so much are drawn on a logarithmic axis."""


def draw(plot: Plot) -> Figure:
    """Draw a plot."""
    return _DRAWN[plot.name](plot)


def _timeline(plot: Plot) -> Figure:
    modes = _modes(plot)
    fig = _figure(plot, 0.75 + 1.12 * len(modes))
    axes = [axis for (axis,) in fig.subplots(len(modes), 1, sharex=True, sharey=True, squeeze=False)]
    steps = [row[5] for row in plot.rows if row[1] == "step"]
    usual, most = sorted(steps)[len(steps) // 2] if steps else 1.0, max(steps, default=1.0)
    for axis, mode in zip(axes, modes, strict=True):
        colour = colour_of(mode, modes)
        for _, kind, began, ended, complete, _ in _of(plot, mode):
            if kind == "save":
                axis.axvspan(ended, max(ended, complete), color=colour, alpha=0.16, lw=0)
                axis.axvspan(began, ended, color=colour, alpha=0.75, lw=0)
        segments = [((b, ms), (e, ms)) for _, kind, b, e, _, ms in _of(plot, mode) if kind == "step"]
        axis.add_collection(LineCollection(segments, colors=INK, linewidths=1.8, capstyle="butt"))
        axis.set_title(mode, color=colour, pad=3)
        axis.set_title(plot.notes.get(mode, ""), loc="right", fontsize=9.5, fontweight="normal", color=SOFT, pad=3)
        axis.margins(x=0.01)
        axis.grid(visible=False, axis="x")
    if most > _MANY_TIMES * usual > 0:
        axes[0].set_yscale("log")
        axes[0].set_ylim(0.7 * min(step for step in steps if step > 0), 1.3 * most)
        axes[0].yaxis.set_major_locator(LogLocator(numticks=4))
        axes[0].yaxis.set_minor_locator(NullLocator())
    else:
        axes[0].set_ylim(0, 1.18 * most)
        axes[0].yaxis.set_major_locator(MaxNLocator(3))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda ms, _: duration(ms / 1e3)))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(_signed))
    axes[-1].set_xlabel("time from the call of the save")
    fig.supylabel("time of a step", fontsize=9.5, color=SOFT)
    held, beside = Patch(color=SOFT, alpha=0.75, lw=0), Patch(color=SOFT, alpha=0.16, lw=0)
    marks = [Line2D([], [], color=INK, lw=1.8), held, beside]
    fig.legend(marks, ["a step", "held by the call", "written beside"], loc="outside upper right", ncols=3)
    return fig


def _phases(plot: Plot) -> Figure:
    modes = _modes(plot)
    fig = _figure(plot, 1.35 + 0.46 * len(modes))
    axis = fig.subplots()
    longest = max(sum(row[3] for row in _of(plot, mode)) for mode in modes)
    for place, mode in enumerate(modes):
        left = 0.0
        for _, phase, _, ms in _of(plot, mode):
            colour = PHASES.get(phase, SOFT)
            axis.barh(place, ms, left=left, height=0.62, color=colour, edgecolor=PAPER, linewidth=0.6)
            if ms > _WIDE_ENOUGH * longest:
                said: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": text_on(colour)}
                axis.text(left + ms / 2, place, duration(ms / 1e3), **said)
            left += ms
        axis.text(left + 0.012 * longest, place, plot.notes[mode], va="center", fontsize=9.5, fontweight="bold")
    axis.set_yticks(range(len(modes)), modes)
    for label, mode in zip(axis.get_yticklabels(), modes, strict=True):
        label.set(color=colour_of(mode, modes), fontweight="bold")
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * longest)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: duration(ms / 1e3)))
    axis.set_xlabel("from the call until complete")
    _legend_of_phases(fig, plot)
    return fig


def _legend_of_phases(fig: Figure, plot: Plot) -> None:
    """Say which colour is what: on the left what holds the loop, on the right what does not."""
    shown = {row[1]: row[2] for row in plot.rows if row[3] > 0}
    order = {name: place for place, name in enumerate([*HELD_PHASES, *PHASES])}
    for holds, place, title in ((True, "left", "holds the loop"), (False, "right", "in the background")):
        names = [name for name, held in shown.items() if held is holds]
        names.sort(key=lambda name: order.get(name, len(order)))
        patches = [Patch(color=PHASES.get(name, SOFT)) for name in names]
        if names:
            options: dict[str, Any] = {"loc": f"outside lower {place}", "handlelength": 1.0, "columnspacing": 1.0}
            legend = fig.legend(patches, names, ncols=len(names), title=title, **options)
            legend.set_alignment("left")
            legend.get_title().set(color=SOFT, fontsize=9.5)


def _sizes(plot: Plot) -> Figure:
    fig = _figure(plot, 4.2)
    axis = fig.subplots()
    _lines(axis, plot, 2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda nbytes, _: size(nbytes)))
    axis.set_xlabel("size of the state")
    return fig


def _tensors(plot: Plot) -> Figure:
    fig = _figure(plot, 4.2)
    axis = fig.subplots()
    _lines(axis, plot, 2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axis.set_xlabel("tensors")
    return fig


def _lines(axis: Axes, plot: Plot, column: int) -> None:
    modes = _modes(plot)
    ends = []
    for mode, marker in zip(modes, itertools.cycle(_MARKERS)):
        points = sorted((row[1], row[column]) for row in _of(plot, mode) if row[column] > 0)
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=colour_of(mode, modes), marker=marker, clip_on=False)
            ends.append((y[-1], mode, colour_of(mode, modes)))
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: duration(ms / 1e3)))
    axis.set_ylabel("held by the call")
    whole_decades(axis)
    label_ends(axis, ends)


def _threads(plot: Plot) -> Figure:
    fig = _figure(plot, 4.0)
    axis = fig.subplots()
    blocks = sorted({row[0] for row in plot.rows})
    ends = []
    for number, (block, marker) in enumerate(zip(blocks, itertools.cycle(_MARKERS))):
        points = sorted((row[1], row[2]) for row in plot.rows if row[0] == block)
        x, y = zip(*points, strict=True)
        colour = _BLOCKS[number % len(_BLOCKS)]
        axis.plot(x, y, color=colour, marker=marker, clip_on=False)
        ends.append((y[-1], f"{size(block)} blocks", colour))
    ceiling = plot.marks["ceiling_mb_s"]
    axis.axhline(ceiling, color=PHASES["stage"], ls=(0, (5, 3)), lw=1.5)
    counts = sorted({row[1] for row in plot.rows})
    axis.set_ylim(0, 1.16 * max(ceiling, *(row[2] for row in plot.rows)))
    above: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "va": "bottom", "color": PHASES["stage"]}
    axis.annotate(f"ceiling {rate(ceiling)}", (counts[0], ceiling), fontweight="bold", **above)
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(value) if value else "0"))
    axis.set_xlabel("threads that write")
    axis.grid(visible=False, axis="x")
    label_ends(axis, ends)
    return fig


def _interval(plot: Plot) -> Figure:
    fig = _figure(plot, 4.6)
    axis = fig.subplots()
    modes = _modes(plot)
    starts = []
    for mode in modes:
        rows = _of(plot, mode)
        x, colour = [row[1] for row in rows], colour_of(mode, modes)
        axis.plot(x, [row[3] for row in rows], color=colour)
        axis.plot(x, [row[2] for row in rows], color=colour, lw=1.4, ls=(0, (3, 2)))
        starts.append((mode, colour))
    marks = plot.marks
    axis.set(xscale="log", yscale="log")
    budget = marks["budget_percent"]
    axis.axhline(budget, color=SOFT, lw=1.3, ls=(0, (6, 3)))
    best = (marks["advised_s"], marks["advised_lost_percent"])
    axis.plot(*best, "o", ms=10, mfc=PAPER, mec=colour_of(modes[0], modes), mew=2.4, zorder=5)
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom", "zorder": 4}
    above["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
    axis.annotate(f"every {duration(best[0])}", best, xytext=(0, 9), fontweight="bold", **above)
    axis.annotate(f"budget {budget:.3g} %", (best[0], budget), xytext=(0, 3), color=SOFT, **above)
    if marks["disk_s"] > min(row[1] for row in plot.rows):
        axis.axvspan(min(row[1] for row in plot.rows) / 2, marks["disk_s"], color=RULE, alpha=0.6, lw=0)
    axis.set_xlim(min(row[1] for row in plot.rows), max(row[1] for row in plot.rows))
    axis.xaxis.set_major_locator(FixedLocator(_MOMENTS))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g} %"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("from one save to the next")
    axis.set_ylabel("of the training's time")
    lines = [Line2D([], [], color=colour) for _, colour in starts]
    lines += [Line2D([], [], color=INK), Line2D([], [], color=INK, lw=1.4, ls=(0, (3, 2)))]
    fig.legend(
        lines, [*modes, "lost in all", "saves alone"], loc="outside upper right", ncols=len(lines), columnspacing=1.4
    )
    return fig


_DRAWN: dict[str, Callable[[Plot], Figure]] = {
    "timeline": _timeline,
    "phases": _phases,
    "size": _sizes,
    "tensors": _tensors,
    "threads": _threads,
    "interval": _interval,
}


def _figure(plot: Plot, height: float) -> Figure:
    fig = Figure(figsize=(_WIDTH, height), layout="constrained")
    fig.suptitle(plot.title, x=0.008, ha="left", fontsize=13, fontweight="bold")
    return fig


def _modes(plot: Plot) -> list[str]:
    return list(dict.fromkeys(row[0] for row in plot.rows))


def _of(plot: Plot, mode: str) -> list[tuple[Any, ...]]:
    return [row for row in plot.rows if row[0] == mode]


def _signed(value: float, _: object) -> str:
    return duration(value) if value >= 0 else f"\N{MINUS SIGN}{duration(-value)}"
