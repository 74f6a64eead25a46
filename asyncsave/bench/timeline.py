"""Steps and saves on one clock, and what each save took from the steps: the figure that decides.

The time of the call says nothing: a thread that copies, compresses and fills the page cache takes its time from the
next steps instead. So the cost of a save is its stall, and what every step beside it took longer than a quiet one.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["SaveMark", "Step", "Timeline", "Toll", "tolls"]

_AROUND = 10
"""So many quiet steps before a save, and after it, tell what a quiet one takes there."""


class Step(NamedTuple):
    """One step of training: when it began and ended, in seconds of one clock."""

    began: float
    ended: float


class SaveMark(NamedTuple):
    """One save: its moments, in seconds of the same clock.

    Attributes:
        called: When the loop asked for it.
        returned: When the loop went on.
        completed: When it was complete, as its way of saving promises.
        phases: Seconds per phase, as :class:`asyncsave.SaveResult` names them; empty if they are not known.
    """

    called: float
    returned: float
    completed: float
    phases: Mapping[str, float] = {}


@dataclass
class Timeline:
    """What a loop has done. A step may hold the call of a save; the time of the call is not the step's then."""

    steps: list[Step] = field(default_factory=list)
    saves: list[SaveMark] = field(default_factory=list)


@dataclass(frozen=True)
class Toll:
    """What one save took from the training, in seconds.

    Attributes:
        stall: How long the loop was held by the call.
        durable: From the call to the end.
        quiet: The median quiet step around the save.
        busy: The steps while the save was being written, each whole.
        phases: Seconds per phase.
    """

    stall: float
    durable: float
    quiet: float
    busy: tuple[float, ...]
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """The training time that the save took: its stall, and what the steps beside it took longer than quiet ones."""
        return self.stall + self.taken

    @property
    def taken(self) -> float:
        """What the steps beside the save took longer than quiet ones, in sum."""
        return sum(step - self.quiet for step in self.busy)

    @property
    def slowdown(self) -> float:
        """The median step while the save was being written, in quiet steps; 1.0 if there was none."""
        return statistics.median(self.busy) / self.quiet if self.busy else 1.0

    @property
    def inflation(self) -> float:
        """The mean step while the save was being written, in quiet steps; 1.0 if there was none.

        The mean, because a thread that takes the GIL for five milliseconds holds up one short step in many.
        """
        return statistics.fmean(self.busy) / self.quiet if self.busy else 1.0


def tolls(timeline: Timeline) -> list[Toll]:
    """Return what each save took from the steps, in the order of the calls.

    A step belongs to the save that was being written in it, to the earliest of several; one that was running when the
    save ended counts whole. Steps without any save are quiet. With no quiet step there is nothing to compare with, and
    the cost is the stall.
    """
    saves = sorted(timeline.saves, key=lambda save: save.called)
    quiet: list[tuple[float, float]] = []
    busy: list[list[float]] = [[] for _ in saves]
    over = 0
    for step in sorted(timeline.steps):
        while over < len(saves) and max(saves[over].returned, saves[over].completed) <= step.began:
            over += 1  # and so it is for all later steps
        near = _until(saves, over, step.ended)
        seconds = step.ended - step.began - sum(_overlap(step, save.called, save.returned) for save in near)
        owner = next((number for number, save in enumerate(near, over) if _is_beside(step, save)), None)
        if owner is None:
            quiet.append((step.ended, seconds))
        else:
            busy[owner].append(seconds)
    ends = [end for end, _ in quiet]
    found = []
    for save, beside in zip(saves, busy, strict=True):
        middle = bisect.bisect_right(ends, save.returned)
        around = [seconds for _, seconds in quiet[max(0, middle - _AROUND) : middle + _AROUND]]
        usual = statistics.median(around) if around else 0.0
        held, durable = save.returned - save.called, save.completed - save.called
        found.append(Toll(held, durable, usual, tuple(beside) if around else (), save.phases))
    return found


def _until(saves: list[SaveMark], first: int, moment: float) -> list[SaveMark]:
    """Return the saves from ``first`` on that were called before a moment."""
    last = first
    while last < len(saves) and saves[last].called < moment:
        last += 1
    return saves[first:last]


def _is_beside(step: Step, save: SaveMark) -> bool:
    return step.began < save.completed and save.returned < step.ended


def _overlap(step: Step, began: float, ended: float) -> float:
    return max(0.0, min(step.ended, ended) - max(step.began, began))
