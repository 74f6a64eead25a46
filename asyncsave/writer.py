"""The writer: slot, stage, enqueue, handle.

A save takes a slot, is captured and copied on the calling thread, and is handed to the backend; what
becomes of it then reaches the caller through the handle. Errors that nobody reads are kept, and raised
by the next call.
"""

from __future__ import annotations

import concurrent.futures
import io
import logging
import os
import pickle
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from asyncsave import lifecycle, observers, pending
from asyncsave.admission import Admission, OnBusy
from asyncsave.backends.contract import BackendFactory
from asyncsave.backends.settings import BackendName, backend_factory
from asyncsave.cores import cores
from asyncsave.errors import (
    AsyncSaveError,
    StagingError,
    WriterClosedError,
)
from asyncsave.handle import SaveHandle
from asyncsave.intake import Intake
from asyncsave.ledger import Ledger
from asyncsave.options import at_least, one_of, pickler, seconds, yes_or_no
from asyncsave.persist import Job
from asyncsave.request import Request
from asyncsave.slots import Slot, Slots
from asyncsave.stats import Tally, WriterStats
from asyncsave.storage.destination import destination
from asyncsave.storage.sink import Sink
from asyncsave.storage.target import Target
from asyncsave.transit import Transit
from asyncsave.workers import Workers

__all__ = ["OnBusy", "OnError", "Writer"]

OnError = Literal["raise", "log"]

_log = logging.getLogger("asyncsave")


class Writer:
    """Saves checkpoints in the background, one after the other. Use it as a context manager.

    Any thread may call any method. The state is copied on the calling thread; the files are written
    by a thread of the writer's own.

    Args:
        max_pending: How many saves may be staged and not yet written: as many arenas, each the size
            of the state, are kept in host memory.
        on_busy: What :meth:`save` does when as many are: ``"wait"``; ``"skip"`` this one;
            ``"replace"`` the oldest one that is not being written yet (where there is none, wait);
            ``"raise"`` :class:`QueueFullError`.
        memory_budget: Most bytes of host memory that the arenas may take together; None: what the
            machine and the container have.
        threads: How many threads write blocks; None: two, which saturate a local disk.
        durable: Whether every file and its folder are flushed to the medium. False is quicker, and
            a power cut may lose the latest checkpoints, or leave one empty.
        on_error: ``"raise"``: an error that nobody has read is raised by the next call. ``"log"``:
            it is logged and counted in :attr:`stats`; only :meth:`close` raises it.
        exit_timeout: Seconds that the interpreter's exit waits for saves that are still in flight.
        backend: Who seals and writes: ``"thread"``, in this process; ``"process"``, in one of its own,
            which goes on when this one dies; or the settings of a process, :class:`WriterProcess`.
        recycle: Whether the blocks of a large replaced file are kept, as one hidden file, and overwritten by the
            next save: twice as fast, and never where anybody still has the old file open or mapped.

    Raises:
        OptionError: An argument makes no sense.
    """

    def __init__(
        self,
        *,
        max_pending: int = 2,
        on_busy: OnBusy = "wait",
        memory_budget: int | None = None,
        threads: int | None = None,
        durable: bool = True,
        on_error: OnError = "raise",
        exit_timeout: float = 600.0,
        backend: BackendName | BackendFactory = "thread",
        recycle: bool = True,
    ) -> None:
        at_least("max_pending", max_pending, 1)
        at_least("threads", 2 if threads is None else threads, 1)
        at_least("memory_budget", 1 if memory_budget is None else memory_budget, 1)
        one_of("on_busy", on_busy, OnBusy)
        one_of("on_error", on_error, OnError)
        seconds("exit_timeout", exit_timeout)
        yes_or_no("durable", durable)
        yes_or_no("recycle", recycle)
        self.on_busy: OnBusy = on_busy
        self.durable = durable
        self.recycle = recycle
        self._on_error = on_error
        self._exit_timeout = exit_timeout
        self._backend = backend_factory(backend).start(threads or 2)
        self._copiers = Workers(min(4, cores()), "asyncsave-copy")
        self._slots = Slots(max_pending, memory_budget, self._copiers, self._backend.pages)
        self._ledger = Ledger()
        self._admission = Admission(self._slots, self._ledger, self._backend.is_current_thread)
        self._tally = Tally()
        self._closed = False
        lifecycle.adopt(self)

    def __repr__(self) -> str:
        """Show what is under way."""
        statuses = [handle.status for handle in self._ledger.in_flight]
        return (
            f"<Writer {self._backend.name}, {'closed, ' if self._closed else ''}{statuses.count('writing')} writing, "
            f"{statuses.count('queued')} queued, {self._slots.free}/{self._slots.count} free>"
        )

    def __enter__(self) -> Writer:  # noqa: PYI034 - not made for subclasses
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; if the block raised, log what close would raise, and let the block's error through."""
        try:
            self.close()
        except Exception as ours:
            if error is None:
                raise
            _log.error("while another error was on its way: %s", ours)

    @property
    def stats(self) -> WriterStats:
        """What this writer has done so far."""
        return self._tally.read()

    @property
    def closed(self) -> bool:
        """Whether new saves are refused."""
        return self._closed

    def warmup(self, state: object) -> None:
        """Allocate the arenas for a state of this size now, so that the first save is as fast as the rest.

        Nothing is copied and nothing is written. Where memory does not suffice for ``max_pending``
        arenas, as many are made as fit.

        Raises:
            StagingError: The state cannot be captured, or not even one arena fits.
            WriterClosedError: The writer is closed.
        """
        self._check_open()
        nbytes = Intake(Request([state], io.BytesIO(), path=""), self._backend.room).nbytes
        slots = []
        try:
            while (slot := self._slots.take()) is not None:
                slots.append(slot)
                try:
                    self._slots.equip(slot, nbytes, wait=lambda: False)
                except StagingError:
                    if len(slots) == 1:
                        raise
                    break
        finally:
            for slot in slots:
                self._slots.give_back(slot)
        self._backend.warmup()

    def save(
        self,
        obj: object,
        f: str | os.PathLike[str] | Sink,
        pickle_module: Any = pickle,
        pickle_protocol: int = 2,
        *,
        on_busy: OnBusy | None = None,
        compact: bool = False,
    ) -> SaveHandle:
        """Save ``obj`` in the background; return when it has been copied.

        Blocks for the copy of every storage (about as long as a plain copy of the same bytes), and
        before that for a slot, by ``on_busy``. When it returns, ``obj`` is the caller's again: any
        tensor and any Python object in it may be changed. Each storage is copied once, whole, so
        ties and views stay, as with ``torch.save``.

        Args:
            obj: Anything that ``torch.save`` takes.
            f: A path, which is replaced whole or not at all; or a writable binary file object, which
                is written from front to back on the writer's thread, without any such promise. Do
                not touch it before the save has ended.
            pickle_module: As for ``torch.save``.
            pickle_protocol: As for ``torch.save``. Others than 2 may need ``weights_only=False`` to load.
            on_busy: This save's own policy; None: the writer's.
            compact: Store only the part of each storage that the saved tensors can see. A view of a
                large tensor then costs what it shows.

        Returns:
            The handle of the save. If it was skipped, its status says so.

        Raises:
            StagingError: The state cannot be captured, or does not fit into memory.
            SaveError: The target cannot be written to (folder missing or read-only, not a file, ...);
                or an earlier save failed and nobody has read that: then this save was not begun.
            QueueFullError: By ``on_busy="raise"``.
            WriterClosedError: The writer is closed, or comes from the other side of a fork.
            OptionError: An argument makes no sense.
        """
        return self.save_if_wanted(
            obj, f, pickle_module, pickle_protocol, on_busy=on_busy, compact=compact, wanted=lambda: None
        )

    def save_if_wanted(
        self,
        obj: object,
        f: str | os.PathLike[str] | Sink,
        pickle_module: Any,
        pickle_protocol: int,
        *,
        on_busy: OnBusy | None,
        compact: bool,
        wanted: Callable[[], None],
    ) -> SaveHandle:
        """Do what :meth:`save` does, for a caller who may think better of it while it waits.

        All arguments are those of :meth:`save`, but for ``wanted``, which is called after every wait, and
        last before the save is queued; it raises if the save is not wanted any more.
        """
        self._check_open()
        pickler(pickle_module, pickle_protocol)
        target, path = destination(f)
        request = Request([obj], target, path, pickle_module, pickle_protocol, compact, wanted=wanted)
        return self.take(request, on_busy=on_busy)

    def take(self, request: Request, *, on_busy: OnBusy | None = None) -> SaveHandle:
        """Do what :meth:`save` does, for a request that has been checked already: also one of a step."""
        started = time.perf_counter()
        self._check_open()
        policy = self.on_busy if on_busy is None else on_busy
        one_of("on_busy", policy, OnBusy)
        if self._on_error == "raise":
            self.check_errors()
        handle = SaveHandle(request.path, is_file=isinstance(request.target, Target))

        def go_on() -> None:
            self._check_open()
            request.wanted()

        def make_way() -> bool:
            waited = self._admission.make_way(policy)
            go_on()
            return waited

        slot = self._admission.take(policy, go_on)
        if slot is None:
            return self._skip(handle)
        try:
            timings = {"wait": time.perf_counter() - started}
            handle.measure(timings)
            with self._admission.staging():
                intake = Intake(request, self._backend.room)
                timings["capture"] = time.perf_counter() - started - timings["wait"]
                intake.advise()
                arena = self._slots.equip(slot, intake.nbytes, wait=make_way)
                if arena is None:
                    self._slots.give_back(slot)
                    return self._skip(handle)
                images = intake.fill(arena, self._copiers)
            timings["stage"] = time.perf_counter() - started - timings["wait"] - timings["capture"]
            job = Job(
                images, request.target, request.path, self.durable, timings, started, intake.brief,
                memory=arena.descriptor, view=arena.view, lock=request.lock, recycle=self.recycle and request.recycle,
            )  # fmt: skip
            request.wanted()
        except BaseException:
            self._slots.give_back(slot)
            raise
        self._enqueue(handle, job, slot)
        observers.tell(handle, self._backend.name, started)
        if lifecycle.exiting():
            concurrent.futures.wait([handle])
            if not self._drain_at_exit():
                lifecycle.spoil()
        return handle

    def drop_spare(self) -> None:
        """Remove the file that is kept to be overwritten by the next save, once the saves under way are done."""
        self._backend.drop_spare()

    def flush(self, timeout: float | None = None) -> None:
        """Block until every save made so far has ended; raise the first error that nobody has read.

        Raises:
            TimeoutError: Some have not ended after ``timeout`` seconds; they go on.
            SaveError: A save failed.
        """
        self._check_wait(timeout)
        self._ledger.wait(timeout)
        if self._on_error == "raise":
            self.check_errors()

    def check_errors(self) -> None:
        """Raise the oldest error that nobody has read, once; return at once if there is none."""
        error = self._ledger.next_unread()
        if error is not None:
            raise error

    def close(self, timeout: float | None = None) -> None:
        """Finish all saves, end the threads, give the memory back. Idempotent.

        New saves are refused from the call on.

        Raises:
            TimeoutError: Some saves have not ended after ``timeout`` seconds. They go on; call again.
            SaveError: A save failed, and nobody has read that. Further ones are logged.
        """
        self._check_wait(timeout)
        with self._ledger.lock:  # a save that is being staged is queued before, or refused
            self._closed = True
        started = time.monotonic()
        self._ledger.wait(timeout)
        lifecycle.release(self)
        self._backend.close(None if timeout is None else max(0.0, timeout - (time.monotonic() - started)))
        self._copiers.close()
        self._slots.close()
        error = self._ledger.next_unread()
        while (other := self._ledger.next_unread()) is not None:
            _log.error("another save failed: %s", other)
        if error is not None:
            raise error

    def _check_wait(self, timeout: float | None) -> None:
        """Refuse a wait of no length of time, or for oneself."""
        if timeout is not None:
            seconds("timeout", timeout)
        if self._backend.is_current_thread() and self._ledger.in_flight:
            message = "flush() and close() cannot be called from a done callback: they would wait for it"
            raise AsyncSaveError(message)

    def _check_open(self) -> None:
        if self._closed:
            message = "this writer is closed, or was inherited over a fork: make a new one"
            raise WriterClosedError(message)

    def _skip(self, handle: SaveHandle) -> SaveHandle:
        handle.withdraw("skipped")
        self._tally.count("skipped")
        return handle

    def _enqueue(self, handle: SaveHandle, job: Job, slot: Slot) -> None:
        transit = Transit(
            job,
            handle,
            slot,
            slots=self._slots,
            ledger=self._ledger,
            tally=self._tally,
            logs_errors=self._on_error == "log",
        )
        with self._ledger.lock:
            try:
                self._check_open()
                handle.queue(job.nbytes, transit.withdrawn, self._backend.is_current_thread)
                if isinstance(job.target, Target):
                    job.after = pending.enter(job.target.real, handle, owner=self)
                self._backend.submit(transit)
                # Entered last: a signal handler must not wait for what only this code can submit.
                self._ledger.enter(handle)
                if handle.done():
                    self._ledger.leave(handle)
            except BaseException:
                if not handle.withdraw("cancelled") and handle.status == "staging":
                    self._slots.give_back(slot)
                raise
        self._backend.settle()

    def _drain_at_exit(self) -> bool:
        def fate(handle: SaveHandle) -> str:
            return "left to the writer process" if self._backend.outlives and handle.is_file else "lost"

        if not self._ledger.drain(self._exit_timeout, fate):
            return False
        self._backend.close()  # from here on whoever saves writes himself
        if not self._ledger.drain(self._exit_timeout, fate):
            return False
        clean = True
        while (error := self._ledger.next_unread()) is not None:
            _log.critical("a save failed, and nobody has read that: %s", error)
            clean = False
        return clean

    def _orphan_in_child(self) -> None:
        self._closed = True
        message = "this save belongs to the process that was forked: look at its handle there"
        self._ledger.orphan(WriterClosedError(message))
        self._slots = Slots(self._slots.count, None, self._copiers)
        self._copiers.abandon()
        self._backend.abandon()
