"""Options, shared fixtures and the table at the end.

Run it with ``python -m pytest -c benchmarks/pytest.ini benchmarks``; it needs about 10 GB of memory and 12 GB of disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from asyncsave.bench.probes import takes_direct
from asyncsave.bench.savers import Saver
from asyncsave.bench.states import State
from asyncsave.storage.mounts import is_durable
from benchmarks.probes import sync
from benchmarks.report import Report, describe
from benchmarks.states import transformer_with_adamw

CHECKOUT = Path(__file__).resolve().parent.parent
ROOM = 14 * 10**9
_report = pytest.StashKey[Report]()
_setting = pytest.StashKey[dict[str, str]]()


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given: a folder on the disk under test, a number of rounds, and the report."""

    folder: Path
    quick: bool
    report: Report = field(repr=False)

    def rounds(self, full: int, quick: int = 2) -> int:
        """Return how many rounds to do."""
        return quick if self.quick else full

    def path(self, name: str = "checkpoint") -> str:
        """Return a path in the folder under test."""
        return str(self.folder / name)

    @contextmanager
    def contest(self, state: State, savers: list[Saver]) -> Iterator[list[Saver]]:
        """Give the contestants; in the end check what each saved last, at its :meth:`path`, close and remove all."""
        with ExitStack() as stack:
            for saver in savers:
                stack.enter_context(closing(saver))
            yield savers
            for saver in savers:
                assert saver.check(state, self.path(saver.name)), saver.name
        self.clear()

    def clear(self) -> None:
        """Remove every checkpoint, and sync, so that the next one does not pay for it."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync(self.folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's own options."""
    group = parser.getgroup("asyncsave benchmarks")
    group.addoption(
        "--bench-dir",
        type=Path,
        default=None,
        help="folder on the disk under test; a temporary folder is made in it. Default: beside the checkout",
    )
    group.addoption("--quick", action="store_true", help="fewer rounds: shows that all works, not how fast")


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Iterator[Bench]:
    """Make a folder on the disk under test; remove it at the end."""
    parent = _disk_under_test(pytestconfig.getoption("bench_dir"))
    with tempfile.TemporaryDirectory(prefix="asyncsave-bench-", dir=parent) as name:
        folder = Path(name)
        pytestconfig.stash[_setting] = describe(folder, direct=takes_direct(folder))
        yield Bench(folder, pytestconfig.getoption("quick"), pytestconfig.stash[_report])


@pytest.fixture(scope="session")
def standard() -> State:
    """Return the standard state: a 12-layer transformer with AdamW, 1.02 GB in 576 tensors."""
    return transformer_with_adamw()


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty report. It has the ratios; so pytest-benchmark's own table is for comparing runs only."""
    config.stash[_report] = Report()
    config.option.benchmark_quiet = not config.option.benchmark_compare


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Put the setting and the figures beside pytest-benchmark's own statistics."""
    output_json["setting"] = config.stash.get(_setting, {})
    output_json["figures"] = config.stash[_report].as_json()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    report = config.stash[_report]
    if report.rows:
        terminalreporter.section("asyncsave benchmarks")
        for line in report.lines(config.stash[_setting]):
            terminalreporter.line(line)


def _disk_under_test(chosen: Path | None) -> Path:
    """Return the folder to make the temporary folder in: the one asked for, else the first that is a real disk."""
    candidates = [chosen] if chosen else [CHECKOUT.parent, CHECKOUT, Path(tempfile.gettempdir())]
    for folder in candidates:
        fit = os.access(folder, os.W_OK) and (chosen or is_durable(str(folder.resolve())))
        if fit and shutil.disk_usage(folder).free >= ROOM:
            return folder
    tried = ", ".join(map(str, candidates))
    raise pytest.UsageError(
        f"no folder on a real disk, writable and with {ROOM // 10**9} GB free, among {tried}: name one by --bench-dir"
    )
