"""Text that comes from files and folders, made fit for a terminal and for JSON."""

from __future__ import annotations

import os
from typing import Any

from asyncsave.catalogue.manifest import plain_number

__all__ = ["for_json", "plain", "shortest"]


def plain(text: str) -> str:
    """Return a text in one line that no terminal interprets: what cannot be printed is escaped, as Python writes it."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def shortest(path: str) -> str:
    """Return a path as it is shortest from the current folder, made plain."""
    try:
        relative = os.path.relpath(path)
    except OSError:  # the current folder is gone
        relative = path
    return plain(path if relative.startswith("..") else relative)


def for_json(value: Any) -> Any:
    """Return lists, dicts, texts and numbers as JSON can say them: infinite ones, and NaN, are texts."""
    if isinstance(value, dict):
        return {name: for_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(one) for one in value]
    return plain_number(value) if isinstance(value, float) else value
