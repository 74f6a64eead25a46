"""The standard streams: one that is closed, one whose reader has left, one that cannot be written to."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import IO

__all__ = ["flushed", "ready", "silence"]

_FAILED, _INTERRUPTED = 1, 130


def ready() -> None:
    """Make the streams fit for whatever is said.

    In the place of one that is closed is the null device: else the next file that is opened would be it. What an
    encoding does not know is escaped, since names of files may be anything.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - open to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def silence(stream: IO[str]) -> None:
    """Send what is still in a stream, and what follows, nowhere: the interpreter flushes it once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def flushed(code: int) -> int:
    """Bring out what stdout holds; return the command's exit code, or 1 for a result that could not be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        with contextlib.suppress(OSError):
            print(f"error: stdout cannot be written to: {error.strerror}", file=sys.stderr)  # noqa: T201 - no terminal
        return code or _FAILED
    except KeyboardInterrupt:  # the reader sleeps
        silence(sys.stdout)
        return _INTERRUPTED
    return code
