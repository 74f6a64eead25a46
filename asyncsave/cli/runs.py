"""What the commands on runs have in common: which version is meant, and how a checkpoint is told."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import typer

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.names import MANIFEST, parse
from asyncsave.catalogue.retention import Mode as Best
from asyncsave.catalogue.versions import Known, versions_below
from asyncsave.cli.plain import for_json, plain
from asyncsave.errors import CheckpointNotFoundError, OptionError, VersionInUseError
from asyncsave.runs.selection import Which, find, look_at
from asyncsave.runs.version import Version
from asyncsave.units import duration

__all__ = [
    "DryRun",
    "Metric",
    "Mode",
    "Run",
    "about",
    "age",
    "epoch_of",
    "held",
    "kind_of",
    "metrics_of",
    "moment",
    "the_checkpoint",
    "the_version",
    "versions_in",
]

_LONGEST = 12

Run = Annotated[str, typer.Argument(metavar="RUN", help="A version's folder, or any above it.", show_default=False)]
Metric = Annotated[str | None, typer.Option(help="The metric that the best is chosen by.", show_default=False)]
Mode = Annotated[Best, typer.Option(help="Whether the least or the greatest is best.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Remove nothing; say what would be removed, and why.")]


def versions_in(run: str) -> list[str]:
    """Return the folders of all versions at a folder or below it.

    Raises:
        CheckpointNotFoundError: There is none.
        LoadError: The folder cannot be read.
    """
    return _folders(_found(run))


def the_version(run: str) -> str:
    """Return the folder of the version that is meant: of several in one experiment that which a manager goes on with.

    Raises:
        OptionError: There are several experiments.
        CheckpointNotFoundError, LoadError: As :func:`versions_in`.
    """
    found = _found(run)
    if len(found) > 1:
        raise OptionError(f"{run!r} holds several runs; name one of {', '.join(map(repr, _folders(found)))}")
    experiment, known = found.popitem()
    return os.path.join(experiment, max(known).name)


def _found(run: str) -> dict[str, list[Known]]:
    folder = os.path.realpath(run)
    found = versions_below(folder)
    if not found:
        message = f"there is no run in {folder!r}: no version, no step. A run lies in root/project/experiment/version"
        raise CheckpointNotFoundError(message, path=folder)
    return found


def _folders(found: dict[str, list[Known]]) -> list[str]:
    return [os.path.join(experiment, known.name) for experiment, versions in found.items() for known in versions]


def the_checkpoint(run: str, which: str | None, metric: str | None, mode: Best) -> CheckpointInfo:
    """Return the checkpoint that is meant.

    Args:
        run: A version's folder, or any above it; or the folder of the checkpoint itself, put aside or not.
        which: ``"latest"``, ``"best"``, or the number of a step, where one that was saved in the midst of the step is
            meant if there is no complete one; None: the latest, or that whose folder ``run`` is.
        metric: The metric of the best.
        mode: Whether the least or the greatest is best.

    Raises:
        CheckpointNotFoundError: There is none.
        LoadError: Its manifest cannot be read.
        OptionError: The words make no sense.
    """
    folder, name = os.path.split(os.path.realpath(run))
    said = parse(name)
    if which is None and said is not None and os.path.lexists(os.path.join(folder, name, MANIFEST)):
        info = Listing(folder).info(name)
        return info if said.aside is None else dataclasses.replace(info, kind=said.aside)
    chosen = _which("latest" if which is None else which)
    if chosen == "best" and metric is None:
        raise OptionError("best by which metric? Say --metric NAME, and --mode max if the greatest is best")
    listing = Listing(the_version(run))
    try:
        return find(listing, chosen, None, metric, mode)
    except CheckpointNotFoundError:
        incomplete = [info for info in look_at(listing).infos if info.step == chosen]
        if not incomplete:
            raise
        return incomplete[0]


@contextlib.contextmanager
def held(folder: str) -> Iterator[None]:
    """Hold a version while it is changed, so that nobody trains there meanwhile.

    Raises:
        VersionInUseError: Somebody does.
        SaveError: It cannot be written to.
    """
    experiment, name = os.path.split(folder)
    if name == "new":
        raise OptionError(f"{folder!r} has a name that no version can have: rename it")
    try:
        version = Version(experiment, name, "number", shared=False)
    except VersionInUseError as error:
        message = (
            f"{str(error).rpartition('. Name another')[0]}: whoever trains there keeps it in order (Retention, "
            "CheckpointManager.prune and clean). --dry-run works meanwhile"
        )
        raise VersionInUseError(message, path=folder) from error
    try:
        yield
    finally:
        version.close()


def about(info: CheckpointInfo) -> dict[str, Any]:
    """Return what is known of a checkpoint, for JSON."""
    return {
        "step": info.step,
        "path": info.path,
        "kind": info.kind,
        "complete": info.complete,
        "pinned": info.pinned,
        "time": info.time,
        "epoch": info.epoch,
        "metrics": for_json(info.metrics),
        "metadata": for_json(info.metadata),
        "nbytes": info.nbytes,
        "files": [{"name": name, "nbytes": file.nbytes, "digest": file.digest} for name, file in info.files.items()],
    }


def epoch_of(info: CheckpointInfo) -> str:
    """Write the epoch; what no training reaches is cut."""
    epoch = "" if info.epoch is None else str(info.epoch)
    return epoch if len(epoch) <= _LONGEST else f"{epoch[:_LONGEST]}..."


def kind_of(info: CheckpointInfo) -> str:
    """Say what a checkpoint is besides an ordinary one."""
    return " ".join(word for word in ("" if info.kind == "step" else info.kind, "pinned" * info.pinned) if word)


def metrics_of(info: CheckpointInfo) -> str:
    """Write the metrics in a line."""
    return ", ".join(
        f"{plain(name)} {'none' if value is None else format(float(value), '.5g')}"
        for name, value in info.metrics.items()
    )


def age(seconds: float) -> str:
    """Say how long ago a moment was."""
    passed = time.time() - seconds
    return duration(passed) if passed > 1 else "now"


def moment(seconds: float) -> str:
    """Write a moment in local time."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"


def _which(text: str) -> Which:
    if text == "latest":
        return "latest"
    if text == "best":
        return "best"
    if not text.isascii() or not text.isdigit() or len(text) > 18:  # noqa: PLR2004 - digits of the largest step
        raise OptionError(f"{text!r} is no checkpoint: say latest, best, or the number of a step")
    return int(text)
