"""The commands by name. Each is a function of a module of its own; this is only the list."""

from __future__ import annotations

from typing import Annotated

import typer

import asyncsave
from asyncsave.cli.bench import bench
from asyncsave.cli.doctor import doctor

__all__ = ["app"]

app = typer.Typer(
    name="asyncsave",
    help="Measure whether background saving helps, and look inside checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"asyncsave {asyncsave.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure whether background saving helps, and look inside checkpoints."""


app.command("bench")(bench)
app.command("doctor")(doctor)
