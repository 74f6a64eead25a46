"""Counts of what a writer has done."""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal, NamedTuple

__all__ = ["Outcome", "Tally", "WriterStats"]

Outcome = Literal["saved", "failed", "skipped", "replaced", "cancelled"]


class WriterStats(NamedTuple):
    """How many saves ended in which way, and the bytes of those in place."""

    saved: int = 0
    failed: int = 0
    skipped: int = 0
    replaced: int = 0
    cancelled: int = 0
    nbytes: int = 0


class Tally:
    """Counts, from any thread. Counting takes no lock, for the reason that :class:`Slots` tells."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stats = WriterStats()
        self._news: deque[tuple[Outcome, int]] = deque()

    def count(self, outcome: Outcome, nbytes: int = 0) -> None:
        """Add one save."""
        self._news.append((outcome, nbytes))
        if self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()

    def read(self) -> WriterStats:
        """Return the counts so far."""
        with self._lock:
            self._add_up()
            return self._stats

    def _add_up(self) -> None:
        while self._news:
            outcome, nbytes = self._news.popleft()
            stats = self._stats
            more = {outcome: getattr(stats, outcome) + 1}
            self._stats = stats._replace(**more, nbytes=stats.nbytes + nbytes)
