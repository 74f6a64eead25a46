"""Where records lie: aligned, in order, nothing overlapping, and right beyond 4 GiB."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave.image.layout import LARGE, LINE, LOCAL_HEADER, PAGE, UINT16, UINT32, data_offset, plan
from asyncsave.image.torchzip import local_header

steady = settings(derandomize=True, database=None, deadline=None, max_examples=200)

sizes = st.one_of(
    st.integers(0, 300),
    st.integers(LARGE - 2, LARGE + 2),
    st.integers(UINT32 - 2, UINT32 + 2),
    st.integers(0, 1 << 45),
)
names = st.text("abcdefgh/._0123456789", min_size=1, max_size=200)


@steady
@given(records=st.lists(st.tuples(names, sizes), max_size=30))
def test_records_follow_each_other_and_are_aligned(records):
    """Every record begins behind its header, on its boundary, and ends where the next header begins."""
    layout = plan(records)
    position = 0
    for (name, nbytes), record in zip(records, layout.records, strict=True):
        assert (record.name, record.nbytes) == (name, nbytes)
        assert record.header_offset == position
        assert record.offset >= position + LOCAL_HEADER + len(name)
        assert record.offset % (PAGE if nbytes >= LARGE else LINE) == 0
        position = record.offset + nbytes
    assert layout.directory_offset == position
    assert layout.nbytes > position + layout.directory_nbytes


@steady
@given(records=st.lists(st.tuples(names, sizes), max_size=30))
def test_a_header_fills_its_room_exactly(records):
    """What local_header writes is as long as what the layout left for it, wherever the record lies."""
    layout = plan(records)
    for number, record in enumerate(layout.records):
        header = local_header(record, 0, image_nbytes=None if number else layout.nbytes)
        assert len(header) == record.offset - record.header_offset


@steady
@given(position=st.integers(0, 1 << 45), name=st.integers(1, 200), nbytes=sizes, first=st.booleans())
def test_padding_is_less_than_one_boundary(position, name, nbytes, first):
    """No room is wasted, and a field of padding can always say how long it is (16 bits)."""
    offset = data_offset(position, name, nbytes, first=first)
    needed = LOCAL_HEADER + name + 4 + 20 * (nbytes >= UINT32) + 12 * first
    assert 0 <= offset - position - needed < (PAGE if nbytes >= LARGE else LINE)
    assert offset - position < UINT16


@pytest.mark.parametrize("count", [0, 1, UINT16 - 1, UINT16, UINT16 + 1])
def test_many_records_need_wide_figures(count):
    """From 65,535 records on the count does not fit the old end of the archive."""
    layout = plan((f"a/{n}", 1) for n in range(count))
    assert layout.zip64 is (count >= UINT16)


@pytest.mark.parametrize(
    ("nbytes", "wide"), [(1 << 31, False), (UINT32 - 4097, False), (UINT32 - 4096, True), (1 << 40, True)]
)
def test_large_files_need_wide_figures(nbytes, wide):
    """A directory that begins at 4 GiB or later does too."""
    assert plan([("a/b", nbytes)]).zip64 is wide


def test_padding_costs_little():
    """Of a checkpoint of large records, at most 6 % is padding; of one of small records, a header each."""
    large = plan((f"archive/data/{n}", LARGE) for n in range(1000))
    assert large.nbytes < 1.07 * 1000 * LARGE
    small = plan((f"archive/data/{n}", 128) for n in range(1000))
    assert small.nbytes < 1000 * (128 + 128 + 80)
