"""CRC-32: isal's is the zip format's, and parts combine."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave.image.crc import combine, crc32

steady = settings(derandomize=True, database=None, deadline=None, max_examples=100)


@steady
@given(data=st.binary(max_size=5000), start=st.integers(0, 0xFFFFFFFF))
def test_crc32_is_zlibs(data, start):
    """The same number as everybody else's, also when it goes on from another."""
    assert crc32(data) == zlib.crc32(data)
    assert crc32(memoryview(data), start) == zlib.crc32(data, start)


@steady
@given(parts=st.lists(st.binary(max_size=300), max_size=8))
def test_parts_combine_to_the_whole(parts):
    """Checksums taken apart, in any cut (empty parts included), make the checksum of the whole."""
    whole = 0
    for part in parts:
        whole = combine(whole, crc32(part), len(part))
    assert whole == zlib.crc32(b"".join(parts))


@pytest.mark.parametrize("length", [(1 << 32) - 1, 1 << 32, (1 << 32) + 5, 1 << 40])
def test_lengths_beyond_four_gibibytes_combine(length):
    """A length does not wrap at 32 bits: a tail behind so many zeros, combined in two ways, is the same."""
    tail, half = crc32(b"tail"), length // 2
    at_once = combine(_zeros(length), tail, 4)
    assert at_once == combine(_zeros(length - half), combine(_zeros(half), tail, 4), half + 4)
    assert at_once != combine(_zeros(length & 0xFFFFFFFF), tail, 4) or length <= 0xFFFFFFFF


def _zeros(length: int) -> int:
    """Return the CRC-32 of so many zero bytes, by powers of two."""
    crc, block, nbytes = 0, crc32(b"\0"), 1
    while length:
        if length & 1:
            crc = combine(crc, block, nbytes)
        block, nbytes, length = combine(block, block, nbytes), 2 * nbytes, length >> 1
    return crc
