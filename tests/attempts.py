"""A command of a test's own in the frame of the command line: as a process with pipes, or in this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from commands import PATIENCE, ROOT, Done

from asyncsave.cli import app as app_module

__all__ = ["TABLE", "attempt", "attempts_inside", "words_of"]

_PROGRAM = """
import os, sys, time, types
from asyncsave.cli import app
from asyncsave.cli.entry import main
from asyncsave.cli.terminal import Json, answering
from rich.table import Table

{body}

app.COMMANDS["try"] = "attempt"
sys.modules["asyncsave.cli.try"] = types.SimpleNamespace(attempt=attempt)
main()
"""
"""The command line with one command more, which does what a test is about."""

TABLE = '''
def attempt(json: Json = False):
    """Show what comes from a file."""
    name = "a\\\\x1b[31m[red]\\\\x07\\\\udcff\\\\u20ac" + "n" * 200
    with answering(json=json) as terminal:
        table = Table("name", "\\\\N{SNOWMAN}")
        table.add_row(name, "[bold]b[/bold]")
        terminal.show(name, table)
        terminal.document({"name": name})
        terminal.note(name)
'''.replace("\\\\", "\\")
"""A command that shows and notes a name which holds whatever a name can hold."""


def words_of(body: str, *arguments: str) -> list[str]:
    """Return the words that start a command whose module is ``body``, with a function ``attempt``."""
    return [sys.executable, "-c", _PROGRAM.format(body=body), "try", *arguments]


def attempt(body: str, *arguments: str, line: str | None = None, **environment: str) -> Done:
    """Run a command of the test's own with pipes; return how it ended.

    Args:
        body: The command's module.
        arguments: What follows its name.
        line: A line of bash in which ``"$0" "$@"`` is the command; None: it is started as it is.
        environment: What else it is told.
    """
    words = words_of(body, *arguments)
    if line:
        words = ["bash", "-c", line, *words]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def attempts_inside(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """Yield a function that does what :func:`attempt` does, in this process, which is as before in the end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(app_module, "COMMANDS", dict(app_module.COMMANDS))
    monkeypatch.setitem(sys.modules, "asyncsave.cli.try", None)

    def run_inside(body: str, *arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["asyncsave", "try", *arguments])
        with pytest.raises(SystemExit) as ended:
            exec(compile(_PROGRAM.format(body=body), "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 - ours
        return Done(ended.value.code, *capfd.readouterr())

    try:
        yield run_inside
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
