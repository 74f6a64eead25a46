"""What a writer process has to say: to its trainer while that lives, to a file after."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from queue import SimpleQueue

from asyncsave.channel import Channel
from asyncsave.storage.system import System
from asyncsave.wire import Log, Message, ProtocolError, shortened

__all__ = ["Reporter"]

_RECENT = 100
"""Lines that are kept until the end: a trainer that dies may have left them unread in its socket."""


class Reporter:
    """Sends messages from a thread of its own, so that who speaks never waits for who listens.

    Args:
        channel: Where the trainer listens.
        system: The operating system.
    """

    def __init__(self, channel: Channel, system: System) -> None:
        self._channel = channel
        self._system = system
        self._said: SimpleQueue[tuple[Message, str] | None] = SimpleQueue()
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._path = ""
        self._file = -1
        self._thread = threading.Thread(target=self._run, name="asyncsave-reporter", daemon=True)
        self._thread.start()

    def log_to(self, path: str) -> None:
        """Name the file for what nobody hears; it is made when there is something to write."""
        self._path = path

    def say(self, message: Message, otherwise: str = "") -> None:
        """Send a message; write ``otherwise`` to the file if nobody hears it."""
        self._said.put((message, otherwise))

    def log(self, level: int, text: str) -> None:
        """Send a line for the log."""
        self.say(Log(level, shortened(text)), text)

    def close(self) -> None:
        """Block until all is said. Idempotent."""
        self._said.put(None)
        self._thread.join()
        file, self._file = self._file, -1
        if file >= 0:
            self._system.close(file)

    def _run(self) -> None:
        while (said := self._said.get()) is not None:
            message, line = said
            with contextlib.suppress(ProtocolError):  # a text that cannot be said may still be written
                try:
                    self._channel.send(message)
                except OSError:
                    self._write(line)
                    continue
            self._recent.append(line)
        if self._channel.is_broken():
            self._write("")

    def _write(self, line: str) -> None:
        """Write a line, after those that were sent and perhaps never heard."""
        lines = [*self._recent, line]
        self._recent.clear()
        for text in filter(None, lines):
            with contextlib.suppress(OSError, ValueError):  # no such folder; no name for a file
                self._append(" ".join(text.splitlines()))

    def _append(self, line: str) -> None:
        if not self._path:
            return
        if self._file < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_APPEND | os.O_CLOEXEC
            self._file = self._system.open(self._path, flags, 0o600)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(self._file, f"{stamp} {line}\n".encode("utf-8", "backslashreplace"))
