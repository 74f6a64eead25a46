"""How often to save: arithmetic on what a save costs, how long it takes to be durable, and how often runs fail.

The model. Failures come at random, at a constant rate, once in ``mtbf_s`` seconds of running. After each ``interval_s``
of steps a save is called, which costs the training ``cost_s``: what the call held it, and by how much steps were slower
while the save was written. A save counts from ``durable_s`` after its call. A failure takes the run back to the newest
save that counts, and ``restart_s`` pass until steps are made again. So a failure loses ``interval_s / 2 + durable_s``
of work on average, and *the cost of a save is not the time it takes*: what is written in the background costs little,
and only adds to what a failure loses.

Sources: J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications of the ACM 17(9),
1974 (:func:`young`); J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
Generation Computer Systems 22(3), 2006 (:func:`daly`); the share of time that is lost (:func:`lost`) is exact in this
model, and neither ``durable_s`` nor ``restart_s`` moves its minimum. That overhead deserves a budget, and 3.5 % for a
default: J. Mohan et al., "CheckFreq: frequent, fine-grained DNN checkpointing", FAST 2021.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from asyncsave.errors import OptionError
from asyncsave.options import whole_number

__all__ = ["BUDGET", "Advice", "Bound", "Plan", "Prospect", "advise", "daly", "lost", "young"]

BUDGET = 0.035
"""The share of a training's time that saves may cost, where nobody says otherwise."""

Bound = Literal["mtbf", "budget", "disk", "step"]

_SHORTEST, _LONGEST = 1e-9, 1e12
_DEEPEST_QUEUE = 1 << 16
_MTBFS = (0.25, 0.5, 1.0, 2.0, 4.0)
_COSTS = (0.5, 1.0, 2.0)
_INTERVALS = (0.25, 0.5, 1.0, 2.0, 4.0)
_HALF = 0.5
_ROUNDING = 1e-9
"""So much of a step is nothing: 0.35 s / 3.5 % / 10 s are one step, not two."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a run, its saves and its failures. Times are in seconds.

    Args:
        cost_s: What a save costs the training.
        durable_s: From the call of a save until it counts.
        step_s: A step while nothing is saved.
        mtbf_s: Mean time between failures: how long the run works on average until something ends it.
        budget: The share of the time of the steps that saves may cost.
        queue: How many saves may be on their way at once and still be as quick as one: 1, where they are written one
            after another, as by asyncsave.
        restart_s: From a failure until steps are made again.

    Raises:
        OptionError: A number is not one, or out of all bounds.
    """

    cost_s: float
    durable_s: float
    step_s: float
    mtbf_s: float
    budget: float = BUDGET
    queue: int = 1
    restart_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("cost_s", "durable_s", "step_s", "mtbf_s"):
            _time(name, getattr(self, name))
        if self.restart_s != 0:
            _time("restart_s", self.restart_s)
        if not _is_number(self.budget) or not _SHORTEST <= self.budget < 1:
            raise OptionError(f"budget must be a share between 0 and 1, not {self.budget!r}")
        whole_number("queue", self.queue, 1, _DEEPEST_QUEUE)

    def with_mtbf(self, factor: float) -> Plan:
        """Return the plan for a run that fails more or less often."""
        return dataclasses.replace(self, mtbf_s=_within(self.mtbf_s * factor))

    def with_cost(self, factor: float) -> Plan:
        """Return the plan for saves that cost more or less."""
        return dataclasses.replace(self, cost_s=_within(self.cost_s * factor))


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is to be expected of an interval.

    Attributes:
        steps: Steps from one save to the next.
        interval_s: The time of these steps.
        overhead: What a save costs, as a share of the time of the steps before it.
        lost_s: Work that a failure loses, on average: half an interval, and the time to durable.
        lost: Share of all time that makes no progress: saves, lost work and restarts.
        in_budget: Whether the overhead is within the budget.
        writable: Whether a save is durable before the queue is full: else saves pile up.
    """

    steps: int
    interval_s: float
    overhead: float
    lost_s: float
    lost: float
    in_budget: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """How often to save.

    Attributes:
        plan: What it was made of.
        prospect: What is to be expected at the advised interval.
        bound: What decided: the ``"mtbf"`` (the optimum itself, no limit stands in its way), the ``"budget"`` of
            overhead, the ``"disk"``, or the ``"step"``, which is as often as one can save.
        optimum_s: Daly's interval.
        budget_s: The shortest interval within the budget.
        disk_s: The shortest interval that the disk keeps up with.
        sound: Whether at least half of all time makes progress. Where it does not, saves cost or take too long for runs
            that fail so often, and an interval is no help.
    """

    plan: Plan
    prospect: Prospect
    bound: Bound
    optimum_s: float
    budget_s: float
    disk_s: float
    sound: bool

    @property
    def reason(self) -> str:
        """What decided, in words."""
        return _REASONS[self.bound]

    def by_mtbf(self) -> list[tuple[float, Advice]]:
        """Return what would be advised if failures came more or less often: (factor, advice)."""
        return [(factor, advise(self.plan.with_mtbf(factor))) for factor in _MTBFS]

    def by_cost(self) -> list[tuple[float, Advice]]:
        """Return what would be advised if a save cost more or less: (factor, advice)."""
        return [(factor, advise(self.plan.with_cost(factor))) for factor in _COSTS]

    def by_interval(self) -> list[tuple[float, Prospect]]:
        """Return what is to be expected of intervals around the advised one: (factor, prospect).

        The optimum is flat: twice or half the interval loses little more. So a guess of the MTBF will do.
        """
        steps = self.prospect.steps
        near = {max(1, round(steps * factor)) for factor in _INTERVALS}
        return [(one / steps, prospect(self.plan, one)) for one in sorted(near)]


_REASONS: dict[Bound, str] = {
    "mtbf": "limited by the MTBF",
    "budget": "limited by the overhead budget",
    "disk": "limited by the disk",
    "step": "limited by the step: more often cannot be",
}


def advise(plan: Plan) -> Advice:
    """Say how often to save: at the optimum of Daly, but within the budget, and not faster than the disk.

    Returns:
        The advice: whole steps, at least one.
    """
    optimum = daly(plan.cost_s, plan.mtbf_s)
    budget, disk = plan.cost_s / plan.budget, plan.durable_s / plan.queue
    best = _nearest(optimum / plan.step_s)
    limits: dict[Bound, int] = {"budget": _up(budget, plan.step_s), "disk": _up(disk, plan.step_s)}
    bound: Bound = max(limits, key=lambda name: limits[name])
    if limits[bound] <= best:
        bound = "mtbf" if optimum >= plan.step_s else "step"
    steps = max(best, *limits.values())
    found = prospect(plan, steps)
    return Advice(plan, found, bound, optimum, budget, disk, found.lost <= _HALF)


def prospect(plan: Plan, steps: int) -> Prospect:
    """Say what is to be expected of a save after every so many steps."""
    interval = steps * plan.step_s
    return Prospect(
        steps,
        interval,
        overhead=plan.cost_s / interval,
        lost_s=interval / 2 + plan.durable_s,
        lost=lost(plan, interval),
        in_budget=steps >= _up(plan.cost_s / plan.budget, plan.step_s),
        writable=steps >= _up(plan.durable_s / plan.queue, plan.step_s),
    )


def young(cost_s: float, mtbf_s: float, restart_s: float = 0.0) -> float:
    """Return the interval in seconds that loses least time, to the first order.

    Args:
        cost_s: What a save costs.
        mtbf_s: Mean time between failures, restarts not counted.
        restart_s: Time of a restart.
    """
    return math.sqrt(2 * cost_s * (mtbf_s + restart_s))


def daly(cost_s: float, mtbf_s: float) -> float:
    """Return the interval in seconds that loses least time, also where a save costs much beside the MTBF."""
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    part = cost_s / (2 * mtbf_s)
    return young(cost_s, mtbf_s) * (1 + math.sqrt(part) / 3 + part / 9) - cost_s


def lost(plan: Plan, interval_s: float) -> float:
    """Return the share of all time that makes no progress when a save is called after every ``interval_s`` of steps.

    Exact for failures at a constant rate. With T the interval, C the cost, D the time to durable, M the MTBF and R
    the restart, the n-th save counts n(T + C) - C + D after a start. A run lives that long with probability
    exp(-that / M), so between two failures, in a time of M + R, it gets on by T exp((C - D)/M) / (exp((T + C)/M) - 1).
    """
    mtbf = plan.mtbf_s
    # What is durable before the steps that it slows down have ended counts from its call on.
    late = max(plan.durable_s - plan.cost_s, -interval_s)
    around = (interval_s + plan.cost_s) / mtbf
    # exp(-late/M) / (exp(around) - 1), written so that nothing overflows
    kept = interval_s * math.exp(-late / mtbf - around) / -math.expm1(-around)
    return min(1.0, max(0.0, 1 - kept / (mtbf + plan.restart_s)))


def _nearest(steps: float) -> int:
    """Return the better of the two whole numbers around an optimum.

    C/T + T/2M is the same at k and k + 1 if the optimum lies at their geometric mean.
    """
    below = max(1, math.floor(steps))
    return below if steps * steps <= below * (below + 1) else below + 1


def _up(seconds: float, step_s: float) -> int:
    return max(1, math.ceil(seconds / step_s * (1 - _ROUNDING)))


def _within(seconds: float) -> float:
    return min(max(seconds, _SHORTEST), _LONGEST)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _time(name: str, value: float) -> None:
    if not _is_number(value) or not _SHORTEST <= value <= _LONGEST:
        raise OptionError(f"{name} must be a number of seconds, above 0 and finite, not {value!r}")
