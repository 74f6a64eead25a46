"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check", "fine", "unknown", "wrong"]

Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what came of it.

    Attributes:
        name: What it is; the unit is in its end (``_bytes``, ``_mb_s``, ``_ms``, ``_s``).
        ok: True: it is fine. False: it is not. None: that cannot be told, or nobody needs it.
        value: What was found; None where that is nothing, or not known.
        remedy: What to do, in one sentence; None if ``ok`` is True.
    """

    name: str
    ok: bool | None
    value: Value
    remedy: str | None = None


def fine(name: str, value: Value) -> Check:
    """Describe what is as it should be."""
    return Check(name, ok=True, value=value)


def wrong(name: str, value: Value, remedy: str) -> Check:
    """Describe what is not, and what to do about it."""
    return Check(name, ok=False, value=value, remedy=remedy)


def unknown(name: str, why: str, value: Value = None) -> Check:
    """Describe what cannot be told, and why, or what would tell."""
    return Check(name, ok=None, value=value, remedy=why)
