"""The command line as a user has it: a process of its own, with pipes or with a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, NamedTuple

from programs import Template

from asyncsave.cli.app import COMMANDS

__all__ = ["PATIENCE", "ROOT", "Commands", "Done", "command", "documents", "on_terminal", "run"]

ROOT = str(Path(__file__).parent.parent)
"""Where the package is, for a process of its own."""
PATIENCE = 60.0
"""Seconds within which every command has ended, on the slowest machine."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Done(NamedTuple):
    """How a command ended."""

    rc: int
    out: str
    err: str


def command(*arguments: object) -> list[str]:
    """Return the words that start a command."""
    return [sys.executable, "-m", "asyncsave", *map(os.fspath, map(_word, arguments))]


def _word(argument: object) -> Any:
    return argument if isinstance(argument, (str, bytes, os.PathLike)) else str(argument)


def run(*arguments: object, cwd: Path | None = None, stdout: int = subprocess.PIPE, **environment: str) -> Done:
    """Run a command with pipes, and nothing to read."""
    done = subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        cwd=cwd,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
    )
    out = b"" if done.stdout is None else done.stdout
    result = Done(done.returncode, out.decode(), done.stderr.decode())
    assert "Traceback" not in result.err, result.err
    return result


def documents(*arguments: object, rc: int = 0, **options: Any) -> dict[str, Any]:
    """Run a command with ``--json``; return the one document on its stdout, strict JSON."""
    return _document(run(*arguments, "--json", **options), rc)


def _document(done: Done, rc: int) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert done.rc == rc, done
    return dict(json.loads(done.out, parse_constant=refuse))


class Commands:
    """Runs commands in processes that are forked from one which has all modules: many in little time.

    Args:
        also: Modules that it has besides those of the commands.
    """

    def __init__(self, *also: str) -> None:
        self._template = Template(*(f"asyncsave.cli.{name}" for name in COMMANDS), *also)

    def run(self, *arguments: object, cwd: Path | None = None) -> Done:
        """Do what :func:`run` does."""
        words = [os.fspath(_word(argument)) for argument in arguments]
        result = Done(*self._template.run(_PROGRAM, cwd or ".", *words))
        assert "Traceback" not in result.err, result.err
        return result

    def documents(self, *arguments: object, rc: int = 0, cwd: Path | None = None) -> dict[str, Any]:
        """Do what :func:`documents` does."""
        return _document(self.run(*arguments, "--json", cwd=cwd), rc)

    def close(self) -> None:
        """End the template."""
        self._template.close()


_PROGRAM = """
import os, sys
os.chdir(sys.argv.pop(1))
from asyncsave.cli.entry import main
try:
    main()
except SystemExit as end:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code)  # to take all of torch down takes a second
"""


def on_terminal(
    *arguments: object, columns: int = 60, typed: str = "", after: str = "", **environment: str
) -> tuple[int, str]:
    """Run a command on a terminal; return its exit code, and what was seen there, without escape sequences.

    Args:
        arguments: The command.
        columns: How wide the terminal is.
        typed: What is typed on it.
        after: What has to be seen before.
        environment: What else it is told.
    """
    ours, theirs = pty.openpty()

    def take_over() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal

    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        surroundings = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
        environment = {"PYTHONPATH": ROOT, "TERM": "xterm", **environment}
        with subprocess.Popen(
            command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env={**surroundings, **environment},
            start_new_session=True, preexec_fn=take_over,  # noqa: PLW1509 - no thread runs here
        ) as process:  # fmt: skip
            os.close(theirs)
            theirs = -1
            try:
                seen = _read(ours, typed.encode(), after.encode())
                return process.wait(PATIENCE), _ESCAPES.sub("", seen).replace("\r", "")
            finally:
                process.kill()
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def _read(fd: int, typed: bytes, after: bytes) -> str:
    """Read a terminal until nobody has it any more; type when it is time for that."""
    seen = b""
    while select.select([fd], [], [], PATIENCE)[0]:
        try:
            data = os.read(fd, 1 << 16)
        except OSError:  # the last process has left
            break
        seen += data
        if typed and after in seen:
            os.write(fd, typed)
            typed = b""
    return seen.decode(errors="replace")
