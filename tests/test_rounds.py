"""Turns, and a save beside a training, on a clock that only the test moves on."""

from __future__ import annotations

import gc
import os
from collections import Counter
from concurrent.futures import Future
from itertools import count, pairwise

import pytest

from asyncsave import SaveError
from asyncsave.bench import rounds, savers
from asyncsave.bench.rounds import interleave, save_beside
from asyncsave.bench.savers import Saving
from asyncsave.bench.timeline import SaveMark, Step, tolls


class Clock:
    """Stands where the module ``time`` stood."""

    def __init__(self, now=1000.0):
        self.now = now

    def perf_counter(self):
        """Tell the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Return the only clock there is."""
    made = Clock()
    monkeypatch.setattr(rounds, "time", made)
    monkeypatch.setattr(savers, "time", made)
    return made


class FakeLoop:
    """Steps of given lengths, then of one second; what is due happens at the end of a step."""

    def __init__(self, clock, *lengths):
        self._clock, self._lengths = clock, list(lengths)
        self.steps, self.due = 0, []

    def step(self):
        """Do one."""
        self.steps += 1
        self._clock.now += self._lengths.pop(0) if self._lengths else 1.0
        for moment, what in list(self.due):
            if moment <= self._clock.now:
                self.due.remove((moment, what))
                now, self._clock.now = self._clock.now, moment
                what()
                self._clock.now = now


class FakeSaver:
    """Holds the caller for so long, and is complete so long after the call; or fails then."""

    def __init__(self, clock, loop, stall, durable, error=None):
        self._clock, self._loop, self._stall, self._durable, self._error = clock, loop, stall, durable, error
        self.asked = []

    def save(self, state, path):
        """Begin."""
        self.asked.append((state, path))
        return Saving.start(self._start)

    def _start(self):
        future, end = Future(), self._clock.now + self._durable
        finish = (lambda: future.set_exception(self._error)) if self._error else (lambda: future.set_result(None))
        self._clock.now += self._stall
        if self._durable <= self._stall:
            finish()
        else:
            self._loop.due.append((end, finish))
        return future


def test_what_happened_when(clock):
    """Two quiet steps, a call of 3 s, three steps until the save is complete in the midst of the last, two more."""
    loop = FakeLoop(clock, 1.0, 1.5, 2.0, 2.5, 4.0, 1.25, 1.75)
    saver = FakeSaver(clock, loop, stall=3.0, durable=9.0)
    timeline = save_beside(saver, "state", "path", loop, quiet_steps=2)
    assert saver.asked == [("state", "path")]
    assert timeline.steps == [
        Step(1000.0, 1001.0),
        Step(1001.0, 1002.5),
        Step(1005.5, 1007.5),
        Step(1007.5, 1010.0),
        Step(1010.0, 1014.0),
        Step(1014.0, 1015.25),
        Step(1015.25, 1017.0),
    ]
    assert timeline.saves == [SaveMark(1002.5, 1005.5, 1011.5, {})]
    (toll,) = tolls(timeline)
    quiet = (1.25 + 1.5) / 2
    assert (toll.stall, toll.durable, toll.quiet) == (3.0, 9.0, quiet)
    assert toll.cost == 3.0 + (2.0 + 2.5 + 4.0) - 3 * quiet


def test_a_synchronous_save_has_no_step_beside_it(clock):
    """It is complete when it returns."""
    loop = FakeLoop(clock)
    timeline = save_beside(FakeSaver(clock, loop, 5.0, 5.0), None, "", loop, quiet_steps=3)
    assert loop.steps == 6
    assert timeline.saves == [SaveMark(1003.0, 1008.0, 1008.0, {})]
    assert timeline.steps[2:4] == [Step(1002.0, 1003.0), Step(1008.0, 1009.0)]
    assert tolls(timeline)[0].cost == 5.0


def test_microseconds_are_kept(clock):
    """Steps and stalls a million times as short are as exact."""
    clock.now = 0.0
    unit = 2.0**-20
    loop = FakeLoop(clock, *[unit * length for length in (1, 3, 2, 5, 1, 1)])
    timeline = save_beside(FakeSaver(clock, loop, 7 * unit, 10 * unit), None, "", loop, quiet_steps=2)
    (toll,) = tolls(timeline)
    assert (toll.stall, toll.durable) == (7 * unit, 10 * unit)
    assert toll.busy == (2 * unit, 5 * unit)
    assert toll.cost == 7 * unit + 7 * unit - 2 * unit


def test_without_quiet_steps(clock):
    """The steps beside the save are all there are."""
    loop = FakeLoop(clock)
    timeline = save_beside(FakeSaver(clock, loop, 0.5, 3.0), None, "", loop, quiet_steps=0)
    assert len(timeline.steps) == loop.steps == 3


def test_a_save_that_fails_is_not_recorded(clock):
    """Its error reaches the caller."""
    loop = FakeLoop(clock)
    error = SaveError("the disk is full", path="/p", phase="write")
    saver = FakeSaver(clock, loop, 1.0, 3.0, error)
    with pytest.raises(SaveError, match="the disk is full"):
        save_beside(saver, None, "", loop, quiet_steps=1)


@pytest.fixture
def events(monkeypatch):
    """Return a list of what is run, and when everything is flushed."""
    found = []
    monkeypatch.setattr(os, "sync", lambda: found.append("sync"))
    gc.freeze()
    yield found
    gc.unfreeze()


def run_of(events, name, numbers):
    """Return something to run, which tells its name and how many ran before it."""

    def run():
        events.append(name)
        return name, next(numbers)

    return run


def test_turns(events):
    """The first one is dropped, each is flushed before, nobody keeps a place."""
    numbers = count()
    done = []
    found = interleave({name: run_of(events, name, numbers) for name in "abc"}, 5, lambda: done.append(len(events)))
    turns = ["abc", "cba", "bca", "acb", "cab", "bac"]
    assert events == [word for turn in turns for name in turn for word in ("sync", name)]
    assert list(found) == ["a", "b", "c"]
    assert found == {
        name: [(name, 3 * number + turn.index(name)) for number, turn in enumerate(turns) if number] for name in "abc"
    }
    assert done == [2 * number for number in range(1, 19)]


@pytest.mark.parametrize("names", ["ab", "abc", "abcd", "abcdef"])
def test_nobody_has_a_better_place(events, names):
    """In twice as many turns as names everybody is first twice and last twice, and follows each neighbour equally."""
    interleave({name: run_of(events, name, count()) for name in names}, 2 * len(names) - 1)
    order = [event for event in events if event != "sync"]
    turns = [order[first : first + len(names)] for first in range(0, len(order), len(names))]
    assert len(turns) == 2 * len(names)
    assert Counter(turn[0] for turn in turns) == Counter(turn[-1] for turn in turns) == dict.fromkeys(names, 2)
    follows = Counter(pair for turn in turns for pair in pairwise(turn))
    assert max(follows.values()) <= len(names)
    assert all(follows[left, right] == follows[right, left] for left in names for right in names)


def test_one_alone(events):
    """It has turns, too."""
    assert interleave({"a": run_of(events, "a", count())}, 2) == {"a": [("a", 1), ("a", 2)]}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SaveError("full", path="/p", phase="write")])
def test_what_is_raised_ends_the_turns(events, error):
    """By a run, or by whoever is told of it."""

    def fail():
        raise error

    with pytest.raises((KeyboardInterrupt, SaveError)):
        interleave({"a": run_of(events, "a", count()), "b": fail}, 3)
    assert events == ["sync", "a", "sync"]
    with pytest.raises((KeyboardInterrupt, SaveError)):
        interleave({"a": run_of(events, "a", count())}, 3, fail)
    assert events[3:] == ["sync", "a"]
