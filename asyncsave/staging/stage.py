"""Put a captured state into an arena: layout first, then every byte at its final offset."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from asyncsave.image.crc import crc32
from asyncsave.image.layout import Layout, plan
from asyncsave.staging.arena import Berth
from asyncsave.staging.capture import Captured
from asyncsave.staging.copying import copy_spans
from asyncsave.workers import Workers

__all__ = ["collector_paused", "fill", "layout_of"]

_VERSION = b"3\n"
"""The archive version that ``torch.save`` writes, and its readers ask for."""


def _head(captured: Captured) -> list[tuple[str, bytes]]:
    """Return the records that are not storages. Their names begin with ``torch.save``'s folder.

    ``.format_version`` is left out on purpose: it tells readers that they may compute offsets as
    ``torch.save`` would have laid them out, instead of looking them up.
    """
    return [
        ("archive/data.pkl", captured.pickle),
        ("archive/byteorder", sys.byteorder.encode("ascii")),
        ("archive/version", _VERSION),
    ]


def layout_of(captured: Captured) -> Layout:
    """Lay out the checkpoint of a captured state."""
    sizes = [(name, len(data)) for name, data in _head(captured)]
    sizes += [(f"archive/data/{n}", span.nbytes) for n, span in enumerate(captured.spans)]
    return plan(sizes)


def fill(captured: Captured, layout: Layout, berth: Berth, workers: Workers) -> list[int | None]:
    """Copy every record to its place; return their CRC-32, None where it is still to be taken.

    Blocks until the last byte is there: from then on the state is the caller's again.
    """
    head = _head(captured)
    crcs: list[int | None] = []
    for (_, data), record in zip(head, layout.records, strict=False):
        berth.view[record.offset : record.offset + record.nbytes] = data
        crcs.append(crc32(data))
    return crcs + copy_spans(captured.spans, layout.records[len(head) :], berth, workers)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's cyclic garbage collector.

    Pickling makes a few small objects for every tensor and drops none of them before its end, so
    the collector walks them again and again for nothing: 5 of 15 µs per tensor (measured).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
