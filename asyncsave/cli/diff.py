"""``asyncsave diff``: how two checkpoints differ, without loading them."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from asyncsave import pending
from asyncsave.cli.files import files_of
from asyncsave.cli.terminal import FINDINGS, Json, Terminal, answering, new_table
from asyncsave.errors import LoadError
from asyncsave.inspection.contents import Look, look
from asyncsave.inspection.difference import Change, Compared, compare
from asyncsave.storage.source import FileSource, open_source
from asyncsave.units import size

__all__ = ["diff"]

First = Annotated[str, typer.Argument(metavar="A", help="A checkpoint, or the folder of a step.", show_default=False)]
Second = Annotated[str, typer.Argument(metavar="B", help="Another one.", show_default=False)]
Values = Annotated[bool, typer.Option("--values", help="Read the tensors too, and say by how much they differ.")]


def diff(a: First, b: Second, values: Values = False, json: Json = False) -> None:
    """Compare two checkpoints: keys, shapes and types, and with --values what they hold. Exits with 3 if not equal."""
    with answering(json=json) as terminal:
        with ExitStack() as opened:  # what is said is said behind it: there an error of stdout's would be one of a file
            sources = [opened.enter_context(open_source(_file_at(path))) for path in (a, b)]
            looks = [look(source) for source in sources]
            compared = compare(looks[0].contents, looks[1].contents, values=values)
            if values:
                compared.changed.extend(_by_value(terminal, sources, looks, compared))
        equal = not (compared.only_a or compared.only_b or compared.changed)
        terminal.document(
            {
                "equal": equal,
                "only_a": compared.only_a,
                "only_b": compared.only_b,
                "changed": [_document(change) for change in compared.changed],
            }
        )
        _tell(terminal, compared, equal=equal, values=values)
        if not equal:
            terminal.leave(FINDINGS)


def _file_at(path: str) -> str:
    files = files_of(path)
    if len(files) > 1:
        names = ", ".join(repr(os.path.basename(file)) for file in files)
        message = f"{os.path.abspath(path)!r} is a step of several files: compare one by one {names}"
        raise LoadError(message, path=os.path.abspath(path))
    pending.wait_for(os.path.abspath(files[0]))
    return files[0]


def _by_value(terminal: Terminal, sources: list[FileSource], looks: list[Look], compared: Compared) -> list[Change]:
    if not compared.pairs:
        return []
    from asyncsave.inspection.amounts import Side, changed_tensors  # only this needs torch, which takes seconds

    sides = [Side(source, seen) for source, seen in zip(sources, looks, strict=True)]
    with terminal.bar("compare", sum(pair.a.nbytes for pair in compared.pairs)) as moved:
        return list(changed_tensors(sides[0], sides[1], compared.pairs, moved))


def _document(change: Change) -> dict[str, Any]:
    said: dict[str, Any] = {"name": change.name, "what": change.what, "a": change.a, "b": change.b}
    if change.elements is not None:
        greatest = change.greatest
        said |= {
            "elements": change.elements,
            "differing": change.differing,
            "greatest": "Infinity" if greatest is not None and math.isinf(greatest) else greatest,
        }
    return said


def _tell(terminal: Terminal, compared: Compared, *, equal: bool, values: bool) -> None:
    if terminal.json:
        return
    if equal:
        terminal.show("equal" if values else "equal in keys, shapes and types (--values compares what they hold)")
        return
    for names, which in ((compared.only_a, "A"), (compared.only_b, "B")):
        terminal.show(*(f"only in {which}: {name}" for name in names))
    if compared.changed:
        table = new_table()
        table.add_column("name", overflow="fold", min_width=12)
        table.add_column("what", no_wrap=True)
        for name in ("A", "B", "by"):
            table.add_column(name, overflow="fold")
        for change in compared.changed:
            table.add_row(change.name or "(the state)", change.what, _side(change.a), _side(change.b), _by(change))
        terminal.show(table)
    if not values:
        same = sum(pair.a.nbytes for pair in compared.pairs)
        terminal.show(f"{size(same)} in tensors of one shape were not compared (--values compares what they hold)")


def _side(value: Any) -> str:
    return " x ".join(map(str, value)) or "scalar" if isinstance(value, list) else str(value)


def _by(change: Change) -> str:
    if change.elements is None:
        return ""
    share = f"{change.differing:,} of {change.elements:,}"
    return share if change.greatest is None else f"{change.greatest:.3g} at most, {share}"
