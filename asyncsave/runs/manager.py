"""The checkpoints of a run: where they go, which to keep, which is best, and how to go on from one."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

from asyncsave import lifecycle, pending
from asyncsave.admission import OnBusy
from asyncsave.catalogue.brief import Brief
from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.names import step_name
from asyncsave.catalogue.retention import Retention
from asyncsave.catalogue.upkeep import tidy
from asyncsave.errors import (
    AsyncSaveError,
    LoadError,
    OptionError,
    WriterClosedError,
)
from asyncsave.handle import SaveHandle
from asyncsave.options import file_path, folder_name, instance, one_of, seconds, yes_or_no
from asyncsave.request import Request
from asyncsave.result import SaveResult
from asyncsave.runs.aside import leave_branch
from asyncsave.runs.checkpoints import Checkpoints
from asyncsave.runs.cleaning import clean
from asyncsave.runs.description import NOTHING, Description
from asyncsave.runs.exporting import one_part
from asyncsave.runs.hooks import Hooks
from asyncsave.runs.lastsave import LastSave, Saved
from asyncsave.runs.preemption import PreemptionGuard
from asyncsave.runs.protection import ProtectedRun
from asyncsave.runs.selection import Which, criterion, find, improves, look_at
from asyncsave.runs.underway import UnderWay
from asyncsave.runs.version import Version, Versioning
from asyncsave.storage.system import System
from asyncsave.storage.target import Target, resolve
from asyncsave.writer import Writer

__all__ = ["CheckpointManager", "ExportFormat"]

ExportFormat = Literal["torch"]
Paths = list[str]

_EXIT_TIMEOUT = 600.0

_log = logging.getLogger("asyncsave")


class CheckpointManager(Checkpoints):
    """Saves the steps of a run, keeps those that are wanted, and finds the one to go on with. A context manager.

    A step is a folder, ``root/project/experiment/version/step-NNNNNNNN``, with a file for each part and a
    ``manifest.json``. It appears whole, durable, and only then older ones are dropped. Any thread may call any method.

    Args:
        root: The folder of all projects; made where it is missing, as everything below.
        project: What is trained.
        experiment: How.
        version: Which run of it. None goes on with the newest version, unless a living process holds that, and else
            makes a new one; ``"new"`` always makes one; a name goes on with that version, or makes it.
        versioning: What new versions are called: ``"number"``, or ``"timestamp"``.
        retain: What to keep; None: everything.
        writer: Who saves; None: a writer of the manager's own. One that is given is not closed by the manager.
        shared: Whether other processes may have the same version: the ranks of one training. One of them saves.
        recycle: Whether the blocks of dropped files are overwritten by later saves, which is quicker.
        on_durable: Called with the :class:`CheckpointInfo` of every checkpoint that is in place, in order, on a thread
            of its own. What it raises is logged, and changes nothing.

    Attributes:
        path: The version's folder, absolute.
        version: Its name.

    Raises:
        VersionInUseError: Somebody else holds the version.
        SaveError: The folders cannot be made.
        OptionError: An argument makes no sense.
    """

    def __init__(  # noqa: PLR0913 - each is one thing that a user may want otherwise
        self,
        root: str | os.PathLike[str],
        *,
        project: str = "default",
        experiment: str = "default",
        version: str | None = None,
        versioning: Versioning = "number",
        retain: Retention | None = None,
        writer: Writer | None = None,
        shared: bool = False,
        recycle: bool = True,
        on_durable: Callable[[CheckpointInfo], object] | None = None,
    ) -> None:
        folder_name("project", project)
        folder_name("experiment", experiment)
        one_of("versioning", versioning, Versioning)
        yes_or_no("shared", shared)
        yes_or_no("recycle", recycle)
        instance("retain", retain, Retention)
        instance("writer", writer, Writer)
        if on_durable is not None and not callable(on_durable):
            raise OptionError(f"on_durable must be a function of a CheckpointInfo, not {on_durable!r}")
        experiments = os.path.join(os.path.realpath(file_path(root)), project, experiment)
        self._version = Version(experiments, version, versioning, shared=shared)
        super().__init__(os.path.realpath(self._version.folder), retain)
        self.version = self._version.name
        self._recycle = recycle
        self._owns_writer = writer is None
        self._under_way = UnderWay()
        self._last_complete: Saved | None = None
        self._closed = self._leaves = False
        try:
            tidy(System(), self.path)
            self._writer = Writer() if writer is None else writer
            self._hooks = None if on_durable is None else Hooks(on_durable)
        except BaseException:
            self._version.close()
            raise
        lifecycle.adopt(self)

    def __repr__(self) -> str:
        """Show the version, and what is under way."""
        return (
            f"<CheckpointManager {self.path!r}, {'closed, ' if self._closed else ''}{len(self._under_way)} under way>"
        )

    def __enter__(self) -> CheckpointManager:  # noqa: PYI034 - not made for subclasses
        """Return the manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; if the block raised, log what close would raise, and let the block's error through."""
        if self._leaves:  # by a second Ctrl-C
            return
        try:
            self.close()
        except Exception as ours:
            if error is None:
                raise
            _log.error("while another error was on its way: %s", ours)

    def save(
        self,
        step: int,
        obj: object = NOTHING,
        *,
        parts: Mapping[str, object] | None = None,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        only_if_best: bool = False,
        on_busy: OnBusy | None = None,
    ) -> SaveHandle:
        """Save a step in the background; return when it has been copied. All its files appear at once, or none.

        A step that is there already is replaced as a whole. When the handle resolves, what the policy does not keep
        has been dropped.

        Args:
            step: Its number: the one that was just completed.
            obj: What is saved as ``state.pt``: a :class:`TrainingState`, or anything that ``torch.save`` takes.
            parts: Further objects, each in a file of its name.
            metrics: Numbers by name, for ``best`` and for the manifest: whatever ``float()`` takes, or None.
            metadata: Whatever else the manifest is to say; what JSON can say.
            only_if_best: Save only if the policy's metric is better than that of every checkpoint so far, those
                under way included; else the handle's status is ``"skipped"``.
            on_busy: What to do when the writer has ``max_pending`` saves in flight; None: the writer's own policy.

        Returns:
            The handle. Its result's ``path`` is the step's folder, its ``digest`` that of the manifest.

        Raises:
            StagingError, SaveError, QueueFullError: As :meth:`Writer.save`.
            WriterClosedError: The manager or its writer is closed.
            OptionError: An argument makes no sense.
        """
        self._check_open()
        yes_or_no("only_if_best", only_if_best)
        described = Description(step, obj, parts, metrics, metadata, complete=True)
        if only_if_best and not self._improves(described):
            handle = SaveHandle(os.path.join(self.path, step_name(described.step)))
            handle.withdraw("skipped")
            return handle
        return self._save(described, on_busy)

    def export(
        self,
        which: Which,
        path: str | os.PathLike[str],
        *,
        part: str = "model",
        format: ExportFormat = "torch",  # noqa: A002 - the word that everybody has for it
    ) -> SaveResult:
        """Write one part of a checkpoint to a file of its own: the bare weights of the best model.

        Args:
            which: ``"latest"``, ``"best"``, or a step.
            path: The file.
            part: A part of the training state, or one of the step's own parts.
            format: ``"torch"``: as ``torch.save`` writes it.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            OptionError: There is no such part or format.
            LoadError, SaveError: It cannot be read or written.
        """
        one_of("format", format, ExportFormat)
        self._check_open()
        self._settle()
        with one_part(find(self._listing, which, self._retain), part) as found:
            return self._writer.save(found, path, on_busy="wait").result()

    def clean(self, *, dry_run: bool = False) -> Paths:
        """Remove what dead writers left, spare files, and what remains of dropped steps; return the paths.

        Saves under way are waited for. Checkpoints, those that were put aside as damaged, and files that asyncsave did
        not write stay.

        Args:
            dry_run: Remove nothing; return what would be tried.
        """
        yes_or_no("dry_run", dry_run)
        self._check_open()
        self._settle()
        return clean(self._listing, self._writer.drop_spare, dry_run=dry_run)

    def protect(self, state: object, guard: PreemptionGuard | None = None) -> ProtectedRun:
        """Have a loop's state saved when it has to end: on preemption, Ctrl-C, or an exception.

        Args:
            state: What is saved: what would be given to :meth:`save`.
            guard: Watches for signals; None: one for SIGTERM and SIGUSR1 with a deadline of 25 s. One that was not
                entered yet is entered and left by the block.
        """
        self._check_open()
        instance("guard", guard, PreemptionGuard)

        watching = PreemptionGuard() if guard is None else guard
        last = LastSave(
            state, watching, self._writer, self._save, lambda: self._last_complete, is_alone=self._owns_writer
        )
        return ProtectedRun(last, watching, self._leave_at_once)

    def wait(self, timeout: float | None = None) -> None:
        """Block until every save so far has ended, and ``on_durable`` has been called for each.

        Raises:
            TimeoutError: That was not so after ``timeout`` seconds; they go on.
            SaveError: A save failed, and nobody has read that.
        """
        self._forbid_waiting_for_the_hook()
        started = time.monotonic()
        self._writer.flush(timeout)
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - started))
        if not self._under_way.wait(left) or (self._hooks is not None and not self._hooks.wait(left)):
            raise TimeoutError(f"on_durable is still at work after {timeout} s")

    def close(self, timeout: float | None = None) -> None:
        """Wait for the saves and the hook, let go of the version, and close the writer if it is the manager's own.

        Idempotent.

        Raises:
            TimeoutError: Something has not ended after ``timeout`` seconds. It goes on; call again.
            SaveError: A save failed, and nobody has read that; if the writer is the manager's own.
            AsyncSaveError: This is a call from ``on_durable``.
        """
        if timeout is not None:
            seconds("timeout", timeout)
        self._forbid_waiting_for_the_hook()
        self._closed = True
        started = time.monotonic()
        try:
            if self._owns_writer:
                self._writer.close(timeout)
            elif not self._under_way.wait(timeout):
                raise TimeoutError(f"{len(self._under_way)} save(s) still in flight after {timeout} s. They go on")
        finally:
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - started))
            done = self._under_way.wait(left) and (self._hooks is None or self._hooks.close(left))
            if done:
                lifecycle.release(self)
                self._version.close()
        if not done:
            raise TimeoutError(f"on_durable is still at work after {timeout} s")

    def _save(
        self, described: Description, on_busy: OnBusy | None, wanted: Callable[[], None] = lambda: None
    ) -> SaveHandle:
        leave_branch(self._ahead, described.step)
        self._ahead = []
        name = step_name(described.step, complete=described.complete)
        target = Target(os.path.join(self.path, name), self.path, name)
        # Raises what would keep it from being made there.
        resolve(target.path + (".new" if os.path.isdir(target.path) else ""))

        def describe(tensors: int) -> Brief:
            return Brief(tuple(described.objects), described.manifest(tensors), self._retain, self._protected)

        request = Request(
            list(described.objects.values()),
            target,
            target.path,
            describe=describe,
            recycle=self._recycle,
            lock=self._version.writing,
            wanted=wanted,
        )
        handle = self._writer.take(request, on_busy=on_busy)
        described.objects.clear()
        if described.complete:
            self._last_complete = described, handle
        self._under_way.enter(handle, described)
        handle.add_done_callback(lambda _: self._ended(handle, described))
        return handle

    def _leave_at_once(self) -> None:
        """Let the interpreter exit without waiting for the saves under way. What is on disk is whole."""
        self._leaves = True
        lifecycle.release(self)
        if self._owns_writer:
            lifecycle.release(self._writer)

    def _ended(self, handle: SaveHandle, described: Description) -> None:
        """Tell the hook of a checkpoint that is in place. On the thread that reports to the handles."""
        try:
            if self._hooks is not None and handle.status in {"durable", "written"}:
                self._hooks.call(self._info_of(described))
        finally:
            self._under_way.leave(handle)

    def _info_of(self, described: Description) -> CheckpointInfo:
        """Return what is known of a step that is in place; a later one may have had it dropped already."""
        name = step_name(described.step, complete=described.complete)
        with contextlib.suppress(OSError, LoadError):
            found = self._listing.info(name)
            if found.time == described.time:
                return found
        return described.info(os.path.join(self.path, name))

    def _improves(self, described: Description) -> bool:
        metric, mode = criterion(self._retain, None, None)
        if metric not in described.metrics:
            given = ", ".join(described.metrics) or "none"
            raise OptionError(f"only_if_best needs the metric {metric!r}; given are {given}")
        known = [info.value(metric) for info in look_at(self._listing).infos if info.complete]
        known += [other.metrics.get(metric) for other in self._under_way.steps if other.complete]
        return improves(described.metrics[metric], mode, known)

    def _tell_of_nothing(self) -> None:
        super()._tell_of_nothing()
        if sisters := self._version.sisters():
            names = ", ".join(sisters)
            _log.error("starting anew in %s, which has no checkpoint; other versions have: %s", self.path, names)

    def _settle(self) -> None:
        """Wait for the saves under way, but not on a thread that has to write them."""
        if pending.may_wait_here():
            self._under_way.wait()

    def _forbid_waiting_for_the_hook(self) -> None:
        if self._hooks is not None and self._hooks.is_current_thread():
            raise AsyncSaveError("on_durable cannot wait for the manager, or close it: it would wait for itself")

    def _check_open(self) -> None:
        if self._closed:
            raise WriterClosedError("this manager is closed, or was inherited over a fork: make a new one")

    def _drain_at_exit(self) -> bool:
        if self._hooks is None or self._hooks.wait(_EXIT_TIMEOUT):
            return True
        _log.critical("on_durable is still at work at exit, after %s s", _EXIT_TIMEOUT)
        return False

    def _orphan_in_child(self) -> None:
        self._closed = True
        self._under_way = UnderWay()
        self._hooks = None
