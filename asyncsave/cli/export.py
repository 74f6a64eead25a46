"""``asyncsave export``: one part of a checkpoint into a file of its own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from asyncsave.cli.plain import shortest
from asyncsave.cli.runs import Metric, Mode, Run, the_checkpoint
from asyncsave.cli.terminal import Json, Yes, answering
from asyncsave.storage.target import resolve
from asyncsave.units import size

__all__ = ["export"]

File = Annotated[str, typer.Argument(metavar="FILE", help="The file to write.", show_default=False)]
Step = Annotated[
    str | None, typer.Option(metavar="STEP", help="latest, best, or the number of a step.", show_default="latest")
]
Part = Annotated[str, typer.Option(help="A part of the training state, or a part of its own.")]


def export(
    run: Run,
    file: File,
    step: Step = None,
    metric: Metric = None,
    mode: Mode = "min",
    part: Part = "model",
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Write one part of a checkpoint, such as the bare weights of the best model, to a file for torch.load."""
    with answering(json=json) as terminal:
        info = the_checkpoint(run, step, metric, mode)
        resolve(os.path.abspath(file))  # before what takes time
        if os.path.lexists(file):
            terminal.confirm(f"{shortest(file)} is there: replace it?", yes=yes)
        from asyncsave.api import save  # it stands on torch
        from asyncsave.runs.exporting import one_part

        with one_part(info, part) as found:
            result = save(found, file)
        terminal.document(
            {
                "path": result.path,
                "nbytes": result.nbytes,
                "digest": result.digest,
                "durable": result.durable,
                "part": part,
                "step": info.step,
                "checkpoint": info.path,
            }
        )
        terminal.show(f"{shortest(result.path)}: {part!r} of step {info.step}, {size(result.nbytes)}, {result.digest}")
