"""Medians, how bad it gets, and how sure that is: against tables, numpy and simulation."""

from __future__ import annotations

import json
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave.bench.spread import Spread, median_interval

steady = settings(derandomize=True, database=None, deadline=None, max_examples=200)
SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)

# The k-th sample from each end, by a table of the binomial distribution with p = 1/2: the largest k for which both
# tails together have at most 5 %.
RANKS = {6: 1, 7: 1, 8: 1, 9: 2, 10: 2, 11: 2, 12: 3, 15: 4, 17: 5, 20: 6, 25: 8, 30: 10, 50: 18, 100: 40}


@pytest.mark.parametrize(("n", "rank"), RANKS.items())
def test_the_interval_lies_between_the_samples_of_the_table(n, rank):
    """For six samples it is all of them, for twenty the sixth to the fifteenth."""
    assert median_interval([float(value) for value in range(1, n + 1)]) == (rank, n + 1 - rank)


@pytest.mark.parametrize("n", range(6))
def test_fewer_than_six_say_nothing(n):
    """Even from the least to the greatest of five, the confidence is below 95 %."""
    assert median_interval([1.0] * n) is None


@pytest.mark.parametrize("n", [6, 7, 8, 10, 20, 57, 200])
def test_the_confidence_is_enough_and_the_next_interval_has_not_enough(n):
    """Exactly: the chance that the median lies within is 95 % or more, and one sample less on each side is too few."""
    low, high = median_interval(range(1, n + 1))

    def confidence(rank):
        return 1 - 2 * sum(math.comb(n, heads) for heads in range(rank)) / 2**n

    assert high == n + 1 - low
    assert confidence(low) >= 0.95
    assert confidence(low + 1) < 0.95


def test_a_hundred_thousand_samples_are_no_trouble():
    """A profile of a long run has as many steps; near the normal approximation, and in a moment."""
    low, high = median_interval(range(100_000))
    assert abs((high - low) / 2 - 1.96 * math.sqrt(100_000) / 2) < 2


@pytest.mark.parametrize("n", [6, 8, 10, 20])
@pytest.mark.parametrize(
    ("draw", "median"),
    [
        (lambda rng, shape: rng.exponential(size=shape), math.log(2)),
        (lambda rng, shape: rng.lognormal(0.0, 1.5, size=shape), 1.0),
        (lambda rng, shape: rng.pareto(1.1, size=shape), 2 ** (1 / 1.1) - 1),
        (lambda rng, shape: rng.choice([1.0, 1.0, 1.0, 50.0], size=shape), 1.0),
    ],
    ids=["exponential", "lognormal", "pareto", "two values"],
)
def test_the_interval_covers_the_median_however_skewed_the_samples_are(n, draw, median):
    """In at least 95 of 100 of four thousand simulated measurements (less three standard errors of that share)."""
    trials = 4000
    samples = draw(np.random.default_rng(n), (trials, n))
    found = [median_interval(row) for row in samples.tolist()]
    covered = sum(low <= median <= high for low, high in found) / trials
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_by_hand():
    """Seven samples: their median, the ends, and the 95th percentile between the two largest."""
    spread = Spread.of([3.0, 1.0, 2.0, 10.0, 4.0, 5.0, 6.0])
    assert (spread.median, spread.low, spread.high, spread.n) == (4.0, 1.0, 10.0, 7)
    assert spread.p95 == pytest.approx(6.0 + 0.7 * 4.0)
    assert spread.ci95 == (1.0, 10.0)
    assert Spread.of([1.0, 2.0]).median == 1.5


def test_one_sample_is_its_own_spread():
    """There is a median and no interval."""
    assert Spread.of([2.5]) == Spread(2.5, 2.5, 2.5, 2.5, None, 1)


def test_no_sample_is_an_error():
    """Nothing has no median."""
    with pytest.raises(statistics.StatisticsError):
        Spread.of([])


def test_as_json():
    """Everything is scaled but the count; where there is no interval there are two nulls, never a NaN."""
    assert Spread.of([0.001 * value for value in range(1, 7)]).as_json(1e3) == {
        "median": pytest.approx(3.5), "p95": pytest.approx(5.75), "ci95": [pytest.approx(1.0), pytest.approx(6.0)],
        "n": 6,
    }  # fmt: skip
    assert json.dumps(Spread.of([1.0]).as_json(), allow_nan=False) == (
        '{"median": 1.0, "p95": 1.0, "ci95": [null, null], "n": 1}'
    )


def test_show():
    """The median, and from where to where."""
    assert Spread.of([0.1, 0.2, 0.4]).show(1e3, 1) == "200.0 (100.0..400.0)"
    assert Spread.of([1, 2]).show() == "1.50 (1.00..2.00)"


@steady
@given(SAMPLES)
def test_percentile_as_numpy_has_it(samples):
    """Interpolated linearly between order statistics."""
    assert Spread.of(samples).p95 == pytest.approx(np.percentile(samples, 95), rel=1e-9, abs=1e-6)


@steady
@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_samples_says_nothing(samples, random):
    """Shuffled, they have the same spread."""
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert Spread.of(shuffled) == Spread.of(samples)


@steady
@given(SAMPLES, st.integers(-10, 10))
def test_another_unit_is_only_another_unit(samples, power):
    """Scaled by a power of two, which is exact, all of it is scaled; upside down, the ends change places."""
    scale = 2.0**power
    plain, scaled = Spread.of(samples), Spread.of([value * scale for value in samples])
    assert scaled.as_json() == plain.as_json(scale)
    turned = Spread.of([-value for value in samples])
    assert (turned.median, turned.low, turned.high) == (-plain.median, -plain.high, -plain.low)
    assert turned.ci95 == (plain.ci95 and (-plain.ci95[1], -plain.ci95[0]))


@steady
@given(SAMPLES)
def test_all_figures_are_in_order(samples):
    """Low, lower bound, median, upper bound, high; and the percentile above the median."""
    spread = Spread.of(samples)
    bounds = spread.ci95 or (spread.low, spread.high)
    row = [spread.low, bounds[0], spread.median, bounds[1], spread.high]
    assert all(left <= right or math.isclose(left, right) for left, right in pairwise(row))
    assert spread.p95 >= spread.median or math.isclose(spread.p95, spread.median)
    assert spread.p95 <= spread.high or math.isclose(spread.p95, spread.high)
