"""What the saves of one mode took from the training, all together, as ``bench --json`` shows it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from asyncsave.bench.spread import Spread
from asyncsave.bench.timeline import Timeline, Toll

__all__ = ["summed"]


def summed(
    taken: Sequence[Toll], timeline: Timeline, *, promise: str, nbytes: float, disk_mb_s: float | None = None
) -> dict[str, Any]:
    """Sum up the saves of one mode.

    Args:
        taken: What each took, at least one.
        timeline: What is shown of it: the steps and saves of one turn, or of a whole run.
        promise: What was flushed when a save counted as complete.
        nbytes: Bytes of one save.
        disk_mb_s: The bare disk's rate; None: not measured.
    """
    durable = statistics.median(toll.durable for toll in taken)
    beside = [toll.inflation for toll in taken if toll.busy]
    rate = nbytes / durable / 1e6
    return {
        "promise": promise,
        "stall_ms": Spread.of([toll.stall for toll in taken]).as_json(1e3),
        "cost_ms": Spread.of([toll.cost for toll in taken]).as_json(1e3),
        "durable_s": durable,
        "durable_mb_s": rate,
        "share_of_disk": None if disk_mb_s is None else rate / disk_mb_s,
        "inflation": statistics.median(beside) if beside else None,
        "phases": _phases(taken),
        "timeline": _from_zero(timeline, statistics.median(toll.quiet for toll in taken)),
    }


def _phases(taken: Sequence[Toll]) -> dict[str, float]:
    """Return the median milliseconds per phase; where phases are not known, the whole is one."""
    names = [name for name in taken[0].phases if name != "total"]
    if not names:
        return {"save": 1e3 * statistics.median(toll.durable for toll in taken)}
    return {name: 1e3 * statistics.median(toll.phases.get(name, 0.0) for toll in taken) for name in names}


def _from_zero(timeline: Timeline, quiet: float) -> dict[str, Any]:
    """Return a timeline in seconds from its first moment on."""
    zero = min([step.began for step in timeline.steps] + [save.called for save in timeline.saves])
    return {
        "quiet_ms": 1e3 * quiet,
        "steps": [[step.began - zero, step.ended - zero] for step in timeline.steps],
        "saves": [[save.called - zero, save.returned - zero, save.completed - zero] for save in timeline.saves],
    }
