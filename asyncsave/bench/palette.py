"""The colours of plots and page, by day and by night; colour-blind eyes tell them apart (after Okabe and Ito, 2008)."""

from __future__ import annotations

__all__ = ["DARK", "INK", "ON_LIGHT", "PAPER", "PHASES", "RULE", "SOFT", "colour_of"]

INK, SOFT, RULE, PAPER = "#1f2328", "#59636e", "#d4dae0", "#ffffff"
ON_LIGHT = "#1f2429"
"""Ink on a colour that is as light by night."""

_MODES = {
    "torch.save": "#6c757d",
    "torch.save+fsync": "#c65102",
    "naive-thread": "#b5659a",
    "aiofiles": "#b07d00",
    "thread": "#00886a",
    "process": "#0069a8",
}
_OTHERS = ("#7a5fb0", "#8c4a2f", "#3d8fb8", "#5d7a1f")

PHASES = {
    "wait": "#a8a29a",
    "capture": "#e6a700",
    "stage": "#c65102",
    "held": "#8f2d1c",
    "queue": "#b9c4cf",
    "seal": "#7fc4b0",
    "write": "#0069a8",
    "sync": "#5a4fa2",
    "background": "#6fa8d6",
}
"""What holds the loop is warm, what happens in the background is cool."""

DARK = {
    INK: "#e6edf3",
    SOFT: "#9aa6b2",
    RULE: "#3a424b",
    PAPER: "#0f1419",
    "#6c757d": "#a3adb7",
    "#c65102": "#ff8a3d",
    "#b5659a": "#e29cc9",
    "#b07d00": "#e3b341",
    "#00886a": "#3ccfa5",
    "#0069a8": "#5ab4f0",
    "#7a5fb0": "#b79df0",
    "#8c4a2f": "#d99a7c",
    "#3d8fb8": "#7cc8ec",
    "#5d7a1f": "#a5c95a",
    "#8f2d1c": "#e0705c",
    "#5a4fa2": "#a79bf5",
}
"""What stands for a colour on a dark page; a colour that is not here stays."""


def colour_of(mode: str, modes: list[str]) -> str:
    """Return the colour of a way of saving: always the same for one that is known."""
    unknown = [one for one in modes if one not in _MODES]
    return _MODES.get(mode) or _OTHERS[unknown.index(mode) % len(_OTHERS)]
