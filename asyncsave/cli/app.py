"""The commands by name. Each is a function of a module of its own, imported when it is wanted."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

import asyncsave

__all__ = ["COMMANDS", "app_for"]

COMMANDS = {
    "bench": "bench",
    "advise": "how_often",
    "inspect": "inspect",
    "diff": "diff",
    "verify": "verify",
    "ls": "ls",
    "show": "show",
    "prune": "prune",
    "clean": "clean",
    "export": "export",
    "doctor": "doctor",
}
"""The function of each, in the module of ``asyncsave.cli`` that has the command's name; in the order of the help."""


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """Return the application, with the command that is named in these arguments; with all, if none is."""
    app = typer.Typer(
        name="asyncsave",
        help="Measure whether background saving helps, and look inside checkpoints.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    named = [argument for argument in arguments if not argument.startswith("-")][:1]
    for name, function in COMMANDS.items():
        if name in named or not COMMANDS.keys() & set(named):
            app.command(name)(getattr(importlib.import_module(f"asyncsave.cli.{name}"), function))
    return app


def _version(value: bool) -> None:
    if value:
        typer.echo(f"asyncsave {asyncsave.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure whether background saving helps, and look inside checkpoints."""
