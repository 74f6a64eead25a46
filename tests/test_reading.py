"""Reading records in parallel: every byte where it belongs, every checksum right, in whatever cut."""

from __future__ import annotations

import itertools
import os
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import image_of

from asyncsave.errors import CorruptCheckpointError
from asyncsave.image.index import Index, read_index
from asyncsave.reading import _SLAB, BLOCK, Records, _segments, _touching, scan
from asyncsave.storage.source import MemorySource, open_source
from asyncsave.workers import Workers

steady = settings(
    derandomize=True, database=None, deadline=None, max_examples=30, suppress_health_check=list(HealthCheck)
)

PATTERN = bytes(range(251)) * 80_000  # 20 MB; 251 is prime, so that no block repeats another

sizes = st.one_of(
    st.integers(0, 300),
    st.integers(4090, 4100),
    st.integers(65_000, 66_000),
    st.integers(_SLAB - 3, _SLAB + 3),
    st.integers(BLOCK - 4100, BLOCK + 4100),
)


def read_records(source, entries, workers, *, check):
    """Read all records of some entries; return their bytes by name."""
    records = Records(source, entries, workers, check=check)
    records.read()
    return records.views


def contents(sizes: list[int]) -> list[tuple[str, bytes]]:
    """Return records of these sizes, each with bytes of its own."""
    return [(f"archive/data/{n}", PATTERN[n * 7 : n * 7 + nbytes]) for n, nbytes in enumerate(sizes)]


@pytest.fixture(params=[1, 3])
def workers(request):
    """Return one reader, or three."""
    workers = Workers(request.param, "test")
    yield workers
    workers.close()


@steady
@given(sizes=st.lists(sizes, max_size=12))
@pytest.mark.parametrize("check", [True, False])
def test_records_are_read_to_the_byte(sizes, check, workers):
    """Small ones in shared runs, large ones by themselves, empty ones not at all."""
    records = contents(sizes)
    source = MemorySource("memory", image_of(records)[0])
    views = read_records(source, read_index(source).entries, workers, check=check)
    assert {f"archive/{name}": bytes(view) for name, view in views.items()} == {n: d for n, d in records if d}
    assert not any(view.readonly for view in views.values())


@steady
@given(sizes=st.lists(sizes, max_size=12))
def test_a_scan_finds_all_checksums(sizes, workers):
    """Of every record, of all before the seal, and of all bytes: combined from blocks of any cut."""
    records = contents(sizes)
    data, digest = image_of(records)
    source = MemorySource("memory", data)
    index = read_index(source)
    found = scan(source, index, workers)
    assert found.records == {name.partition("/")[2]: zlib.crc32(data) for name, data in records}
    assert found.image == index.image_crc == zlib.crc32(data[: index.sealed_nbytes])
    assert f"crc32:{found.whole:08x}" == digest


@pytest.mark.parametrize("nbytes", [100, _SLAB - 1, _SLAB, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999999])
def test_a_flipped_bit_is_found_wherever_it_is(nbytes, place, workers):
    """In every block of a record, and it is that record that is named, not its neighbour."""
    data = bytearray(image_of(contents([50, nbytes, 50]))[0])
    entry = read_index(MemorySource("memory", bytes(data))).entries[1]
    data[entry.offset + int(place * entry.nbytes)] ^= 0x10
    source = MemorySource("memory", bytes(data))
    with pytest.raises(CorruptCheckpointError) as refusal:
        read_records(source, read_index(source).entries, workers, check=True)
    assert refusal.value.record == "data/1"
    assert refusal.value.path == "memory"
    found = scan(source, read_index(source), workers).records
    assert found["data/1"] != entry.crc
    assert f"{found['data/1']:08x}" == refusal.value.found
    assert read_records(source, read_index(source).entries, workers, check=False)


def test_large_records_have_memory_of_their_own(workers):
    """So that dropping one tensor frees its memory; small neighbours share theirs."""
    source = MemorySource("memory", image_of(contents([_SLAB, _SLAB, 10, 10]))[0])
    views = read_records(source, read_index(source).entries, workers, check=True)
    owners = [id(views[f"data/{n}"].obj) for n in range(4)]
    assert len(set(owners)) == 3
    assert owners[2] == owners[3]


def test_records_are_aligned_in_memory_as_in_the_file(workers):
    """Vector instructions and direct I/O want that: 4096 bytes for large records, 64 for small ones."""
    torch = pytest.importorskip("torch")
    source = MemorySource("memory", image_of(contents([300, 5 << 20, 70_000, 3]))[0])
    views = read_records(source, read_index(source).entries, workers, check=True)
    addresses = [torch.frombuffer(views[f"data/{n}"], dtype=torch.uint8).data_ptr() for n in range(4)]
    assert [address % (4096 if n in (1, 2) else 64) for n, address in enumerate(addresses)] == [0, 0, 0, 0]


def test_a_file_that_shrinks_while_it_is_read(tmp_path, workers):
    """Someone cut it between the look at its size and the read: damage, and no endless loop."""
    (tmp_path / "f.pt").write_bytes(image_of(contents([100, 3 << 20]))[0])
    with open_source(str(tmp_path / "f.pt")) as source:
        entries = read_index(source).entries
        os.truncate(tmp_path / "f.pt", 1 << 20)
        with pytest.raises(CorruptCheckpointError, match="became shorter"):
            read_records(source, entries, workers, check=True)


@steady
@given(sizes=st.lists(sizes, max_size=8), at=st.integers(0, 1 << 20), nbytes=st.integers(1, BLOCK))
def test_segments_leave_no_byte_out(sizes, at, nbytes):
    """Records and what lies between them cover the file once, and any part of it is found by bisection."""
    data, _ = image_of(contents(sizes))
    index = read_index(MemorySource("memory", data))
    bounds = _segments(index, len(data))
    assert bounds[0][0] == 0
    assert bounds[-1][1] == len(data)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))
    start, stop = min(at, len(data) - 1), min(at + nbytes, len(data))
    expected = [n for n, (first, last, _) in enumerate(bounds) if first < stop and last > start]
    assert list(_touching(bounds, start, stop)) == expected


def test_a_file_without_an_index_is_scanned_as_one(workers):
    """Nothing is known of it but its bytes."""
    data = PATTERN[: BLOCK + 1000]
    found = scan(MemorySource("memory", data), Index([], None, len(data), checksums=False), workers)
    assert found.records == {}
    assert found.whole == zlib.crc32(data)
