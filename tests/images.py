"""Checkpoints and other archives, put together by hand."""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from asyncsave.image.crc import crc32
from asyncsave.image.layout import plan
from asyncsave.image.torchzip import seal

__all__ = ["archive_of", "hollow", "image_of"]


def image_of(records: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Lay out and seal a file of asyncsave's in memory; return it with its digest."""
    layout = plan((name, len(data)) for name, data in records)
    image = bytearray(b"\xaa" * (layout.nbytes + 100))  # an arena holds the bytes of older saves
    for record, (_, data) in zip(layout.records, records, strict=True):
        image[record.offset : record.offset + record.nbytes] = data
    digest = seal(memoryview(image), layout, [crc32(data) for _, data in records])
    assert image[layout.nbytes :] == b"\xaa" * 100, "nothing is written behind the end"
    return bytes(image[: layout.nbytes]), digest


def hollow(path: Path, sizes: Sequence[tuple[str, int]], data: Mapping[str, bytes]) -> None:
    """Make a file of asyncsave's of any size: with a hole where a record has no data, and a wrong checksum there."""
    layout = plan(sizes)
    with path.open("w+b") as file:
        file.truncate(layout.nbytes)
        with mmap.mmap(file.fileno(), layout.nbytes) as image, memoryview(image) as view:
            for record in layout.records:
                view[record.offset : record.offset + len(data.get(record.name, b""))] = data.get(record.name, b"")
            seal(view, layout, [crc32(data.get(record.name, b"")) for record in layout.records])


def archive_of(pickled: bytes, records: Mapping[str, bytes] | None = None) -> bytes:
    """Put a pickle into an archive such as torch's, with right checksums, whatever it holds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in {"version": b"3\n", "byteorder": b"little", **(records or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()
