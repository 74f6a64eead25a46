"""What a command says: its result on stdout, for people or as one JSON document; all else on stderr."""

from __future__ import annotations

import contextlib
import json as _json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from asyncsave.cli.plain import plain
from asyncsave.cli.streams import silence
from asyncsave.errors import AsyncSaveError, CorruptCheckpointError, OptionError

__all__ = ["FAILED", "FINDINGS", "USAGE", "Json", "Terminal", "Yes", "answering", "new_table"]

FAILED, USAGE, FINDINGS = 1, 2, 3
"""Exit codes besides 0: it failed, it was not understood, it has found something (corrupt, differs, hurts)."""

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, documented in docs/cli.md.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_UNBOUNDED = 10_000
"""Columns where nobody looks: a pipe or a file takes lines of any length."""


class Terminal:
    """Where a command's words go.

    Args:
        json: Whether stdout is for one JSON document.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._out, self._err = _console(sys.stdout, _Result), _console(sys.stderr, _Notes)

    def document(self, said: Mapping[str, Any]) -> None:
        """Print the result for a machine; only with ``--json``. That its reader has left changes no exit code."""
        if self.json:
            try:
                sys.stdout.write(_json.dumps(said, indent=2, sort_keys=True, allow_nan=False) + "\n")
            except BrokenPipeError:
                silence(sys.stdout)

    def show(self, *renderables: RenderableType) -> None:
        """Print the result for people; not with ``--json``.

        Text is taken as it is, without markup; what a terminal would interpret is escaped in every ``str``, also in
        the cells of a table (not in a ``Text``: make none of names from files).
        """
        if not self.json:
            for one in renderables:
                self._out.print(one, markup=False, highlight=False, soft_wrap=isinstance(one, str))

    def note(self, text: str, *, style: str | None = None) -> None:
        """Say something beside the result, on stderr, if anybody can be told there."""
        with contextlib.suppress(OSError):
            self._err.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def complain(self, kind: str, message: str, path: str | None) -> None:
        """Say what went wrong: on stderr, and with ``--json`` as the document, too."""
        self.note(f"error: {message}", style="red")
        with contextlib.suppress(OSError):  # that it cannot be said, the entry point says
            self.document({"error": {"kind": kind, "message": message, "path": path}})

    def confirm(self, question: str, *, yes: bool) -> None:
        """Have something agreed to, on stderr; return if it is.

        Raises:
            typer.Exit: It is not, or there is nobody to ask.
        """
        if yes:
            return
        if self.json or not sys.stdin.isatty():
            self.complain("UsageError", f"{question} Nobody can be asked here: say --yes", None)
            raise typer.Exit(USAGE)
        if not typer.confirm(plain(question), err=True):
            self.note("nothing was done")
            raise typer.Exit(FAILED)

    @contextlib.contextmanager
    def bar(self, what: str, total: float, *, unit: str = "bytes") -> Iterator[Callable[[float], None]]:
        """Show a bar on stderr while the block runs, if that is a terminal; yield a function that moves it on.

        Args:
            what: What is being done.
            total: How much there is to do.
            unit: ``"bytes"`` shows a rate, too.
        """
        columns = [TextColumn("{task.description}", markup=False), BarColumn()]
        if unit == "bytes":
            columns += [DownloadColumn(), TransferSpeedColumn()]
        nobody = not self._err.file.isatty() or self._err.is_dumb_terminal
        progress = Progress(*columns, TimeRemainingColumn(), console=self._err, transient=True, disable=nobody)
        with progress:
            task = progress.add_task(plain(what), total=total)
            yield lambda amount: progress.advance(task, amount)

    def leave(self, code: int) -> NoReturn:
        """End the command.

        Raises:
            typer.Exit: Always.
        """
        raise typer.Exit(code)


def new_table() -> Table:
    """Return an empty table as all commands show theirs: headings, a line, and rows."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


@contextlib.contextmanager
def answering(*, json: bool) -> Iterator[Terminal]:
    """Run a command's body; an error of ours, or of the system, is told, and decides the exit code."""
    terminal = Terminal(json=json)
    try:
        yield terminal
    except BrokenPipeError:
        raise
    except (AsyncSaveError, OSError) as error:
        path = getattr(error, "path", None) or getattr(error, "filename", None)
        terminal.complain(type(error).__name__, str(error), None if path is None else str(path))
        raise typer.Exit(_code(error)) from None


def _code(error: Exception) -> int:
    if isinstance(error, OptionError):
        return USAGE
    return FINDINGS if isinstance(error, CorruptCheckpointError) else FAILED


class _Console(Console):
    """A console on which nothing is interpreted that comes from a file."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape what a terminal would interpret, line by line."""
        return super().render_str("\n".join(map(plain, text.split("\n"))), **options)


class _Result(_Console):
    """Lets a reader that has left end the command, quietly."""

    def on_broken_pipe(self) -> None:
        """Leave it to the entry point."""
        raise BrokenPipeError


class _Notes(_Console):
    """Goes on without a reader: what is said here is not the result."""

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True


def _console(stream: Any, kind: type[_Console]) -> _Console:
    console = kind(file=stream)
    if not stream.isatty():  # whatever FORCE_COLOR says
        console.width = _UNBOUNDED
    return console
