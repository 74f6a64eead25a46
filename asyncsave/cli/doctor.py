"""``asyncsave doctor``: what is fine on this machine and in a folder, what is not, and what to do."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from asyncsave.cli.sizes import nbytes_of
from asyncsave.cli.terminal import FINDINGS, Json, Terminal, answering
from asyncsave.doctor.check import Check
from asyncsave.errors import OptionError
from asyncsave.units import size

__all__ = ["doctor"]

_LEAST_PROBE = 1 << 20
_WORDS = {True: ("ok", "green"), False: ("NO", "bold red"), None: ("?", "yellow")}
_UNITS = {"_mb_s": "MB/s", "_ms": "ms", "_ns": "ns", "_s": "s"}


def doctor(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="Where checkpoints go.", show_default=False)] = ".",
    probe: Annotated[str, typer.Option("--size", metavar="SIZE", help="Written there, for the rates.")] = "256MB",
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Measure no rates.")] = False,
    no_torch: Annotated[bool, typer.Option("--no-torch", help="Do not start torch to ask about CUDA.")] = False,
    json: Json = False,
) -> None:
    """Say what is fine here, what is not, and what to do."""
    from asyncsave.doctor.examination import examine

    with answering(json=json) as terminal:
        nbytes = nbytes_of(probe)
        if nbytes < _LEAST_PROBE:
            raise OptionError(f"--size must be at least 1MiB, not {probe!r}: less says nothing of a disk")
        if not no_probe and os.path.isdir(folder):
            terminal.note(f"writing and reading up to {size(nbytes)} in {os.path.abspath(folder)} ...")
        checks = examine(folder, probe=None if no_probe else nbytes, torch=not no_torch)
        is_fine = all(check.ok is not False for check in checks)
        _tell(terminal, checks)
        terminal.document(
            {
                "checks": [dataclasses.asdict(check) for check in checks],
                "ok": is_fine,
                "path": os.path.abspath(folder),
            }
        )
        if not is_fine:
            terminal.leave(FINDINGS)


def _tell(terminal: Terminal, checks: list[Check]) -> None:
    wrong = [check for check in checks if check.ok is False]
    hints = [check for check in checks if check.ok is None]
    terminal.show(f"{len(wrong)} of {len(checks)} checks found something to do" if wrong else "nothing is wrong")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        word, style = _WORDS[check.ok]
        table.add_row(word, check.name, shown(check), style=style if check.ok is False else None)
    terminal.show(table)
    for heading, some in (("what to do:", wrong), ("not known, or not needed:", hints)):
        if some:
            remedies = Table.grid(padding=(0, 1))
            remedies.add_column(no_wrap=True)
            remedies.add_column(overflow="fold")
            for check in some:
                remedies.add_row(f"  {check.name}", check.remedy)
            terminal.show(heading, remedies)


def shown(check: Check) -> str:
    """Write what a check has found for people; the unit is in its name."""
    value = check.value
    if value is None:
        return "unlimited" if check.ok and check.name in _WITHOUT_LIMIT else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if check.name.endswith("_bytes"):
        return size(float(value))
    for end, unit in _UNITS.items():
        if check.name.endswith(end):
            return f"{value:,} {unit}"
    return str(value)


_WITHOUT_LIMIT = {
    "memory_limit_bytes",
    "memlock_bytes",
    "file_size_bytes",
    "open_files",
    "cpu_quota",
    "free_inodes",
}
