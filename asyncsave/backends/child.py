"""One writer process, as its trainer sees it: how it is started, spoken to and buried."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence

import psutil

from asyncsave import descriptors
from asyncsave.backends.interpreter import environment, interpreter
from asyncsave.channel import Channel
from asyncsave.errors import WriterDiedError
from asyncsave.memory import nameless_file
from asyncsave.storage.system import System
from asyncsave.wire import Message, ProtocolError, Start

__all__ = ["Child", "told"]

_log = logging.getLogger("asyncsave")
_SECONDS_TO_DIE = 1.0
_LAST_WORDS = 8000


class Child:
    """A living writer process. It has a session of its own, no terminal, and the root as its folder.

    Args:
        threads: How many write blocks at once.
        prepare: Called with the new process before it does anything: sets its priorities.

    Attributes:
        is_ready: Whether it has said that it takes saves.
        folders: Where it may have left temporary files.
        log: The file that it writes to once nobody listens.

    Raises:
        OptionError: This program has no Python interpreter to run it with, or ``prepare`` says so.
        WriterDiedError: The system starts no more processes.
    """

    def __init__(self, threads: int, prepare: Callable[[psutil.Process], None]) -> None:
        command = [interpreter(), "-m", "asyncsave.service"]
        self.is_ready = False
        self.folders: set[str] = set()
        try:
            self._start(command)
        except OSError as error:
            message = f'the writer process cannot be started: {error}. backend="thread" needs none'
            raise WriterDiedError(message) from error
        name = f"asyncsave-{self.pid}-{System().token()}.log"
        self.log = os.path.join(tempfile.gettempdir(), name)
        try:
            with contextlib.suppress(psutil.NoSuchProcess):  # the death is noticed soon enough
                prepare(psutil.Process(self.pid))
            with contextlib.suppress(OSError):
                self.send(Start(os.getpid(), threads, self.log))
        except BaseException:
            self._process.kill()
            self.bury()
            self.last_words()
            raise
        if os.getpid() == 1:
            _log.warning(
                "this process is number 1 of its container: when it ends, the kernel ends the writer process "
                "with it. Run the training under an init (docker run --init), see docs/process.md"
            )

    def _start(self, command: list[str]) -> None:
        with contextlib.ExitStack() as undo, descriptors.held_back():
            self._errors, _ = nameless_file()
            undo.callback(descriptors.drop, self._errors)
            ours, theirs = socket.socketpair()
            theirs.settimeout(None)  # whatever socket.setdefaulttimeout says
            self._channel = Channel(ours.detach())
            undo.callback(self._channel.close)
            # Until the process ignores what is meant for the trainer, nothing reaches it: it inherits the mask.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            undo_mask = functools.partial(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            with theirs, contextlib.ExitStack() as after:
                after.callback(undo_mask)
                self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    cwd=os.sep,
                    env=environment(),
                    start_new_session=True,
                )
            undo.pop_all()

    @property
    def pid(self) -> int:
        """Its number."""
        return int(self._process.pid)

    def fileno(self) -> int:
        """Return the descriptor to wait on for what it says, or for its end."""
        return self._channel.fileno()

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return self._process.poll() is None

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to it, without waiting for it.

        Raises:
            OSError: It is gone.
            BlockingIOError: It has not listened for long, and must do that first.
        """
        self._channel.send(message, fds, wait=False)

    def receive(self) -> Message | None:
        """Block for what it says; None once it is gone, or says what makes no sense."""
        try:
            received = self._channel.receive()
        except (OSError, ProtocolError) as error:
            _log.error("the writer process %d said what is no message: %s", self.pid, error)
            return None
        return received and received[0]

    def hang_up(self) -> None:
        """Say that nothing more comes: it finishes what it has, then ends."""
        self._channel.hang_up()

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def bury(self) -> int | None:
        """Wait for its end, and bring it about if that takes too long; return its status, if that is known."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_DIE)
        if self._process.returncode is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_DIE)
        self._channel.close()
        status: int | None = self._process.returncode
        return status

    def last_words(self) -> str:
        """Return the end of what it wrote to its standard error, a traceback perhaps; then let go of that."""
        words = b""
        with contextlib.suppress(OSError):
            size = os.fstat(self._errors).st_size
            words = os.pread(self._errors, _LAST_WORDS, max(0, size - _LAST_WORDS))
        descriptors.drop(self._errors)
        return words.decode("utf-8", "replace").strip()

    def abandon(self) -> None:
        """Forget it, in a forked child: it is the parent's."""
        self._channel.abandon()
        self._process.returncode = 0  # what is not one's own child needs no wait


def told(returncode: int | None) -> str:
    """Say how a process ended."""
    if returncode is None:
        return "in a way that is not known"
    if returncode >= 0:
        return f"with exit status {returncode}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-returncode).name}"
    return f"by signal {-returncode}"
