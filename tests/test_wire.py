"""Messages: what is said is what is heard, and nothing but a message is taken for one."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave import wire
from asyncsave.wire import HEADER, LONGEST, Done, Failed, Log, ProtocolError, Ready, Save, Start

steady = settings(derandomize=True, database=None, deadline=None, max_examples=150)

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
PATHS = st.binary(max_size=300).map(lambda name: name.decode("utf-8", "surrogateescape"))
"""Whatever bytes a path has, as Python spells them."""

FIELDS = {int: NUMBERS, float: st.floats(), bool: st.booleans(), str: PATHS | st.sampled_from(["", "ü-€ 名" * 500])}
KINDS = wire._KINDS
MESSAGES = st.one_of(
    *(st.builds(kind, **{name: FIELDS[form] for name, form in get_type_hints(kind).items()}) for kind in KINDS)
)

SAVE = Save(1, 1 << 20, "/data/ckpt.pt", "/data", "ckpt.pt", sync=True, umask=-1, started=0.5, queued=0.75, after=0)
FAILED = Failed(1, "", "write", 0, "not_committed")


def heard(data):
    """Return what bytes say."""
    return wire.decode(data[: HEADER.size], data[HEADER.size :])


def same(one, other):
    """Tell whether two messages are the same; not a number is itself here."""
    return type(one) is type(other) and all(
        a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True)
    )


@steady
@given(message=MESSAGES)
def test_what_is_said_is_heard(message):
    """Every kind comes out as it went in: paths of any bytes, negative numbers, seconds that are none."""
    found = heard(wire.encode(message))
    assert same(found, message)
    assert [type(value) for value in found] == [type(value) for value in message]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_through_the_extremes(kind):
    """The smallest and the largest values of every field, together."""
    extremes = {
        int: (-(1 << 63), (1 << 63) - 1),
        float: (-math.inf, math.inf),
        bool: (False, True),
        str: ("", "\udcff\udc80" * 3000),
    }
    for which in (0, 1):
        message = kind(*(extremes[form][which] for form in get_type_hints(kind).values()))
        assert same(heard(wire.encode(message)), message)


def test_the_form_is_the_one_that_is_described():
    """Mark, version, kind, length; then numbers of 8 bytes, texts behind their length, all in network order."""
    data = b"AS\x01\x07" + (12 + len("é".encode())).to_bytes(4, "big") + (30).to_bytes(8, "big")
    assert wire.encode(Log(30, "é")) == data + (2).to_bytes(4, "big") + "é".encode()
    assert wire.encode(Start(7, -1, "")) == b"AS\x01\x00" + struct.pack("!IqqI", 20, 7, -1, 0)


def test_the_longest_message():
    """One byte more than the longest is neither sent nor taken."""
    room = LONGEST - (len(wire.encode(Log(0, ""))) - HEADER.size)
    data = wire.encode(Log(0, "x" * room))
    assert wire.body_nbytes(data[: HEADER.size]) == LONGEST
    assert heard(data) == Log(0, "x" * room)
    with pytest.raises(ProtocolError, match=f"Log of {LONGEST + 1} bytes is longer than {LONGEST}"):
        wire.encode(Log(0, "x" * (room + 1)))
    longer = struct.pack("!2sBBI", b"AS", 1, 7, LONGEST + 1)
    with pytest.raises(ProtocolError, match=f"{LONGEST + 1} bytes"):
        wire.body_nbytes(longer)


def test_three_of_the_longest_paths_fit():
    """Whatever can be opened on Linux can be said: paths of 4,096 bytes, also where no byte is ASCII."""
    path = "\udcff" * 4096
    message = SAVE._replace(path=path, folder=path, name=path)
    assert heard(wire.encode(message)) == message


@pytest.mark.parametrize("letter", ["x", "é", "€", "😀", "\udcff", "\n"])
def test_a_shortened_text_fits(letter):
    """However many bytes a letter takes, an error has room for its text."""
    text = wire.shortened(letter * (1 << 20))
    assert text.endswith(" ...")
    assert text.startswith(letter * 1000)
    message = FAILED._replace(message=text)
    assert heard(wire.encode(message)) == message


@given(text=st.text(max_size=100))
@steady
def test_a_short_text_stays(text):
    """What is short enough is not touched."""
    assert wire.shortened(text) == text


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"", "a header of 0 bytes"),
        (b"AS\x01\x02\0\0\0", "a header of 7 bytes"),
        (b"AS\x01\x02\0\0\0\x08\0", "a header of 9 bytes"),
        (b"as\x01\x02\0\0\0\x08", "expected a message of version 1, found b'as"),
        (b"AS\x02\x02\0\0\0\x08", r"expected a message of version 1, found b'AS\\x02"),
        (b"AS\x00\x02\0\0\0\x08", "expected a message of version 1"),
        (b"AS\x01\x09\0\0\0\x08", "no message of kind 9"),
        (b"AS\x01\xff\0\0\0\x08", "no message of kind 255"),
        (b"AS\x01\x02\xff\xff\xff\xff", "4294967295 bytes"),
        (b"GET / HT", "expected a message"),
    ],
)
def test_headers_that_are_none(header, told):
    """Marks, versions, kinds and lengths that are not ours are refused before a body is waited for."""
    with pytest.raises(ProtocolError, match=told):
        wire.body_nbytes(header)
    with pytest.raises(ProtocolError):
        wire.decode(header, bytes(8))


@pytest.mark.parametrize(
    "message", [SAVE, FAILED, Ready(1), Done(1, "d", durable=True, seal=0, write=0, sync=0, total=0)]
)
def test_a_body_of_another_length(message):
    """A body is as long as its header says, and its fields fill it."""
    data = wire.encode(message)
    header, body = data[: HEADER.size], data[HEADER.size :]
    for other in (body[:-1], body + b"\0", b""):
        with pytest.raises(ProtocolError, match="behind a header that says"):
            wire.decode(header, other)
        with pytest.raises(ProtocolError, match=r"too many|where"):
            wire.decode(header[:4] + len(other).to_bytes(4, "big"), other)


def test_a_text_longer_than_its_message():
    """A length inside a message cannot reach out of it."""
    for length in (4, 1 << 16, 0x7FFFFFFF, 0xFFFFFFFF):
        body = bytes(8) + struct.pack("!I", length) + b"abc"
        with pytest.raises(ProtocolError, match=f"a field of {length} bytes where 3 are left"):
            wire.decode(struct.pack("!2sBBI", b"AS", 1, 7, len(body)), body)


@pytest.mark.parametrize("value", [2, 128, 255])
def test_a_truth_value_is_zero_or_one(value):
    """Nothing else is taken for a yes."""
    data = bytearray(wire.encode(SAVE._replace(recycle=True)))
    at = len(data) - 2 * 8 - 1  # two numbers come behind it
    assert data[at] == 1
    data[at] = value
    with pytest.raises(ProtocolError, match=f"truth value of {value}"):
        heard(bytes(data))


def check_parser(data):
    """Parse some bytes as a channel does: they are refused, or they are exactly one message."""
    with contextlib.suppress(ProtocolError):
        length = wire.body_nbytes(data[: HEADER.size])
        assert 0 <= length <= LONGEST
        message = wire.decode(data[: HEADER.size], data[HEADER.size :])
        assert len(data) == HEADER.size + length
        assert type(message) in KINDS
        assert wire.encode(message) == data, "there is one way to say a thing"


@steady
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes(data):
    """Noise is refused by nothing but a ProtocolError."""
    check_parser(data)


@steady
@given(kind=st.integers(0, 9), body=st.binary(max_size=200))
def test_arbitrary_bodies(kind, body):
    """So is noise behind a right header."""
    check_parser(HEADER.pack(b"AS", 1, kind, len(body)) + body)


WORDS = [0, 1, 2, 7, 0xFF, 1 << 13, LONGEST, LONGEST + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


@st.composite
def damaged(draw):
    """Return the bytes of a message, damaged here and there."""
    data = bytearray(wire.encode(draw(MESSAGES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "word", "insert", "remove", "append", "length"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "word":
            data[at : at + 4] = draw(st.sampled_from(WORDS)).to_bytes(4, "big")
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=10))
        elif how == "remove":
            del data[at : at + draw(st.integers(1, 10))]
        elif how == "append":
            data += draw(st.binary(max_size=10))
        else:  # the header is right again, so that the fields are looked at
            data[4:8] = max(0, len(data) - HEADER.size).to_bytes(4, "big")
    return bytes(data)


@settings(steady, max_examples=600)
@given(data=damaged())
def test_damaged_messages(data):
    """Cut, flipped, lengthened, with lengths that lie: it is refused, or it is a whole message of its own."""
    check_parser(data)


@steady
@given(message=MESSAGES, data=st.data())
def test_every_cut_is_noticed(message, data):
    """No beginning of a message is a message."""
    whole = wire.encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ProtocolError):
        heard(whole[:cut])


@steady
@given(
    magic=st.sampled_from([b"AS", b"AS", b"\0\0"]) | st.binary(min_size=2, max_size=2),
    version=st.sampled_from([1, 1, 0, 2, 255]),
    kind=st.integers(0, 255),
    length=st.sampled_from(WORDS) | st.integers(0, 0xFFFFFFFF),
)
def test_no_header_asks_for_more_than_the_longest(magic, version, kind, length):
    """Nobody can make the reader wait for, or hold, more than one longest message."""
    header = HEADER.pack(magic, version, kind, length)
    if (magic, version) == (b"AS", 1) and kind < len(KINDS) and length <= LONGEST:
        assert wire.body_nbytes(header) == length
    else:
        with pytest.raises(ProtocolError):
            wire.body_nbytes(header)
