"""What is to be measured, what that will take, and whether the machine has it."""

from __future__ import annotations

from dataclasses import dataclass

from asyncsave.bench.grid import MOST_PROBED, START_S, Grid, grid
from asyncsave.errors import OptionError
from asyncsave.options import above_zero, at_least
from asyncsave.units import duration

__all__ = ["ALL_MODES", "LEAST_SAVES", "PROBES", "Estimate", "Needs", "Plan", "estimate"]

ALL_MODES = ("torch.save", "torch.save+fsync", "naive-thread", "aiofiles", "thread", "process")
LEAST_SAVES = 6
"""Fewer give no interval (:func:`asyncsave.bench.spread.median_interval`)."""

PROBES = 3
"""Raw writes that tell the disk's rate."""

_ASIDE = 3
"""Saves of each mode that do not count: a cold one, a warm one, and the turn that is dropped."""
_IN_MEMORY = {"torch.save": 0, "torch.save+fsync": 0, "naive-thread": 1, "aiofiles": 2, "thread": 2, "process": 2}
_ON_DISK = {"thread": 3, "process": 3}
"""Copies of the state that each mode holds at once: the file, a temporary one, and a spare."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        folder: Where to save to; a temporary folder is made in it.
        nbytes: Bytes of the state, where ``like`` is None.
        tensors: How many tensors it has.
        dtype: Their type, one of :data:`asyncsave.bench.states.DTYPES`.
        like: A checkpoint whose state is taken instead; None: a synthetic one.
        step: The training beside the saves: one of :data:`asyncsave.bench.loops.KINDS`, or ``"module:function"``.
        saves: How many saves of each mode count, where time and bytes allow.
        modes: Which ways of saving, of ``ALL_MODES``.
        sweeps: Whether to measure also what the plots of size, tensor count, threads and blocks show.
        seconds: How long it may take; there are fewer saves if need be.
        written: How many bytes it may write, what the preparation writes included.
    """

    folder: str
    nbytes: int = 256_000_000
    tensors: int = 200
    dtype: str = "float32"
    like: str | None = None
    step: str = "cpu"
    saves: int = 10
    modes: tuple[str, ...] = ALL_MODES
    sweeps: bool = False
    seconds: float = 600.0
    written: int = 1 << 40

    def __post_init__(self) -> None:
        """Check what can be checked without a measurement.

        Raises:
            OptionError: Something makes no sense.
        """
        at_least("nbytes", self.nbytes, 1)
        at_least("tensors", self.tensors, 1)
        at_least("saves", self.saves, 1)
        at_least("written", self.written, 1)
        above_zero("seconds", self.seconds)
        unknown = [mode for mode in self.modes if mode not in ALL_MODES]
        if unknown or not self.modes or len(set(self.modes)) != len(self.modes):
            raise OptionError(f"modes must be some of {', '.join(ALL_MODES)}, each once, not {', '.join(self.modes)}")


@dataclass(frozen=True)
class Needs:
    """What a plan needs for a state of some size, known without a measurement.

    Args:
        plan: What is to be measured.
        nbytes: Bytes of the state.

    Attributes:
        disk: Bytes on the disk at once.
        memory: Bytes in memory at once, above the state itself.
        points: What the sweeps measure; None: there are none.
    """

    plan: Plan
    nbytes: int

    @property
    def disk(self) -> int:
        """Every mode's files lie beside one another, for they take turns."""
        return self.nbytes * sum(_ON_DISK.get(mode, 1) for mode in self.plan.modes)

    @property
    def memory(self) -> int:
        """What all modes hold together, or one of them and what is read back to be compared; and the probe's pages."""
        held = [_IN_MEMORY[mode] for mode in self.plan.modes]
        return self.nbytes * max(sum(held), max(held) + 1) + min(self.nbytes, MOST_PROBED)

    @property
    def points(self) -> Grid | None:
        """They depend on the size, and on which modes there are."""
        return grid(self.nbytes, self.plan.modes) if self.plan.sweeps else None

    def written(self, saves: int) -> int:
        """Return the bytes that are written in all if so many saves of each mode count."""
        prepared = self.nbytes + PROBES * min(self.nbytes, MOST_PROBED)
        points = self.points
        swept = points.written if points else 0
        return prepared + self.nbytes * len(self.plan.modes) * (saves + _ASIDE) + swept

    def check(self) -> None:
        """See that the least there is to write may be written.

        Raises:
            OptionError: It may not.
        """
        if self.written(1) > self.plan.written:
            raise OptionError(
                f"this would write {self.written(1):,} bytes at least, and {self.plan.written:,} are allowed: take a "
                "smaller state, fewer modes, or a higher limit"
            )


@dataclass(frozen=True)
class Estimate:
    """What a measurement will take.

    Attributes:
        seconds: How long it will be.
        written: Bytes that it writes in all, those of the preparation included.
        disk: Bytes that it needs on the disk at once.
        memory: Bytes that it needs in memory at once, above the state itself.
        saves: How many saves of each mode it can do within the plan's limits.
    """

    seconds: float
    written: int
    disk: int
    memory: int
    saves: int

    def as_json(self) -> dict[str, object]:
        """Return it as ``bench --dry-run --json`` shows it."""
        return {
            "seconds": self.seconds,
            "written_bytes": self.written,
            "disk_bytes": self.disk,
            "memory_bytes": self.memory,
            "saves": self.saves,
        }


def estimate(plan: Plan, nbytes: int, *, step: float, quiet_steps: int, save: float, disk: float) -> Estimate:
    """Foretell a measurement.

    Args:
        plan: What is to be measured.
        nbytes: Bytes of the state.
        step: Seconds of a quiet step.
        quiet_steps: How many of them are taken before a save, and after it.
        save: Seconds of a ``torch.save``.
        disk: The disk's rate in bytes per second.

    Raises:
        OptionError: Not even one save of each mode, besides those that do not count, is within the limits.
    """
    needs = Needs(plan, nbytes)
    needs.check()
    flushed = nbytes / disk
    each = {"thread": flushed, "process": flushed}
    # Before each save comes a sync of all that the one before left; after it the step that it ended in goes on.
    starts = 2 * sum(START_S.get(mode, 0.0) for mode in plan.modes)
    turn = sum(each.get(mode, save + flushed) + flushed + (2 * quiet_steps + 1) * step for mode in plan.modes)
    aside = starts + (needs.points.seconds(save / nbytes, disk) if needs.points else 0.0)
    in_time = min(float(plan.saves), (plan.seconds - aside) / turn - _ASIDE)  # a float: there may be no limit at all
    in_bytes = (plan.written - needs.written(0)) // (nbytes * len(plan.modes))
    saves = min(int(in_time), in_bytes)
    if in_time < 1:
        least = (1 + _ASIDE) * turn + aside
        raise OptionError(
            f"this would take {duration(least)} at least, and {duration(plan.seconds)} are allowed: take a smaller "
            "state, fewer modes, or a higher limit"
        )
    return Estimate((saves + _ASIDE) * turn + aside, needs.written(saves), needs.disk, needs.memory, saves)
