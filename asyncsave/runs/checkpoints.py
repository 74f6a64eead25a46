"""The checkpoints of one version that are in place: which there are, which is best, which stay, what is in them."""

from __future__ import annotations

import logging
from typing import Any

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.retention import Mode, Retention, Verdict
from asyncsave.errors import OptionError
from asyncsave.options import instance, step_number, yes_or_no
from asyncsave.runs.pinning import pin, unpin
from asyncsave.runs.pruning import carry_out, judge
from asyncsave.runs.recovery import newest_sound
from asyncsave.runs.restoring import put_back
from asyncsave.runs.selection import Which, best, criterion, find, latest, look_at, nothing_found
from asyncsave.runs.stored import load_part, opened
from asyncsave.runs.training_state import TrainingState

__all__ = ["Checkpoints", "Infos"]

Infos = list[CheckpointInfo]
Verdicts = list[Verdict]

_log = logging.getLogger("asyncsave")


class Checkpoints:
    """Reads the checkpoints in a version's folder, and takes care of which stay. It saves none.

    Args:
        path: The folder, absolute.
        retain: The policy, for the metric of ``best``; None: there is none.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str, retain: Retention | None) -> None:
        self.path = path
        self._retain = retain
        self._listing = Listing(path)
        self._protected: tuple[str, ...] = ()
        self._ahead: list[str] = []

    def list(self, *, all: bool = False) -> Infos:  # noqa: A002 - as in all of them
        """Return the checkpoints by step; with ``all``, behind them what else takes up room, by its ``kind``."""
        yes_or_no("all", all)
        look = look_at(self._listing)
        for error in look.problems.values():
            _log.warning("%s", error)
        return look.infos + (self._listing.remnants() if all else [])

    def latest(self) -> CheckpointInfo | None:
        """Return the newest complete checkpoint that is in place; None if there is none.

        Raises:
            FormatVersionError: A newer asyncsave wrote a newer one.
        """
        return latest(look_at(self._listing))

    def best(self, metric: str | None = None, mode: Mode | None = None) -> CheckpointInfo | None:
        """Return the best complete checkpoint that is in place; None if there is no candidate.

        Args:
            metric: By which metric; None: that of the policy.
            mode: Whether ``"min"`` or ``"max"`` is best; None: that of the policy for this metric, else ``"min"``.

        Raises:
            OptionError: No checkpoint knows such a metric, or there is none to choose by.
        """
        metric, mode = criterion(self._retain, metric, mode)
        return best(look_at(self._listing).infos, metric, mode)

    def load(
        self,
        which: Which = "latest",
        *,
        part: str | None = None,
        map_location: Any = None,
        weights_only: bool = True,
        mmap: bool = False,
    ) -> Any:
        """Load an object of a checkpoint, checked. Saves under way are waited for.

        Args:
            which: ``"latest"``: the newest sound one, damaged ones are put aside; ``"best"``; or a step.
            part: Which part; None: the object that was saved, or the only part.
            map_location: As for ``torch.load``.
            weights_only: As for ``torch.load``.
            mmap: Map the file; then only its size and its seal are checked.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            CorruptCheckpointError: It is damaged; with ``"latest"``: all are.
            LoadError: It cannot be loaded.
            OptionError: There is no such part.
        """

        def use(info: CheckpointInfo) -> Any:
            return load_part(info, part, map_location, weights_only=weights_only, mmap=mmap)

        yes_or_no("mmap", mmap)
        self._settle()
        if which != "latest":
            return use(find(self._listing, which, self._retain))
        found = newest_sound(self._listing, use)
        if found is None:
            raise nothing_found("no checkpoint", self.path, look_at(self._listing))
        return found[1]

    def restore(
        self,
        state: TrainingState,
        which: Which = "latest",
        *,
        strict: bool = True,
        strict_latest: bool = False,
        emergency: bool = False,
        map_location: Any = None,
        weights_only: bool = True,
    ) -> int:
        """Put a checkpoint back into a training, and return the step to go on with.

        Tensors are copied into the live ones part by part, so no second copy of the state is in memory; they go where
        the live ones are, whatever device they were saved from. Every record is checked as it is read. Of the newest
        checkpoints those that are damaged are put aside (``step-NNNNNNNN.corrupt``) with an error in the log, and the
        first sound one is used. The random states are put back last.

        Args:
            state: The live parts.
            which: ``"latest"``, ``"best"``, or a step. If the run then goes on from there (the next step that is
                saved is older than the newest), those ahead are put aside (``step-NNNNNNNN.abandoned``).
            strict: Whether parts or parameters on one side only are an error; else they are told in the log.
            strict_latest: Whether a damaged newest checkpoint is an error.
            emergency: Whether the newest one may be one that was saved in the midst of a step; that step is then the
                one to go on with.
            map_location: Where tensors that are plain values go; None: to the CPU.
            weights_only: As for ``torch.load``.

        Returns:
            The step after the restored one; 0 if the version has no checkpoint.

        When it raises, live objects may hold parts of the checkpoint already.

        Raises:
            RestoreError: The checkpoint and the state do not fit.
            CorruptCheckpointError: There are checkpoints, and all are damaged; or the one that was asked for is.
            CheckpointNotFoundError: There is no such step.
            FormatVersionError: A newer asyncsave wrote it.
            LoadError: It cannot be loaded otherwise.
        """
        if not isinstance(state, TrainingState):
            raise OptionError(f"state must be a TrainingState, not {state!r}")

        def use(info: CheckpointInfo) -> None:
            with opened(info, None, weights_only=weights_only) as deferred:
                put_back(state, deferred.obj, deferred.read, strict=strict, map_location=map_location, path=info.path)

        self._settle()
        if which == "latest":
            found = newest_sound(self._listing, use, emergency=emergency, strict=strict_latest)
            if found is None:
                self._tell_of_nothing()
                return 0
            info = found[0]
        else:
            info = find(self._listing, which, self._retain)
            use(info)
        self._ahead = [other.path for other in look_at(self._listing).infos if other.step > info.step]
        self._protected = (info.path,)
        _log.info("restored %s", info.path)
        return info.step + 1 if info.complete else info.step

    def pin(self, step: int) -> None:
        """Keep a step whatever the policy says.

        Raises:
            CheckpointNotFoundError: There is no such step.
            SaveError: The pin cannot be written.
        """
        pin(find(self._listing, step_number(step), None).path)

    def unpin(self, step: int) -> None:
        """Leave a step to the policy again; raises what :meth:`pin` does."""
        unpin(find(self._listing, step_number(step), None).path)

    def prune(self, retain: Retention | None = None, *, dry_run: bool = False) -> Verdicts:
        """Apply a policy now; return what becomes of each checkpoint, and why. Saves under way are waited for.

        The newest, pinned ones, and the one that this run was restored from stay whatever the policy.

        Args:
            retain: The policy; None: the manager's own.
            dry_run: Remove nothing; return what would become of them.

        Raises:
            OptionError: Neither you nor the manager has a policy, or no checkpoint has its metric.
            SaveError: The version cannot be opened. What cannot be removed is kept, for that reason.
        """
        yes_or_no("dry_run", dry_run)
        instance("retain", retain, Retention)
        self._check_open()
        retain = retain or self._retain
        if retain is None:
            raise OptionError("this manager keeps everything: say what to keep, as in prune(Retention(last=3))")
        self._settle()
        verdicts = judge(look_at(self._listing).infos, retain, self._protected)
        return verdicts if dry_run else carry_out(self._listing, verdicts)

    def _tell_of_nothing(self) -> None:
        """Say what could be meant where there is nothing to go on with."""
        left = [info.path for info in look_at(self._listing).infos if not info.complete]
        if left:
            _log.warning(
                "starting anew: %s was saved in the midst of a step; restore(emergency=True) uses it", left[-1]
            )

    def _settle(self) -> None:
        """Wait for what is on its way here; there is nothing."""

    def _check_open(self) -> None:
        """Raise if no more may be changed here; there is nobody who could have closed it."""
