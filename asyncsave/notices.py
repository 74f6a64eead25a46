"""Warnings that point at the user's own line, each said once."""

from __future__ import annotations

import sys
import warnings

__all__ = ["advise", "warn_once"]

_WEIGHTS_ONLY_PROTOCOL = 2
_MOSTLY = 0.5
_WORTH_A_WORD = 1 << 20

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


def advise(protocol: int, unsafe: tuple[str, ...], unreferenced: int, total: int) -> None:
    """Say what will surprise whoever loads this checkpoint, or looks at its size.

    Args:
        protocol: The pickle protocol.
        unsafe: What ``weights_only=True`` will refuse, by full name.
        unreferenced: Bytes of storages that no saved tensor shows.
        total: Bytes of all storages.
    """
    if protocol != _WEIGHTS_ONLY_PROTOCOL:
        warn_once(
            f"protocol {protocol}",
            f"the checkpoint is written in pickle protocol {protocol}: weights_only=True reads protocol "
            f"{_WEIGHTS_ONLY_PROTOCOL} for certain, others by chance. Leave pickle_protocol as it is",
        )
    if unsafe:
        names = ", ".join(unsafe)
        warn_once(
            f"unsafe {names}",
            f"the checkpoint holds {names}: it loads with weights_only=False only, or after "
            "torch.serialization.add_safe_globals. Save tensors and plain Python values instead",
        )
    if total >= _WORTH_A_WORD and unreferenced > _MOSTLY * total:
        warn_once(
            "unreferenced",
            f"{unreferenced / total:.0%} of the checkpoint ({unreferenced:,} bytes) is storage that no "
            "saved tensor shows: views keep the whole tensor they were cut from. Save with "
            "compact=True, or clone the views",
        )
