"""Signals that end a command: by an exception, so that what is temporary goes, and even if that is lost.

Python drops an exception that comes up inside a finalizer, as a collection of garbage runs many. Such a signal is sent
once more. And each is written down, so that a command that runs code of others, who may catch all, can ask for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

__all__ = ["heed", "watch"]

_SOON = 0.02
"""Seconds after which the finalizer is over."""

_received: list[int] = []


def watch() -> None:
    """Have SIGTERM, SIGHUP and Ctrl-C end this process in order; one that is ignored, as under ``nohup``, stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:
            signal.signal(number, _leave)
    sys.unraisablehook = _lost


def heed() -> None:
    """Return if no signal has come.

    Raises:
        KeyboardInterrupt, SystemExit: One has, and its exception was lost.
    """
    if _received:
        _raise(_received[0])


def _leave(number: int, _: FrameType | None) -> NoReturn:
    _received.append(number)
    _raise(number)


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _lost(what: sys.UnraisableHookArgs) -> None:
    """Send a signal once more whose exception was dropped; of any other exception say so, as Python does."""
    if not (_received and issubclass(what.exc_type, (KeyboardInterrupt, SystemExit))):
        sys.__unraisablehook__(what)
        return
    again = threading.Timer(_SOON, os.kill, (os.getpid(), _received[-1]))
    again.daemon = True
    again.start()
