"""What a run found: the samples of every contestant, the figures with their goals, and one printed table of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench import machine
from asyncsave.bench.spread import Spread
from asyncsave.runs.provenance import version_of
from asyncsave.units import size
from benchmarks.race import replay


@dataclass(frozen=True)
class Figure:
    """One row of the table of goals: a measured value, or ratio within the run, against its limit.

    ``at_most`` says which side of the limit is good. A figure without a limit is told, not judged.
    """

    question: str
    goal: str
    measured: Spread
    unit: str = "x"
    limit: float | None = None
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """Say "met", "MISSED", or "-" where there is no limit. The median decides."""
        if self.limit is None:
            return "-"
        good = self.measured.median <= self.limit if self.at_most else self.measured.median >= self.limit
        return "met" if good else "MISSED"


@dataclass(frozen=True)
class Row:
    """The samples of one contestant in one question, in seconds."""

    question: str
    contestant: str
    seconds: Spread
    rounds: int
    nbytes: int
    promise: str
    cache: str


class Report:
    """Collects rows and figures while the benchmarks run; prints them at the end."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.figures: list[Figure] = []

    def add(self, figure: Figure) -> None:
        """Take a figure."""
        self.figures.append(figure)

    def record(
        self,
        benchmark: BenchmarkFixture,
        samples: Sequence[float],
        *,
        nbytes: int,
        promise: str,
        cache: str = "-",
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Take the samples of one contestant, in seconds, and hand them to pytest-benchmark too.

        Args:
            benchmark: the fixture of the calling test; its group is the question, its parameter the contestant.
            samples: seconds, one a round.
            nbytes: bytes of tensors that a round was about.
            promise: what was synced when the clock stopped; ``"-"`` where nothing is written.
            cache: state of the page cache for what is read.
            extra: more for ``extra_info``.
        """
        name = benchmark.param or benchmark.name
        question = benchmark.group or ""
        self.rows.append(Row(question, name, Spread.of(samples), len(samples), nbytes, promise, cache))
        benchmark.extra_info.update(nbytes=nbytes, synced=promise, cache=cache, **(extra or {}))
        replay(benchmark, samples)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the figures for a machine."""
        return [asdict(figure) | {"verdict": figure.verdict} for figure in self.figures]

    def lines(self, setting: dict[str, str]) -> list[str]:
        """Return the whole table as text."""
        samples = [
            (
                row.question,
                row.contestant,
                *_time(row.seconds),
                str(row.rounds),
                size(row.nbytes),
                row.promise,
                row.cache,
            )
            for row in self.rows
        ]
        figures = [
            (f.question, f.goal, f"{f.measured.show(digits=3 if f.measured.median < 1 else 2)} {f.unit}", f.verdict)
            for f in self.figures
        ]
        return [
            *(f"{key}: {value}" for key, value in setting.items()),
            "",
            *_table(("question", "contestant", "median", "min..max", "rounds", "tensors", "synced", "cache"), samples),
            "",
            *_table(("figure", "goal", "measured: median (min..max)", "verdict"), figures),
        ]


def describe(folder: Path, *, direct: bool) -> dict[str, str]:
    """Return what the figures depend on: machine, system, versions."""
    found = machine.describe(str(folder), direct=direct)
    return {
        "machine": f"{found['cpu']}, {found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB",
        "kernel": f"{found['kernel']}, huge pages {_huge_pages()}",
        "file system": f"{found['file_system']}, {'takes' if direct else 'refuses'} O_DIRECT",
        "versions": ", ".join([f"Python {found['python']}", *(f"{name} {version_of(name)}" for name in _PACKAGES)]),
        "torch threads": str(torch.get_num_threads()),
        "load average at the start": f"{found['load']:.2f}",
        "contestants": "thread and process are asyncsave's, by its backends",
    }


_PACKAGES = ("asyncsave", "torch", "numpy", "safetensors", "isal", "pytest-benchmark")


def _huge_pages() -> str:
    try:
        words = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().split()
    except OSError:
        return "unknown"
    return next((word.strip("[]") for word in words if word.startswith("[")), "unknown")


def _time(spread: Spread) -> tuple[str, str]:
    scale, unit, digits = (1.0, "s", 2) if spread.median >= 1 else (1e3, "ms", 1 if spread.median >= 1e-3 else 3)
    low, middle, high = (f"{value * scale:.{digits}f}" for value in (spread.low, spread.median, spread.high))
    return f"{middle} {unit}", f"{low}..{high}"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    show = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
    return [
        f"| {show[0]} |",
        "|" + "|".join("-" * (width + 2) for width in widths) + "|",
        *(f"| {s} |" for s in show[1:]),
    ]
