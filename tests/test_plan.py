"""What is to be measured: what it needs, what the limits allow, and what makes no sense."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave import OptionError
from asyncsave.bench.grid import MOST_PROBED, SAVES_EACH, grid
from asyncsave.bench.plan import ALL_MODES, LEAST_SAVES, PROBES, Needs, Plan, estimate
from asyncsave.bench.spread import median_interval

steady = settings(derandomize=True, database=None, deadline=None, max_examples=200)

MB = 1_000_000
SIMPLE = Plan("/disk", modes=("torch.save", "thread"))
MODES = st.lists(st.sampled_from(ALL_MODES), min_size=1, unique=True).map(tuple)


def told(plan, nbytes=100 * MB, *, step=0.1, quiet_steps=5, save=0.5, disk=100e6):
    """Foretell with figures that are easy to add up: the disk takes a second for the state."""
    return estimate(plan, nbytes, step=step, quiet_steps=quiet_steps, save=save, disk=disk)


def test_by_hand():
    """Thirteen turns of two saves, with a sync before each, and the steps around it."""
    found = told(replace(SIMPLE, saves=10))
    turn = (0.5 + 1 + 1 + 11 * 0.1) + (1 + 1 + 11 * 0.1)
    assert found.saves == 10
    assert found.seconds == pytest.approx(13 * turn)
    assert found.written == 100 * MB * (1 + PROBES + 2 * 13)
    assert found.disk == 100 * MB * (1 + 3)
    assert found.memory == 100 * MB * (3 + 1)  # a thread's two arenas and what is read back, and the probe's pages
    assert found.as_json() == {
        "seconds": found.seconds, "written_bytes": found.written, "disk_bytes": found.disk,
        "memory_bytes": found.memory, "saves": 10,
    }  # fmt: skip


def test_time_is_a_limit():
    """As many saves as fit, and not one more."""
    whole = told(replace(SIMPLE, saves=10))
    one = whole.seconds / 13
    assert told(replace(SIMPLE, seconds=whole.seconds * 1.001)).saves == 10
    assert told(replace(SIMPLE, seconds=whole.seconds - one / 2)).saves == 9
    assert told(replace(SIMPLE, seconds=4.01 * one)).saves == 1
    with pytest.raises(OptionError, match=r"this would take 26\.8 s at least, and 22 s are allowed"):
        told(replace(SIMPLE, seconds=22.0))


def test_bytes_are_a_limit():
    """The same, and it is known before anything is measured."""
    whole = Needs(SIMPLE, 100 * MB).written(10)
    assert told(replace(SIMPLE, written=whole)).saves == 10
    assert told(replace(SIMPLE, written=whole - 1)).saves == 9
    least = Needs(SIMPLE, 100 * MB).written(1)
    assert told(replace(SIMPLE, written=least)).saves == 1
    tight = replace(SIMPLE, written=least - 1)
    with pytest.raises(OptionError, match=r"would write 1,200,000,000 bytes at least, and 1,199,999,999 are allowed"):
        told(tight)
    with pytest.raises(OptionError, match="a smaller state, fewer modes, or a higher limit"):
        Needs(tight, 100 * MB).check()


def test_no_limit_of_time():
    """Infinity is one."""
    assert told(replace(SIMPLE, seconds=math.inf)).saves == 10


@steady
@given(
    st.integers(1, 10**13), MODES, st.booleans(), st.integers(1, 50), st.floats(1e-3, 1e9), st.integers(1, 10**16),
    st.floats(1e-6, 10), st.floats(1e-6, 100), st.floats(1e5, 1e11),
)  # fmt: skip
def test_limits_are_kept(nbytes, modes, sweeps, saves, seconds, written, step, save, disk):
    """Whatever is planned, what is foretold is within the limits, or is refused in words."""
    plan = Plan("/disk", modes=modes, sweeps=sweeps, saves=saves, seconds=seconds, written=written)
    try:
        found = estimate(plan, nbytes, step=step, quiet_steps=6, save=save, disk=disk)
    except OptionError as error:
        assert "at least" in str(error)  # noqa: PT017 - either way is right
        return
    assert 1 <= found.saves <= saves
    assert found.written <= written
    assert found.seconds <= seconds * (1 + 1e-9)
    free = replace(plan, saves=found.saves + 1, seconds=math.inf, written=10**18)
    more = estimate(free, nbytes, step=step, quiet_steps=6, save=save, disk=disk)
    assert found.saves == saves or more.written > written or more.seconds > seconds * (1 - 1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nbytes": 0}, "nbytes must be a whole number, at least 1, not 0"),
        ({"nbytes": 1.5}, "nbytes"),
        ({"tensors": 0}, "tensors"),
        ({"saves": 0}, "saves"),
        ({"saves": True}, "saves"),
        ({"seconds": 0}, "seconds must be a number above 0, not 0"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": math.nan}, "seconds"),
        ({"written": 0}, "written must be a whole number, at least 1, not 0"),
        ({"written": -1}, "written"),
        ({"modes": ()}, "modes must be some of torch.save, "),
        ({"modes": ("thread", "thread")}, "each once, not thread, thread"),
        ({"modes": ("thread", "carrier pigeon")}, "carrier pigeon"),
        ({"modes": "thread"}, "modes must be some of"),
    ],
)
def test_what_makes_no_sense(options, said):
    """It is refused before anything is done."""
    with pytest.raises(OptionError, match="must be") as raised:
        Plan("/disk", **options)
    assert said in str(raised.value)


def test_the_least_number_of_saves_gives_an_interval():
    """One less does not."""
    assert median_interval([1.0] * LEAST_SAVES) is not None
    assert median_interval([1.0] * (LEAST_SAVES - 1)) is None


@pytest.mark.parametrize(
    ("modes", "copies"), [(("torch.save",), 1), (("naive-thread",), 2), (("process",), 3), (ALL_MODES, 7)]
)
def test_memory_has_room_for_what_is_read_back(modes, copies):
    """Even torch.save needs a second state, to compare what it wrote; modes that race hold theirs together."""
    needs = Needs(Plan("/disk", modes=modes), 10 * MB)
    assert needs.memory == 10 * MB * (copies + 1)
    assert Needs(Plan("/disk", modes=modes), 5 << 30).memory == (5 << 30) * copies + MOST_PROBED


def test_sweeps_are_foretold():
    """They take time, and write, as their points say."""
    plan = replace(SIMPLE, sweeps=True, seconds=1e6)
    points = grid(100 * MB, plan.modes)
    without, found = told(SIMPLE), told(plan)
    assert found.written - without.written == points.written
    assert found.seconds - without.seconds == pytest.approx(points.seconds(0.5 / (100 * MB), 100e6))
    assert Needs(SIMPLE, 100 * MB).points is None
    with pytest.raises(OptionError, match="at least"):
        told(replace(plan, seconds=found.seconds - without.seconds))


def test_points_by_hand():
    """Four sizes, as many counts as the state has room for, and sixteen raw writes."""
    points = grid(64 * MB, ("torch.save", "aiofiles", "process"))
    assert [(point.mode, point.nbytes, point.tensors) for point in points.sizes] == [
        (mode, nbytes, min(100, nbytes // 4096))
        for nbytes in (MB, 4 * MB, 16 * MB, 64 * MB)
        for mode in ("torch.save", "process")
    ]
    assert [(point.mode, point.nbytes, point.tensors) for point in points.counts] == [
        (mode, 64 * MB, count) for count in (10, 100, 1000, 10_000) for mode in ("torch.save", "process")
    ]
    assert len(points.writes) == 16
    assert {point.nbytes for point in points.writes} == {64 * MB}
    assert len(points) == 8 + 8 + 16
    assert points.written == 2 * SAVES_EACH * (85 * MB + 4 * 64 * MB) + 16 * 64 * MB


def test_points_of_states_that_are_tiny_or_huge():
    """There is no tensor without values, and no sweep of terabytes."""
    assert not grid(1000, ALL_MODES).counts
    assert min(point.nbytes // point.tensors for point in grid(1, ALL_MODES).sizes) >= 512
    huge = grid(10**13, ALL_MODES)
    assert max(point.nbytes for point in huge.sizes + huge.counts + huge.writes) == MOST_PROBED
    assert not grid(10 * MB, ("aiofiles",)).sizes
