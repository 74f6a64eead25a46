"""How much host memory do saves take above the training's own, and does it grow?

Each measurement is a process of its own, see `footprint`. Linux only: the peak is the kernel's count.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from asyncsave.bench.spread import Spread
from benchmarks.conftest import CHECKOUT, Bench
from benchmarks.race import recorded_time
from benchmarks.report import Figure

PAGE = 4096
NAMES = {
    "shared once": "memory of both, what they share once (PSS)",
    "trainer uss": "trainer's own (USS)",
    "service uss": "writer process's own (USS)",
}
pytestmark = [
    pytest.mark.benchmark(group="memory (seconds of the whole measuring process)", timer=recorded_time),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from Linux's /proc/self/status"),
]


@pytest.mark.parametrize("arenas", [1, 2], ids=["one save in flight", "two saves in flight"])
def bench_peak(arenas: int, bench: Bench, benchmark: BenchmarkFixture) -> None:
    """Measure the peak with one and with two saves in flight."""
    seconds, told = _measure(bench, "peak", arenas)
    ratio = told["above"] / told["state"] / told["arenas"]
    bench.report.add(
        Figure(f"host memory per arena, {arenas} in use, in states", "<= 1.05", Spread.of([ratio]), limit=1.05)
    )
    bench.report.record(benchmark, [seconds], nbytes=told["state"], promise="file + folder", extra=told)


def bench_flat(bench: Bench, benchmark: BenchmarkFixture) -> None:
    """Measure the growth over many saves; flat is less than a page per save."""
    seconds, told = _measure(bench, "flat", 200 if not bench.quick else 50)
    growth = (told["late"] - told["early"]) / told["saves"]
    bench.report.add(
        Figure(
            f"growth of resident memory over {told['saves']} saves",
            f"< {PAGE} B per save",
            Spread.of([growth]),
            "B",
            PAGE,
        )
    )
    bench.report.record(benchmark, [seconds], nbytes=16 * 10**6, promise="file + folder", extra=told)


def bench_flat_process(bench: Bench, benchmark: BenchmarkFixture) -> None:
    """Measure what trainer and writer process grow by over many saves: memory that they share counts once."""
    seconds, told = _measure(bench, "both", 500 if not bench.quick else 50)
    saves = told["saves"]

    def growth(name: str) -> int:
        return told[f"late {name}"] - told[f"early {name}"]

    for of in ("shared once", "trainer uss", "service uss"):
        bench.report.add(
            Figure(
                f"growth over {saves} saves by a process: {NAMES[of]}",
                f"< {PAGE} B per save",
                Spread.of([growth(of) / saves]),
                "B",
                PAGE,
            )
        )
    descriptors = Spread.of([growth("trainer descriptors") + growth("service descriptors")])
    bench.report.add(
        Figure(f"growth over {saves} saves by a process: descriptors of both", "0", descriptors, "in all", 0.0)
    )
    own = Spread.of([told["late service uss"] / 1e6])
    bench.report.add(Figure(f"writer process after {saves} saves, memory of its own (USS)", "< 60 MB", own, "MB", 60.0))
    bench.report.record(benchmark, [seconds], nbytes=8 * 10**6, promise="file + folder", extra=told)


def _measure(bench: Bench, kind: str, number: int) -> tuple[float, dict[str, int]]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.footprint", kind, str(bench.folder), str(number)]
    answer = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    (bench.folder / "footprint").unlink()
    told: dict[str, int] = json.loads(answer.stdout)
    return time.perf_counter() - began, told
