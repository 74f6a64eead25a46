"""Warnings that point at the user's own line, each said once."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_once"]

_said: set[str] = set()


def warn_once(topic: str, message: str) -> None:
    """Warn the user, once per topic in this process, with the line that called this package."""
    if topic in _said:
        return
    _said.add(topic)
    frame, level = sys._getframe(), 1  # noqa: SLF001 - the way to walk the stack
    package = __name__.partition(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
