"""Which checkpoints of a run to keep, and why: a pure function of what is known of them.

Every rule names what it keeps; what no rule keeps is dropped. So rules can be put together in any
order, and none can take away what another one keeps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.errors import OptionError
from asyncsave.options import above_zero, at_least, one_of, text

__all__ = ["Mode", "Retention", "Verdict", "better_first"]

Mode = Literal["min", "max"]

Kept = Iterator[tuple[CheckpointInfo, str]]
Rule = Callable[[list[CheckpointInfo]], Kept]

_HOUR = 3600.0


class Verdict(NamedTuple):
    """What becomes of one checkpoint.

    Attributes:
        info: The checkpoint.
        reasons: Why it is kept; empty: it is dropped.
    """

    info: CheckpointInfo
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether it is kept."""
        return bool(self.reasons)


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep of a run's checkpoints. A checkpoint stays if any of these rules keeps it.

    Whatever the rules, these stay as well: the one just written, pinned ones, the one that the run
    was resumed from. Of those saved in the midst of a step, the newest stays until a later step is complete.
    Two policies are put together with ``|``.

    Args:
        last: The so many newest, by step.
        best: The so many best by ``metric``. Of equals the later step is better. A checkpoint without the
            metric, or where it is None or NaN, is no candidate.
        metric: The metric of ``best``.
        mode: Whether a ``"min"``imal or a ``"max"``imal metric is best.
        every: Those whose step is a multiple of this.
        hours: One for each so many hours: the first, and then each that was saved at least so many
            hours after the one before that this rule keeps.

    Raises:
        OptionError: The policy keeps nothing, or an argument makes no sense.
    """

    last: int | None = None
    best: int | None = None
    metric: str | None = None
    mode: Mode = "min"
    every: int | None = None
    hours: float | None = None
    others: tuple[Retention, ...] = ()

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("last", "best", "every"):
            if (value := getattr(self, name)) is not None:
                at_least(name, value, 1)
        if self.hours is not None:
            above_zero("hours", self.hours)
        one_of("mode", self.mode, Mode)
        if self.metric is not None:
            text("metric", self.metric)
        if (self.best is None) != (self.metric is None):
            raise OptionError("best and metric belong together: Retention(best=2, metric='val_loss', mode='min')")
        if all(rule is None for rule in (self.last, self.best, self.every, self.hours)):
            raise OptionError(
                "this policy would keep nothing: give at least one of last, best, every and hours; "
                "to keep all, leave the policy out"
            )

    def __or__(self, other: Retention) -> Retention:
        """Keep what either policy keeps."""
        if not isinstance(other, Retention):
            return NotImplemented
        return dataclasses.replace(self, others=(*self.others, other))

    def decide(
        self, infos: Iterable[CheckpointInfo], *, written: str | None = None, protected: Collection[str] = ()
    ) -> list[Verdict]:
        """Say of each checkpoint whether it is kept, and why. Nothing is touched.

        Args:
            infos: The checkpoints, in any order.
            written: Path of the one just written.
            protected: Paths of others that must stay: the one that the run was resumed from.

        Returns:
            A verdict for each, by step.
        """
        known = sorted(infos, key=_age)
        reasons: dict[str, list[str]] = {info.path: [] for info in known}
        for info in known:
            if info.path == written:
                reasons[info.path].append("just written")
            if info.path in protected:
                reasons[info.path].append("resumed from")
            if info.pinned:
                reasons[info.path].append("pinned")
        complete = [info for info in known if info.complete]
        for rule in self.rules():
            for info, reason in rule(complete):
                if reason not in reasons[info.path]:
                    reasons[info.path].append(reason)
        unfinished = [info for info in known if not info.complete]
        if unfinished and (not complete or unfinished[-1].step > complete[-1].step):
            reasons[unfinished[-1].path].append("newest state in the midst of a step")
        return [Verdict(info, tuple(reasons[info.path])) for info in known]

    def rules(self) -> Iterator[Rule]:
        """Yield the rules: each is given the complete checkpoints by step, and yields what it keeps, and why."""
        if self.last is not None:
            yield partial(_last, self.last)
        if self.best is not None and self.metric is not None:
            yield partial(_best, self.best, self.metric, self.mode)
        if self.every is not None:
            yield partial(_every, self.every)
        if self.hours is not None:
            yield partial(_hourly, self.hours)
        for other in self.others:
            yield from other.rules()

    def criteria(self) -> Iterator[tuple[str, Mode]]:
        """Yield the metrics that checkpoints are chosen by, and whether the least or the greatest is best."""
        if self.metric is not None:
            yield self.metric, self.mode
        for other in self.others:
            yield from other.criteria()

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as plain values, for another process."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Retention:
        """Make a policy of plain values.

        Raises:
            OptionError, TypeError: They describe none.
        """
        return cls(**{**said, "others": tuple(cls.from_dict(other) for other in said["others"])})


def _last(count: int, infos: list[CheckpointInfo]) -> Kept:
    for info in infos[-count:]:
        yield info, f"one of the last {count}"


def _best(count: int, metric: str, mode: Mode, infos: list[CheckpointInfo]) -> Kept:
    for info in better_first(infos, metric, mode)[:count]:
        yield info, f"one of the best {count} by {metric}"


def _every(steps: int, infos: list[CheckpointInfo]) -> Kept:
    for info in infos:
        if info.step % steps == 0:
            yield info, f"a multiple of {steps}"


def _hourly(hours: float, infos: list[CheckpointInfo]) -> Kept:
    due = -math.inf
    for info in sorted(infos, key=lambda info: (info.time, info.step)):
        if info.time >= due:
            due = info.time + hours * _HOUR
            yield info, f"one of every {hours} h"


def better_first(infos: Iterable[CheckpointInfo], metric: str, mode: Mode) -> list[CheckpointInfo]:
    """Return the complete checkpoints that have a metric, the best one first; of equals the later step."""
    sign = 1.0 if mode == "min" else -1.0
    ranked = [(sign * value, -info.step, info) for info in infos if (value := _candidate(info, metric)) is not None]
    return [info for *_, info in sorted(ranked, key=lambda entry: entry[:2])]


def _candidate(info: CheckpointInfo, metric: str) -> float | None:
    return info.value(metric) if info.complete else None


def _age(info: CheckpointInfo) -> tuple[int, bool, float, str]:
    return info.step, info.complete, info.time, info.path
