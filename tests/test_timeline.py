"""What a save took from the training: timelines by hand, and a plain model for all others."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave.bench.timeline import SaveMark, Step, Timeline, Toll, tolls

steady = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def run(*events, gap=0):
    """Make a timeline of one loop.

    A number is a step of so many seconds; ``(stall, durable)`` is a save between steps; ``(stall, durable, seconds)``
    one whose call is held by a step that takes so many seconds besides.
    """
    now, timeline = 0, Timeline()
    for event in events:
        if not isinstance(event, tuple):
            timeline.steps.append(Step(now, now + event))
            now += event + gap
            continue
        stall, durable, *inside = event
        timeline.saves.append(SaveMark(now, now + stall, now + durable))
        if inside:
            timeline.steps.append(Step(now, now + stall + inside[0]))
        now += stall + sum(inside) + gap
    return timeline


def test_cost_is_the_stall_and_what_the_steps_beside_it_took_longer():
    """Quiet steps of 10, a call of 3, three slow steps beside it of 14, 12 and 11."""
    (toll,) = tolls(run(10, 10, 10, (3, 40), 14, 12, 11, 10, 10))
    assert (toll.stall, toll.durable, toll.quiet) == (3, 40, 10)
    assert toll.busy == (14, 12, 11)
    assert toll.taken == 4 + 2 + 1
    assert toll.cost == 3 + 7
    assert toll.slowdown == 1.2
    assert toll.inflation == pytest.approx(37 / 3 / 10)


def test_the_step_in_which_the_save_ends_counts_whole():
    """The save is complete one second into the last slow step; the step after it is quiet."""
    (toll,) = tolls(run(10, 10, (1, 12), 15, 13, 10))
    assert toll.busy == (15,)
    (toll,) = tolls(run(10, 10, (1, 17), 15, 13, 10))
    assert toll.busy == (15, 13)


def test_a_step_that_begins_when_the_save_is_complete_is_quiet():
    """To the moment: complete at 11, the next step begins at 11."""
    (toll,) = tolls(run(5, 5, (1, 6), 5, 99, 5))
    assert toll.busy == (5,)
    assert toll.quiet == 5


def test_a_save_that_was_quick_can_cost_less_than_nothing():
    """Steps beside it that happened to be shorter are not cut off at zero: noise has two sides."""
    (toll,) = tolls(run(10, 10, (1, 15), 8, 8, 10))
    assert toll.cost == 1 - 2 - 2


def test_a_synchronous_save_costs_its_stall():
    """Complete when it returns: no step is beside it."""
    (toll,) = tolls(run(10, 11, (30, 30), 10, 12))
    assert (toll.cost, toll.durable, toll.busy) == (30, 30, ())
    assert (toll.slowdown, toll.inflation, toll.taken) == (1.0, 1.0, 0)


def test_a_step_that_holds_the_call_does_not_count_it_twice():
    """The call of 3 is the stall; what else the step did is a step beside the save."""
    (toll,) = tolls(run(10, 10, (3, 20, 12), 14, 10))
    assert toll.stall == 3
    assert toll.busy == (12, 14)
    assert toll.cost == 3 + 2 + 4


def test_a_step_that_holds_a_whole_synchronous_save():
    """The same, and it is complete within."""
    (toll,) = tolls(run(10, 10, (30, 30, 10), 10))
    assert (toll.stall, toll.cost) == (30, 30)


def test_a_step_may_begin_in_the_midst_of_a_call():
    """A profile's step ends with the optimizer's, wherever the save was called: only what overlaps is taken off."""
    timeline = Timeline(
        [Step(0, 10), Step(10, 20), Step(20, 32), Step(32, 46), Step(46, 56)], [SaveMark(30, 34, 40, {"stage": 4})]
    )
    (toll,) = tolls(timeline)
    assert toll.busy == (12,)  # 14 less the two seconds of the call; the step before is quiet: 12 less two
    assert toll.quiet == 10
    assert toll.phases == {"stage": 4}


def test_a_step_beside_two_saves_belongs_to_the_earlier():
    """Nothing is counted twice; when the earlier one is complete the later one has the rest."""
    first, second = tolls(run(10, 10, (2, 30), 13, (2, 60), 14, 15, 16, 17, 10, 10))
    assert first.busy == (13, 14)
    assert second.busy == (15, 16, 17)
    assert first.cost + second.cost == 2 + 2 + 3 + 4 + 5 + 6 + 7


def test_saves_that_end_in_another_order():
    """The later, shorter one has no step of its own; order is that of the calls, however they are listed."""
    timeline = run(10, 10, (1, 45), 11, (1, 5), 12, 13, 14, 10)
    expected = tolls(timeline)
    assert [toll.busy for toll in expected] == [(11, 12, 13, 14), ()]
    timeline.saves.reverse()
    timeline.steps.reverse()
    assert tolls(timeline) == expected


def test_a_save_that_is_never_complete():
    """It has all steps from its call on, and figures that can be told; what comes later costs its stall."""
    first, second = tolls(run(10, 10, (1, math.inf), 11, 11, (2, 15), 12, 12))
    assert first.busy == (11, 11, 12, 12)
    assert first.cost == 1 + 1 + 1 + 2 + 2
    assert first.durable == math.inf
    assert second.cost == 2


def test_without_quiet_steps_the_cost_is_the_stall():
    """There is nothing to compare with."""
    (toll,) = tolls(run((3, 100), 10, 11, 12))
    assert (toll.cost, toll.quiet, toll.busy, toll.inflation) == (3, 0.0, (), 1.0)


def test_without_steps_or_without_saves():
    """The cost is the stall; or there is none."""
    (toll,) = tolls(run((3, 100)))
    assert toll.cost == 3
    assert tolls(run(10, 10)) == []
    assert tolls(Timeline()) == []


def test_steps_shorter_than_the_clock_can_tell():
    """No ratio to nothing."""
    (toll,) = tolls(run(0, 0, (1, 5), 2, 2, 0))
    assert toll.quiet == 0
    assert (toll.cost, toll.slowdown, toll.inflation) == (5, 1.0, 1.0)


def test_what_is_quiet_is_asked_near_the_save():
    """A machine that grows slower: each save is compared with the ten steps on either side of it."""
    timeline = run(*[10] * 30, (1, 15), 13, *[10] * 30, *[20] * 30, (1, 25), 23, *[20] * 30)
    first, second = tolls(timeline)
    assert (first.quiet, second.quiet) == (10, 20)
    assert (first.busy, second.busy) == ((13, 10), (23, 20))
    assert first.cost == second.cost == 1 + 3


def test_the_median_of_quiet_steps():
    """One step that was held up by something else does not change it."""
    (toll,) = tolls(run(10, 1000, 10, (1, 5), 12, 10, 10))
    assert toll.quiet == 10


class Counted(float):
    """Seconds that count how often they are compared."""

    comparisons = 0

    def _tally(self, name, other):
        Counted.comparisons += 1
        return getattr(float, name)(self, other)

    __lt__ = lambda self, other: self._tally("__lt__", other)  # noqa: E731 - four of a kind
    __le__ = lambda self, other: self._tally("__le__", other)  # noqa: E731
    __gt__ = lambda self, other: self._tally("__gt__", other)  # noqa: E731
    __ge__ = lambda self, other: self._tally("__ge__", other)  # noqa: E731


@pytest.mark.parametrize("durable", [5, 1e9], ids=["one after the other", "none complete before the end"])
def test_thousands_of_steps_and_saves_take_no_more_than_a_pass(durable):
    """Eight times as many take about eight times as many comparisons, even if no save is ever complete."""

    def comparisons(count):
        now, timeline = 0, Timeline()
        for _ in range(count):
            timeline.saves.append(SaveMark(Counted(now), Counted(now + 1), Counted(now + durable)))
            for begin in range(now + 1, now + 31, 10):
                timeline.steps.append(Step(Counted(begin), Counted(begin + 10)))
            now += 31
        Counted.comparisons = 0
        assert len(tolls(timeline)) == count
        return Counted.comparisons

    assert comparisons(2000) < 12 * comparisons(250)


@st.composite
def timelines(draw):
    """Draw a loop whose steps follow one another, with saves between them, in them, and beside one another."""
    now, timeline = 0, Timeline()
    seconds = st.integers(0, 12)
    for _ in range(draw(st.integers(0, 25))):
        now += draw(st.integers(0, 3))
        began = now
        if draw(st.booleans()):
            now += draw(seconds)
        if draw(st.integers(0, 3)) == 0:
            called, returned = now, now + draw(st.integers(0, 6))
            durable = draw(st.integers(0, 40) | st.just(math.inf))
            timeline.saves.append(SaveMark(called, returned, max(returned, called + durable)))
            now = returned
        if draw(st.booleans()):
            now += draw(seconds)
            timeline.steps.append(Step(began, now))
    return timeline


def plain_tolls(timeline):
    """Return the same from the definition, step by step and save by save."""
    saves = sorted(timeline.saves, key=lambda save: save.called)
    owners, seconds = [], []
    for step in timeline.steps:
        beside = [save for save in saves if step.began < save.completed and save.returned < step.ended]
        owners.append(beside[0] if beside else None)
        held = sum(max(0, min(step.ended, save.returned) - max(step.began, save.called)) for save in saves)
        seconds.append(step.ended - step.began - held)
    found = []
    for save in saves:
        before = [s for s, step, owner in zip(seconds, timeline.steps, owners, strict=True)
                  if owner is None and step.ended <= save.returned]  # fmt: skip
        after = [s for s, step, owner in zip(seconds, timeline.steps, owners, strict=True)
                 if owner is None and step.ended > save.returned]  # fmt: skip
        around = before[-10:] + after[:10]
        busy = [s for s, owner in zip(seconds, owners, strict=True) if owner is save]
        quiet = statistics.median(around) if around else 0.0
        found.append(
            Toll(save.returned - save.called, save.completed - save.called, quiet, tuple(busy) if around else (), {})
        )
    return found


@steady
@given(timelines())
def test_as_the_definition_says(timeline):
    """Whatever the order of moments, quick and plain agree."""
    assert tolls(timeline) == plain_tolls(timeline)


@steady
@given(timelines(), st.integers(-1000, 1000))
def test_when_the_clock_began_does_not_matter(timeline, shift):
    """Later by an hour, everything is as before."""
    later = Timeline(
        [Step(step.began + shift, step.ended + shift) for step in timeline.steps],
        [SaveMark(save.called + shift, save.returned + shift, save.completed + shift) for save in timeline.saves],
    )
    assert tolls(later) == tolls(timeline)
