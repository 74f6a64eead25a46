"""The functions that stand where ``torch.save`` stood, on one writer that the process shares."""

from __future__ import annotations

import os
import pickle
import threading
from typing import Any

from asyncsave import lifecycle
from asyncsave.handle import SaveHandle
from asyncsave.result import SaveResult
from asyncsave.storage.sink import Sink
from asyncsave.writer import OnBusy, Writer

__all__ = ["check_errors", "flush", "save", "save_async", "shutdown", "warmup"]

_lock = threading.RLock()
_default: Writer | None = None


def default_writer() -> Writer:
    """Return the process's own writer, made at the first need and drained at exit."""
    global _default  # noqa: PLW0603 - one per process is the point
    with _lock:
        if _default is None or _default.closed:  # closed: a shutdown that ran out of time
            _default = Writer()
        return _default


def save_async(
    obj: object,
    f: str | os.PathLike[str] | Sink,
    pickle_module: Any = pickle,
    pickle_protocol: int = 2,
    *,
    writer: Writer | None = None,
    on_busy: OnBusy | None = None,
    compact: bool = False,
) -> SaveHandle:
    """Save ``obj`` in the background: ``torch.save``, returning when the state has been copied.

    When it returns, every tensor and every Python object in ``obj`` may be changed. The file appears
    under its name whole, checksummed and flushed, some time later; the handle says when. Saves are
    written in the order of the calls; at the interpreter's exit they are waited for.

    Args:
        obj: Anything that ``torch.save`` takes: a state dict, a module, nested containers of both.
        f: A path, or a writable binary file object (then without atomicity: it is written from front
            to back on the writer's thread, and must not be touched before the save has ended).
        pickle_module: As for ``torch.save``.
        pickle_protocol: As for ``torch.save``.
        writer: Who saves; None: a writer that this process shares, with the defaults.
        on_busy: What to do when the writer has ``max_pending`` saves in flight, see :class:`Writer`.
        compact: Store only the part of each storage that the saved tensors can see.

    Returns:
        A ``concurrent.futures.Future`` of a :class:`SaveResult`, which can also be awaited.

    Raises:
        StagingError: The state cannot be captured, or does not fit into memory.
        SaveError: The target cannot be written to; or an earlier save failed, nobody has read that,
            and this save was not begun.
        QueueFullError: By ``on_busy="raise"``.
        WriterClosedError: ``writer`` is closed.

    Example:
        >>> handle = asyncsave.save_async({"model": model.state_dict()}, "ckpt.pt")
        >>> handle.result().durable
        True
    """
    return (writer or default_writer()).save(obj, f, pickle_module, pickle_protocol, on_busy=on_busy, compact=compact)


def save(
    obj: object,
    f: str | os.PathLike[str] | Sink,
    pickle_module: Any = pickle,
    pickle_protocol: int = 2,
    *,
    compact: bool = False,
) -> SaveResult:
    """Save ``obj`` and wait: ``torch.save``, but atomic, durable, checksummed, and faster.

    Takes and raises what :func:`save_async` and its handle do.
    """
    writer = default_writer()
    return writer.save(obj, f, pickle_module, pickle_protocol, on_busy="wait", compact=compact).result()


def warmup(state: object) -> None:
    """Prepare the shared writer for states of this size, so that the first save is as fast as the rest.

    Fresh memory is what makes a first save slow: the arenas are allocated and touched here. Call it
    when the state has its full size: most optimizers have none before their first step. Nothing is
    copied and nothing is written.

    Raises:
        StagingError: The state cannot be captured, or does not fit into memory.
    """
    default_writer().warmup(state)


def flush(timeout: float | None = None) -> None:
    """Block until every :func:`save_async` so far has ended; raise the first error nobody has read.

    Raises:
        TimeoutError: Some have not ended after ``timeout`` seconds; they go on.
    """
    if _default is not None:
        _default.flush(timeout)


def check_errors() -> None:
    """Raise the oldest error of a :func:`save_async` that nobody has read; never block."""
    if _default is not None:
        _default.check_errors()


def shutdown(timeout: float | None = None) -> None:
    """Finish every :func:`save_async`, end the threads, give the memory back.

    Not needed at exit, which waits by itself. The next :func:`save_async` makes a new writer.

    Raises:
        TimeoutError: Some have not ended after ``timeout`` seconds; they go on.
        SaveError: A save failed, and nobody has read that.
    """
    global _default  # noqa: PLW0603 - see default_writer
    with _lock:
        writer = _default
    if writer is not None:
        try:
            writer.close(timeout)
        finally:
            with _lock:
                if _default is writer and not lifecycle.is_open(writer):
                    _default = None


def _forget_in_child() -> None:
    global _default, _lock  # noqa: PLW0603 - see default_writer
    _lock = threading.RLock()
    _default = None


os.register_at_fork(after_in_child=_forget_in_child)
