"""Copy storages to their final offsets in the arena, and take their CRC-32 on the way.

The checksum is taken of each piece right after it was copied, while it is still in the processor's
cache: that adds a fifth to the time of the copy. Taken later, it would read the whole state from
memory once more, beside a training that needs that bandwidth (measured, docs/benchmarks.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from asyncsave.image.crc import combine, crc32
from asyncsave.image.layout import Record
from asyncsave.staging.arena import Berth
from asyncsave.staging.storages import StorageSpan
from asyncsave.workers import Workers

__all__ = ["copy_spans", "synchronize"]

_PIECE = 2 << 20
"""Bytes copied and checksummed in one go: a piece and its copy fit the cache of one core."""
_SMALL = 64 << 10
"""Storages of fewer bytes are copied by the caller: handing them over takes longer."""

_memmove = ctypes.memmove  # releases the GIL


class _Piece(NamedTuple):
    """A run of bytes of one record, small enough to be checksummed in the cache."""

    record: int
    source: int
    offset: int
    nbytes: int


_has_context: Any = getattr(torch._C, "_cuda_hasPrimaryContext", lambda _: True)  # noqa: SLF001


def synchronize() -> None:
    """Wait for the accelerators, where any is in use: also for copies to the CPU still under way.

    A tensor made by ``tensor.to("cpu", non_blocking=True)`` holds its bytes only after this.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            # Of the others a context would be made, hundreds of megabytes of their memory.
            if _has_context(device):
                torch.cuda.synchronize(device)
    elif torch.accelerator.is_available():
        torch.accelerator.synchronize()


def copy_spans(
    spans: Sequence[StorageSpan], records: Sequence[Record], berth: Berth, workers: Workers
) -> list[int | None]:
    """Copy every span to its record's place; block until all bytes are there.

    Args:
        spans: Live storages, on any device.
        records: Where each belongs, as many and of the same sizes.
        berth: Where the file begins in the arena; large enough for all records.
        workers: Who copies.

    Returns:
        The CRC-32 of every record that was copied from CPU memory; None for the others, whose
        checksum is left to the sealing.
    """
    crcs: list[int | None] = [None] * len(spans)
    pieces: list[_Piece] = []
    remote: list[int] = []
    address, view = berth.address, berth.view
    for number, ((storage, start, nbytes), record) in enumerate(zip(spans, records, strict=True)):
        if storage.device.type != "cpu":
            remote.append(number)
        elif nbytes < _SMALL:
            offset = record.offset
            if nbytes:
                _memmove(address + offset, storage.data_ptr() + start, nbytes)
            crcs[number] = crc32(view[offset : offset + nbytes])
        else:
            source = storage.data_ptr() + start
            pieces += [
                _Piece(number, source + at, record.offset + at, min(_PIECE, nbytes - at))
                for at in range(0, nbytes, _PIECE)
            ]
    parts: list[int] = [0] * len(pieces)

    def copy(index: int) -> None:
        piece = pieces[index]
        _memmove(address + piece.offset, piece.source, piece.nbytes)
        parts[index] = crc32(view[piece.offset : piece.offset + piece.nbytes])

    workers.each(copy, range(len(pieces)))
    for piece, part in zip(pieces, parts, strict=True):
        before = crcs[piece.record]
        crcs[piece.record] = part if before is None else combine(before, part, piece.nbytes)
    for number in remote:
        _copy_from_device(spans[number], records[number], berth)
    if remote:
        synchronize()
    return crcs


def _copy_from_device(span: StorageSpan, record: Record, berth: Berth) -> None:
    """Start a copy from an accelerator; it has ended after :func:`synchronize`."""
    if not span.nbytes:
        return
    target = torch.frombuffer(berth.view, dtype=torch.uint8, count=span.nbytes, offset=record.offset)
    source = torch.empty(0, dtype=torch.uint8, device=span.storage.device).set_(span.storage)
    target.copy_(source[span.start : span.start + span.nbytes], non_blocking=True)
