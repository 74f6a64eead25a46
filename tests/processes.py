"""Processes seen from outside: whether they live, what they hold open; and how they are held still.

A writer process is recognized by the ``TMPDIR`` that a test gave to its trainer: nobody else has it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import textwrap
import time

import torch
from programs import Child, Result, Template

import asyncsave

__all__ = [
    "PATIENCE",
    "Trainer",
    "Watched",
    "arenas",
    "caught_writing",
    "current_service",
    "descriptors",
    "freeze",
    "frozen",
    "nobody_is_left",
    "number_at",
    "numbers_in",
    "service_of",
    "services",
    "state",
    "temporaries",
    "until",
]

PATIENCE = 30.0
"""Seconds within which whatever is to be noticed is noticed, on the slowest machine."""

_PRELUDE = """
import logging, os, pathlib, pickle, signal, sys, threading
import torch, asyncsave
from processes import caught_writing, current_service, descriptors, freeze, frozen, service_of, state
folder = pathlib.Path(sys.argv[1])

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def pause():
    while True:
        signal.pause()

"""


def state(number: int, numel: int = 1000) -> dict[str, object]:
    """Return a state that says in every byte which one it is."""
    return {"number": number, "x": torch.full((numel,), float(number))}


def number_at(path: pathlib.Path, missing: int = 0) -> int:
    """Return which state lies at a path, ``missing`` if none does; every byte of it must be that one's."""
    if not path.exists():
        return missing
    report = asyncsave.verify(path)
    assert report.ok, f"torn: {report}"
    loaded = asyncsave.load(path)
    assert bool((loaded["x"] == float(loaded["number"])).all()), "mixed"
    return int(loaded["number"])


def numbers_in(folder: pathlib.Path) -> dict[str, int]:
    """Return which states lie in a folder, and nothing else may."""
    return {path.name: number_at(path) for path in sorted(folder.iterdir())}


def temporaries(folder: pathlib.Path) -> set[pathlib.Path]:
    """Return the temporary files in a folder."""
    return set(folder.glob(".asyncsave-*"))


def until(condition, what: object = "what was waited for"):
    """Look again and again until something is true, and return it; it never being so fails the test."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in vain: {what() if callable(what) else what}"
        time.sleep(0.001)
    return found


class Trainer:
    """A program forked from a template, killed at the end of the block if its end has not been seen.

    It finds these names: ``folder``, its first argument; ``say``, which prints a line; ``pause``, which
    waits to be killed.

    Args:
        template: The template.
        source: The program.
        args: Its ``sys.argv[1:]``.
    """

    def __init__(self, template: Template, source: str, *args: object) -> None:
        self._child: Child = template.start(_PRELUDE + textwrap.dedent(source), *args)
        self._has_ended = False
        self.pid = self._child.pid

    def __enter__(self) -> Trainer:  # noqa: PYI034 - not made for subclasses
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, after a failure: the template forks one program at a time."""
        if not self._has_ended:
            self.killed()

    def said(self) -> list[str]:
        """Return the lines that it has written so far."""
        return [line for line in self._child.stdout().splitlines(keepends=True) if line.endswith("\n")]

    def heard(self, word: str) -> list[str]:
        """Wait for a line that begins with a word; return the rest of that line, split."""

        def lines() -> list[list[str]]:
            return [words for line in self.said() if (words := line.split())[:1] == [word]]

        found: list[list[str]] = until(lines, lambda: f"{word!r} from {self.said()}\n{self._child._err.read_text()}")
        return found[0][1:]

    def wait(self) -> Result:
        """Wait for its end."""
        self._has_ended = True
        return self._child.wait()

    def killed(self) -> Result:
        """Kill it, and wait for that."""
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        return self.wait()


class Watched:
    """A process, by a descriptor of its own: its number may be another's by the time it is used.

    Args:
        whose: A trainer that says ``service`` and a number; or a number of a process that still lives.
    """

    def __init__(self, whose: Trainer | int) -> None:
        self.pid = whose if isinstance(whose, int) else int(whose.heard("service")[0])
        self._fd = os.pidfd_open(self.pid)

    def __enter__(self) -> Watched:  # noqa: PYI034 - not made for subclasses
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more, and leave it running."""
        with contextlib.suppress(ProcessLookupError):
            self.thaw()
        os.close(self._fd)

    def send(self, number: int) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self._fd, number)

    def thaw(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def has_ended(self, seconds: float = PATIENCE) -> bool:
        """Tell whether it ends within so many seconds."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


def current_service(writer: asyncsave.Writer) -> int:
    """Return the number of a writer's process; 0 if it has none now."""
    child = writer._backend._child
    return child.pid if child else 0


def service_of(writer: asyncsave.Writer) -> int:
    """Return the number of a writer's process; wait for one if it is being replaced."""
    return until(lambda: current_service(writer), "a writer process")


def freeze(pid: int) -> None:
    """Stop a process; return when not one of its threads runs any more."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: _stands_still(pid), f"the standstill of {pid}")


def _stands_still(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        stats = [(task / "stat").read_text() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
    return False


@contextlib.contextmanager
def frozen(pid: int):
    """Stop a process for the length of a block; it may be gone by then."""
    freeze(pid)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def caught_writing(writer: asyncsave.Writer, handle: asyncsave.SaveHandle, dead: set[pathlib.Path]) -> int:
    """Stop a writer process in the midst of a large save; return its number.

    Args:
        writer: Whose process.
        handle: The save.
        dead: Temporary files that are not this process's.
    """
    folder = pathlib.Path(handle.path).parent
    until(lambda: temporaries(folder) - dead, "a temporary file")
    pid = service_of(writer)
    freeze(pid)
    assert temporaries(folder) - dead, "it was done too soon"
    assert not handle.done()
    return pid


def descriptors(pid: int | str = "self") -> set[str]:
    """Return what a process holds open, as /proc names it: files by path, sockets and pipes by number."""
    found = set()
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found.add(str(entry.readlink()))
    return found


def arenas(pid: int | str = "self") -> set[int]:
    """Return the shared memory that a process maps or holds open, by number; none if there is no such process."""
    found = set()
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            if "/memfd:asyncsave" in line:
                found.add(int(line.split()[4]))
        for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            if "/memfd:asyncsave" in str(entry.readlink()):
                found.add(entry.stat().st_ino)
    return found


def services(mark: pathlib.Path) -> list[int]:
    """Return the living writer processes whose ``TMPDIR`` is this folder."""
    sought = b"\0TMPDIR=" + os.fsencode(mark) + b"\0"
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if sought in b"\0" + (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def nobody_is_left(mark: pathlib.Path) -> None:
    """Wait for the end of all writer processes whose ``TMPDIR`` is this folder."""
    until(lambda: not services(mark), lambda: f"the end of {services(mark)}")
