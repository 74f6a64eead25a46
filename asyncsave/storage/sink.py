"""A file object of the caller's as the place where a checkpoint goes: front to back, no promise kept."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import Protocol

from asyncsave.errors import OptionError, SaveError
from asyncsave.storage.blocks import BLOCK

__all__ = ["Sink", "check_sink", "sink_name", "write_stream"]


class Sink(Protocol):
    """A writable binary file object."""

    def write(self, data: memoryview, /) -> int | None:
        """Write bytes; return how many were written."""


def sink_name(f: object) -> str:
    """Return what to call a file object: its own name, or its type's."""
    return str(getattr(f, "name", None) or type(f).__name__)


def check_sink(f: object) -> None:
    """Refuse what cannot take bytes.

    Raises:
        OptionError: It has no ``write``.
        SaveError: With phase ``"target"``: it is closed, not writable, or for text.
    """
    name = sink_name(f)
    if not callable(getattr(f, "write", None)):
        reason = (
            "f must be a path (str or os.PathLike) or a writable binary file object, not "
            f"{type(f).__name__}; the object to save comes first"
        )
        raise OptionError(reason)
    if getattr(f, "closed", False):
        reason = f"the file object {name!r} is closed"
    elif hasattr(f, "writable") and not f.writable():
        reason = f"the file object {name!r} is not open for writing"
    elif hasattr(f, "encoding"):
        reason = f"the file object {name!r} is open for text: open it in binary mode"
    else:
        return
    raise SaveError(reason, path=name, phase="target")


def write_stream(sink: Sink, image: memoryview, progress: Callable[[int], None]) -> None:
    """Write an image to a file object, in order, and flush it.

    Raises:
        SaveError: With phase ``"write"``; whatever the file object raised is chained.
    """
    try:
        for start in range(0, len(image), BLOCK):
            block = image[start : start + BLOCK]
            done = 0
            while done < len(block):
                done += _taken(sink, block[done:])
            progress(len(block))
        flush = getattr(sink, "flush", None)
        if flush is not None:
            flush()
    except Exception as error:
        cause = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
        raise SaveError.of(cause, path=sink_name(sink), phase="write", outcome="incomplete") from error


def _taken(sink: Sink, block: memoryview) -> int:
    """Write, and return how much was taken; what says nothing has taken all, as for ``torch.save``."""
    written = sink.write(block)
    if written is None and not isinstance(sink, io.RawIOBase):
        return len(block)
    if not written:
        raise OSError(errno.EIO, f"write() took nothing and returned {written!r}")
    return written
