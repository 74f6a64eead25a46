"""Steps and saves on one clock, and what each save took from the steps: the figure that decides.

The time of the call says nothing: a thread that copies, compresses and fills the page cache takes its time from the
next steps instead. So the cost of a save is its stall, and what every step beside it took longer than a quiet one.
"""

from __future__ import annotations

import bisect
import heapq
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
        completed: When it was complete, as its way of saving promises; infinite: it never was.
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
        return statistics.median(self.busy) / self.quiet if self.busy and self.quiet else 1.0

    @property
    def inflation(self) -> float:
        """The mean step while the save was being written, in quiet steps; 1.0 if there was none.

        The mean, because a thread that takes the GIL for five milliseconds holds up one short step in many.
        """
        return statistics.fmean(self.busy) / self.quiet if self.busy and self.quiet else 1.0


def tolls(timeline: Timeline) -> list[Toll]:
    """Return what each save took from the steps, in the order of the calls.

    A step belongs to the save that was being written in it, to the earliest of several; one that was running when the
    save ended counts whole. Steps without any save are quiet. With no quiet step there is nothing to compare with, and
    the cost is the stall.

    Args:
        timeline: Steps that do not overlap one another, and saves, each in any order.
    """
    saves = sorted(timeline.saves, key=lambda save: save.called)
    quiet: list[tuple[float, float]] = []
    busy: list[list[float]] = [[] for _ in saves]
    sweep = _Sweep(saves)
    for step in sorted(timeline.steps):
        seconds = step.ended - step.began - sweep.held(step)
        owner = sweep.owner(step)
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


class _Sweep:
    """Goes over the saves with the steps, forwards only: what is over for one step is over for all later ones.

    Args:
        saves: In the order of the calls.
    """

    def __init__(self, saves: list[SaveMark]) -> None:
        self._saves = saves
        self._to_call = 0
        self._calling: list[SaveMark] = []
        self._returns = sorted(range(len(saves)), key=lambda number: saves[number].returned)
        self._returned = 0
        self._writing: list[int] = []  # a heap: the earliest is on top

    def held(self, step: Step) -> float:
        """Return for how many seconds of a step calls held it."""
        while self._to_call < len(self._saves) and self._saves[self._to_call].called < step.ended:
            self._calling.append(self._saves[self._to_call])
            self._to_call += 1
        self._calling = [save for save in self._calling if save.returned > step.began]
        return sum(min(step.ended, save.returned) - max(step.began, save.called) for save in self._calling)

    def owner(self, step: Step) -> int | None:
        """Return the number of the earliest save that was being written in a step, if any was."""
        while self._returned < len(self._returns) and self._saves[self._returns[self._returned]].returned < step.ended:
            heapq.heappush(self._writing, self._returns[self._returned])
            self._returned += 1
        while self._writing and self._saves[self._writing[0]].completed <= step.began:
            heapq.heappop(self._writing)
        return self._writing[0] if self._writing else None
