"""``asyncsave inspect``: what is in a checkpoint, without loading it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated, Any

import typer
from rich.table import Table

from asyncsave.cli.files import files_of
from asyncsave.cli.plain import shortest
from asyncsave.cli.terminal import Json, Terminal, answering, new_table
from asyncsave.inspection.contents import inspect as look_into
from asyncsave.inspection.saved import Contents, SavedTensor
from asyncsave.units import size

__all__ = ["inspect"]

File = Annotated[str, typer.Argument(metavar="FILE", help="A checkpoint, or the folder of a step.", show_default=False)]
Records = Annotated[bool, typer.Option("--records", help="Show the zip's records, too.")]
All = Annotated[bool, typer.Option("--all", help="Show every tensor and value, however many.")]

_SHOWN = 40
_FORMATS = {"asyncsave": "asyncsave", "torch": "torch.save", "torch-legacy": "torch.save, legacy"}


def inspect(file: File, records: Records = False, all: All = False, json: Json = False) -> None:  # noqa: A002 - its name
    """Show what is in a checkpoint: tensors, ties, records, versions. Nothing in it is executed."""
    with answering(json=json) as terminal:
        paths = files_of(file)
        found = [look_into(path) for path in paths]
        documents = [_document(contents) for contents in found]
        whole = os.path.isdir(file)
        terminal.document({"path": os.path.abspath(file), "files": documents} if whole else documents[0])
        for contents in found:
            _tell(terminal, contents, None if all else _SHOWN, records=records)


def _document(contents: Contents) -> dict[str, Any]:
    versions, loads = contents.versions, contents.weights_only
    return {
        "path": contents.path,
        "format": contents.format,
        "versions": {
            "asyncsave": versions.asyncsave,
            "torch": versions.torch,
            "byteorder": versions.byteorder,
            "pickle": versions.pickle,
        },
        "nbytes": contents.nbytes,
        "tensors": [_tensor(tensor) for tensor in contents.tensors],
        "values": [{"name": one.name, "kind": one.kind, "text": one.text} for one in contents.values],
        "records": [
            {"name": one.name, "offset": one.offset, "nbytes": one.nbytes, "crc32": f"{one.crc32:08x}"}
            for one in contents.records
        ],
        "ties": [list(names) for names in contents.ties],
        "storage_nbytes": contents.storage_nbytes,
        "unreferenced_bytes": contents.unreferenced_bytes,
        "weights_only": {"ok": loads.ok, "refused": list(loads.refused)},
    }


def _tensor(tensor: SavedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "kind": tensor.kind,
        "layout": tensor.layout,
        "shape": list(tensor.shape),
        "stride": None if tensor.stride is None else list(tensor.stride),
        "offset": tensor.offset,
        "dtype": tensor.dtype,
        "nbytes": tensor.nbytes,
        "storage": tensor.storage,
        "device": tensor.device,
        "requires_grad": tensor.requires_grad,
        "parts": [_tensor(part) for part in tensor.parts],
    }


def _tell(terminal: Terminal, contents: Contents, most: int | None, *, records: bool) -> None:
    if terminal.json:
        return
    versions = contents.versions
    terminal.show(
        shortest(contents.path),
        f"{_FORMATS[contents.format]}{f' {versions.asyncsave}' if versions.asyncsave else ''}, "
        f"pickle protocol {versions.pickle}, {versions.byteorder}-endian, {size(contents.nbytes)}",
    )
    if contents.tensors:
        terminal.show(_tensors(contents.tensors[:most]))
        _more(terminal, len(contents.tensors), most, "tensors")
    if contents.values:
        terminal.show(_values(contents, most))
        _more(terminal, len(contents.values), most, "values")
    if records and contents.records:
        terminal.show(_records(contents))
    _sum_up(terminal, contents, most)


def _more(terminal: Terminal, count: int, most: int | None, what: str) -> None:
    if most is not None and count > most:
        terminal.show(f"... and {count - most:,} {what} more: --all shows them")


def _tensors(tensors: tuple[SavedTensor, ...]) -> Table:
    table = new_table()
    table.add_column("tensor", overflow="fold", min_width=12)
    table.add_column("shape", overflow="fold")
    table.add_column("type", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("storage", justify="right", no_wrap=True)
    for one in tensors:
        shape = " x ".join("*" if length < 0 else str(length) for length in one.shape) or "scalar"
        kind = one.dtype if one.layout == "strided" else f"{one.dtype} {one.layout}"
        table.add_row(one.name or "(the state)", shape, kind, size(one.nbytes), one.storage or "-")
    return table


def _values(contents: Contents, most: int | None) -> Table:
    table = new_table()
    table.add_column("value", overflow="fold", min_width=12)
    table.add_column("type", overflow="fold")
    table.add_column("is", overflow="fold")
    for one in contents.values[:most]:
        table.add_row(one.name or "(the state)", one.kind, one.text)
    return table


def _records(contents: Contents) -> Table:
    table = new_table()
    table.add_column("record", overflow="fold", min_width=9)
    for name in ("offset", "bytes", "crc32"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in contents.records:
        table.add_row(one.name, str(one.offset), str(one.nbytes), f"{one.crc32:08x}")
    return table


def _sum_up(terminal: Terminal, contents: Contents, most: int | None) -> None:
    counts = Counter(tensor.dtype for tensor in contents.tensors)
    kinds = f" ({', '.join(f'{count:,} {dtype}' for dtype, count in counts.most_common())})" if counts else ""
    terminal.show(f"tensors: {len(contents.tensors):,}{kinds}; their storages: {size(contents.storage_nbytes)}")
    if contents.unreferenced_bytes:
        share = contents.unreferenced_bytes / contents.storage_nbytes
        remedy = "saving with compact=True, or a clone() of the views, leaves it out"
        terminal.show(f"no tensor shows {size(contents.unreferenced_bytes)} of that ({share:.1%}): {remedy}")
    for names in contents.ties[:most]:
        terminal.show(f"tied: {', '.join(names[:most])}{' ...' if len(names) > len(names[:most]) else ''}")
    _more(terminal, len(contents.ties), most, "ties")
    refused = contents.weights_only.refused
    if not refused:
        terminal.show("torch.load(weights_only=True) loads it")
        return
    terminal.show("torch.load(weights_only=True) refuses it, because of", *(f"  {name}" for name in refused[:most]))
    _more(terminal, len(refused), most, "reasons")
