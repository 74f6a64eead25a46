"""``asyncsave verify``: every byte of files or whole runs."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from asyncsave.cli.plain import plain, shortest
from asyncsave.cli.terminal import FAILED, FINDINGS, Json, Terminal, answering, new_table
from asyncsave.runs.checking import Checked, File, check_all, files_at
from asyncsave.units import size

__all__ = ["verify"]

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, steps, runs.", show_default=False)]

_LONGEST = 200


def verify(paths: Paths, json: Json = False) -> None:
    """Read every byte of checkpoints, and hold it against its checksum and the manifest of its step."""
    with answering(json=json) as terminal:
        named = dict.fromkeys(os.path.abspath(path) for path in paths)
        found = list({one.path: one for path in named for one in files_at(path)}.values())
        checked = _check(terminal, found)
        wrong = [one for one in checked if not one.ok]
        failed = [one for one in wrong if not one.damaged]
        _tell(terminal, checked, wrong)
        document: dict[str, Any] = {"ok": not wrong, "files": [_document(one) for one in checked]}
        if failed and len(failed) == len(wrong):
            document["error"] = _error(failed[0])
        terminal.document(document)
        for one in failed:
            terminal.note(f"error: {_error(one)['message']}", style="red")
        if wrong:
            terminal.leave(FAILED if len(failed) == len(wrong) else FINDINGS)


def _check(terminal: Terminal, found: list[File | Checked]) -> list[Checked]:
    """Check what is to be checked; return all in the order of the paths."""
    files = [one for one in found if isinstance(one, File)]
    results: dict[str, Checked | None] = {one.path: one for one in found if isinstance(one, Checked)}
    with terminal.bar("verify", sum(file.nbytes for file in files)) as read:
        for number, checked in check_all(files, read):
            results[files[number].path] = checked
    if dropped := sum(one is None for one in results.values()):
        terminal.note(f"{dropped} of the files belonged to steps that were dropped meanwhile")
    in_order = (results[one.path] for one in found)
    return [one for one in in_order if one is not None]


def _tell(terminal: Terminal, checked: list[Checked], wrong: list[Checked]) -> None:
    if wrong:
        folder = os.path.commonpath([os.path.dirname(one.path) for one in wrong])
        table = new_table()
        for name in ("file", "record"):
            table.add_column(name, overflow="fold")
        table.add_column("problem", no_wrap=True)
        for name in ("expected", "found"):
            table.add_column(name, overflow="fold")
        for one in wrong:
            for number, problem in enumerate(one.problems):
                name = "" if number else os.path.relpath(one.path, folder)
                words = (name, problem.record or "-", problem.kind, problem.expected, problem.found)
                table.add_row(*map(_short, words))
        terminal.show(f"in {shortest(folder)}:", table)
    right = [one for one in checked if one.ok]
    total = size(sum(one.nbytes for one in right))
    terminal.show(f"{len(right)} of {len(checked)} file{'' if len(checked) == 1 else 's'} right, {total}")


def _short(text: str) -> str:
    said = plain(text)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def _document(one: Checked) -> dict[str, Any]:
    problems = [
        {"record": problem.record, "kind": problem.kind, "expected": problem.expected, "found": problem.found}
        for problem in one.problems
    ]
    return {"path": one.path, "ok": one.ok, "nbytes": one.nbytes, "problems": problems}


def _error(one: Checked) -> dict[str, Any]:
    """Say of what could not be checked why."""
    problem = one.problems[0]
    kind = "CheckpointNotFoundError" if problem.kind == "not found" else "LoadError"
    message = f"cannot check {one.path!r}: {problem.kind}: expected {problem.expected}, found {problem.found}"
    return {"kind": kind, "message": message, "path": one.path}
