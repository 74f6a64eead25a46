"""The writer process as a backend: saves are handed over as they are staged, and outlive this process.

What keeps a save from getting lost, or from being written twice at once:

- it is handed over on the caller's thread, so when ``save`` returns the writer process has it, or its
  memory and its message lie in the socket for it;
- it stays in the list here until its end has been reported. If the process dies, what is in the list is
  handed to the next one, in the same order;
- its claim (a byte in a pipe) is taken by the process that begins to write it, so a save that has been
  handed over twice, or withdrawn, is written once, or never;
- one thread, the attendant, starts processes, listens to them and buries them. It waits for nothing that
  code may hold which a signal handler has interrupted, or which a callback of the user's waits for: who
  waits for it (:meth:`settle`) holds no lock of ours, and does not wait for ever. What may take long, or
  wait for others (a line for the log, a look at a folder), is left to the thread that writes file objects.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable

from asyncsave import descriptors, pending
from asyncsave.backends.child import Child, told
from asyncsave.backends.consignment import Consignment
from asyncsave.backends.contract import Order
from asyncsave.backends.thread import ThreadBackend
from asyncsave.catalogue.upkeep import tidy
from asyncsave.errors import SaveError, WriterDiedError
from asyncsave.image.layout import Layout
from asyncsave.image.table import nbytes_with_table
from asyncsave.memory import SharedPages
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.wire import Begun, Clear, Done, Failed, Log, Progress, Ready

__all__ = ["ProcessBackend"]

_log = logging.getLogger("asyncsave")
_PATIENCE = 10.0
_LOOK_AGAIN = 0.005
_SETTLED = 2.0
_STILLBORN = 2
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class ProcessBackend:
    """A writer process, and the thread that attends to it, started here and now.

    File objects are written by a thread of this process, beside the files.

    Args:
        threads: How many write blocks at once.
        start: Starts a process.

    Raises:
        OptionError: No process can be started here, or not with these settings.
        WriterDiedError: The system starts no more processes.
    """

    name = "process"
    outlives = True
    pages = SharedPages

    def __init__(self, threads: int, start: Callable[[], Child]) -> None:
        self._start = start
        self._numbers = itertools.count(1)
        self._under_way: dict[int, Consignment] = {}
        self._closing = self._ended = False
        self._killed_at = math.inf
        self._wanted = False
        self._stillborn = 0
        self._loss = ""
        self._child: Child | None = start()
        self._here = ThreadBackend(System(), threads)
        with descriptors.held_back():
            self._wakes, self._wake = map(descriptors.keep, os.pipe())
        os.set_blocking(self._wakes, False)
        os.set_blocking(self._wake, False)
        self._attendant = threading.Thread(target=self._attend, name="asyncsave-attendant", daemon=True)
        try:
            self._attendant.start()
        except RuntimeError:
            # The interpreter is shutting down and starts no thread: the caller writes.
            self._give_over()

    def room(self, layout: Layout) -> int:
        """Return the size of the image and its table."""
        return nbytes_with_table(layout)

    def warmup(self) -> None:
        """Block until a process is ready.

        Raises:
            WriterDiedError: None is, after some seconds; or the ones that were started died at once.
        """
        self._stillborn = 0
        deadline = time.monotonic() + _PATIENCE
        while not self._ended and not ((child := self._child) and child.is_ready):
            if self._stillborn >= _STILLBORN or time.monotonic() > deadline:
                raise WriterDiedError(f"the writer process does not start: {self._loss or 'it takes too long'}")
            self._wanted = True
            self._rouse()
            time.sleep(_LOOK_AGAIN)
        self._wanted = False

    def submit(self, order: Order) -> None:
        """Hand an order over, or leave that to the attendant if the process is dead or does not listen."""
        target = order.job.target
        if self._ended or not isinstance(target, Target):
            self._here.submit(order)
            return
        number = next(self._numbers)
        try:
            save = self._under_way[number] = Consignment(number, order, target, self._strike_off)
            handed = self._hand_over(self._child)
        except OSError as error:
            raise SaveError.of(error, path=target.path, phase="hand over") from error
        if not handed:
            self._rouse()
        if self._has_ended():  # meanwhile: whoever seizes it writes it
            save.take_back(self._here)

    def drop_spare(self) -> None:
        """Have the file removed that the process keeps to overwrite it; a dead one's is removed by the next."""
        self._here.drop_spare()
        if (child := self._child) is not None:
            with contextlib.suppress(OSError):
                child.send(Clear())

    def settle(self) -> None:
        """Wait until everything is handed over, some seconds at most. See the :class:`Backend`."""
        deadline = time.monotonic() + _SETTLED
        while self._has_more() and not self._ended and not self._is_attendant() and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN)

    def close(self, timeout: float | None = None) -> None:
        """Let the process end, and wait for that; one that does not is killed."""
        self._killed_at = time.monotonic() + min(_PATIENCE, _PATIENCE if timeout is None else timeout)
        self._closing = True
        self._rouse()
        if self._attendant.is_alive() and not self._is_attendant():
            self._attendant.join()
        self._here.close()

    def abandon(self) -> None:
        """Forget the process, in a forked child: the descriptors are closed already."""
        self._closing = self._ended = True
        self._wakes = self._wake = -1
        if self._child is not None:
            self._child.abandon()
        for save in self._under_way.values():
            save.abandon()
        self._under_way.clear()
        self._here.abandon()

    def is_current_thread(self) -> bool:
        """Tell whether the caller runs on the attendant, or on the thread that writes file objects."""
        return self._is_attendant() or self._here.is_current_thread()

    def _has_ended(self) -> bool:
        return self._ended

    def _is_attendant(self) -> bool:
        return self._attendant is threading.current_thread()

    def _has_more(self) -> bool:
        """Tell whether there is something that the process does not have yet."""
        child = self._child
        return any(child is None or save.child is not child for save in self._in_order())

    def _in_order(self) -> list[Consignment]:
        """Return the saves that have not ended, oldest first. Any thread may strike one off meanwhile."""
        return [save for _, save in sorted(self._under_way.copy().items())]

    def _hand_over(self, child: Child | None) -> bool:
        """Hand everything that a process does not have yet to it, in order; False if it is dead.

        Any thread may do that, two at once too.

        Raises:
            OSError: This process has no descriptors or memory left to do that.
        """
        if child is None or not child.is_alive():
            return False
        try:
            for save in self._in_order():
                save.hand_to(child)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return False
        return True

    def _attend(self) -> None:
        """Start, hear and bury processes until the writer is closed. The attendant's work."""
        pending.never_wait_here()
        try:
            while (child := self._child) is not None or self._under_way or not self._closing:
                if child is not None:
                    self._listen(child)
                elif self._under_way or self._wanted:
                    self._replace()
                else:
                    self._wait()
        finally:
            self._give_over()

    def _give_over(self) -> None:
        """End: what is still under way, if anything has failed, is written by this process."""
        child = self._child
        if child is not None:
            child.kill()
            self._lose(child)
        self._ended = True
        for save in self._in_order():
            save.take_back(self._here)
        fds, self._wakes, self._wake = (self._wakes, self._wake), -1, -1
        for fd in fds:
            descriptors.drop(fd)

    def _wait(self, child: Child | None = None) -> bool:
        """Block until the process has something to say; False if there was another reason to look around."""
        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        if child is not None:
            poll.register(child.fileno(), select.POLLIN | (select.POLLOUT if self._has_more() else 0))
        timeout = max(_LOOK_AGAIN, self._killed_at - time.monotonic()) if self._closing else _PATIENCE
        found = dict(poll.poll(timeout * 1000))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakes, select.PIPE_BUF)
        return child is not None and bool(found.get(child.fileno(), 0) & ~select.POLLOUT)

    def _listen(self, child: Child) -> None:
        """Hear one word of a process, or notice its death."""
        if self._closing:
            child.hang_up()
            if not self._under_way and time.monotonic() > self._killed_at:
                child.kill()
        if not self._wait(child):
            if self._has_more():
                with contextlib.suppress(OSError):
                    self._hand_over(child)
                time.sleep(_LOOK_AGAIN)  # not round in circles where that goes on failing
            return
        message = child.receive()
        if message is None:
            self._lose(child)
        elif isinstance(message, Ready):
            child.is_ready = True
            self._stillborn = 0
            self._say(logging.INFO, f"the writer process {child.pid} is ready; left alone it logs to {child.log}")
        elif isinstance(message, Log):
            self._say(message.level, message.text)
        elif isinstance(message, (Begun, Progress, Done, Failed)):
            save = self._under_way.get(message.number)
            if save is not None:
                save.hear(message)

    def _lose(self, child: Child) -> None:
        """Bury a process, and blame its death on what it was doing; if that is not known, on what came next."""
        returncode = child.bury()
        words = child.last_words()
        self._child = None
        saves = self._in_order()
        if self._closing and not saves and not returncode:
            return
        self._stillborn += not child.is_ready
        suspects = ([save for save in saves if save.begun] or saves[:1]) if child.is_ready else []
        lost = [save for save in saves if not save.outlive(blamed=save in suspects)]
        self._loss = f"the writer process {child.pid} ended {told(returncode)}"
        if words:
            self._loss += f" (its last words: {words})"
        kept = len(saves) - len(lost)
        self._say(logging.WARNING, self._loss + (f"; {kept} save(s) are handed to a new one" if kept else ""))
        for folder in child.folders:
            self._here.submit(functools.partial(tidy, System(), folder))
        for save in lost:
            save.give_up(f"{self._loss}, the second one that died of this save", returncode)

    def _replace(self) -> None:
        """Start a process in place of a dead one, and hand everything to it; where none starts, do without."""
        self._wanted = False
        if self._stillborn < _STILLBORN:
            try:
                child = self._start()
            except Exception as error:  # noqa: BLE001 - the saves must not hang, whatever it is
                self._stillborn += 1
                self._loss = str(error)
                time.sleep(_LOOK_AGAIN)
                return
            self._child = child
            with contextlib.suppress(OSError):
                self._hand_over(child)
            return
        self._stillborn = 0
        self._say(logging.ERROR, f"no writer process can be started, this one writes: {self._loss}")
        for save in self._in_order():
            save.take_back(self._here)

    def _strike_off(self, number: int) -> None:
        self._under_way.pop(number, None)

    def _rouse(self) -> None:
        """Make the attendant look around."""
        with contextlib.suppress(OSError):  # it is closed, or full of reminders
            os.write(self._wake, b"!")

    def _say(self, level: int, text: str) -> None:
        self._here.submit(functools.partial(_log.log, level, "%s", text))
