"""What a caller may name as the place of a checkpoint: a path, or a file object of his own."""

from __future__ import annotations

import os

from asyncsave.storage.sink import Sink, check_sink, sink_name
from asyncsave.storage.target import Target, resolve

__all__ = ["destination"]


def destination(f: str | os.PathLike[str] | Sink) -> tuple[Target | Sink, str]:
    """Resolve a path or check a file object; return it, and what to call it.

    Raises:
        SaveError: It cannot be written to.
        OptionError: It is neither.
    """
    if isinstance(f, (str, os.PathLike)) and isinstance(path := os.fspath(f), str):
        target = resolve(path)
        return target, target.path
    check_sink(f)
    return f, sink_name(f)
