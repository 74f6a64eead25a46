"""Where the command line begins and ends: the exit code, a usage error, Ctrl-C, a reader that has left."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from asyncsave.cli import signals, streams

__all__ = ["main"]

_WITHOUT = "the command line needs typer and rich, which are missing: pip install 'asyncsave[cli]'"
_UNEXPECTED = "this is a bug of asyncsave, please report it with the lines above"
_FAILED, _INTERRUPTED = 1, 130
_SHELLS = ("bash", "zsh", "fish")


def main() -> NoReturn:
    """Run the command that ``sys.argv`` names, and exit.

    Exit codes: 0 fine, 1 failed, 2 usage, 3 findings (corrupt, differs, does not help), 128 and the number of a
    signal: 130 Ctrl-C, 143 SIGTERM. A reader of stdout that has left (``asyncsave ls | head``) is no error.
    """
    streams.ready()
    signals.watch()
    try:
        code = _run(sys.argv[1:])
    except BrokenPipeError:
        code = 0
    except SystemExit as error:  # a completion script; a signal; typer, whose own text nobody has read
        code = 0 if isinstance(error.__context__, BrokenPipeError) else _code_of(error)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(streams.flushed(code))


def _code_of(error: SystemExit) -> int:
    """Return what the interpreter would make of it, which a program of the user's may have raised."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    return _FAILED


def _run(arguments: list[str]) -> int:
    try:
        import rich  # noqa: F401 - looked for together with typer
        import typer
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        _say_what_is_missing(json="--json" in arguments)
        return _FAILED
    from asyncsave.cli.app import app_for
    from asyncsave.cli.terminal import Terminal

    if arguments[:1] == ["--show-completion"] and arguments[1:] in [[shell] for shell in _SHELLS]:
        os.environ["_ASYNCSAVE_COMPLETE"] = f"source_{arguments[1]}"  # else typer guesses the shell
    terminal = Terminal(json="--json" in arguments)
    try:
        return app_for(arguments)(arguments or ["--help"], prog_name="asyncsave", standalone_mode=False) or 0
    except typer.TyperException as error:
        terminal.complain("UsageError", error.format_message(), None)
        return error.exit_code
    except typer.Abort as error:  # at a question: Ctrl-C, or the end of what is asked
        return _INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else _FAILED
    except BrokenPipeError:
        raise
    except OSError as error:  # the help, to a disk that is full
        terminal.complain(type(error).__name__, str(error), None)
        return _FAILED
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told, in JSON too
        traceback.print_exc()
        terminal.complain(type(error).__name__, f"{error} ({_UNEXPECTED})", None)
        return _FAILED


def _say_what_is_missing(*, json: bool) -> None:
    """Say that typer or rich is missing, with neither."""
    print(f"error: {_WITHOUT}", file=sys.stderr)  # noqa: T201 - there is nothing else to say it with
    if json:
        from json import dumps

        said = {"error": {"kind": "ModuleNotFoundError", "message": _WITHOUT, "path": None}}
        print(dumps(said, indent=2, sort_keys=True))  # noqa: T201
