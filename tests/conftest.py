"""What every test stands on: nothing may leak, no error may go unread. And what tests of several files share."""

from __future__ import annotations

import contextlib
import functools
import gc
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import loops
import psutil
import pytest
from attempts import attempts_inside
from backends import VARIABLE, make_writer
from commands import Commands, Done
from finished import make_runs
from gates import Gated
from processes import nobody_is_left
from programs import Result, Template

import asyncsave
from asyncsave import notices

# A shell starts what runs in its background deaf to these, and every program under test would be so, too.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

_PATIENCE = 30.0
_LAST_MOMENT = 2.0
_DESCRIPTORS = Path("/proc/self/fd")
_MAPPINGS = Path("/proc/self/maps")


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.is_alive()}


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.is_dir() else ():
        with contextlib.suppress(OSError):  # the listing's own
            found[entry.name] = str(entry.readlink())
    return found


def _mappings() -> set[str]:
    """Return the shared arenas that are mapped."""
    lines = _MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines() if _MAPPINGS.exists() else []
    return {line for line in lines if "/memfd:asyncsave" in line}


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(autouse=True)
def _nothing_leaks(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves threads, descriptors, shared memory, child processes or temporary files behind."""
    threads, descriptors, mappings, children = _threads(), _descriptors(), _mappings(), _children()
    yield
    asyncsave.shutdown(_PATIENCE)  # raises what nobody has read
    for thread in _threads() - threads:
        thread.join(_LAST_MOMENT)
    left = _threads() - threads
    assert not left, f"threads are left: {left}"
    if _descriptors().items() - descriptors.items() or _mappings() - mappings:
        gc.collect()
    new = _descriptors().items() - descriptors.items()
    assert not new, f"descriptors are left open: {sorted(new)}"
    assert not _mappings() - mappings, "shared memory is left mapped"
    assert not _children() - children, "child processes are left"
    files = list(tmp_path.rglob(".asyncsave-*"))
    assert not files, f"temporary files are left: {files}"


@pytest.fixture(autouse=True)
def _notices_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test be the first that is warned."""
    monkeypatch.setattr(notices, "_said", set())


@pytest.fixture
def open_writer() -> Iterator[Callable[..., asyncsave.Writer]]:
    """Make writers that are closed after the test, their gates opened first."""
    with contextlib.ExitStack() as after:

        def make(**options) -> asyncsave.Writer:
            writer = make_writer(**options)
            after.callback(writer.close, _PATIENCE)
            system = options.get("system")
            if isinstance(system, Gated):
                after.callback(system.release)
            return writer

        yield make


@pytest.fixture(params=["thread", "process"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once with every backend: what ``make_writer`` and ``open_writer`` make has it."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture
def until_processes_end(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """Return a function that waits for the writer processes of the test's programs, all of which must end."""
    mark = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(mark))
    yield lambda: nobody_is_left(mark)
    nobody_is_left(mark)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where to save to; what is temporary goes to ``tmp_path`` itself, by which the processes are known."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = tmp_path / "saved"
    made.mkdir()
    return made


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    """Start an interpreter from which programs are forked in milliseconds."""
    made = Template()
    yield made
    made.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[asyncsave.CheckpointManager]:
    """Return a manager with nothing in it."""
    with asyncsave.CheckpointManager(tmp_path) as made:
        yield made


@pytest.fixture
def protected(template: Template, tmp_path: Path) -> Callable[..., tuple[Result, dict[str, list[str]]]]:
    """Return what runs a protected loop: see :func:`loops.protected`."""
    return functools.partial(loops.protected, template, tmp_path)


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., tuple[int, int, int]]:
    """Return what restores what a protected loop has left: see :func:`loops.found`."""
    return functools.partial(loops.found, tmp_path)


@pytest.fixture(scope="session")
def quick() -> Iterator[Commands]:
    """Run commands in forked processes."""
    made = Commands()
    yield made
    made.close()


@pytest.fixture
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting of whoever runs the tests decide on colours."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Done]]:
    """Return what runs a command of the test's own in this process: see :func:`attempts.attempts_inside`."""
    with attempts_inside(monkeypatch, capfd) as run_inside:
        yield run_inside


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two runs that are over, once: see :func:`finished.make_runs`."""
    made = tmp_path_factory.mktemp("made")
    make_runs(made)
    return made


@pytest.fixture
def root(two_runs: Path, tmp_path: Path) -> Iterator[Path]:
    """Copy the two runs, for a test that may change them and leave litter in them."""
    yield Path(shutil.copytree(two_runs, tmp_path / "runs"))
    shutil.rmtree(tmp_path / "runs")


@pytest.fixture
def version(root: Path) -> Path:
    """Return the folder of the first run's only version."""
    return root / "p" / "first" / "1"
