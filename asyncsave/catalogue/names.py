"""The names in a version's folder.

::

step-00001200/             one checkpoint: complete, of a whole step
manifest.json          it exists if and only if this does
state.pt               one file for each part
pinned                 an empty file: retention never drops the step
step-00001234.emergency/   the same, but saved in the midst of the step
step-00001300.corrupt/     one that was found damaged, put aside
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["CORRUPT", "DROPPED", "MANIFEST", "PINNED", "StepName", "is_plain", "parse", "step_name"]

MANIFEST = "manifest.json"
DROPPED = "dropped.json"
"""What a manifest is called once its step has been dropped, as long as files of the step are left."""
PINNED = "pinned"
CORRUPT = ".corrupt"
EMERGENCY = ".emergency"

_STEP = re.compile(r"step-(\d{8,18})(\.emergency)?(\.corrupt(?:-\d+)?)?")
_SEPARATORS = "/\\\0"
_LONGEST = 255


class StepName(NamedTuple):
    """What the name of a step's folder says.

    Attributes:
        step: The number.
        complete: Whether it was saved between two steps, and not in the midst of this one.
        corrupt: Whether it was found damaged.
    """

    step: int
    complete: bool
    corrupt: bool


def step_name(step: int, *, complete: bool = True) -> str:
    """Return the name of a step's folder."""
    return f"step-{step:08d}" + ("" if complete else EMERGENCY)


def parse(name: str) -> StepName | None:
    """Return what a folder's name says; None if it is not that of a step."""
    found = _STEP.fullmatch(name)
    if found is None:
        return None
    said = StepName(int(found[1]), complete=found[2] is None, corrupt=found[3] is not None)
    # step-0000000001200 would be a second name of step 1200
    return said if found[1] == f"{said.step:08d}" else None


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
