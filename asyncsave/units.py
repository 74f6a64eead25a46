"""Figures as people read them, in three digits."""

from __future__ import annotations

__all__ = ["duration", "plain", "rate", "share", "short", "size"]

_LETTERS = "kMGTP"
_SHORT = 24


def duration(seconds: float) -> str:
    """Write seconds: ``"3.2 ms"``, ``"1.5 h"``."""
    for unit, scale in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * scale or seconds == scale:
            return f"{_three(seconds / scale)} {unit}"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds * 1e6)} µs" if seconds else "0 s"


def size(nbytes: float) -> str:
    """Write bytes, in powers of ten: ``"1.02 GB"``."""
    for power in range(len(_LETTERS), 0, -1):
        if nbytes >= 999.5 * 1000 ** (power - 1):
            return f"{_three(nbytes / 1000**power)} {_LETTERS[power - 1]}B"
    return f"{nbytes:.0f} B"


def rate(mb_s: float) -> str:
    """Write megabytes (10^6 bytes) per second."""
    return f"{_three(mb_s)} MB/s" if mb_s < 999.5 else f"{_three(mb_s / 1e3)} GB/s"  # noqa: PLR2004 - four digits


def share(value: float) -> str:
    """Write a share in per cent: ``"3.5 %"``."""
    return f"{_three(100 * value)} %"


def plain(text: object) -> str:
    """Return a text in which nothing moves the cursor, and which is valid UTF-8."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(text))


def short(name: object) -> str:
    """Return a name that fits beside a plot, and is plain."""
    text = plain(name)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}\N{HORIZONTAL ELLIPSIS}"


def _three(value: float) -> str:
    """Write three digits without an exponent."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"  # noqa: PLR2004 - a hundred
