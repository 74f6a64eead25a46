"""The writer: slot, stage, enqueue, handle.

A save takes a slot, is captured and copied on the calling thread, and is handed to the backend; what
becomes of it then reaches the caller through the handle. Errors that nobody reads are kept, and raised
by the next call.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import pickle
import threading
import time
from types import TracebackType
from typing import Any, Literal, get_args

from asyncsave import lifecycle, pending
from asyncsave.backends.thread import Order, ThreadBackend
from asyncsave.cores import cores
from asyncsave.errors import (
    AsyncSaveError,
    OptionError,
    QueueFullError,
    SaveError,
    StagingError,
    WriterClosedError,
)
from asyncsave.handle import SaveHandle
from asyncsave.notices import warn_once
from asyncsave.persist import Job, Sink
from asyncsave.result import SaveResult
from asyncsave.slots import Slot, Slots
from asyncsave.staging.capture import Captured, capture
from asyncsave.staging.copying import synchronize
from asyncsave.staging.stage import collector_paused, fill, layout_of
from asyncsave.stats import Tally, WriterStats
from asyncsave.storage.system import System
from asyncsave.storage.target import Target, resolve
from asyncsave.workers import Workers

__all__ = ["OnBusy", "OnError", "Writer"]

OnBusy = Literal["wait", "skip", "replace", "raise"]
OnError = Literal["raise", "log"]

_log = logging.getLogger("asyncsave")
_SAY_EVERY = 30.0
_LOOK_AGAIN = 0.1
_MOSTLY = 0.5
_WORTH_A_WORD = 1 << 20


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
        system: The system calls; tests pass one that fails.

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
        system: System | None = None,
    ) -> None:
        _check("max_pending", max_pending, at_least=1)
        _check("threads", 2 if threads is None else threads, at_least=1)
        _check("memory_budget", 1 if memory_budget is None else memory_budget, at_least=1)
        _check_choice("on_busy", on_busy, OnBusy)
        _check_choice("on_error", on_error, OnError)
        if not exit_timeout >= 0:
            message = f"exit_timeout must be a number of seconds, at least 0, not {exit_timeout!r}"
            raise OptionError(message)
        self.on_busy: OnBusy = on_busy
        self.durable = durable
        self._on_error = on_error
        self._exit_timeout = exit_timeout
        self._copiers = Workers(min(4, cores()), "asyncsave-copy")
        self._slots = Slots(max_pending, memory_budget, self._copiers)
        self._backend = ThreadBackend(system or System(), threads or 2)
        self._lock = threading.RLock()
        self._staging: dict[int, int] = {}
        self._in_flight: list[SaveHandle] = []
        self._failed: list[SaveHandle] = []
        self._tally = Tally()
        self._closed = False
        lifecycle.adopt(self)

    def __repr__(self) -> str:
        """Show what is under way."""
        statuses = [handle.status for handle in list(self._in_flight)]
        return (
            f"<Writer thread, {'closed, ' if self._closed else ''}{statuses.count('writing')} writing, "
            f"{statuses.count('queued')} queued, {self._slots.free}/{self._slots.count} free>"
        )

    def __enter__(self) -> Writer:
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

    def warmup(self, state: object) -> None:
        """Allocate the arenas for a state of this size now, so that the first save is as fast as the rest.

        Nothing is copied and nothing is written. Where memory does not suffice for ``max_pending``
        arenas, as many are made as fit.

        Raises:
            StagingError: The state cannot be captured, or not even one arena fits.
            WriterClosedError: The writer is closed.
        """
        self._check_open()
        captured = _captured(state, pickle, 2, compact=False)
        nbytes = layout_of(captured).nbytes
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
            pickle_protocol: As for ``torch.save``. Others than 2 need ``weights_only=False`` to load.
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
        started = time.perf_counter()
        self._check_open()
        policy = self.on_busy if on_busy is None else on_busy
        _check_choice("on_busy", policy, OnBusy)
        target, path = _target(f)
        if self._on_error == "raise":
            self.check_errors()
        handle = SaveHandle(path)
        slot = self._take_slot(policy)
        if slot is None:
            return self._skip(handle)
        timings = handle._timings  # noqa: SLF001 - the writer fills its handles
        timings["wait"] = time.perf_counter() - started
        me = threading.get_ident()
        self._staging[me] = self._staging.get(me, 0) + 1
        try:
            with collector_paused():
                captured = _captured(obj, pickle_module, pickle_protocol, compact=compact)
                layout = layout_of(captured)
                timings["capture"] = time.perf_counter() - started - timings["wait"]
                if not self._slots.equip(slot, layout.nbytes, wait=lambda: self._make_way(policy)):
                    self._slots.give_back(slot)
                    return self._skip(handle)
                arena = slot.arena
                assert arena is not None  # noqa: S101 - equip has made it
                crcs = fill(captured, layout, arena, self._copiers)
        except BaseException:
            self._slots.give_back(slot)
            raise
        finally:
            self._staging[me] -= 1
            if not self._staging[me]:
                del self._staging[me]
        timings["stage"] = time.perf_counter() - started - timings["wait"] - timings["capture"]
        job = Job(arena.view, layout, crcs, target, path, self.durable, timings, started)
        self._enqueue(handle, job, slot)
        self._advise(captured)
        if lifecycle.exiting():
            concurrent.futures.wait([handle])
        return handle

    def flush(self, timeout: float | None = None) -> None:
        """Block until every save made so far has ended; raise the first error that nobody has read.

        Raises:
            TimeoutError: Some have not ended after ``timeout`` seconds; they go on.
            SaveError: A save failed.
        """
        self._wait_for_all(timeout)
        if self._on_error == "raise":
            self.check_errors()

    def check_errors(self) -> None:
        """Raise the oldest error that nobody has read, once; return at once if there is none."""
        error = self._next_unread()
        if error is not None:
            raise error

    def close(self, timeout: float | None = None) -> None:
        """Finish all saves, end the threads, give the memory back. Idempotent.

        New saves are refused from the call on.

        Raises:
            TimeoutError: Some saves have not ended after ``timeout`` seconds. They go on; call again.
            SaveError: A save failed, and nobody has read that. Further ones are logged.
        """
        self._closed = True
        self._wait_for_all(timeout)
        self._release()
        error = self._next_unread()
        while (other := self._next_unread()) is not None:
            _log.error("another save failed: %s", other)
        if error is not None:
            raise error

    def _release(self) -> None:
        lifecycle.release(self)
        self._backend.close()
        self._copiers.close()
        self._slots.close()

    def _check_open(self) -> None:
        if self._closed:
            message = "this writer is closed, or was inherited over a fork: make a new one"
            raise WriterClosedError(message)

    def _take_slot(self, policy: OnBusy) -> Slot | None:
        with self._slots.changed:
            while (slot := self._slots.take()) is None:
                if policy == "replace" and self._replace_oldest():
                    continue
                if policy in ("skip", "raise"):
                    if self._make_way(policy):
                        continue
                    return None
                self._forbid_waiting()
                self._slots.changed.wait()
                self._check_open()
            return slot

    def _make_way(self, policy: OnBusy) -> bool:
        """Let another save end or give way; False if this one is to be skipped."""
        if policy == "skip":
            return False
        if policy == "raise":
            busy = self._slots.count - self._slots.free
            message = (
                f"{busy} save(s) are in flight, as many as may be. Save less often, raise max_pending, "
                'or use on_busy="wait", "skip" or "replace"'
            )
            raise QueueFullError(message)
        if policy == "replace" and self._replace_oldest():
            return True
        self._forbid_waiting()
        with self._slots.changed:
            # Memory may also become free without a save of ours ending: look again soon.
            self._slots.changed.wait(_LOOK_AGAIN)
        return True

    def _replace_oldest(self) -> bool:
        return any(handle._withdraw("replaced") for handle in list(self._in_flight))  # noqa: SLF001

    def _forbid_waiting(self) -> None:
        """Raise where waiting would never end: for oneself.

        A signal handler may save while the code it interrupted holds the slots; a done callback runs
        on the very thread that would have to write.
        """
        mine = self._staging.get(threading.get_ident(), 0)
        if mine >= self._slots.count - self._slots.free or self._backend.is_current_thread():
            message = (
                "every slot is held by the code that this call interrupted (a signal handler), or the "
                "call comes from the writer's own thread (a done callback): waiting would never end"
            )
            raise QueueFullError(message)

    def _skip(self, handle: SaveHandle) -> SaveHandle:
        handle._withdraw("skipped")  # noqa: SLF001
        self._tally.count("skipped")
        return handle

    def _enqueue(self, handle: SaveHandle, job: Job, slot: Slot) -> None:
        queued = time.perf_counter()

        def begin() -> bool:
            if not handle._begin():  # noqa: SLF001
                return False
            job.timings["queue"] = time.perf_counter() - queued
            return True

        def withdrawn() -> None:
            self._tally.count("replaced" if handle.status == "replaced" else "cancelled")
            self._slots.give_back(slot)
            self._forget(handle)

        def finish(result: SaveResult) -> None:
            self._tally.count("saved", result.nbytes)
            self._slots.give_back(slot)
            handle._finish(result)  # noqa: SLF001
            self._forget(handle)
            _log.debug("saved %s: %d bytes, %s", result.path, result.nbytes, result.timings)

        def fail(error: BaseException) -> None:
            self._tally.count("failed")
            if self._on_error == "log":
                _log.error("%s", error)
            described = _described(error, job.path)
            with self._lock:
                self._failed.append(handle)
            self._slots.give_back(slot)
            handle._fail(described)  # noqa: SLF001
            self._forget(handle)

        with self._lock:
            handle._queue(job.layout.nbytes, withdrawn)  # noqa: SLF001
            self._in_flight.append(handle)
            if isinstance(job.target, Target):
                job.after = pending.enter(job.target.real, handle, owner=self)
            self._backend.submit(
                Order(job, begin, handle._advance, finish, fail)  # noqa: SLF001
            )

    def _forget(self, handle: SaveHandle) -> None:
        with self._lock:
            if handle in self._in_flight:
                self._in_flight.remove(handle)

    def _next_unread(self) -> BaseException | None:
        """Take the oldest failed save that nobody has looked at, and count it as read."""
        with self._lock:
            while self._failed:
                handle = self._failed.pop(0)
                if not handle._read:  # noqa: SLF001
                    return handle.exception()
        return None

    def _wait_for_all(self, timeout: float | None) -> None:
        if self._backend.is_current_thread() and self._in_flight:
            message = "flush() and close() cannot be called from a done callback: they would wait for it"
            raise AsyncSaveError(message)
        _, late = concurrent.futures.wait(list(self._in_flight), timeout)
        if late:
            names = ", ".join(sorted(getattr(handle, "path", "?") for handle in late))
            message = f"{len(late)} save(s) still in flight after {timeout} s: {names}. They go on"
            raise TimeoutError(message)

    def _advise(self, captured: Captured) -> None:
        if captured.unsafe:
            names = ", ".join(captured.unsafe)
            warn_once(
                f"unsafe {names}",
                f"the checkpoint holds {names}: it loads with weights_only=False only, or after "
                "torch.serialization.add_safe_globals. Save tensors and plain Python values instead",
            )
        total = sum(span.nbytes for span in captured.spans)
        if total >= _WORTH_A_WORD and captured.unreferenced > _MOSTLY * total:
            share = captured.unreferenced / total
            warn_once(
                "unreferenced",
                f"{share:.0%} of the checkpoint ({captured.unreferenced:,} bytes) is storage that no "
                "saved tensor shows: views keep the whole tensor they were cut from. Save with "
                "compact=True, or clone the views",
            )

    def _drain_at_exit(self) -> bool:
        deadline = time.monotonic() + self._exit_timeout
        while late := list(self._in_flight):
            left = deadline - time.monotonic()
            if left <= 0:
                for handle in late:
                    _log.critical("lost at exit after %s s: %r", self._exit_timeout, handle)
                return False
            concurrent.futures.wait(late, min(left, _SAY_EVERY))
            if left > _SAY_EVERY and (late := list(self._in_flight)):
                _log.warning("exit waits for %d save(s): %s", len(late), late)
        clean = True
        while (error := self._next_unread()) is not None:
            _log.critical("a save failed, and nobody has read that: %s", error)
            clean = False
        return clean

    def _orphan_in_child(self) -> None:
        self._closed = True
        message = "this save belongs to the process that was forked: look at its handle there"
        for handle in self._in_flight:
            handle._orphan(WriterClosedError(message))  # noqa: SLF001
        self._lock = threading.RLock()
        self._in_flight, self._failed = [], []
        self._slots = Slots(self._slots.count, None, self._copiers)
        self._copiers.abandon()
        self._backend.abandon()


def _check(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        message = f"{name} must be a whole number, at least {at_least}, not {value!r}"
        raise OptionError(message)


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        message = f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, not {value!r}"
        raise OptionError(message)


def _target(f: object) -> tuple[Target | Sink, str]:
    """Resolve what the caller named: a path, or a file object; return it and what to call it."""
    if isinstance(f, (str, os.PathLike)):
        path = os.fspath(f)
        if isinstance(path, str):
            target = resolve(path)
            return target, target.path
    name = str(getattr(f, "name", None) or type(f).__name__)
    if not callable(getattr(f, "write", None)):
        reason = f"f must be a path (str or os.PathLike) or a writable binary file object, not {f!r}"
        raise SaveError(reason, path=name, phase="target")
    if (closed := getattr(f, "closed", False)) or (hasattr(f, "writable") and not f.writable()):
        reason = f"the file object {name!r} is {'closed' if closed else 'not open for writing'}"
        raise SaveError(reason, path=name, phase="target")
    if hasattr(f, "encoding"):
        reason = f"the file object {name!r} is open for text: open it in binary mode"
        raise SaveError(reason, path=name, phase="target")
    return f, name  # type: ignore[return-value]


def _captured(obj: object, pickle_module: Any, protocol: int, *, compact: bool) -> Captured:
    captured = capture(obj, pickle_module=pickle_module, pickle_protocol=protocol, compact=compact)
    synchronize()
    return captured


def _described(error: BaseException, path: str) -> BaseException:
    """Make an unforeseen error one of ours; the cause stays chained."""
    if isinstance(error, AsyncSaveError):
        return error
    cause = error if isinstance(error, OSError) else OSError(None, f"{type(error).__name__}: {error}")
    described = SaveError.of(cause, path=path, phase="write")
    described.__cause__ = error
    return described
