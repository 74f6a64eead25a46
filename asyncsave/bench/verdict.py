"""Does background saving help here? A pure function of what each save cost, and one sentence to say it.

Only what is beyond doubt decides: the ways took turns, so each turn gives a difference, and the interval of the median
difference (:func:`asyncsave.bench.spread.median_interval`) either has zero in it or has not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncsave.bench.spread import Spread
from asyncsave.units import duration as _time

__all__ = ["BASELINES", "OURS", "Finding", "decide"]

OURS = ("thread", "process")
"""Our own modes, the simpler one first."""
BASELINES = ("torch.save", "torch.save+fsync", "naive-thread", "aiofiles")
"""What a training may have now; the first of them that was measured is what ours are compared with."""

_CODE = {
    "thread": "writer = asyncsave.Writer()",
    "process": 'writer = asyncsave.Writer(backend="process")',
}
_SYNCHRONOUS = 'asyncsave.save(state, "ckpt.pt")  # waits: atomic, durable, checksummed'


@dataclass(frozen=True)
class Finding:
    """What a bench has found.

    Attributes:
        helps: True: training loses less with background saving; False: it loses more; None: that cannot be told.
        mode: Which of our modes is meant.
        baseline: What it was compared with.
        saved: The difference of what a save costs, in seconds, turn by turn: positive is won.
        text: The verdict in one line.
        code: A line of Python for this machine.
    """

    helps: bool | None
    mode: str
    baseline: str
    saved: Spread
    text: str
    code: str

    def as_json(self) -> dict[str, object]:
        """Return it as ``bench --json`` shows it."""
        found = self.saved.as_json(1e3)
        return {
            "helps": self.helps,
            "mode": self.mode,
            "baseline": self.baseline,
            "saved_ms": {"median": found["median"], "ci95": found["ci95"]},
            "text": self.text,
            "code": self.code,
        }


def decide(costs: Mapping[str, Sequence[float]]) -> Finding | None:
    """Compare the better of our modes with what a training has now.

    Args:
        costs: Seconds that each save cost the training, by mode, in the order of the turns.

    Returns:
        The finding; None where there is nothing to compare: none of ours, or none of ``BASELINES``, was measured.
    """
    ours = [name for name in OURS if name in costs]
    baseline = next((name for name in BASELINES if name in costs), None)
    if not ours or baseline is None:
        return None
    mode, choice = _better(costs, ours, baseline)
    saved = Spread.of(_differences(costs[baseline], costs[mode]))
    helps = _sign(saved)
    text = f"{_said(mode, baseline, saved)}{choice}{_against_durable(costs, mode, baseline)}"
    code = _CODE[mode] if helps is not False else _SYNCHRONOUS
    return Finding(helps, mode, baseline, saved, text, code)


def _better(costs: Mapping[str, Sequence[float]], ours: list[str], baseline: str) -> tuple[str, str]:
    """Choose between thread and process: the thread, unless the process is better, or the only one that helps."""
    if len(ours) == 1:
        return ours[0], ""
    thread, process = ours
    gain = Spread.of(_differences(costs[thread], costs[process]))
    known = _sign(gain)
    if gain.ci95 is None:
        return thread, ""
    if known is None:
        helps = {mode: _sign(Spread.of(_differences(costs[baseline], costs[mode]))) for mode in ours}
        mode, other = (process, thread) if helps[process] and not helps[thread] else (thread, process)
        return mode, f"; a {other} makes no measurable difference to a {mode}"
    better, more = (process, gain.median) if known else (thread, -gain.median)
    return better, f"; a {thread if known else process} would cost {_time(more)} more"


def _said(mode: str, baseline: str, saved: Spread) -> str:
    helps = _sign(saved)
    if saved.ci95 is None:
        return f"too few saves to tell ({saved.n}, six are needed): {mode} against {baseline}"
    low, high = saved.ci95
    if helps is None:
        return (
            f"no measurable difference between {mode} and {baseline}: {_time(saved.median)} per save "
            f"(95 % interval {_time(low)} .. {_time(high)})"
        )
    if helps:
        return (
            f"{mode} helps: each save costs training {_time(saved.median)} less than {baseline} "
            f"(95 % interval {_time(low)} .. {_time(high)})"
        )
    return (
        f"it hurts: each save by {mode} costs training {_time(-saved.median)} more than {baseline} "
        f"(95 % interval {_time(-high)} .. {_time(-low)})"
    )


def _against_durable(costs: Mapping[str, Sequence[float]], mode: str, baseline: str) -> str:
    """Say what comes of comparing equal promises, where the baseline promises less."""
    durable = "torch.save+fsync"
    if baseline == durable or durable not in costs:
        return ""
    gain = Spread.of(_differences(costs[durable], costs[mode]))
    known = _sign(gain)
    if gain.ci95 is None:
        return ""
    if known is None:
        return f"; no measurable difference to {durable}, which flushes too"
    return f"; {mode} costs {_time(abs(gain.median))} {'less' if known else 'more'} than {durable}, which flushes too"


def _differences(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _sign(spread: Spread) -> bool | None:
    """Tell whether a difference is above zero (True), below (False), or neither beyond doubt (None)."""
    if spread.ci95 is None or spread.ci95[0] <= 0 <= spread.ci95[1]:
        return None
    return spread.median > 0
