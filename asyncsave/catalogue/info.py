"""What is known of one checkpoint of a run without loading it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["CheckpointFile", "CheckpointInfo", "Kind"]

Kind = Literal["step", "emergency", "corrupt", "abandoned", "dropped", "unfinished", "spare"]


class CheckpointFile(NamedTuple):
    """One file of a checkpoint.

    Attributes:
        nbytes: Its size in bytes.
        digest: ``"crc32:…"`` of the whole file.
    """

    nbytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One checkpoint of a run, as its manifest describes it.

    Attributes:
        step: The step after which it was saved; -1 for a file that belongs to none.
        path: Its folder, absolute.
        epoch: The epoch, where the state had one.
        metrics: As given to ``save``; None stands for a value that was None.
        metadata: As given to ``save``.
        time: When ``save`` was called, seconds since 1970.
        nbytes: Bytes of all files, the manifest not counted.
        files: Size and digest of each file, by name.
        pinned: Whether retention may not drop it.
        complete: False for one that was saved in the midst of its step.
        kind: ``"step"`` or ``"emergency"``; with ``list(all=True)`` also what takes up room without being a
            checkpoint: ``"corrupt"`` and ``"abandoned"`` (put aside), ``"dropped"`` (not removed yet),
            ``"unfinished"`` (being written, or left behind), ``"spare"`` (a dropped file whose blocks the next
            save overwrites).
    """

    step: int
    path: str
    epoch: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0
    nbytes: int = 0
    files: dict[str, CheckpointFile] = field(default_factory=dict)
    pinned: bool = False
    complete: bool = True
    kind: Kind = "step"

    def value(self, metric: str) -> float | None:
        """Return a metric by which this checkpoint can be compared; None if it has none, or one that is NaN."""
        found = self.metrics.get(metric)
        return None if found is None or math.isnan(found) else found
