"""The same tests over every backend: a thread, a writer process, and a writer process whose system is the test's.

Tests say what system calls shall do by ``system=``. A real process has no such seam, so then its
service runs on a thread of this process: the same protocol, memory and code, with the test's system in it.
"""

from __future__ import annotations

import functools
import os
import socket
import threading

import asyncsave
from asyncsave import descriptors
from asyncsave.backends.child import Child
from asyncsave.backends.process import ProcessBackend
from asyncsave.backends.settings import WriterThread
from asyncsave.channel import Channel
from asyncsave.reporter import Reporter
from asyncsave.service import serve
from asyncsave.wire import Start

__all__ = ["VARIABLE", "ServiceOnThread", "make_writer", "process_is_tested", "save_and_leave", "writer_or_shared"]

VARIABLE = "ASYNCSAVE_TESTED_BACKEND"
"""Names the backend that :func:`make_writer` uses, in this process and in programs that it starts."""


class _ChildOnThread(Child):
    """A writer process that is none: its service runs on a thread."""

    def __init__(self, threads, system):
        self.is_ready = False
        self.folders = set()
        self.log = os.devnull
        with descriptors.held_back():
            ours, theirs = socket.socketpair()
            self._channel = Channel(ours.detach())
            channel = Channel(theirs.detach())
        self._service = threading.Thread(
            target=serve, args=(channel, Reporter(channel, system), system), name="asyncsave-service", daemon=True
        )
        self._service.start()
        self.send(Start(os.getpid(), threads, self.log))

    @property
    def pid(self):
        """It has none of its own."""
        return os.getpid()

    def is_alive(self):
        """Tell whether the thread runs."""
        return self._service.is_alive()

    def kill(self):
        """Break off the talk: a thread cannot be killed, but it ends then."""
        self._channel.break_off()

    def bury(self):
        """Wait for the end of the thread."""
        self._service.join(30)
        assert not self._service.is_alive()
        self._channel.close()
        return 0

    def last_words(self):
        """Return nothing: it has no standard error."""
        return ""

    def abandon(self):
        """Forget it, in a forked child."""
        self._channel.abandon()


class ServiceOnThread:
    """Settings of a writer process that runs on a thread, with a test's system."""

    def __init__(self, system):
        self._system = system

    def start(self, threads):
        """Start one."""
        return ProcessBackend(threads, functools.partial(_ChildOnThread, threads, self._system))


def process_is_tested() -> bool:
    """Tell whether the backend that is being tested is a process."""
    return os.environ.get(VARIABLE, "thread") == "process"


def make_writer(*, system=None, **options) -> asyncsave.Writer:
    """Make a writer with the backend that is being tested."""
    if "backend" in options:
        assert system is None
    elif process_is_tested():
        options["backend"] = "process" if system is None else ServiceOnThread(system)
    elif system is not None:
        options["backend"] = WriterThread(system)
    return asyncsave.Writer(**options)


def writer_or_shared() -> asyncsave.Writer | None:
    """Return what ``save_async(writer=)`` takes: None, the writer that a process shares, where a thread is tested."""
    return make_writer() if process_is_tested() else None


def save_and_leave(state: object, path: str) -> None:
    """Begin a save and wait for nothing: what a process of ``multiprocessing`` is given to do."""
    asyncsave.save_async(state, path, writer=writer_or_shared())
