"""Apply a retention policy to a version now, and say of each checkpoint what becomes of it, and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.names import MANIFEST
from asyncsave.catalogue.removal import Removal
from asyncsave.catalogue.retention import Retention, Verdict
from asyncsave.errors import LoadError, SaveError
from asyncsave.runs.selection import best
from asyncsave.storage.system import System

__all__ = ["carry_out", "judge"]

_log = logging.getLogger("asyncsave")


def judge(infos: list[CheckpointInfo], retain: Retention, protected: Collection[str] = ()) -> list[Verdict]:
    """Say of each checkpoint whether it is kept, and why: the policy's rules, and what it keeps in any case.

    After a save that is the one just written; here it is the newest, with which the run goes on.

    Args:
        infos: The checkpoints, in any order.
        retain: The policy.
        protected: Paths of others that must stay.

    Returns:
        A verdict for each, by step.

    Raises:
        OptionError: No checkpoint has the metric that the best are chosen by: a slip of the pen would drop them all.
    """
    for metric, mode in retain.criteria():
        best(infos, metric, mode)
    verdicts = retain.decide(infos, protected=protected)
    newest = max((verdict.info.step for verdict in verdicts if verdict.info.complete), default=-1)
    return [
        verdict._replace(reasons=("the newest", *verdict.reasons))
        if verdict.info.complete and verdict.info.step == newest
        else verdict
        for verdict in verdicts
    ]


def carry_out(listing: Listing, verdicts: Iterable[Verdict], *, system: System | None = None) -> list[Verdict]:
    """Remove what is to be dropped, the oldest first, and finish removals that were cut off.

    Each step ceases to be a checkpoint in one moment: whatever ends this in between, the others are as they were.

    Args:
        listing: The version.
        verdicts: What is to become of its checkpoints.
        system: The operating system; None: the real one.

    Returns:
        What has become of them. What was to be dropped and is still there has the reason for that.

    Raises:
        SaveError: The version cannot be opened.
    """
    system = system or System()
    done = []
    try:
        with Removal(system, listing.folder, sync=True) as removal:
            for verdict in verdicts:
                reasons = verdict.reasons if verdict.kept else _drop(listing, removal, verdict.info)
                done.append(verdict._replace(reasons=reasons))
            for name in listing.dropped():
                _finish(removal, name)
    except OSError as error:
        raise SaveError.of(error, path=listing.folder, phase="open") from error
    return done


def _drop(listing: Listing, removal: Removal, info: CheckpointInfo) -> tuple[str, ...]:
    """Remove a step; return why it is still there, if it is."""
    name = os.path.basename(info.path)
    try:
        if listing.info(name).time != info.time:
            return ("saved again meanwhile",)
        if not removal.drop(name):
            return ("pinned",)
    except FileNotFoundError:
        return ()  # somebody else has dropped it
    except (OSError, LoadError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if os.path.lexists(os.path.join(info.path, MANIFEST)):
            return (f"cannot be removed: {reason}",)
        _log.warning("%s is no checkpoint any more, but files of it are left: %s", info.path, reason)
        return ()
    _log.info("dropped %s", info.path)
    return ()


def _finish(removal: Removal, name: str) -> None:
    try:
        removal.drop(name)
    except (OSError, LoadError) as error:
        _log.warning("cannot remove what is left of %s: %s", name, error)
