"""What to keep: properties that hold for every policy and every run, and each rule against a plain model of it."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave import OptionError, Retention
from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.names import step_name
from asyncsave.catalogue.retention import better_first

steady = settings(derandomize=True, database=None, deadline=None, max_examples=200)

METRICS = ("loss", "acc")
VALUES = st.none() | st.floats() | st.sampled_from([0.0, -0.0, 1.0, 2.0]) | st.integers(-3, 3)
HOUR = 3600.0


def path_of(step, *, complete=True):
    """Return where a step lies."""
    return f"/version/{step_name(step, complete=complete)}"


def info(step, *, complete=True, metrics=None, time=0.0, pinned=False):
    """Return what is known of a step."""
    kind = "step" if complete else "emergency"
    said = {"metrics": metrics or {}, "time": time, "pinned": pinned, "complete": complete, "kind": kind}
    return CheckpointInfo(step, path_of(step, complete=complete), **said)


INFOS = st.lists(
    st.builds(
        info,
        st.integers(0, 40),
        complete=st.sampled_from([True, True, True, False]),
        metrics=st.dictionaries(st.sampled_from(METRICS), VALUES),
        time=st.sampled_from([0.0, HOUR, 2 * HOUR]) | st.floats(0, 10 * HOUR),
        pinned=st.sampled_from([False, False, False, True]),
    ),
    max_size=14,
    unique_by=lambda one: one.path,
)
COUNTS = st.none() | st.integers(1, 5)


@st.composite
def simple_policies(draw):
    """Draw a policy that is not put together of others."""
    rules = {
        "last": draw(COUNTS),
        "best": draw(COUNTS),
        "every": draw(COUNTS),
        "hours": draw(st.none() | st.sampled_from([0.5, 1, 3.0, 1e-9, 1e300, math.inf])),
    }
    if all(value is None for value in rules.values()):
        rules["last"] = 1
    if rules["best"] is not None:
        rules |= {"metric": draw(st.sampled_from(METRICS)), "mode": draw(st.sampled_from(["min", "max"]))}
    return Retention(**rules)


POLICIES = st.recursive(simple_policies(), lambda inner: st.builds(Retention.__or__, inner, inner), max_leaves=3)


def kept_by(policy, infos, **also):
    """Return the paths that a policy keeps."""
    return {verdict.info.path for verdict in policy.decide(infos, **also) if verdict.kept}


@st.composite
def situations(draw):
    """Draw a run with the step that was just written, and the one that it was resumed from."""
    infos = draw(INFOS)
    paths = st.sampled_from([one.path for one in infos] or ["/elsewhere"])
    return infos, {"written": draw(st.none() | paths), "protected": tuple(draw(st.lists(paths, max_size=2)))}


@steady
@given(policy=POLICIES, situation=situations())
def test_what_is_never_dropped(policy, situation):
    """The one just written, the pinned ones and the resume source stay, whatever the policy."""
    infos, also = situation
    sacred = {also["written"], *also["protected"], *(one.path for one in infos if one.pinned)}
    assert sacred & {one.path for one in infos} <= kept_by(policy, infos, **also)


@steady
@given(policy=POLICIES, situation=situations())
def test_every_checkpoint_gets_one_verdict(policy, situation):
    """Verdicts come by step, one for each checkpoint, kept for a reason or dropped for none."""
    infos, also = situation
    verdicts = policy.decide(infos, **also)
    assert sorted(verdict.info.path for verdict in verdicts) == sorted(one.path for one in infos)
    assert [verdict.info.step for verdict in verdicts] == sorted(one.step for one in infos)
    for verdict in verdicts:
        assert verdict.kept == (len(verdict.reasons) > 0)
        assert len(set(verdict.reasons)) == len(verdict.reasons)
        assert all(verdict.reasons)


@steady
@given(policy=POLICIES, situation=situations(), seed=st.integers(0, 1 << 30))
def test_the_order_never_matters(policy, situation, seed):
    """However the folder is listed, the verdicts are the same, with the same reasons."""
    infos, also = situation
    shuffled = random.Random(seed).sample(infos, len(infos))  # noqa: S311 - not a secret
    assert list(map(repr, policy.decide(shuffled, **also))) == list(map(repr, policy.decide(infos, **also)))


@steady
@given(policy=POLICIES, situation=situations())
def test_it_is_stable(policy, situation):
    """Once what is dropped is gone, the same policy drops nothing more."""
    infos, also = situation
    kept = kept_by(policy, infos, **also)
    left = [one for one in infos if one.path in kept]
    assert kept_by(policy, left, **also) == kept


@steady
@given(one=POLICIES, other=POLICIES, situation=situations())
def test_either(one, other, situation):
    """Two policies together keep just what either keeps, in whatever order they are put together."""
    infos, also = situation
    either = kept_by(one, infos, **also) | kept_by(other, infos, **also)
    assert kept_by(one | other, infos, **also) == either
    assert kept_by(other | one, infos, **also) == either


@steady
@given(policy=POLICIES, infos=INFOS)
def test_something_is_left(policy, infos):
    """No policy drops everything there is, once a step has been written."""
    if infos:
        assert kept_by(policy, infos, written=infos[0].path)


@steady
@given(policy=POLICIES)
def test_it_goes_through_json(policy):
    """A policy tells another process the same thing."""
    said = json.dumps(policy.to_dict())
    assert Retention.from_dict(json.loads(said)) == policy


# Each rule against the plainest statement of it.


def of_rules(infos):
    """Return what the rules alone decide on: pins keep for another reason."""
    return [info(one.step, complete=one.complete, metrics=one.metrics, time=one.time) for one in infos]


def newest_unfinished(infos):
    """Return the step in the midst of which the run is, if it is in one."""
    latest = max((one.step for one in infos if one.complete), default=-1)
    unfinished = [one for one in infos if not one.complete and one.step > latest]
    return {max(unfinished, key=lambda one: one.step).path} if unfinished else set()


@steady
@given(infos=INFOS, count=st.integers(1, 5))
def test_last(infos, count):
    """The last n are those that fewer than n complete ones come after."""
    infos = of_rules(infos)
    complete = [one for one in infos if one.complete]
    model = {one.path for one in complete if sum(other.step > one.step for other in complete) < count}
    assert kept_by(Retention(last=count), infos) == model | newest_unfinished(infos)


@steady
@given(infos=INFOS, count=st.integers(1, 5), metric=st.sampled_from(METRICS), mode=st.sampled_from(["min", "max"]))
def test_best(infos, count, metric, mode):
    """The best k are those that fewer than k candidates beat; NaN, None, a missing metric and unfinished are none."""
    infos = of_rules(infos)
    candidates = [
        one
        for one in infos
        if one.complete and one.metrics.get(metric) is not None and one.metrics[metric] == one.metrics[metric]
    ]

    def beats(one, other):
        a, b = one.metrics[metric], other.metrics[metric]
        return (a < b if mode == "min" else a > b) or (a == b and one.step > other.step)

    model = {one.path for one in candidates if sum(beats(other, one) for other in candidates) < count}
    policy = Retention(best=count, metric=metric, mode=mode)
    assert kept_by(policy, infos) == model | newest_unfinished(infos)
    ranked = better_first(infos, metric, mode)
    assert {one.path for one in ranked} == {one.path for one in candidates}
    assert all(beats(one, other) for one, other in itertools.pairwise(ranked))


@steady
@given(infos=INFOS, steps=st.integers(1, 7))
def test_every(infos, steps):
    """Every multiple of m stays, naught among them."""
    infos = of_rules(infos)
    model = {one.path for one in infos if one.complete and one.step in range(0, 1000, steps)}
    assert kept_by(Retention(every=steps), infos) == model | newest_unfinished(infos)


@steady
@given(infos=INFOS, hours=st.sampled_from([0.5, 1, 2.5]))
def test_hours(infos, hours):
    """The first stays; and each that is at least so many hours later than the one before that stays."""
    infos = of_rules(infos)
    waiting = sorted((one for one in infos if one.complete), key=lambda one: (one.time, one.step))
    model = set()
    while waiting:
        first, *waiting = waiting
        model.add(first.path)
        waiting = [one for one in waiting if one.time >= first.time + hours * HOUR]
    assert kept_by(Retention(hours=hours), infos) == model | newest_unfinished(infos)


@pytest.mark.parametrize("value", [math.nan, None, "missing"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_no_candidate(value, mode):
    """A step without a number to compare is not the best, even where it is the only one."""
    metrics = {} if value == "missing" else {"loss": value}
    infos = [info(1, metrics=metrics), info(2, metrics={"loss": math.inf}), info(3, metrics={"loss": -math.inf})]
    policy = Retention(best=3, metric="loss", mode=mode)
    assert kept_by(policy, infos) == {path_of(2), path_of(3)}
    assert kept_by(policy, infos[:1]) == set()
    assert better_first(infos[:1], "loss", mode) == []


def test_of_equals_the_later():
    """Of two that are as good the later step is better, as a least and as a greatest."""
    infos = [info(step, metrics={"loss": 1.0}) for step in (3, 9, 6)]
    for mode in ("min", "max"):
        assert kept_by(Retention(best=1, metric="loss", mode=mode), infos) == {path_of(9)}


def test_a_state_in_the_midst_of_a_step():
    """The newest stays until a later step, or that very one, is complete."""
    early, late = info(5, complete=False), info(8, complete=False)
    policy = Retention(last=1)
    assert kept_by(policy, [early, late, info(4)]) == {path_of(4), late.path}
    assert kept_by(policy, [early, late, info(8)]) == {path_of(8)}
    assert kept_by(policy, [early, late, info(9)]) == {path_of(9)}
    assert kept_by(policy, [early, late]) == {late.path}


def test_reasons():
    """A verdict says in words why a step stays: all that hold."""
    infos = [
        info(100, metrics={"loss": 0.1}),
        info(150),
        info(200, pinned=True, time=7 * HOUR),
        info(210, complete=False),
    ]
    policy = Retention(last=1, best=1, metric="loss", every=100, hours=6) | Retention(last=1)
    verdicts = policy.decide(infos, written=path_of(200), protected=[path_of(100)])
    assert [list(verdict.reasons) for verdict in verdicts] == [
        ["resumed from", "one of the best 1 by loss", "a multiple of 100", "one of every 6 h"],
        [],
        ["just written", "pinned", "one of the last 1", "a multiple of 100", "one of every 6 h"],
        ["newest state in the midst of a step"],
    ]


def test_criteria():
    """The metrics that a policy chooses by are known, those of what it was put together with too."""
    policy = Retention(best=1, metric="loss") | Retention(last=2) | Retention(best=1, metric="acc", mode="max")
    assert list(policy.criteria()) == [("loss", "min"), ("acc", "max")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"last": 0},
        {"last": -1},
        {"last": True},
        {"last": 1.0},
        {"last": "3"},
        {"best": 0, "metric": "loss"},
        {"best": 1},
        {"metric": "loss"},
        {"last": 1, "metric": "loss"},
        {"best": 1, "metric": ""},
        {"best": 1, "metric": 5},
        {"best": 1, "metric": "loss", "mode": "least"},
        {"every": 0},
        {"every": 0.5},
        {"hours": 0},
        {"hours": -1},
        {"hours": math.nan},
        {"hours": "1"},
        {"hours": True},
        {"mode": "max"},
    ],
    ids=str,
)
def test_policies_that_make_no_sense(options):
    """A policy that would keep nothing, or an argument that means nothing, is an error at once."""
    with pytest.raises(OptionError):
        Retention(**options)


def test_a_policy_of_enormous_hours():
    """A time beyond all floats is refused at once, or keeps the first step; it never fails later."""
    try:
        policy = Retention(hours=10**400)
    except OptionError:
        return
    assert kept_by(policy, [info(1), info(2, time=HOUR)]) == {path_of(1)}


def test_it_is_put_together_with_policies_only():
    """Something else beside the bar is a TypeError, as for any operator."""
    with pytest.raises(TypeError):
        Retention(last=1) | 5
