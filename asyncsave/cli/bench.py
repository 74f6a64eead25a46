"""``asyncsave bench``: does background saving help on this machine?"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from asyncsave.bench.plan import ALL_MODES, Plan
from asyncsave.bench.table import told
from asyncsave.cli.measuring import measure_now
from asyncsave.cli.sizes import nbytes_of, seconds_of
from asyncsave.cli.terminal import FINDINGS, Json, answering
from asyncsave.storage.folders import put_file
from asyncsave.storage.system import System
from asyncsave.storage.target import resolve

__all__ = ["bench"]

Folder = Annotated[str, typer.Argument(metavar="DIR", help="A folder on the disk to save to.", show_default=False)]
Size = Annotated[str, typer.Option(help="Bytes of the state: 4MB, 1.5GiB.")]
Tensors = Annotated[int, typer.Option(help="How many tensors it has.")]
Dtype = Annotated[str, typer.Option(help="Their type: float32, bfloat16, float16, float64, int8.")]
Like = Annotated[str | None, typer.Option(metavar="FILE", help="Take the state of this checkpoint instead.")]
StepKind = Annotated[
    str | None,
    typer.Option("--step", metavar="KIND", help="The training: cpu, python, gpu, or your own step, module:function."),
]
Saves = Annotated[int, typer.Option(help="How many saves of each mode count; six give an interval.")]
Mode = Annotated[
    list[str] | None, typer.Option("--mode", help=f"A mode to measure, may be repeated: {', '.join(ALL_MODES)}.")
]
Time = Annotated[str, typer.Option(help="Take no longer than this: 90, 10min.")]
Written = Annotated[str, typer.Option("--write-at-most", metavar="BYTES", help="Write no more than this.")]


def bench(
    folder: Folder = ".",
    size: Size = "256MB",
    tensors: Tensors = 200,
    dtype: Dtype = "float32",
    like: Like = None,
    step: StepKind = None,
    saves: Saves = 10,
    mode: Mode = None,
    time: Time = "10min",
    written: Written = "1TB",
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a report, one self-contained page.")] = None,
    plots: Annotated[str | None, typer.Option(metavar="DIR", help="Write the plots: PNG, SVG and CSV.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how long it would take, and what.")] = False,
    json: Json = False,
) -> None:
    """Measure whether background saving helps here."""
    with answering(json=json) as terminal:
        illustrated = html is not None or plots is not None
        if illustrated:
            from asyncsave.bench.plots import require

            require()  # before the measurement, not after it
        if html is not None:
            resolve(os.path.abspath(html))
        plan = Plan(
            os.path.abspath(folder), nbytes_of(size), tensors, dtype, like, step or _usual_step(), saves,
            tuple(mode or ALL_MODES), illustrated, seconds_of(time), nbytes_of(written),
        )  # fmt: skip
        document = measure_now(terminal, plan, dry_run=dry_run)
        if document is None:
            return
        terminal.show(told(document))
        if plots is not None:
            from asyncsave.bench.plots import write_plots

            for path in write_plots(document, plots):
                terminal.note(f"wrote {path}")
        if html is not None:
            from asyncsave.bench.page import page

            put_file(System(), os.path.abspath(html), page(document).encode())
            terminal.note(f"wrote {html}")
        terminal.document(document)
        if document["verdict"] is not None and not document["verdict"]["helps"]:
            terminal.leave(FINDINGS)


def _usual_step() -> str:
    from asyncsave.bench.loops import usual_kind

    return usual_kind()
