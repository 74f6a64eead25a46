"""The checkpoints of one version that are in place: which there are, which is best, and what is in them."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing, Look
from asyncsave.catalogue.names import parse, step_name
from asyncsave.catalogue.retention import Mode, Retention, better_first
from asyncsave.errors import CheckpointNotFoundError, FormatVersionError, LoadError, OptionError
from asyncsave.options import one_of, text, yes_or_no
from asyncsave.runs.description import step_number
from asyncsave.runs.recovery import newest_sound
from asyncsave.runs.restoring import put_back
from asyncsave.runs.stored import load_part, opened
from asyncsave.runs.training_state import TrainingState

__all__ = ["Checkpoints", "Infos", "Which"]

Which = Literal["latest", "best"] | int
Infos = list[CheckpointInfo]

_log = logging.getLogger("asyncsave")


class Checkpoints:
    """Reads the checkpoints in a version's folder. It writes nothing there, but for putting damaged ones aside.

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
        look = self._look()
        for error in look.problems.values():
            _log.warning("%s", error)
        return look.infos + (self._listing.remnants() if all else [])

    def latest(self) -> CheckpointInfo | None:
        """Return the newest complete checkpoint that is in place; None if there is none.

        Raises:
            FormatVersionError: A newer asyncsave wrote a newer one.
        """
        look = self._look()
        complete = [info for info in look.infos if info.complete]
        for path, error in look.problems.items():
            said = parse(os.path.basename(path))
            if said is not None and said.complete and (not complete or said.step > complete[-1].step):
                self._complain(error)
        return complete[-1] if complete else None

    def best(self, metric: str | None = None, mode: Mode | None = None) -> CheckpointInfo | None:
        """Return the best complete checkpoint that is in place; None if there is no candidate.

        Args:
            metric: By which metric; None: that of the policy.
            mode: Whether ``"min"`` or ``"max"`` is best; None: that of the policy for this metric, else ``"min"``.

        Raises:
            OptionError: No checkpoint knows such a metric, or there is none to choose by.
        """
        if metric is not None:
            text("metric", metric)
        metric, mode = self._criterion(metric, mode)
        infos = self._look().infos
        known = sorted({name for info in infos for name in info.metrics})
        if infos and metric not in known:
            raise OptionError(f"no checkpoint has a metric {metric!r}; known are {', '.join(known) or 'none'}")
        return next(iter(better_first(infos, metric, mode)), None)

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
            return use(self._find(which))
        found = newest_sound(self._listing, use)
        if found is None:
            raise self._none("no checkpoint")
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
            info = self._find(which)
            use(info)
        self._ahead = [other.path for other in self._look().infos if other.step > info.step]
        self._protected = (info.path,)
        _log.info("restored %s", info.path)
        return info.step + 1 if info.complete else info.step

    def _criterion(self, metric: str | None, mode: Mode | None) -> tuple[str, Mode]:
        """Return the metric to choose by, and whether the least or the greatest is best."""
        if mode is not None:
            one_of("mode", mode, Mode)
        for known, its_mode in () if self._retain is None else self._retain.criteria():
            if metric in {None, known}:
                return known, mode or its_mode
        if metric is None:
            raise OptionError('name a metric: best("val_loss"), or Retention(best=2, metric="val_loss")')
        return metric, mode or "min"

    def _find(self, which: Which) -> CheckpointInfo:
        """Return one checkpoint that is in place.

        Raises:
            CheckpointNotFoundError: There is none.
        """
        if which == "latest":
            found = self.latest()
        elif which == "best":
            found = self.best()
        else:
            step = _step(which)
            look = self._look()
            found = next((info for info in look.infos if info.step == step and info.complete), None)
            path = os.path.join(self.path, step_name(step))
            if found is None and path in look.problems:
                raise look.problems[path]
        if found is None:
            raise self._none(f"no checkpoint {which!r}")
        return found

    def _look(self) -> Look:
        try:
            return self._listing.look()
        except OSError as error:
            message = f"cannot read the version {self.path!r}: {error.strerror or error}"
            kind = CheckpointNotFoundError if isinstance(error, FileNotFoundError) else LoadError
            raise kind(message, path=self.path) from error

    def _none(self, what: str) -> CheckpointNotFoundError:
        steps = ", ".join(str(info.step) for info in self._look().infos[-10:] if info.complete)
        return CheckpointNotFoundError(
            f"there is {what} in {self.path!r}; its steps: {steps or 'none'}", path=self.path
        )

    @staticmethod
    def _complain(error: LoadError) -> None:
        """Raise what must not be passed over, a checkpoint of a newer asyncsave; log the rest."""
        if isinstance(error, FormatVersionError):
            raise error
        _log.warning("%s", error)

    def _tell_of_nothing(self) -> None:
        """Say what could be meant where there is nothing to go on with."""
        left = [info.path for info in self._look().infos if not info.complete]
        if left:
            _log.warning(
                "starting anew: %s was saved in the midst of a step; restore(emergency=True) uses it", left[-1]
            )

    def _settle(self) -> None:
        """Wait for what is on its way here; there is nothing."""


def _step(which: object) -> int:
    if isinstance(which, str):
        raise OptionError(f'which must be "latest", "best" or a step, not {which!r}')
    return step_number(which)
