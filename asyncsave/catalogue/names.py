"""The names in a version's folder.

``step-00001200``: one checkpoint, complete, of a whole step. In it ``manifest.json``: the step exists if and only
if this does; ``state.pt`` and others: a file for each part; ``pinned``, an empty file: retention never drops the step.

``step-00001234.emergency``: the same, but saved in the midst of the step. ``step-00001300.corrupt``: one that was
found damaged, and put aside. ``step-00001400.abandoned``: one of a branch that was left, because the run went on
from an earlier step.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal, NamedTuple

__all__ = [
    "ABANDONED",
    "CORRUPT",
    "DROPPED",
    "MANIFEST",
    "PINNED",
    "STATE",
    "StepName",
    "file_of",
    "is_plain",
    "parse",
    "part_of",
    "step_name",
]

MANIFEST = "manifest.json"
DROPPED = "dropped.json"
"""What a manifest is called once its step has been dropped, as long as files of the step are left."""
PINNED = "pinned"
CORRUPT = ".corrupt"
ABANDONED = ".abandoned"
EMERGENCY = ".emergency"
STATE = "state"
"""The part that the object which ``save`` is given becomes."""

_STEP = re.compile(r"step-(\d{8,18})(\.emergency)?(?:\.(corrupt|abandoned)(?:-\d+)?)?")
_SEPARATORS = "/\\\0"
_LONGEST = 255
_SUFFIX = ".pt"


class StepName(NamedTuple):
    """What the name of a step's folder says.

    Attributes:
        step: The number.
        complete: Whether it was saved between two steps, and not in the midst of this one.
        aside: Whether it was put aside, and why: ``"corrupt"`` or ``"abandoned"``; None: it was not.
    """

    step: int
    complete: bool
    aside: Literal["corrupt", "abandoned"] | None


def step_name(step: int, *, complete: bool = True) -> str:
    """Return the name of a step's folder."""
    return f"step-{step:08d}" + ("" if complete else EMERGENCY)


def parse(name: str) -> StepName | None:
    """Return what a folder's name says; None if it is not that of a step."""
    found = _STEP.fullmatch(name)
    if found is None:
        return None
    aside: Any = found[3]
    said = StepName(int(found[1]), complete=found[2] is None, aside=aside)
    # step-0000000001200 would be a second name of step 1200
    return said if found[1] == f"{said.step:08d}" else None


def file_of(part: str) -> str:
    """Return the name of a part's file."""
    return part + _SUFFIX


def part_of(file: str) -> str:
    """Return the name of the part that a file holds."""
    return file.removesuffix(_SUFFIX)


def is_plain(name: str) -> bool:
    """Tell whether a name stands for a file in its folder, and never for one elsewhere, nor for a file of ours."""
    try:
        nbytes = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    return (
        0 < nbytes <= _LONGEST
        and not name.startswith(".")
        and not any(character in name for character in _SEPARATORS)
        and name not in {MANIFEST, DROPPED, PINNED}
    )
