"""Where the command line begins and ends: the exit code, a usage error, Ctrl-C, a reader that has left."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["main"]

_WITHOUT = "the command line needs typer and rich, which are missing: pip install 'asyncsave[cli]'"
_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


def main() -> NoReturn:
    """Run the command that ``sys.argv`` names, and exit.

    Exit codes: 0 fine, 1 failed, 2 usage, 3 findings (corrupt, differs, does not help), 130 Ctrl-C.
    """
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `asyncsave ls | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        import rich  # noqa: F401 - looked for together with typer
        import typer
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(_WITHOUT, file=sys.stderr)  # noqa: T201 - there is nothing else to say it with
        return _FAILED
    from asyncsave.cli.app import app
    from asyncsave.cli.terminal import Terminal

    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.TyperException as error:
        Terminal(json="--json" in arguments).complain("UsageError", error.format_message(), None)
        return error.exit_code
    except typer.Abort:
        return _FAILED
