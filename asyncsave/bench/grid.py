"""Which points the sweeps measure, known beforehand: so they can be foretold, counted, and held to a limit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MOST_PROBED", "SAVES_EACH", "START_S", "Grid", "SavePoint", "WritePoint", "grid"]

MOST_PROBED = 1 << 30
"""Bytes of the largest raw write, and of the largest state of a sweep."""
SAVES_EACH = 4
"""Saves at every point; the first does not count."""
START_S = {"process": 0.4}
"""Seconds until a way of saving is there, about."""

_MODES = ("torch.save", "thread", "process")
_SHARES = (64, 16, 4, 1)
_COUNTS = (10, 100, 1_000, 10_000)
_MOST_COUNTED = 64_000_000
_LEAST = 512
"""Bytes of the smallest tensor: 64 values of the largest type."""
_THREADS = (1, 2, 4, 8)
_BLOCKS = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
_TENSOR_S = 3e-5
"""Seconds that every tensor takes of a save, about, however small it is."""


@dataclass(frozen=True)
class SavePoint:
    """Some saves of one state.

    Attributes:
        mode: By which way of saving.
        nbytes: Bytes of the state.
        tensors: How many tensors it has.
    """

    mode: str
    nbytes: int
    tensors: int


@dataclass(frozen=True)
class WritePoint:
    """One raw write: by how many threads, in blocks of how many bytes, of how many bytes in all."""

    threads: int
    block: int
    nbytes: int


@dataclass(frozen=True)
class Grid:
    """All points, in the order in which they are measured.

    Attributes:
        sizes: States of ever more bytes, each by every way of saving.
        counts: States of ever more tensors.
        writes: Raw writes by more and more threads, in larger and larger blocks.
    """

    sizes: tuple[SavePoint, ...]
    counts: tuple[SavePoint, ...]
    writes: tuple[WritePoint, ...]

    def __len__(self) -> int:
        """Return how many points there are."""
        return len(self.sizes) + len(self.counts) + len(self.writes)

    @property
    def written(self) -> int:
        """Bytes that measuring it writes, about: states have headers, too, and whole values only."""
        saved = sum(point.nbytes for point in self.sizes + self.counts)
        return SAVES_EACH * saved + sum(point.nbytes for point in self.writes)

    def seconds(self, save: float, disk: float) -> float:
        """Return how long measuring it takes, about.

        Args:
            save: Seconds of a ``torch.save``, per byte.
            disk: The disk's rate in bytes per second.
        """
        each = [
            point.nbytes * (save if point.mode == "torch.save" else 1 / disk) + point.tensors * _TENSOR_S
            for point in self.sizes + self.counts
        ]
        starts = sum(START_S.get(point.mode, 0.0) for point in self.sizes + self.counts)
        return SAVES_EACH * sum(each) + starts + sum(point.nbytes for point in self.writes) / disk


def grid(nbytes: int, modes: tuple[str, ...]) -> Grid:
    """Return the points for a state of ``nbytes``, of those ways of saving that are among ``modes``."""
    nbytes = min(nbytes, MOST_PROBED)
    chosen = [mode for mode in _MODES if mode in modes]
    sizes = [(max(nbytes // share, _LEAST), min(100, max(1, nbytes // share // 4096))) for share in _SHARES]
    counts = [(min(nbytes, _MOST_COUNTED), count) for count in _COUNTS if nbytes >= count * _LEAST]
    return Grid(
        tuple(SavePoint(mode, of, tensors) for of, tensors in sizes for mode in chosen),
        tuple(SavePoint(mode, of, tensors) for of, tensors in counts for mode in chosen),
        tuple(WritePoint(threads, block, nbytes) for block in _BLOCKS for threads in _THREADS),
    )
