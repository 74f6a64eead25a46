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
import select
import signal
import stat
import sys
import time

from asyncsave import wire
from asyncsave.backends.thread import ThreadBackend
from asyncsave.channel import Channel
from asyncsave.claim import Claim, wait_for_end
from asyncsave.errors import SaveError
from asyncsave.image.table import read_table
from asyncsave.memory import map_shared
from asyncsave.persist import Job
from asyncsave.reporter import Reporter
from asyncsave.result import SaveResult
from asyncsave.storage.system import System
from asyncsave.storage.target import Target

__all__ = ["main", "serve"]

_MOST_THREADS = 1024


class _Commission:
    """One save that came over the socket.

    Args:
        save: What is to be done.
        fds: The memory, the claim's two ends, and one for every save that has to end first.
        reporter: Whom to tell.
    """

    job: Job

    def __init__(self, save: wire.Save, fds: list[int], reporter: Reporter) -> None:
        self._save = save
        self._memory, reading, writing, *self._earlier = fds
        os.set_blocking(reading, False)
        self._claim = Claim((reading, writing))
        self._reporter = reporter

    def begin(self) -> bool:
        """Claim the save, wait for those that come before it, and look at its image."""
        save = self._save
        if not self._claim.take():
            self._let_go()
            return False
        self._reporter.say(wire.Begun(save.number, time.perf_counter() - save.queued))
        try:
            for earlier in self._earlier:
                wait_for_end(earlier)
            memory = map_shared(self._memory)
            layout, crcs = read_table(memory, save.nbytes)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with what was sent: the next save is another
            self.fail(error)
            return False
        target = Target(save.path, save.folder, save.name)
        self.job = Job(memory, layout, crcs, target, save.path, save.sync, {}, save.started)
        return True

    def progress(self, nbytes: int) -> None:
        """Report written bytes."""
        self._reporter.say(wire.Progress(self._save.number, nbytes))

    def finish(self, result: SaveResult) -> None:
        """Report that the checkpoint is in place."""
        self._let_go()
        seal, write, sync, total = (result.timings[phase] for phase in ("seal", "write", "sync", "total"))
        done = wire.Done(self._save.number, result.digest, result.durable, seal, write, sync, total)
        self._reporter.say(done, f"saved {result.path}: {result.nbytes} bytes, {result.digest}")

    def fail(self, error: BaseException) -> None:
        """Report that it is not, and why."""
        self._let_go()
        told = SaveError.describing(error, path=self._save.path)
        failed = wire.Failed(
            self._save.number, wire.shortened(str(told)), told.path, told.phase, told.errno or 0, told.outcome
        )
        self._reporter.say(failed, str(told))

    def _let_go(self) -> None:
        """Close the descriptors; the mapping goes with its last view."""
        for fd in (self._memory, *self._earlier):
            os.close(fd)
        self._earlier, self._memory = [], -1
        self._claim.close()


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
        with _Trainer(start.trainer) as trainer:
            while trainer.speaks(channel):
                received = channel.receive()
                if received is None:
                    break
                backend.submit(_commission(*received, reporter))
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
    message, _ = received
    if not isinstance(message, wire.Start):
        raise wire.ProtocolError(f"the first message is a {type(message).__name__}")
    return message


def _commission(message: wire.Message, fds: list[int], reporter: Reporter) -> _Commission:
    """Make a task of a message.

    Raises:
        ProtocolError: It is none, or its target is not one that a writer would have sent.
    """
    if isinstance(message, wire.Save):
        named = "\0" not in message.folder + message.name and os.sep not in message.name
        if named and os.path.isabs(message.folder) and message.name not in {"", os.curdir, os.pardir}:
            return _Commission(message, fds, reporter)
    for fd in fds:
        os.close(fd)
    raise wire.ProtocolError(f"this asks for nothing that can be done: {message!r:.200}")


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
        ends = [channel.fileno(), *([self._fd] if self._fd >= 0 else [])]
        readable, _, _ = select.select(ends, [], [])
        # What the dead one has sent is received first.
        return channel.fileno() in readable


class _Relay(logging.Handler):
    """Hands what is logged here to the trainer."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.log(record.levelno, record.getMessage())


def main() -> int:
    """Be a writer process, the socket to the trainer being standard input."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        sys.stderr.write('This is the writer process of asyncsave. Writer(backend="process") starts it.\n')
        return 2
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # They are meant for the trainer. This process ends when the trainer does, its work done.
        signal.signal(number, signal.SIG_IGN)
    channel, system = Channel(_standard_input()), System()
    reporter = Reporter(channel, system)
    logging.getLogger("asyncsave").addHandler(_Relay(reporter))
    serve(channel, reporter, system)
    return 0


def _standard_input() -> int:
    """Return a duplicate of standard input, and let nothing be read there."""
    duplicate = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return duplicate


if __name__ == "__main__":
    sys.exit(main())
