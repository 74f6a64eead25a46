"""Operating systems for tests: one that waits at a gate, one that fails, one that counts, one that remembers.

Each is a :class:`System` whose every call goes through one method. Faults are raised where the real
call would raise them; what is not disturbed really happens.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from asyncsave.storage.system import System

__all__ = ["METHODS", "SHORT", "Call", "Counting", "Failing", "Gated", "Recording", "Wrapped"]

METHODS = tuple(name for name, value in vars(System).items() if callable(value) and not name.startswith("_"))
"""The names of all system calls."""

SHORT = -1
"""In place of an error number: the call writes only half of what it was given."""

_PATIENCE = 30.0
"""Seconds until a forgotten gate gives up, so that a failing test says why instead of hanging."""


class Wrapped(System):
    """A system whose every call passes through :meth:`_call`."""

    def __init__(self) -> None:
        for name in METHODS:
            setattr(self, name, functools.partial(self._call, name))

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(System, name)(self, *args, **kwargs)


class Gated(Wrapped):
    """Every call of one method waits until it is let through.

    Args:
        method: Which one.

    Attributes:
        entered: Set as soon as a call waits at the gate; :meth:`arrival` waits for the next one.
    """

    def __init__(self, method: str) -> None:
        super().__init__()
        self.entered = threading.Event()
        self._method = method
        self._arrivals = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._released = False

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == self._method and not self._released:
            self.entered.set()
            self._arrivals.release()
            if not self._permits.acquire(timeout=_PATIENCE):
                raise OSError(errno.ETIMEDOUT, f"nobody opened the gate at {name}()")
            if self._released:
                self._permits.release()
        return super()._call(name, *args, **kwargs)

    def arrival(self) -> None:
        """Block until one more call waits at the gate."""
        assert self._arrivals.acquire(timeout=_PATIENCE), f"nobody came to the gate at {self._method}()"

    def pass_one(self) -> None:
        """Let one call through."""
        self._permits.release()

    def release(self) -> None:
        """Open the gate for good."""
        self._released = True
        self._permits.release()


class Failing(Wrapped):
    """One method fails.

    Args:
        method: Which one.
        number: The error's number, or :data:`SHORT`.
        at: At which call, counted from 1.
        forever: Whether all later calls fail too.
        only: Called with the call's arguments; False: this call is neither counted nor failed.

    Attributes:
        fired: How many calls have failed.
        after_failed_sync: How often a descriptor was synced again after its sync had failed.
    """

    def __init__(
        self,
        method: str,
        number: int,
        *,
        at: int = 1,
        forever: bool = False,
        only: Callable[..., bool] = lambda *_, **__: True,
    ) -> None:
        super().__init__()
        self.fired = 0
        self.after_failed_sync = 0
        self._method = method
        self._number = number
        self._at = at
        self._forever = forever
        self._only = only
        self._calls = 0
        self._lock = threading.Lock()
        self._failed_syncs: set[int] = set()
        self._healed = False

    def heal(self) -> None:
        """Fail no more."""
        self._healed = True

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "open":
            fd = self._answer(name, *args, **kwargs)
            self._failed_syncs.discard(fd)
            return fd
        if name == "fsync" and args[0] in self._failed_syncs:
            self.after_failed_sync += 1
        try:
            return self._answer(name, *args, **kwargs)
        except OSError:
            if name == "fsync":
                self._failed_syncs.add(args[0])
            raise

    def _answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name != self._method or self._healed or not self._only(*args, **kwargs) or not self._is_its_turn():
            return super()._call(name, *args, **kwargs)
        if self._number == SHORT:
            fd, data, offset = args
            return os.pwrite(fd, data[: max(1, len(data) // 2)], offset)
        if name == "close":  # the kernel lets go of the descriptor even when it reports an error
            with contextlib.suppress(OSError):
                os.close(args[0])
        raise OSError(self._number, os.strerror(self._number))

    def _is_its_turn(self) -> bool:
        with self._lock:
            self._calls += 1
            turn = self._calls == self._at or (self._forever and self._calls > self._at)
            self.fired += turn
            return turn


class Counting(Wrapped):
    """Counts the bytes that are read.

    Attributes:
        nbytes: So many, through the page cache or past it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = super()._call(name, *args, **kwargs)
        if name == "pread_into":
            self.nbytes += result
        return result


class Call(NamedTuple):
    """One system call of a trace: its name, and what kind of file it was about."""

    name: str
    kind: str


class Recording(Wrapped):
    """Remembers every call.

    Attributes:
        trace: The calls, in the order in which they began. ``kind`` is ``"file"``, ``"folder"``, or
            the name for calls that take one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[Call] = []

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.trace.append(Call(name, self._kind(*args)))
        return super()._call(name, *args, **kwargs)

    @staticmethod
    def _kind(*args: Any) -> str:
        if not args or isinstance(args[0], str):
            return args[0] if args else ""
        return "folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"

    def names(self) -> list[str]:
        """Return the calls that make a save, without those that only look."""
        looks = {"fstat", "stat", "listdir", "token", "set_direct", "lock", "open", "close", "duplicate", "chmod"}
        return [f"{call.name} {call.kind}".split()[0] + (" folder" if call.kind == "folder" else "")
                for call in self.trace if call.name not in looks]  # fmt: skip
