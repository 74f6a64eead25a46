"""Copies of storages into the arena, with their checksums; accelerators are waited for."""

from __future__ import annotations

import zlib

import pytest
import torch

from asyncsave.image.layout import plan
from asyncsave.staging import copying
from asyncsave.staging.arena import Arena
from asyncsave.staging.copying import copy_spans, synchronize
from asyncsave.staging.storages import StorageSpan
from asyncsave.workers import Workers


@pytest.fixture
def arena():
    """Return an arena and the workers that fill it."""
    workers = Workers(2, "test")
    made = Arena(32 << 20, workers)
    yield made, workers
    made.close()
    workers.close()


SIZES = [0, 1, 100, (64 << 10) - 1, 64 << 10, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, (9 << 20) + 5]


def spans_of(sizes):
    """Return random bytes as spans that begin a little into their storages, and the layout for them."""
    storages = [torch.randint(0, 256, (nbytes + 8,), dtype=torch.uint8).untyped_storage() for nbytes in sizes]
    spans = [StorageSpan(storage, 8, nbytes) for storage, nbytes in zip(storages, sizes, strict=True)]
    records = plan((f"data/{number}", nbytes) for number, nbytes in enumerate(sizes)).records
    return spans, records


def content(span):
    """Return the bytes of a span."""
    return torch.empty(0, dtype=torch.uint8).set_(span.storage)[span.start :].numpy().tobytes()


def test_every_byte_and_its_checksum(arena):
    """Small and large spans arrive at their offsets, with the CRC-32 that anybody computes."""
    memory, workers = arena
    spans, records = spans_of(SIZES)
    crcs = copy_spans(spans, records, memory, workers)
    for span, record, crc in zip(spans, records, crcs, strict=True):
        found = bytes(memory.view[record.offset : record.offset + record.nbytes])
        assert found == content(span)
        assert crc == zlib.crc32(found)


def test_nothing(arena):
    """No spans, no copies."""
    memory, workers = arena
    assert copy_spans([], [], memory, workers) == []


class Remote:
    """A storage on a device that this machine does not have."""

    def __init__(self, storage):
        self.storage = storage

    device = torch.device("meta")


def test_what_is_not_in_cpu_memory(arena, monkeypatch):
    """Storages on a device are copied by torch and waited for, once; their checksums are left for later."""
    memory, workers = arena
    waited = []
    start = copying._copy_from_device

    def copy(span, record, target):
        start(StorageSpan(span.storage.storage, span.start, span.nbytes), record, target)

    monkeypatch.setattr(copying, "_copy_from_device", copy)
    monkeypatch.setattr(copying, "synchronize", lambda: waited.append(True))
    spans, records = spans_of([100, 0, 70_000, 5])
    mixed = [
        StorageSpan(Remote(span.storage), span.start, span.nbytes) if number < 3 else span
        for number, span in enumerate(spans)
    ]
    crcs = copy_spans(mixed, records, memory, workers)
    assert crcs[:3] == [None, None, None]
    assert crcs[3] is not None
    assert waited == [True]
    for span, record in zip(spans, records, strict=True):
        assert bytes(memory.view[record.offset : record.offset + record.nbytes]) == content(span)


def test_nothing_remote_is_not_waited_for(arena, monkeypatch):
    """A state in CPU memory costs no synchronisation here."""
    memory, workers = arena
    monkeypatch.setattr(copying, "synchronize", lambda: pytest.fail("synchronized"))
    copy_spans(*spans_of([10]), memory, workers)


class Accelerator:
    """Stands for ``torch.cuda`` or ``torch.accelerator``, and counts what it is asked."""

    def __init__(self, *, available, initialized=True):
        self.synchronized = []
        self.is_available = lambda: available
        self.is_initialized = lambda: initialized
        self.device_count = lambda: 3
        self.synchronize = lambda device=None: self.synchronized.append(device)


@pytest.mark.parametrize(
    ("cuda", "other", "waited"),
    [
        (Accelerator(available=True), Accelerator(available=True), ([0, 1, 2], [])),
        (Accelerator(available=False), Accelerator(available=True), ([], [None])),
        (Accelerator(available=False), Accelerator(available=False), ([], [])),
    ],
    ids=["cuda", "another", "none"],
)
def test_synchronize(monkeypatch, cuda, other, waited):
    """Every CUDA device in use is waited for; else the accelerator there is; else nothing."""
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch, "accelerator", other)
    synchronize()
    assert (cuda.synchronized, other.synchronized) == waited
