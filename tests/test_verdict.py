"""What a bench finds: helps, hurts, cannot be told; and its words."""

from __future__ import annotations

import ast
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncsave
from asyncsave.bench.plan import ALL_MODES, LEAST_SAVES
from asyncsave.bench.verdict import BASELINES, OURS, decide

steady = settings(derandomize=True, database=None, deadline=None, max_examples=100)

WRITER = "writer = asyncsave.Writer()"
PROCESS = 'writer = asyncsave.Writer(backend="process")'
WAITS = 'asyncsave.save(state, "ckpt.pt")  # waits: atomic, durable, checksummed'


def around(seconds, n=10, spread=0.002):
    """Return costs around a median, all different."""
    return [seconds + spread * (turn - (n - 1) / 2) / n for turn in range(n)]


def test_it_helps():
    """Beyond doubt: the whole interval is above zero."""
    found = decide({"torch.save": [0.5, 0.6, 0.7, 0.4, 0.5, 0.6], "thread": [0.1] * 6})
    assert found.helps is True
    assert found.text == (
        "thread helps: each save costs training 450 ms less than torch.save (95 % interval 300 ms .. 600 ms)"
    )
    assert found.code == WRITER
    assert found.as_json() == {
        "helps": True, "mode": "thread", "baseline": "torch.save",
        "saved_ms": {"median": pytest.approx(450), "ci95": [pytest.approx(300), pytest.approx(600)]},
        "text": found.text, "code": found.code,
    }  # fmt: skip


def test_it_hurts():
    """Beyond doubt: the whole interval is below zero. The line to paste waits then, and its numbers are positive."""
    found = decide({"torch.save": [0.01] * 6, "thread": [0.03, 0.04, 0.05, 0.06, 0.07, 0.08]})
    assert found.helps is False
    assert found.text == (
        "it hurts: each save by thread costs training 45 ms more than torch.save (95 % interval 20 ms .. 70 ms)"
    )
    assert found.code == WAITS


def test_no_difference():
    """Zero lies within the interval; the median is told with its sign."""
    found = decide({"torch.save": [0.1] * 6, "thread": [0.098, 0.099, 0.101, 0.102, 0.103, 0.104]})
    assert found.helps is None
    assert found.text == (
        "no measurable difference between thread and torch.save: -1.5 ms per save (95 % interval -4 ms .. 2 ms)"
    )
    assert found.code == WRITER


@pytest.mark.parametrize("n", range(1, LEAST_SAVES))
def test_too_few(n):
    """Five saves decide nothing, however far apart they are, and nothing is said of thread and process either."""
    found = decide({mode: [seconds] * n for mode, seconds in
                    {"torch.save": 9.0, "torch.save+fsync": 9.0, "thread": 0.1, "process": 0.2}.items()})  # fmt: skip
    assert found.helps is None
    assert found.text == f"too few saves to tell ({n}, six are needed): thread against torch.save"
    assert found.as_json()["saved_ms"]["ci95"] == [None, None]


def test_six_are_enough():
    """What the message says is what the interval needs."""
    costs = {"torch.save": [9.0] * LEAST_SAVES, "thread": [0.1] * LEAST_SAVES}
    assert decide(costs).helps is True


def test_turns_are_compared_one_by_one():
    """A machine that grows ten times as slow changes both; each turn's difference is the same 5 ms."""
    drift = [0.1 * 1.3**turn for turn in range(10)]
    found = decide({"torch.save": [seconds + 0.005 for seconds in drift], "thread": drift})
    assert found.helps is True
    assert found.saved.median == pytest.approx(0.005)
    upside_down = decide({"torch.save": [seconds + 0.005 for seconds in drift], "thread": drift[::-1]})
    assert upside_down.helps is None  # the same figures of each mode, but not of the same turns


def test_one_turn_that_went_wrong_does_not_decide():
    """A single save that took a minute, of ten, is not what the median is about."""
    found = decide({"torch.save": [0.5] * 10, "thread": [0.1] * 9 + [60.0]})
    assert found.helps is True


@pytest.mark.parametrize(
    ("thread", "process", "mode", "said"),
    [
        (around(0.1), around(0.05)[::-1], "process", "process helps: each save costs training 450 ms less"),
        (around(0.05), around(0.1)[::-1], "thread", "; a process would cost 50 ms more"),
        (around(0.1), around(0.1)[::-1], "thread", "; a process makes no measurable difference to a thread"),
    ],
)
def test_thread_or_process(thread, process, mode, said):
    """The better one beyond doubt; the simpler one otherwise."""
    found = decide({"torch.save": around(0.5), "thread": thread, "process": process})
    assert found.mode == mode
    assert said in found.text
    assert found.code == (PROCESS if mode == "process" else WRITER)


@pytest.mark.parametrize(
    ("flushed", "said"),
    [
        (0.9, "; thread costs 700 ms less than torch.save+fsync, which flushes too"),
        (0.15, "; thread costs 50 ms more than torch.save+fsync, which flushes too"),
        (0.2, "; no measurable difference to torch.save+fsync, which flushes too"),
    ],
)
def test_equal_promises_are_compared_too(flushed, said):
    """torch.save alone flushes nothing, so the one that does is named, with the same care."""
    found = decide({"torch.save": around(0.1), "torch.save+fsync": around(flushed)[::-1], "thread": around(0.2)})
    assert found.helps is False
    assert found.text.endswith(said)


def test_a_baseline_that_flushes_is_not_named_twice():
    """There is nothing more to say."""
    found = decide({"torch.save+fsync": around(0.5), "process": around(0.1)})
    assert found.baseline == "torch.save+fsync"
    assert found.text.count("torch.save+fsync") == 1
    assert found.text.startswith("process helps: ")


@pytest.mark.parametrize("names", [["thread"], ["thread", "process"], list(BASELINES), []])
def test_nothing_to_compare(names):
    """Only ours, or only others: there is no verdict."""
    assert decide({name: [1.0] * 6 for name in names}) is None


@pytest.mark.parametrize("baseline", BASELINES)
def test_any_other_way_is_a_baseline(baseline):
    """The first in the list that was measured."""
    costs = {name: [1.0] * 6 for name in ("process", *BASELINES[BASELINES.index(baseline) :])}
    assert decide(costs).baseline == baseline


def test_turns_that_do_not_match_are_a_mistake():
    """Ways that were not measured equally often cannot be paired."""
    with pytest.raises(ValueError, match=r"shorter|longer"):
        decide({"torch.save": [1.0] * 6, "thread": [1.0] * 7})


def test_every_mode_that_is_measured_has_a_part():
    """Ours and others are all there is."""
    assert sorted(OURS + BASELINES) == sorted(ALL_MODES)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.9996, "1000 ms"), (1.0, "1 s"), (1234.0, "20.6 min"), (2e-5, "20 µs"), (0.0123456, "12.3 ms")],
)
def test_times_have_no_exponents(seconds, said):
    """Whatever their size."""
    found = decide({"torch.save": [seconds] * 6, "thread": [0.0] * 6})
    assert f"{said} less than torch.save (95 % interval {said} .. {said})" in found.text


@pytest.mark.parametrize("code", [WRITER, PROCESS, WAITS])
def test_the_line_to_paste_runs(code, tmp_path, monkeypatch):
    """As it is, in a program that has imported asyncsave and has a state."""
    monkeypatch.chdir(tmp_path)
    names = {"asyncsave": asyncsave, "state": {"x": torch.arange(3)}}
    assert len(ast.parse(code).body) == 1
    exec(code, names)  # noqa: S102 - our own text
    if "writer" in names:
        with names["writer"] as writer:
            writer.save(names["state"], tmp_path / "ckpt.pt")
    assert torch.equal(asyncsave.load(tmp_path / "ckpt.pt")["x"], torch.arange(3))


def test_the_lines_above_are_all_there_are():
    """What decide gives to paste is what was run."""
    given_out = {
        decide({"torch.save": around(0.1), mode: around(seconds)}).code for mode in OURS for seconds in (0.05, 0.1, 0.9)
    }
    assert given_out == {WRITER, PROCESS, WAITS}


COSTS = st.lists(st.tuples(*[st.floats(0, 100)] * 4), min_size=1, max_size=12)
NAMES = ("torch.save", "torch.save+fsync", "thread", "process")


@steady
@given(COSTS)
def test_whatever_was_measured(turns):
    """The verdict, its interval, its words and its line agree with one another, in one line."""
    found = decide(dict(zip(NAMES, map(list, zip(*turns, strict=True)), strict=True)))
    bounds = found.saved.ci95
    if found.helps is None:
        assert bounds is None or bounds[0] <= 0 <= bounds[1]
        assert found.text.startswith(("too few", "no measurable difference"))
    else:
        assert min(map(abs, bounds)) > 0
        assert (bounds[0] > 0) is found.helps
        assert found.text.startswith(f"{found.mode} helps: " if found.helps else "it hurts: ")
    assert found.text.isprintable()
    assert found.code in {WRITER, PROCESS, WAITS}
    assert (found.code == WAITS) is (found.helps is False)


@steady
@given(COSTS, st.randoms(use_true_random=False))
def test_the_order_of_turns_says_nothing(turns, shuffle):
    """Turns are pairs, not a sequence."""
    shuffled = list(turns)
    shuffle.shuffle(shuffled)
    first, second = (decide(dict(zip(NAMES, map(list, zip(*one, strict=True)), strict=True))) for one in
                     (turns, shuffled))  # fmt: skip
    assert first == second


def test_no_effect_is_seldom_called_one():
    """Of a thousand measurements of two ways that cost the same, at most one in twenty finds a difference."""
    rng = random.Random(0)  # noqa: S311 - a simulation

    def costs():
        return [rng.lognormvariate(0, 1) for _ in range(10)]

    found = [decide({"torch.save": costs(), "thread": costs()}).helps for _ in range(1000)]
    assert 1000 - found.count(None) <= 50


def test_a_process_that_alone_helps_is_named():
    """A thread that is in doubt, against either, does not hide it."""
    thread = [0.2, 2.0, 0.3, 1.9, 0.25, 2.1]
    found = decide({"torch.save": [1.0] * 6, "thread": thread, "process": [0.3, 0.31, 0.32, 0.33, 0.34, 0.35]})
    assert (found.helps, found.mode, found.code) == (True, "process", PROCESS)
    assert "a thread makes no measurable difference to a process" in found.text
