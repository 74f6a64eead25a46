"""Labels where they are read: at the ends of lines, on bars; axes that begin and end at round numbers."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes

from asyncsave.bench.palette import ON_LIGHT, PAPER

__all__ = ["label_ends", "spread_out", "text_on", "whole_decades"]

_APART = 0.062
"""Labels at the ends of lines lie so far apart, as a share of the axis."""


def text_on(colour: str) -> str:
    """Return dark or light, whichever is read on a colour (relative luminance as in WCAG 2)."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)  # noqa: PLR2004
    return ON_LIGHT if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.26 else PAPER  # noqa: PLR2004


def whole_decades(axis: Axes) -> None:
    """Let a logarithmic axis begin and end at a power of ten, so that it has two marks at least."""
    low, high = axis.dataLim.intervaly
    if 0 < low <= high < math.inf:
        axis.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high * 1.001)))


def label_ends(axis: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write names at the ends of lines, moved apart where they would overlap."""
    scale = axis.yaxis.get_transform()
    low, high = (float(value) for value in scale.transform(axis.get_ylim()))
    ends = sorted(ends)
    wanted = [(float(scale.transform([value])[0]) - low) / (high - low) for value, *_ in ends]
    for place, (_, name, colour) in zip(spread_out(wanted), ends, strict=True):
        options: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
        axis.annotate(name, (1, place), xytext=(8, 0), color=colour, fontweight="bold", fontsize=9.5, **options)


def spread_out(wanted: list[float]) -> list[float]:
    """Return places that are not too near to each other, as near as can be to sorted ones that were wanted.

    What is too near is put together, around its common middle, until all is far enough apart.
    """
    groups: list[list[float]] = []
    for one in wanted:
        groups.append([one])
        while len(groups) > 1 and _first(groups[-1]) - _last(groups[-2]) < _APART:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_first(group) + _APART * number for group in groups for number in range(len(group))]


def _first(group: list[float]) -> float:
    return sum(group) / len(group) - _APART * (len(group) - 1) / 2


def _last(group: list[float]) -> float:
    return _first(group) + _APART * (len(group) - 1)
