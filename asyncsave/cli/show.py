"""``asyncsave show``: all that is known of one checkpoint of a run, without loading it."""

from __future__ import annotations

import json as _json
import os
from typing import Annotated

import typer
from rich.table import Table

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.listing import read_manifest
from asyncsave.catalogue.manifest import Manifest
from asyncsave.catalogue.names import MANIFEST
from asyncsave.cli.plain import for_json, plain, shortest
from asyncsave.cli.runs import Metric, Mode, Run, about, age, epoch_of, kind_of, metrics_of, moment, the_checkpoint
from asyncsave.cli.terminal import Json, Terminal, answering, new_table
from asyncsave.units import size

__all__ = ["show"]

Step = Annotated[
    str | None, typer.Argument(metavar="STEP", help="latest, best, or the number of a step.", show_default="latest")
]


def show(run: Run, step: Step = None, metric: Metric = None, mode: Mode = "min", json: Json = False) -> None:
    """Show what is known of a checkpoint: metrics, files, where it was saved, and by what."""
    with answering(json=json) as terminal:
        info = the_checkpoint(run, step, metric, mode)
        manifest = read_manifest(os.path.join(info.path, MANIFEST))
        terminal.document(
            {
                **about(info),
                "tensors": manifest.tensors,
                "asyncsave": manifest.asyncsave,
                "torch": manifest.torch,
                "host": manifest.host,
                "commit": manifest.commit,
            }
        )
        _tell(terminal, info, manifest)


def _tell(terminal: Terminal, info: CheckpointInfo, manifest: Manifest) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    words = {
        "step": f"{info.step}, {kind_of(info)}" if kind_of(info) else str(info.step),
        "folder": shortest(info.path),
        "saved": f"{moment(info.time)} ({age(info.time)})",
        "epoch": epoch_of(info) or "-",
        "metrics": metrics_of(info) or "-",
        "metadata": plain(_json.dumps(for_json(info.metadata), ensure_ascii=False)) if info.metadata else "-",
        "tensors": f"{manifest.tensors:,}",
        "by": plain(f"asyncsave {manifest.asyncsave}, torch {manifest.torch}, on {manifest.host}"),
        "commit": plain(manifest.commit or "-"),
    }
    for name, word in words.items():
        table.add_row(name, word)
    files = new_table()
    files.add_column("file", overflow="fold")
    files.add_column("size", justify="right", no_wrap=True)
    files.add_column("digest", no_wrap=True)
    for name, file in info.files.items():
        files.add_row(plain(name), size(file.nbytes), plain(file.digest))
    terminal.show(table, files)
