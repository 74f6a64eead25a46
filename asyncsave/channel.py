"""One end of the talk between a writer and its writer process: messages, and descriptors that go along.

The two ends are a socket pair, so there is no name in any folder that a third could connect to.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from collections.abc import Sequence

from asyncsave import descriptors
from asyncsave.wire import HEADER, Message, ProtocolError, Save, body_nbytes, decode, encode

__all__ = ["MOST_DESCRIPTORS", "Channel"]

MOST_DESCRIPTORS = 128
"""That one message takes along; Linux allows 253."""
_OWN = 3
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""Programs that have SIGPIPE at its default would die of it."""
_ROOM = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)


class Channel:
    """Sends and receives messages. Any thread may send; one receives.

    Args:
        fd: A connected Unix socket of the stream kind, blocking. It belongs to the channel from now on;
            to be called inside :func:`asyncsave.descriptors.held_back`.
    """

    def __init__(self, fd: int) -> None:
        self._end = socket.socket(fileno=descriptors.keep(fd))
        self._end.settimeout(None)

    def fileno(self) -> int:
        """Return the descriptor, to wait on."""
        return self._end.fileno()

    def send(self, message: Message, fds: Sequence[int] = (), *, wait: bool = True) -> None:
        """Send a message, and duplicates of descriptors.

        ``wait`` tells whether to block while the other end does not take it.

        One of at most 32 KiB, which all are in practice, goes into the socket whole or not at all, so
        that two threads, or a thread and the signal handler that interrupts it, cannot mix theirs.

        Raises:
            OSError: The other end is gone.
            BlockingIOError: It does not take it now, and that is not to be waited for.
            ProtocolError: The message cannot be said.
        """
        data = memoryview(encode(message))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        flags = _NO_SIGNAL | (0 if wait else socket.MSG_DONTWAIT)
        sent = self._end.sendmsg([data], ancillary, flags)
        while sent < len(data):
            sent += self._end.send(data[sent:], _NO_SIGNAL)

    def receive(self) -> tuple[Message, list[int]] | None:
        """Block for the next message; return it and its descriptors, or None if the other end is gone.

        The descriptors belong to the caller: as many as the kind of message takes along.

        Raises:
            ProtocolError: What came is no message. Nothing more can be received.
        """
        fds: list[int] = []
        try:
            header = self._read(HEADER.size, fds)
            if len(header) < HEADER.size:
                return None
            length = body_nbytes(header)
            body = self._read(length, fds)
            if len(body) < length:
                return None
            message = decode(header, body)
            expected = _OWN + message.after + message.locked if isinstance(message, Save) else 0
            if len(fds) != expected or 0 < expected < _OWN:
                raise ProtocolError(f"{len(fds)} descriptors came with a message that takes {expected}")
            taken, fds = fds, []
            return message, taken
        finally:
            for fd in fds:
                os.close(fd)

    def _read(self, nbytes: int, fds: list[int]) -> bytes:
        """Read so many bytes, fewer if the other end is gone, and add what descriptors come with them."""
        data = b""
        while len(data) < nbytes:
            try:
                part, ancillary, flags, _ = self._end.recvmsg(nbytes - len(data), _ROOM, _CLOSE_ON_EXEC)
            except ConnectionError:
                break
            for _, _, numbers in ancillary:
                arrived = array.array("i")
                arrived.frombytes(numbers[: len(numbers) - len(numbers) % arrived.itemsize])
                fds += arrived
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("more descriptors came with a message than there is room for")
            if not part:
                break
            data += part
        return data

    def hang_up(self) -> None:
        """Say that no more will be sent; what the other end still says can be received."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)

    def break_off(self) -> None:
        """Say and hear no more; who is just saying something gets an error."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def is_broken(self) -> bool:
        """Tell whether nobody is at the other end any more."""
        poll = select.poll()
        poll.register(self.fileno(), 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close this end. Idempotent."""
        fd = self._end.detach()
        if fd >= 0:
            descriptors.drop(fd)

    def abandon(self) -> None:
        """Forget this end, in a forked child, where it is closed already."""
        self._end.detach()
