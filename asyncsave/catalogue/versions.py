"""Which versions there are: of one experiment, or anywhere below a folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from asyncsave.catalogue.names import parse
from asyncsave.errors import CheckpointNotFoundError, LoadError

__all__ = ["RECORD", "Known", "versions", "versions_below"]

RECORD = "version.json"
"""The file in which a version says how manieth of its experiment it is."""

_NUMBER = re.compile(r"[1-9]\d{0,17}")
_LEVELS = 3
"""From a root to its versions: project, experiment, version."""
_LONGEST = 4096
"""Bytes; a longer file is no record."""


class Known(NamedTuple):
    """A version that is there, in the order of choice: one with steps before one without, then the newer one."""

    has_steps: bool
    sequence: int
    number: int
    name: str


def versions(experiment: str) -> Iterator[Known]:
    """Yield the versions of an experiment. A folder without our record, and with no number for a name, is none.

    Raises:
        OSError: The experiment, or what seems to be a version, cannot be read.
    """
    with os.scandir(experiment) as entries:
        for entry in entries:
            number = int(entry.name) if _NUMBER.fullmatch(entry.name) else 0
            sequence = _sequence(entry.path)
            if entry.is_dir() and (number or sequence):
                yield Known(_has_steps(entry.path), sequence, number, entry.name)


def versions_below(folder: str, refused: list[OSError] | None = None) -> dict[str, list[Known]]:
    """Return the versions at a folder or below it, oldest first, by the folder of their experiment.

    Here a version is a folder that has our record, or steps: a copy may have lost the record, and a folder that
    merely has a number for a name may be anybody's.

    Args:
        folder: A version, an experiment, a project or a root, absolute.
        refused: Takes the errors of folders below it that cannot be read; None: they are passed over.

    Raises:
        CheckpointNotFoundError: There is no such folder.
        LoadError: It is a file, or cannot be read.
    """
    try:
        os.listdir(folder)
    except OSError as error:
        message = f"cannot read {folder!r}: {error.strerror or error}"
        kind = CheckpointNotFoundError if isinstance(error, FileNotFoundError) else LoadError
        raise kind(message, path=folder) from error
    found: dict[str, list[Known]] = {}
    for path in _walk(folder, _LEVELS, [] if refused is None else refused):
        experiment, name = os.path.split(path)
        number = int(name) if _NUMBER.fullmatch(name) else 0
        found.setdefault(experiment, []).append(Known(_has_steps(path), _sequence(path), number, name))
    return {experiment: sorted(found[experiment], key=lambda known: known[1:]) for experiment in sorted(found)}


def _walk(folder: str, levels: int, refused: list[OSError]) -> Iterator[str]:
    """Yield the folders of versions; what cannot be read has none, and is added to ``refused``."""
    if _sequence(folder) or _has_steps(folder):
        yield folder
        return
    try:
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except FileNotFoundError:  # it has just gone
        return
    except OSError as error:
        refused.append(error)
        return
    for path in below if levels else ():
        yield from _walk(path, levels - 1, refused)


def _has_steps(folder: str) -> bool:
    with contextlib.suppress(OSError):
        return any(map(parse, os.listdir(folder)))
    return False


def _sequence(folder: str) -> int:
    """Return the how manieth version a folder was when it was made; 0 if that is not written down."""
    path = os.path.join(folder, RECORD)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, encoding="utf-8") as file:
                return int(json.loads(file.read(_LONGEST))["sequence"])
    return 0
