"""Which checkpoint of a version is meant: the latest, the best, or that of a step. Nothing of it is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Literal

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing, Look
from asyncsave.catalogue.names import parse, step_name
from asyncsave.catalogue.retention import Mode, Retention, better_first
from asyncsave.errors import CheckpointNotFoundError, FormatVersionError, LoadError, OptionError
from asyncsave.options import one_of, step_number, text

__all__ = ["Which", "best", "criterion", "find", "improves", "latest", "look_at", "nothing_found"]

Which = Literal["latest", "best"] | int

_log = logging.getLogger("asyncsave")


def look_at(listing: Listing) -> Look:
    """Read a version's manifests.

    Raises:
        CheckpointNotFoundError: There is no such folder.
        LoadError: It cannot be read.
    """
    try:
        return listing.look()
    except OSError as error:
        message = f"cannot read the version {listing.folder!r}: {error.strerror or error}"
        kind = CheckpointNotFoundError if isinstance(error, FileNotFoundError) else LoadError
        raise kind(message, path=listing.folder) from error


def latest(look: Look) -> CheckpointInfo | None:
    """Return the newest complete checkpoint; None if there is none.

    Raises:
        FormatVersionError: A newer asyncsave wrote a newer one.
    """
    complete = [info for info in look.infos if info.complete]
    for path, error in look.problems.items():
        said = parse(os.path.basename(path))
        if said is not None and said.complete and (not complete or said.step > complete[-1].step):
            if isinstance(error, FormatVersionError):
                raise error
            _log.warning("%s", error)
    return complete[-1] if complete else None


def criterion(retain: Retention | None, metric: str | None, mode: Mode | None) -> tuple[str, Mode]:
    """Return the metric to choose by, and whether the least or the greatest is best.

    Args:
        retain: The policy, for what is not said; None: there is none.
        metric: By which metric; None: that of the policy.
        mode: None: that of the policy for this metric, else ``"min"``.

    Raises:
        OptionError: There is none to choose by.
    """
    if metric is not None:
        text("metric", metric)
    if mode is not None:
        one_of("mode", mode, Mode)
    for known, its_mode in () if retain is None else retain.criteria():
        if metric in {None, known}:
            return known, mode or its_mode
    if metric is None:
        raise OptionError('name a metric: best("val_loss"), or Retention(best=2, metric="val_loss")')
    return metric, mode or "min"


def best(infos: list[CheckpointInfo], metric: str, mode: Mode) -> CheckpointInfo | None:
    """Return the best complete checkpoint; None if there is no candidate.

    Raises:
        OptionError: No checkpoint knows such a metric.
    """
    known = sorted({name for info in infos for name in info.metrics})
    if infos and metric not in known:
        raise OptionError(f"no checkpoint has a metric {metric!r}; known are {', '.join(known) or 'none'}")
    return next(iter(better_first(infos, metric, mode)), None)


def improves(value: float | None, mode: Mode, rivals: Iterable[float | None]) -> bool:
    """Tell whether a value is better than all others; None and NaN are no values."""
    real = [rival for rival in rivals if rival is not None and rival == rival]  # noqa: PLR0124 - NaN
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return False
    return all(value < rival if mode == "min" else value > rival for rival in real)


def find(
    listing: Listing, which: Which, retain: Retention | None, metric: str | None = None, mode: Mode | None = None
) -> CheckpointInfo:
    """Return one complete checkpoint that is in place.

    Args:
        listing: The version.
        which: ``"latest"``, ``"best"``, or a step.
        retain: The policy, for the metric of ``"best"``.
        metric: As for :func:`criterion`.
        mode: The same.

    Raises:
        CheckpointNotFoundError: There is none.
        LoadError: The manifest of this very step cannot be read.
        OptionError: There is nothing to choose the best by, or ``which`` makes no sense.
    """
    look = look_at(listing)
    if which == "latest":
        found = latest(look)
    elif which == "best":
        found = best(look.infos, *criterion(retain, metric, mode))
    else:
        step = _step(which)
        found = next((info for info in look.infos if info.step == step and info.complete), None)
        path = os.path.join(listing.folder, step_name(step))
        if found is None and path in look.problems:
            raise look.problems[path]
    if found is None:
        raise nothing_found(f"no checkpoint {which!r}", listing.folder, look)
    return found


def nothing_found(what: str, folder: str, look: Look) -> CheckpointNotFoundError:
    """Describe that there is no such checkpoint, and say which there are."""
    steps = ", ".join(str(info.step) for info in look.infos[-10:] if info.complete)
    return CheckpointNotFoundError(f"there is {what} in {folder!r}; its steps: {steps or 'none'}", path=folder)


def _step(which: object) -> int:
    if isinstance(which, str):
        raise OptionError(f'which must be "latest", "best" or a step, not {which!r}')
    return step_number(which)
