"""What is to be measured, what that will take, and whether the machine has it."""

from __future__ import annotations

from dataclasses import dataclass

from asyncsave.errors import OptionError
from asyncsave.options import at_least

__all__ = ["ALL_MODES", "LEAST_SAVES", "Estimate", "Plan", "estimate"]

ALL_MODES = ("torch.save", "torch.save+fsync", "naive-thread", "aiofiles", "thread", "process")
LEAST_SAVES = 6
"""Fewer give no interval (:func:`asyncsave.bench.spread.median_interval`)."""

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
        written: How many bytes it may write.
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
        unknown = [mode for mode in self.modes if mode not in ALL_MODES]
        if unknown or not self.modes or len(set(self.modes)) != len(self.modes):
            raise OptionError(f"modes must be some of {', '.join(ALL_MODES)}, each once, not {', '.join(self.modes)}")


@dataclass(frozen=True)
class Estimate:
    """What a measurement will take.

    Attributes:
        seconds: How long it will be.
        written: Bytes that it writes in all.
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
        OptionError: Not even one save of each mode, besides the two that do not count, is within the limits.
    """
    flushed = nbytes / disk
    each = {"thread": flushed, "process": flushed}
    # Before each save comes a sync of all that the one before left; after it the step that it ended in goes on.
    turn = sum(each.get(mode, save + flushed) + flushed + (2 * quiet_steps + 1) * step for mode in plan.modes)
    in_turn = nbytes * len(plan.modes)
    aside = 2  # the first save of each mode, and the turn that is dropped
    extra = sweeps_take(nbytes, save, flushed) if plan.sweeps else (0.0, 0)
    saves = min(
        plan.saves,
        int((plan.seconds - extra[0]) / turn) - aside,
        (plan.written - extra[1]) // in_turn - aside,
    )
    if saves < 1:
        raise OptionError(
            f"this would take {(aside + 1) * turn + extra[0]:,.0f} s and write {(aside + 1) * in_turn + extra[1]:,} "
            "bytes at least: take a smaller state, fewer modes, or a higher limit"
        )
    return Estimate(
        (saves + aside) * turn + extra[0],
        (saves + aside) * in_turn + extra[1],
        nbytes * sum(_ON_DISK.get(mode, 1) for mode in plan.modes),
        nbytes * sum(_IN_MEMORY[mode] for mode in plan.modes),
        saves,
    )


def sweeps_take(nbytes: int, save: float, flushed: float) -> tuple[float, int]:
    """Return the seconds and the bytes of the sweeps: sizes, counts of tensors, threads with blocks."""
    return 16 * (save + 2 * flushed) + 20 * flushed, 16 * 3 * nbytes + 20 * nbytes
