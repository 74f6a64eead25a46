"""The writer process: ``python -m asyncsave.service``, started by ``Writer(backend="process")``.

It takes staged images over a socket and makes checkpoints of them, one after the other. It knows no
tensor and imports no torch. It ends when its trainer does, however that ends, but not before
everything that was staged is in place. What it promises:

- a message that is malformed ends the talk, and changes nothing on disk;
- no image is read before the right to begin its save has been claimed: until then its memory may
  already serve another save;
- it never waits for its trainer: what it has to say is sent by a thread of its own, and what a dead
  trainer cannot hear goes to a file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import resource
import select
import signal
import stat
import sys

from asyncsave import wire
from asyncsave.backends.thread import ThreadBackend
from asyncsave.channel import Channel
from asyncsave.commission import Commission
from asyncsave.reporter import Reporter
from asyncsave.storage.system import System

__all__ = ["main", "serve"]

_MOST_THREADS = 1024
_ITS_OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}
"""Signals that tell of an error in this very process."""


def serve(channel: Channel, reporter: Reporter, system: System) -> None:
    """Serve a trainer until it is gone and all it had staged is in place.

    Args:
        channel: Where the trainer speaks.
        reporter: Who speaks to it.
        system: The operating system.
    """
    backend: ThreadBackend | None = None
    try:
        start = _first(channel)
        if start is None:
            return
        reporter.log_to(start.log)
        backend = ThreadBackend(system, min(max(1, start.threads), _MOST_THREADS))
        reporter.say(wire.Ready(os.getpid()))
        queued: list[Commission] = []
        with _Trainer(start.trainer) as trainer:
            while trainer.speaks(channel) and (received := channel.receive()) is not None:
                queued = [earlier for earlier in queued if earlier.is_wanted()]
                if isinstance(received[0], wire.Clear):
                    backend.drop_spare()
                    continue
                queued.append(_commission(*received, reporter))
                backend.submit(queued[-1])
    except wire.ProtocolError as error:
        reporter.log(logging.ERROR, f"the writer process was sent what is no message, and listens no more: {error}")
    finally:
        if backend is not None:
            backend.close()
        reporter.close()
        channel.close()


def _first(channel: Channel) -> wire.Start | None:
    """Receive the first message.

    Raises:
        ProtocolError: It is another one.
    """
    received = channel.receive()
    if received is None:
        return None
    message, fds = received
    if not isinstance(message, wire.Start):
        for fd in fds:
            os.close(fd)
        raise wire.ProtocolError(f"the first message is a {type(message).__name__}")
    return message


def _commission(message: wire.Message, fds: list[int], reporter: Reporter) -> Commission:
    """Make a task of a message.

    Raises:
        ProtocolError: It is none.
    """
    if not isinstance(message, wire.Save):
        raise wire.ProtocolError(f"a {type(message).__name__} makes no sense here")
    return Commission(message, fds, reporter)


class _Trainer:
    """The process that is served. It may be dead already: then it is not the parent any more.

    A child that it forked may hold its end of the socket open. So its end is seen by a descriptor of the
    process itself, where there is one (Linux 5.3).
    """

    def __init__(self, process: int) -> None:
        self._fd = -1
        if hasattr(os, "pidfd_open") and process == os.getppid():
            with contextlib.suppress(OSError):
                self._fd = os.pidfd_open(process)

    def __enter__(self) -> _Trainer:  # noqa: PYI034 - not made for subclasses
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def speaks(self, channel: Channel) -> bool:
        """Block until there is something to receive; False if there never will be."""
        poll = select.poll()
        for fd in (channel.fileno(), self._fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        # What the dead one has sent is received first.
        if any(fd == channel.fileno() for fd, _ in poll.poll()):
            return True
        channel.break_off()  # whoever holds its end of the socket does not listen
        return False


class _Relay(logging.Handler):
    """Hands what is logged here to the trainer."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.log(record.levelno, record.getMessage())


def main() -> int:
    """Be a writer process, the socket to the trainer being standard input."""
    if not _has_socket():
        sys.stderr.write('This is the writer process of asyncsave. Writer(backend="process") starts it.\n')
        return 2
    faulthandler.enable()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # macOS has an upper bound that it does not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for number in signal.valid_signals() - _ITS_OWN:
        # They are meant for the trainer. This process ends when the trainer does, its work done.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whoever started it has held them back until now
    channel, system = Channel(_standard_input()), System()
    reporter = Reporter(channel, system)
    logging.getLogger("asyncsave").addHandler(_Relay(reporter))
    serve(channel, reporter, system)
    return 0


def _has_socket() -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(0).st_mode)
    except OSError:  # it is closed
        return False


def _standard_input() -> int:
    """Return a duplicate of standard input, and let nothing be read there."""
    duplicate = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return duplicate


if __name__ == "__main__":
    sys.exit(main())
