"""Sizes, durations and shares, read as people write them."""

from __future__ import annotations

import math
import re

from asyncsave.errors import OptionError

__all__ = ["nbytes_of", "seconds_of", "share_of"]

_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *([kmgtp]i?)?b?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *(ms|s|min|m|h|d)?", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_LETTERS = "kmgtp"
_MOST = 1 << 60


def nbytes_of(text: str) -> int:
    """Return the bytes that a text means: ``"4096"``, ``"4MB"`` (10^6), ``"1.5GiB"`` (2^30); case is no matter.

    Raises:
        OptionError: It is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise OptionError(f"{text!r} is no size: write it as 4096, 4MB or 1.5GiB")
    unit = (found[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    nbytes: float = float(found[1]) * base ** (_LETTERS.index(unit[0]) + 1 if unit else 0)
    if nbytes > _MOST:
        raise OptionError(f"{text!r} is more than any memory or disk has")
    return round(nbytes)


def seconds_of(text: str) -> float:
    """Return the seconds that a text means: ``"90"``, ``"350ms"``, ``"1.5h"``, ``"2d"``.

    Raises:
        OptionError: It is no duration, or none above zero.
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[(found[2] or "s").lower()] if found else 0.0
    if not seconds or not math.isfinite(seconds):
        raise OptionError(f"{text!r} is no duration above zero: write it as 90, 350ms, 1.5h or 2d")
    return seconds


def share_of(text: str) -> float:
    """Return the share that a text means: ``"3.5%"`` or ``"0.035"``.

    Raises:
        OptionError: It is none between 0 and 1.
    """
    try:
        share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise OptionError(f"{text!r} is no share: write it as 3.5% or 0.035")
    return share
