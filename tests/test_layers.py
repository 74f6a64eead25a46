"""Imports go one way, and tensors stay above the staging line: the table of rooms, held against the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import asyncsave

ROOT = Path(asyncsave.__file__).parent

LAYERS: list[tuple[str, set[str]]] = [
    ("the command line", {"__main__", "cli"}),
    ("edges", {"__init__", "aio"}),
    ("measuring and deciding", {"bench", "doctor"}),
    ("the checkpoints of a training", {"runs"}),
    ("the shared writer", {"api"}),
    ("the writer", {"writer"}),
    ("from live objects to staged images", {"intake", "request"}),
    ("what is on disk", {"deferred", "inspection", "loading", "verification"}),
    (
        "the queue and its ends",
        {"admission", "handle", "ledger", "lifecycle", "notices", "observers", "slots", "stats", "transit"},
    ),
    ("who works in the background", {"backends", "commission", "service"}),
    ("the talk between the two processes", {"channel", "claim", "reporter", "wire"}),
    ("whole checkpoints, as bytes", {"bundle", "persist", "reading"}),
    ("what a run has on disk", {"catalogue"}),
    ("staging: the only place with tensors", {"staging"}),
    ("storage: the only place that opens files", {"storage"}),
    ("images: pure bytes", {"image"}),
    (
        "ground",
        {"cgroups", "cores", "descriptors", "errors", "memory", "options", "pending", "result", "units", "workers"},
    ),
]
"""From the top down. A name is a module, or a folder with all modules in it."""

WITH_TENSORS = {"deferred", "inspection.amounts", "loading", "staging.capture", "staging.copying", "staging.storages"}
WITH_TENSORS |= {"runs.description", "runs.modules", "runs.restoring", "runs.rng", "runs.training_state"}
WITH_TENSORS |= {"bench.loops", "bench.profile", "bench.savers", "bench.session", "bench.states"}
"""The modules that import torch themselves."""

BYTES_ONLY = ("image", "storage", "catalogue", "backends", "bundle", "persist", "reading", "verification", "pending")
BYTES_ONLY += ("workers", "result", "stats", "errors", "memory", "cores", "descriptors", "options")
BYTES_ONLY += ("service", "commission", "reporter", "channel", "claim", "wire")
"""What the background is made of: a process that does only this needs no torch."""

SYSTEM_CALLS = {
    "fsync",
    "fdatasync",
    "mkdir",
    "makedirs",
    "rmdir",
    "rename",
    "replace",
    "link",
    "unlink",
    "remove",
    "truncate",
    "ftruncate",
    "pwrite",
}
"""What changes files: in the one seam for system calls, and nowhere else."""


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            whole = module == "asyncsave" or (ROOT / Path(*module.split(".")[1:])).is_dir()
            found |= {f"{module}.{alias.name}" for alias in node.names} if whole else {module}
    return found


SOURCES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}
IMPORTS = {name: _imports(path) for name, path in SOURCES.items()}


def _inside(name: str) -> set[str]:
    """Return which modules of this package a module imports."""
    return {found.partition(".")[2] for found in IMPORTS[name] if found.partition(".")[0] == "asyncsave"} & set(SOURCES)


def _room(name: str) -> int:
    for number, (_, members) in enumerate(LAYERS):
        if name in members or name.partition(".")[0] in members:
            return number
    pytest.fail(f"asyncsave/{name} has no place in the table of layers: give it one (tests/test_layers.py)")


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_downwards(name):
    """A module may use its own room and the rooms below it, never those above."""
    here = _room(name)
    for other in _inside(name):
        there = _room(other)
        assert there >= here, (
            f"asyncsave.{name} ({LAYERS[here][0]}) imports asyncsave.{other} ({LAYERS[there][0]}), which is above it. "
            "Imports point downwards only: move what is shared down, or hand it in from above"
        )


def test_no_imports_go_round_in_a_circle():
    """Inside a room, too, there is an order."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle of imports: {' -> '.join((*way, name))}"
        if name not in done:
            for other in _inside(name):
                visit(other, (*way, name))
            done.add(name)

    for name in SOURCES:
        visit(name, ())


def test_the_table_has_no_rooms_that_are_gone():
    """What is in the table is in the package."""
    for _, members in LAYERS:
        for member in members:
            assert member in SOURCES or f"{member}.__init__" in SOURCES, f"asyncsave/{member} is gone"


def test_torch_is_imported_where_tensors_are():
    """Few modules, all known."""
    found = {name for name, imports in IMPORTS.items() if any(one.partition(".")[0] == "torch" for one in imports)}
    assert found == WITH_TENSORS


@pytest.mark.parametrize("name", [name for name in SOURCES if name.partition(".")[0] in BYTES_ONLY])
def test_below_the_staging_line_there_are_only_bytes(name):
    """Nothing that the background is made of reaches torch, by whatever way."""

    def reach(one: str, way: tuple[str, ...]) -> None:
        assert one not in WITH_TENSORS, f"asyncsave.{name} reaches torch: {' -> '.join((*way, one))}"
        for other in _inside(one):
            reach(other, (*way, one))

    reach(name, ())


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in {"storage.system", "memory"}])
def test_files_are_changed_in_one_place(name):
    """Every call that changes a file is a method of System: a test can make it fail, and none escapes a commit.

    (What ``memory`` gives a size is memory that has a descriptor, and no file.)
    """
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in SYSTEM_CALLS, f"asyncsave.{name}, line {node.lineno}: os.{node.attr}"
