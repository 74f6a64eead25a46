"""The table behind an image: what the writer process knows of it, and nothing that is not so."""

from __future__ import annotations

import contextlib
import mmap
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave.image.layout import PAGE, UINT16, UINT32, plan
from asyncsave.image.table import TableError, nbytes_with_table, read_table, write_table

steady = settings(derandomize=True, database=None, deadline=None, max_examples=150)

NAMES = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=40)
CRCS = st.none() | st.integers(0, UINT32)
RECORDS = st.lists(st.tuples(NAMES, st.integers(0, 70_000), CRCS), max_size=20)
HEADER = struct.Struct("=8sQQ")


def table_of(records):
    """Return the memory of an image with its table, its layout and its checksums."""
    layout = plan((name, nbytes) for name, nbytes, _ in records)
    crcs = [crc for _, _, crc in records]
    memory = bytearray(b"\xaa" * (nbytes_with_table(layout) + 100))
    write_table(memoryview(memory), layout, crcs)
    assert memory[nbytes_with_table(layout) :] == b"\xaa" * 100, "nothing is written behind the end"
    assert memory[: layout.nbytes] == b"\xaa" * layout.nbytes, "nor into the image"
    return memory, layout, crcs


@steady
@given(records=RECORDS)
def test_what_is_written_is_read(records):
    """Names, sizes and checksums come out as they went in, those that are still to be taken too."""
    memory, layout, crcs = table_of(records)
    assert read_table(memoryview(memory), layout.nbytes) == (layout, crcs)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [("a", 0, None)],
        [("x" * UINT16, 5, UINT32)],
        [(f"archive/data/{number}", 3, number) for number in range(20_000)],
        [("twice", 1, 1), ("twice", 2, 2)],
    ],
    ids=["nothing", "an empty record", "the longest name", "many", "twice the same name"],
)
def test_the_ends_of_what_there_is(records):
    """No record, one of no bytes, the longest name, twenty thousand."""
    memory, layout, crcs = table_of(records)
    assert read_table(memoryview(memory), layout.nbytes) == (layout, crcs)


def test_a_table_behind_a_large_image():
    """Sizes and places of more than 32 bits; the image itself is not looked at."""
    layout = plan([("small", 7), ("large", 5 << 30), ("next", 70_000)])
    with mmap.mmap(-1, (nbytes_with_table(layout) + PAGE - 1) & -PAGE) as memory, memoryview(memory) as view:
        write_table(view, layout, [None, 1, UINT32])
        assert read_table(view, layout.nbytes) == (layout, [None, 1, UINT32])


def test_it_begins_on_the_page_behind_the_image():
    """The image can be written in whole blocks without it."""
    memory, layout, _ = table_of([("archive/data/0", 100, None)])
    assert layout.nbytes % PAGE
    assert memory[layout.nbytes : PAGE] == b"\xaa" * (PAGE - layout.nbytes)
    assert memory[PAGE:].startswith(b"AStable1")


def test_the_reach_is_enough_and_little_more():
    """An arena of this size has room for both."""
    memory, layout, _ = table_of([("archive/data/0", 100, None), ("b", 70_000, 5)])
    exact = memoryview(memory)[: nbytes_with_table(layout)]
    assert read_table(exact, layout.nbytes)[0] == layout
    with pytest.raises(TableError):
        read_table(exact[:-2], layout.nbytes)
    assert nbytes_with_table(layout) - layout.nbytes < 2 * PAGE


RECORD = [("archive/data.pkl", 100, 7), ("archive/data/0", 70_000, None)]


def lie(nbytes=None, **fields):
    """Return a memory whose table says something else than it should, and the size of the image."""
    memory, layout, _ = table_of(RECORD)
    at = (layout.nbytes + PAGE - 1) & -PAGE
    magic, count, names = HEADER.unpack_from(memory, at)
    said = {"magic": magic, "count": count, "names": names} | {
        key: value for key, value in fields.items() if key in {"magic", "count", "names"}
    }
    HEADER.pack_into(memory, at, said["magic"], said["count"], said["names"])
    words = at + HEADER.size
    for number, key in enumerate(["size0", "size1", "crc0", "crc1"]):
        if key in fields:
            struct.pack_into("=q", memory, words + 8 * number, fields[key])
    if "text" in fields:
        memory[words + 32 : words + 32 + len(fields["text"])] = fields["text"]
    return memory, layout.nbytes if nbytes is None else nbytes


LIES = {
    "another mark": {"magic": b"AStable2"},
    "no record": {"count": 0},
    "a record less": {"count": 1},
    "a record more": {"count": 3},
    "records beyond the memory": {"count": 1 << 20},
    "records beyond any memory": {"count": (1 << 64) - 1},
    "records that wrap around": {"count": 1 << 60},
    "no names": {"names": 0},
    "shorter names": {"names": 20},
    "longer names": {"names": 40},
    "names beyond any memory": {"names": (1 << 64) - 1},
    "a negative size": {"size0": -1},
    "the most negative size": {"size1": -(1 << 63)},
    "a larger size": {"size0": 5000},
    "a smaller size": {"size1": 5},
    "a size beyond the image": {"size1": 1 << 40},
    "the largest size": {"size1": (1 << 63) - 1},
    "a checksum of 33 bits": {"crc0": 1 << 32},
    "a negative checksum": {"crc1": -2},
    "names that are not ASCII": {"text": b"\xff"},
    "an empty name": {"text": b"archive/data.pk\0\0"},
    "one name": {"text": b"archive/data.pkl-"},
    "three names": {"text": b"archive\0data.pkl"},
    "an image of no bytes": {"nbytes": 0},
    "an image of negative size": {"nbytes": -1},
    "an image of very negative size": {"nbytes": -(1 << 63)},
    "a smaller image": {"nbytes": PAGE},
    "a larger image": {"nbytes": 1 << 20},
    "an image beyond any memory": {"nbytes": (1 << 63) - 1},
    "an image of a byte more": {"nbytes": plan(one[:2] for one in RECORD).nbytes + 1},
}


@pytest.mark.parametrize("what", LIES)
def test_lies(what):
    """Whatever is not so is a TableError, found before an image could be made of it; and it costs little memory."""
    memory, nbytes = lie(**LIES[what])
    tracemalloc.start()
    try:
        with pytest.raises(TableError):
            read_table(memoryview(memory), nbytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(memory)


def test_checksums_at_their_bounds():
    """Minus one, naught and the largest are checksums."""
    memory, nbytes = lie(crc0=-1, crc1=UINT32)
    assert read_table(memoryview(memory), nbytes)[1] == [None, UINT32]
    memory, nbytes = lie(crc0=0, crc1=-1)
    assert read_table(memoryview(memory), nbytes)[1] == [0, None]


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, 2 * PAGE])
def test_too_little_memory(size):
    """A memory that ends before the table does has none."""
    with pytest.raises(TableError, match="no table"):
        read_table(memoryview(bytearray(size)), 5000)


def check(memory, nbytes):
    """Read a table: it is refused, or it describes an image of just this size, all of whose records lie in it."""
    with contextlib.suppress(TableError):
        layout, crcs = read_table(memoryview(memory), nbytes)
        assert layout.nbytes == nbytes <= len(memory)
        assert len(layout.records) == len(crcs)
        end = 0
        for record in layout.records:
            assert end <= record.header_offset < record.offset <= record.offset + record.nbytes <= nbytes
            end = record.offset + record.nbytes
        assert end <= layout.directory_offset
        assert all(crc is None or 0 <= crc <= UINT32 for crc in crcs)


WORDS = [0, 1, 2, 3, 8, 1 << 16, 1 << 32, 1 << 40, (1 << 60) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1]


@settings(steady, max_examples=500)
@given(records=st.lists(st.tuples(NAMES, st.integers(0, 300), CRCS), max_size=5), data=st.data())
def test_damaged_tables(records, data):
    """Cut, flipped, overwritten with large and negative figures, with another size: nothing but a TableError."""
    memory, layout, _ = table_of(records)
    del memory[nbytes_with_table(layout) :]
    start, nbytes = (layout.nbytes + PAGE - 1) & -PAGE, layout.nbytes
    for _ in range(data.draw(st.integers(1, 4))):
        how = data.draw(st.sampled_from(["flip", "word", "cut", "size"]))
        at = data.draw(st.integers(start, max(start, len(memory) - 1)))
        if how == "flip" and at < len(memory):
            memory[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "word":
            at -= (at - start) % 8
            if at + 8 <= len(memory):
                memory[at : at + 8] = data.draw(st.sampled_from(WORDS)).to_bytes(8, "little")
        elif how == "cut":
            del memory[at:]
        elif how == "size":
            nbytes = data.draw(st.sampled_from([0, -1, 1 << 62, nbytes + 1]) | st.integers(0, len(memory)))
    check(memory, nbytes)


@steady
@given(table=st.binary(max_size=300), count=st.integers(0, 20), names=st.integers(0, 300), nbytes=st.integers(0, PAGE))
def test_noise(table, count, names, nbytes):
    """Noise behind a right mark is refused by nothing but a TableError."""
    check(bytearray(PAGE) + HEADER.pack(b"AStable1", count, names) + table, nbytes)
    check(bytearray(PAGE) + table, nbytes)


@pytest.mark.parametrize("filling", [b"\0", b"a\0", b"a"])
@pytest.mark.parametrize("count", [1, 1000])
def test_many_bytes_of_names(filling, count):
    """A memory that is all names costs a few times itself, not of what it pretends to have."""
    names = filling * ((1 << 20) // len(filling))
    memory = bytearray(HEADER.pack(b"AStable1", count, len(names))) + bytes(16 * count) + names
    tracemalloc.start()
    try:
        with pytest.raises(TableError):
            read_table(memoryview(memory), 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(memory), f"{peak / len(memory):.0f} times the memory"
