"""The writer process as a backend: saves are handed over as they are staged, and outlive this process.

What keeps a save from getting lost, or from being written twice at once:

- it is handed over on the caller's thread, so when ``save`` returns the writer process has it, or its
  memory and message lie in the socket for it;
- it stays in the list here until its end has been reported. If the process dies, what is in the list is
  handed to the next one, in the same order;
- its claim (a byte in a pipe) is taken by the process that begins to write it, so a save that has been
  handed over twice, or withdrawn, is written once, or never;
- one thread, the attendant, starts processes, listens to them and buries them. Nobody waits for a lock
  that it holds, and it waits for none.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from asyncsave import descriptors, pending
from asyncsave.backends.child import Child, told
from asyncsave.backends.contract import Order
from asyncsave.backends.thread import ThreadBackend
from asyncsave.claim import Claim, claim_of
from asyncsave.errors import SaveError, WriterDiedError
from asyncsave.image.layout import Layout
from asyncsave.image.table import reach, write_table
from asyncsave.memory import SharedPages
from asyncsave.result import SaveResult
from asyncsave.storage.sweep import sweep
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.wire import Begun, Done, Failed, Log, Message, Progress, Ready, Save

__all__ = ["ProcessBackend"]

_log = logging.getLogger("asyncsave")
_LIVES = 2
_PATIENCE = 10.0
_LOOK_AGAIN = 0.05


@dataclass(slots=True, eq=False)
class _Entry:
    """One save that has not ended.

    Attributes:
        message: How it is described to a process.
        order: Whom to tell.
        claim: Who may begin it.
        earlier: Claims of the saves of the same file that come first.
        child: To which process it was handed.
        settled: Set when it was handed to one, or has ended.
        begun: Whether that process has begun it.
        written: Bytes it has reported.
        deaths: How many processes died of it.
    """

    message: Save
    order: Order
    claim: Claim
    earlier: list[Claim]
    child: Child | None = None
    settled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    written: int = 0
    deaths: int = 0


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
        self._threads = threads
        self._start = start
        self._beside: ThreadBackend | None = None
        self._numbers = itertools.count(1)
        self._entries: dict[int, _Entry] = {}
        self._closing = False
        self._child: Child | None = start()
        with descriptors.held_back():
            self._wakes, self._wake = map(descriptors.keep, os.pipe())
        os.set_blocking(self._wakes, False)
        os.set_blocking(self._wake, False)
        self._attendant = threading.Thread(target=self._attend, name="asyncsave-attendant", daemon=True)
        try:
            self._attendant.start()
        except RuntimeError:
            # The interpreter is shutting down and starts no thread: the caller writes.
            self.close()

    def room(self, layout: Layout) -> int:
        """Return the size of the image and its table."""
        return reach(layout)

    def warmup(self) -> None:
        """Block until a process is ready.

        Raises:
            WriterDiedError: None is, after some seconds.
        """
        child = self._child
        if child is not None and not child.ready.wait(_PATIENCE):
            raise WriterDiedError(f"the writer process {child.pid} was not ready after {_PATIENCE} s")

    def submit(self, order: Order) -> None:
        """Hand an order over; return when a process has it, or when it is done if there is to be none."""
        job = order.job
        if self._closing or not isinstance(job.target, Target):
            self._here().submit(order)
            return
        path, folder, name = job.target
        number = next(self._numbers)
        message = Save(number, job.layout.nbytes, path, folder, name, job.sync, job.started, order.queued, after=0)
        entry = _Entry(message, order, Claim(), [claim_of(save) for save in job.after])
        write_table(job.image, job.layout, job.crcs)
        self._entries[number] = entry
        order.contest(entry.claim, lambda: self._strike_off(entry))
        while not self._hand_over(self._child) and not entry.settled.is_set() and not self._is_attendant():
            # The process is dead: the attendant will notice, and hand this save to the next one.
            self._rouse()
            entry.settled.wait(_LOOK_AGAIN)

    def close(self) -> None:
        """Let the process end, and wait for that; one that does not is killed."""
        self._closing = True
        self._rouse()
        if self._attendant.is_alive() and not self._is_attendant():
            self._attendant.join()
        self._here().close()

    def abandon(self) -> None:
        """Forget the process, in a forked child: the descriptors are closed already."""
        self._closing = True
        self._wakes = self._wake = -1
        if self._child is not None:
            self._child.abandon()
        for entry in self._entries.values():
            entry.claim.abandon()
        self._entries.clear()
        self._here().abandon()

    def is_current_thread(self) -> bool:
        """Tell whether the caller runs on the attendant, or on the thread that writes file objects."""
        return self._is_attendant() or (self._beside is not None and self._beside.is_current_thread())

    def _is_attendant(self) -> bool:
        return self._attendant is threading.current_thread()

    def _here(self) -> ThreadBackend:
        """Return the backend of this process, for what the other one cannot do."""
        if self._beside is None:
            self._beside = ThreadBackend(System(), self._threads)
        return self._beside

    def _hand_over(self, child: Child | None) -> bool:
        """Hand everything that a process does not have yet to it, in order; False if it is dead.

        Any thread may do that, two at once too: what is handed over twice is begun once.
        """
        if child is None or not child.is_alive():
            return False
        for number in sorted(self._entries):
            entry = self._entries.get(number)
            if entry is None or entry.child is child:
                continue
            claim = entry.claim.duplicate()
            earlier = [fd for other in entry.earlier for fd in other.duplicate(writing=False)]
            try:
                if claim:  # it has not ended meanwhile
                    message = entry.message._replace(after=len(earlier))
                    child.send(message, [entry.order.job.memory, *claim, *earlier])
            except OSError:
                return False
            finally:
                for fd in (*claim, *earlier):
                    descriptors.drop(fd)
            entry.child = child
            entry.settled.set()
        return True

    def _rouse(self) -> None:
        """Make the attendant look around."""
        with contextlib.suppress(OSError):  # it is closed, or full of reminders
            os.write(self._wake, b"!")

    def _attend(self) -> None:
        pending.never_wait_here()
        try:
            while (child := self._child) is not None or self._entries or not self._closing:
                if child is None and self._entries:
                    self._replace()
                elif child is None:
                    self._wait()
                else:
                    self._listen(child)
        finally:
            fds, self._wakes, self._wake = (self._wakes, self._wake), -1, -1
            for fd in fds:
                descriptors.drop(fd)

    def _wait(self, *fds: int) -> bool:
        """Block until there is something to read, or a reason to look around; False after too long an end."""
        poll = select.poll()
        for fd in (self._wakes, *fds):
            poll.register(fd, select.POLLIN)
        found = poll.poll(_PATIENCE * 1000 if self._closing else None)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakes, select.PIPE_BUF)
        return bool(found)

    def _listen(self, child: Child) -> None:
        """Hear one word of a process, or notice its death."""
        if self._closing:
            child.hang_up()
        if not self._wait(child.fileno()):
            child.kill()
        if not child.speaks():
            return
        message = child.receive()
        if message is None:
            self._lose(child)
        else:
            self._hear(child, message)

    def _hear(self, child: Child, message: Message) -> None:
        if isinstance(message, Ready):
            child.ready.set()
            self._say(logging.INFO, f"the writer process {child.pid} is ready; left alone it logs to {child.log}")
        elif isinstance(message, Log):
            self._say(message.level, message.text)
        elif isinstance(message, (Begun, Progress, Done, Failed)):
            entry = self._entries.get(message.number)
            if entry is not None:
                self._tell(entry, message)

    def _tell(self, entry: _Entry, message: Begun | Progress | Done | Failed) -> None:
        """Pass on what the process says of a save."""
        order = entry.order
        if isinstance(message, Begun):
            entry.begun = True
            order.begin()
            order.job.timings["queue"] = message.queue
        elif isinstance(message, Progress):
            entry.written += message.nbytes
            order.progress(message.nbytes)
        elif isinstance(message, Done):
            order.job.timings |= {phase: getattr(message, phase) for phase in ("seal", "write", "sync", "total")}
            result = SaveResult(
                order.job.path, order.job.layout.nbytes, message.digest, message.durable, dict(order.job.timings)
            )
            self._strike_off(entry)
            try:
                order.finish(result)
            except BaseException as error:  # noqa: BLE001 - every handle resolves, whatever happens
                self._fail(entry, error)
        else:
            _, text, path, phase, number, outcome = message
            failure = SaveError(text, path=path, phase=phase, errno=number or None, outcome=outcome)
            failure.__cause__ = OSError(number, os.strerror(number)) if number else None
            self._strike_off(entry)
            self._fail(entry, failure)

    def _lose(self, child: Child) -> None:
        """Bury a process, and blame its death on what it was doing."""
        self._child = None
        returncode = child.bury()
        words = child.last_words()
        entries = list(self._entries.values())
        if self._closing and not entries and not returncode:
            return
        for entry in [one for one in entries if one.begun] or entries:
            entry.deaths += 1
        for entry in entries:
            entry.order.progress(-entry.written)
            entry.begun, entry.written = False, 0
            entry.claim.renew()
        lost = [entry for entry in entries if entry.deaths >= _LIVES]
        how = f"the writer process {child.pid} ended {told(returncode)}"
        rest = f"; {len(entries) - len(lost)} save(s) are handed to a new one"
        self._say(logging.WARNING, how + rest + (f". Its last words: {words}" if words else ""))
        for entry in lost:
            self._give_up(entry, f"{how}, the second one that died of this save", returncode)

    def _replace(self) -> None:
        """Start a process in place of a dead one, and hand everything to it."""
        try:
            child = self._start()
        except Exception as error:  # noqa: BLE001 - the saves must hear of it, whatever it is
            for entry in list(self._entries.values()):
                self._give_up(entry, f"a new writer process could not be started: {error}", None)
            return
        self._hand_over(child)
        self._child = child
        self._hand_over(child)

    def _give_up(self, entry: _Entry, reason: str, returncode: int | None) -> None:
        path = entry.message.path
        sweep(System(), entry.message.folder)
        self._strike_off(entry)
        message = f"cannot save {path!r}: {reason}. What is there is whole, nearly always the old version"
        self._fail(entry, WriterDiedError(message, path=path, returncode=returncode))

    def _fail(self, entry: _Entry, error: BaseException) -> None:
        with contextlib.suppress(BaseException):
            entry.order.fail(error)

    def _strike_off(self, entry: _Entry) -> None:
        """Forget a save that has ended."""
        self._entries.pop(entry.message.number, None)
        entry.claim.close()
        entry.settled.set()

    def _say(self, level: int, text: str) -> None:
        with contextlib.suppress(Exception):
            _log.log(level, "%s", text)
