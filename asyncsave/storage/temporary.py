"""The names of what is not in its place yet: unmistakable, of a fixed length, in the target's own folder."""

from __future__ import annotations

import re

from asyncsave.storage.system import System

__all__ = ["TEMPORARY", "is_temporary", "new_name"]

TEMPORARY = (".asyncsave-", ".tmp")
"""Prefix and suffix of a temporary name; 16 hexadecimal digits stand between them."""

_OURS = re.compile(re.escape(TEMPORARY[0]) + "[0-9a-f]{16}" + re.escape(TEMPORARY[1]))


def new_name(system: System) -> str:
    """Return a temporary name that nobody has."""
    return system.token().join(TEMPORARY)


def is_temporary(name: str) -> bool:
    """Tell whether a file or folder of this name is one of ours, on its way or left behind."""
    return _OURS.fullmatch(name) is not None
