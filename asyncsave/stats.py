"""Counts of what a writer has done."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

__all__ = ["Tally", "WriterStats"]


class WriterStats(NamedTuple):
    """How many saves ended in which way, and the bytes of those in place."""

    saved: int = 0
    failed: int = 0
    skipped: int = 0
    replaced: int = 0
    cancelled: int = 0
    nbytes: int = 0


class Tally:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stats = WriterStats()

    def count(
        self,
        outcome: Literal["saved", "failed", "skipped", "replaced", "cancelled"],
        nbytes: int = 0,
    ) -> None:
        """Add one save."""
        with self._lock:
            stats = self._stats
            self._stats = stats._replace(**{outcome: getattr(stats, outcome) + 1}, nbytes=stats.nbytes + nbytes)

    def read(self) -> WriterStats:
        """Return the counts so far."""
        return self._stats
