"""Who is told of every save of this process, by whatever writer: a profile while it is being taken, and else nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from asyncsave.handle import SaveHandle

__all__ = ["Observer", "observed", "tell"]

Observer = Callable[[SaveHandle, str, float], object]
"""Called with the handle, the backend's name, and when the save was called for (``time.perf_counter()``); on the
caller's thread, right before the call returns."""

_observers: tuple[Observer, ...] = ()


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Have an observer told while the block runs."""
    global _observers  # noqa: PLW0603 - one list for the process is the point
    _observers = (*_observers, observer)
    try:
        yield
    finally:
        _observers = tuple(one for one in _observers if one is not observer)


def tell(handle: SaveHandle, backend: str, called: float) -> None:
    """Tell all observers of a save."""
    for observer in _observers:
        observer(handle, backend, called)
