"""What a handful of samples says: their median, how sure that is, and how bad it gets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "median_interval"]

_DOUBT = 20
"""An interval may miss what it is to hold once in so many times."""


@dataclass(frozen=True)
class Spread:
    """Samples, summed up.

    Attributes:
        median: The middle one.
        low: The least.
        high: The greatest.
        p95: What 95 of 100 are not above, interpolated between the two nearest.
        ci95: Between which bounds the true median lies with a confidence of at least 95 %; None: too few samples.
        n: How many there are.
    """

    median: float
    low: float
    high: float
    p95: float
    ci95: tuple[float, float] | None
    n: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum up samples, at least one."""
        ordered = sorted(samples)
        return cls(
            statistics.median(ordered), ordered[0], ordered[-1], _quantile(ordered, 0.95),
            median_interval(ordered), len(ordered),
        )  # fmt: skip

    def show(self, scale: float = 1.0, digits: int = 2) -> str:
        """Return "median (low..high)", each times ``scale``."""
        low, middle, high = (f"{value * scale:.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{middle} ({low}..{high})"

    def as_json(self, scale: float = 1.0) -> dict[str, object]:
        """Return ``median``, ``p95``, ``ci95`` and ``n``, each time times ``scale``."""
        ci95 = [None, None] if self.ci95 is None else [bound * scale for bound in self.ci95]
        return {"median": self.median * scale, "p95": self.p95 * scale, "ci95": ci95, "n": self.n}


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Return an interval that holds the true median with a confidence of at least 95 %; None for fewer than six.

    It lies between two of the samples, and assumes nothing of how they are distributed: so many of n samples lie
    below the true median as heads fall in n tosses of a coin (Conover, Practical Nonparametric Statistics, 3rd
    edition, 3.2).
    """
    ordered, n = sorted(samples), len(samples)
    ways, below, outside = 1, 0, -1  # in whole numbers: of 2**n ways that n tosses can end, so many
    for heads in range(n // 2):
        below += ways
        if 2 * below * _DOUBT > 1 << n:
            break
        outside = heads
        ways = ways * (n - heads) // (heads + 1)
    return None if outside < 0 else (ordered[outside], ordered[n - 1 - outside])


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
