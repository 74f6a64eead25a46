"""Sizes, durations and shares, as people write them and as they are written for people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsave.cli.sizes import nbytes_of, seconds_of, share_of
from asyncsave.errors import OptionError
from asyncsave.units import duration, size

UNITS = {"": 1, "B": 1} | {
    f"{letter}{i}{b}": base ** (power + 1)
    for power, letter in enumerate("kMGTP")
    for i, base in (("", 1000), ("i", 1024))
    for b in ("", "B")
}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4MB", 4_000_000),
        ("4mb", 4_000_000),
        ("1.5GiB", 3 << 29),
        (" 2 KiB ", 2048),
        ("1k", 1000),
        (".5kB", 500),
        ("3.B", 3),
        ("1PiB", 1 << 50),
        ("0.5B", 0),
    ],
)
def test_sizes_that_are_read(text, nbytes):
    """Powers of ten, and of two with an i; case and blanks are no matter."""
    assert nbytes_of(text) == nbytes


@given(st.integers(0, 1 << 20), st.sampled_from(sorted(UNITS)), st.sampled_from([str.lower, str.upper, str]))
def test_a_size_is_its_number_times_its_unit(number, unit, case):
    """Whatever the unit and its case, as long as any machine has so much."""
    expected = number * UNITS[unit]
    text = case(f"{number}{unit}")
    if expected <= 1 << 60:
        assert nbytes_of(text) == expected
    else:
        with pytest.raises(OptionError, match="more than any"):
            nbytes_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "MB",
        "-4MB",
        "+4",
        "4 M B",
        "4XB",
        "4MBB",
        "1e3",
        "0x10",
        "4,5MB",
        "nan",
        "inf",
        "1_000",
        "\u0664",
        "4MB\n5",
    ],
)
def test_what_is_no_size(text):
    """It is refused with what a size looks like."""
    with pytest.raises(OptionError, match=r"is no size: write it as 4096, 4MB or 1\.5GiB"):
        nbytes_of(text)


@pytest.mark.parametrize("text", ["2" * 400, "9" * 30 + "PB", "2000PB", "1" + "0" * 400])
def test_sizes_that_nothing_has(text):
    """A size beyond every memory is refused, however many digits it has."""
    with pytest.raises(OptionError, match="more than any memory or disk has"):
        nbytes_of(text)


@given(st.integers(0, 1 << 59))
def test_a_size_that_was_written_is_read_again(nbytes):
    """In three digits, so within half a percent."""
    written = size(nbytes)
    assert "e" not in written
    assert nbytes_of(written) == pytest.approx(nbytes, rel=0.0051)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (999.4, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"),
     (1_016_000_000, "1.02 GB"), (5e15, "5 PB"), (5e18, "5000 PB")],
)  # fmt: skip
def test_sizes_that_are_written(nbytes, text):
    """The unit changes where three digits would be four."""
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("350ms", 0.35),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("5m", 300),
        ("5 min", 300),
        ("1S", 1),
        (".5 s", 0.5),
    ],
)
def test_durations_that_are_read(text, seconds):
    """Seconds, unless a unit says otherwise."""
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "0ms", "-1s", "1w", "nan", "inf", "1" + "0" * 400, "1h30m", "s"])
def test_what_is_no_duration(text):
    """Nor is nothing one, nor for ever."""
    with pytest.raises(OptionError, match="is no duration above zero: write it as 90, 350ms"):
        seconds_of(text)


@given(st.floats(1e-6, 1e7))
def test_a_duration_that_was_written_is_read_again(seconds):
    """In three digits; microseconds are only written."""
    written = duration(seconds)
    number, unit = written.split()
    assert (float(number) * 1e-6 if unit == "µs" else seconds_of(written)) == pytest.approx(seconds, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (5e-7, "0.5 µs"), (0.0032, "3.2 ms"), (1.5, "1.5 s"), (119, "119 s"), (120, "2 min"),
     (5400, "90 min"), (7200, "2 h"), (0.9999, "1000 ms"), (1e9, "11574 d"), (172_800, "2 d"), (-0.5, "-500 ms")],
)  # fmt: skip
def test_durations_that_are_written(seconds, text):
    """A larger unit from two of it on."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("text", "share"), [("3.5%", 0.035), ("0.035", 0.035), (" 50 % ", 0.5), ("1e-3", 0.001)])
def test_shares_that_are_read(text, share):
    """Percent, or a plain number below one."""
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "0", "0%", "1", "100%", "-1%", "3.5", "nan", "nan%", "inf", "5%%", "half"])
def test_what_is_no_share(text):
    """None and all are none."""
    with pytest.raises(OptionError, match=r"is no share: write it as 3\.5% or 0\.035"):
        share_of(text)


@given(st.floats(1e-6, 1 - 1e-6))
def test_a_share_means_the_same_in_percent(share):
    """Both ways of writing one."""
    assert math.isclose(share_of(f"{share!r}"), share_of(f"{share * 100!r}%"), rel_tol=1e-12)
