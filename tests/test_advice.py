"""How often to save: against the worked examples, against a simulation of failures, and as properties."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave import OptionError
from asyncsave.bench.advice import BUDGET, Plan, advise, daly, lost, prospect, young

steady = settings(derandomize=True, database=None, deadline=None, max_examples=200)

HOUR = 3600.0
PLAN = Plan(cost_s=0.08, durable_s=2.6, step_s=0.35, mtbf_s=12 * HOUR)

TIMES = st.floats(1e-3, 1e6)
PLANS = st.builds(
    Plan,
    cost_s=TIMES,
    durable_s=TIMES,
    step_s=st.floats(1e-2, 1e3),
    mtbf_s=st.floats(1e-2, 1e8),
    budget=st.floats(1e-4, 0.9),
    queue=st.integers(1, 4),
    restart_s=st.just(0.0) | TIMES,
)


def test_the_example_in_steps():
    """A save of 10 s, a failure in 6000 s, a restart of 600 s, steps of 15 s: 24 steps (to the first order)."""
    assert young(10, 6000, 600) == pytest.approx(363.3, abs=0.1)
    assert round(young(10, 6000, 600) / 15) == 24


def test_the_availability_form_comes_to_the_same():
    """Published as T = Ts + sqrt(2 (Tf + Tr) Ts + Ts²), with the save in the interval; the optimum is flat."""
    plan = Plan(10, 10, 15, 6000, budget=0.5, restart_s=600)
    published = 10 + math.sqrt(2 * (6000 + 600) * 10 + 10**2)
    assert lost(plan, published - 10) == pytest.approx(lost(plan, daly(10, 6000)), rel=0.002)


def test_the_recommendation_is_the_greatest_of_three():
    """Steps: max(ceil(cost / (p step)), the optimum in steps, ceil(durable / step))."""
    budget = advise(Plan(cost_s=10, durable_s=1, step_s=0.5, mtbf_s=600, budget=0.035))
    assert (budget.bound, budget.prospect.steps) == ("budget", math.ceil(10 / (0.035 * 0.5)))
    disk = advise(Plan(cost_s=0.01, durable_s=300, step_s=0.5, mtbf_s=HOUR))
    assert (disk.bound, disk.prospect.steps) == ("disk", 600)
    mtbf = advise(PLAN)
    assert mtbf.bound == "mtbf"
    assert mtbf.prospect.steps == pytest.approx(math.sqrt(2 * 0.08 * 12 * HOUR) / 0.35, abs=1)
    step = advise(Plan(cost_s=0.01, durable_s=1, step_s=600, mtbf_s=HOUR))
    assert (step.bound, step.prospect.steps) == ("step", 1)


def test_each_bound_has_its_words():
    """For people: what decided."""
    reasons = [
        advise(dataclasses.replace(PLAN, **changed)).reason for changed in ({}, {"cost_s": 3e3}, {"durable_s": 1e3})
    ]
    assert reasons == ["limited by the MTBF", "limited by the overhead budget", "limited by the disk"]


def test_what_is_expected_of_an_interval():
    """The overhead is cost over interval; a failure loses half an interval and the time to durable."""
    found = prospect(PLAN, 200)
    assert found.interval_s == pytest.approx(70)
    assert found.overhead == pytest.approx(0.08 / 70)
    assert found.lost_s == pytest.approx(35 + 2.6)
    assert found.in_budget
    assert found.writable
    assert not prospect(PLAN, 1).in_budget
    assert not prospect(PLAN, 7).writable
    assert prospect(PLAN, 8).writable


def test_a_deeper_queue_lets_the_disk_be_slower():
    """The bound is the time to durable over the queue."""
    slow = Plan(cost_s=0.01, durable_s=300, step_s=0.5, mtbf_s=HOUR, queue=3)
    assert advise(slow).disk_s == pytest.approx(100)
    assert advise(slow).prospect.steps == 200


def test_a_budget_of_whole_steps_is_not_rounded_up():
    """0.35 s at 3.5 % in steps of 10 s is one step, whatever floats make of it."""
    assert advise(Plan(cost_s=0.35, durable_s=1, step_s=10, mtbf_s=60, budget=0.035)).prospect.steps == 1
    for steps in range(1, 300):
        plan = Plan(cost_s=steps * 0.035 * 0.1, durable_s=1e-3, step_s=0.1, mtbf_s=1e-3, budget=0.035)
        assert advise(plan).prospect.steps == steps


@pytest.mark.parametrize("name", ["cost_s", "durable_s", "step_s", "mtbf_s", "restart_s", "budget"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf, 1e300, 10**400, "1", None, True])
def test_what_is_no_time_is_refused(name, value):
    """With the name and the value."""
    with pytest.raises(OptionError, match=name):
        dataclasses.replace(PLAN, **{name: value})


@pytest.mark.parametrize("name", ["cost_s", "durable_s", "step_s", "mtbf_s", "budget", "queue"])
def test_zero_is_refused(name):
    """Nothing costs nothing, except a restart."""
    with pytest.raises(OptionError, match=name):
        dataclasses.replace(PLAN, **{name: 0})
    assert dataclasses.replace(PLAN, restart_s=0).restart_s == 0


@pytest.mark.parametrize("value", [1.5, -1, "2", True, 1 << 40])
def test_a_queue_is_a_whole_number(value):
    """At least one."""
    with pytest.raises(OptionError, match="queue"):
        dataclasses.replace(PLAN, queue=value)


def simulated(plan: Plan, interval: float, failures: int, seed: int) -> float:
    """Run a training through failures; return the share of its time that made no progress.

    Event by event: steps, a save, what the save costs, its becoming durable in the background, a failure at a random
    moment, back to the newest durable save.
    """
    chance = random.Random(seed)  # noqa: S311 - failures, not secrets
    progress = total = 0.0
    for _ in range(failures):
        life = chance.expovariate(1 / plan.mtbf_s)
        now, called, safe = 0.0, [], 0.0
        work = 0.0
        while now < life:
            now += interval
            work += interval
            called.append((now + plan.durable_s, work))
            now += plan.cost_s
        for durable, reached in called:
            if durable <= life:
                safe = reached
        progress += safe
        total += life + plan.restart_s
    return 1 - progress / total


SIMULATED = {
    "a save that waits": Plan(cost_s=20, durable_s=20, step_s=1, mtbf_s=2000, budget=0.9),
    "in the background": Plan(cost_s=4, durable_s=60, step_s=1, mtbf_s=1500, budget=0.9),
    "with restarts": Plan(cost_s=4, durable_s=30, step_s=1, mtbf_s=1500, budget=0.9, restart_s=200),
    "later than the next save": Plan(cost_s=4, durable_s=300, step_s=1, mtbf_s=1500, budget=0.9, queue=4),
    "hardly worth it": Plan(cost_s=100, durable_s=100, step_s=1, mtbf_s=300, budget=0.9),
}


@pytest.mark.parametrize("name", SIMULATED)
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_what_is_lost_agrees_with_a_simulation(name, factor):
    """Of thousands of failures, at the optimum and beside it: within half a percent of all time."""
    plan = SIMULATED[name]
    interval = factor * daly(plan.cost_s, plan.mtbf_s)
    assert simulated(plan, interval, 20_000, seed=7) == pytest.approx(lost(plan, interval), abs=0.005)


@pytest.mark.parametrize("name", SIMULATED)
def test_the_advised_interval_loses_least_in_a_simulation(name):
    """With the same failures for each interval: those well beside the optimum lose more."""
    plan = SIMULATED[name]
    best = daly(plan.cost_s, plan.mtbf_s)
    found = {factor: simulated(plan, factor * best, 10_000, seed=11) for factor in (0.3, 0.6, 1.0, 1.7, 3.2)}
    assert min(found, key=lambda factor: found[factor]) == 1.0, found


def test_cost_and_time_to_durable_are_two_things():
    """The time to durable taken for the cost would make saves far too rare: in the simulation, too."""
    plan = SIMULATED["in the background"]
    right, wrong = daly(plan.cost_s, plan.mtbf_s), daly(plan.durable_s, plan.mtbf_s)
    assert simulated(plan, wrong, 10_000, seed=3) > simulated(plan, right, 10_000, seed=3) + 0.04


@steady
@given(st.floats(1e-3, 1e4), st.floats(1e-3, 1e6))
def test_daly_is_the_minimum(cost, mtbf):
    """To a thousandth of what makes progress, while a save costs less than half the MTBF."""
    plan = Plan(cost, 1e-3, 1e-3, max(mtbf, 2 * cost))
    best = lost(plan, daly(cost, plan.mtbf_s))
    for factor in (0.7, 0.9, 1.1, 1.4):
        assert best <= lost(plan, factor * daly(cost, plan.mtbf_s)) + 1e-3 * (1 - best)


@steady
@given(PLANS)
def test_the_advice_keeps_all_bounds(plan):
    """Whatever the plan: in budget, writable, at least one step, and no longer than some bound asks for."""
    advice = advise(plan)
    assert advice.prospect.in_budget
    assert advice.prospect.writable
    assert advice.prospect.steps >= 1
    assert advice.prospect.overhead <= plan.budget * (1 + 1e-8)
    longest = max(advice.optimum_s, advice.budget_s, advice.disk_s)
    assert advice.prospect.interval_s <= longest * (1 + 1e-8) + plan.step_s
    assert 0 <= advice.prospect.lost <= 1
    assert advice.sound == (advice.prospect.lost <= 0.5)


@steady
@given(PLANS, st.floats(1, 100))
def test_dearer_saves_are_rarer(plan, factor):
    """The interval grows with the cost (as long as a save does not cost as much as the MTBF)."""
    if factor * plan.cost_s < plan.mtbf_s / 2:
        dearer = advise(dataclasses.replace(plan, cost_s=factor * plan.cost_s))
        assert dearer.prospect.steps >= advise(plan).prospect.steps


@steady
@given(PLANS, st.floats(1, 100))
def test_runs_that_fail_less_save_less(plan, factor):
    """The interval grows with the MTBF."""
    rarer = advise(dataclasses.replace(plan, mtbf_s=factor * plan.mtbf_s))
    assert rarer.prospect.steps >= advise(plan).prospect.steps


@steady
@given(PLANS, st.floats(0.01, 1))
def test_a_smaller_budget_saves_less(plan, factor):
    """The interval shrinks with the budget."""
    tighter = advise(dataclasses.replace(plan, budget=max(1e-6, factor * plan.budget)))
    assert tighter.prospect.steps >= advise(plan).prospect.steps


@steady
@given(PLANS)
def test_slower_disks_and_restarts_lose_more(plan):
    """Neither moves the optimum."""
    interval = advise(plan).optimum_s
    worse = dataclasses.replace(plan, durable_s=2 * plan.durable_s, restart_s=plan.restart_s + 10)
    assert advise(worse).optimum_s == interval
    assert lost(worse, interval) >= lost(plan, interval) - 1e-12


def test_the_sensitivity_tables_are_about_the_plan():
    """The middle of each is the advice itself; an MTBF four times as long doubles the interval."""
    advice = advise(PLAN)
    assert dict(advice.by_mtbf())[1.0] == advice
    assert dict(advice.by_cost())[1.0] == advice
    assert dict(advice.by_interval())[1.0] == advice.prospect
    assert dict(advice.by_mtbf())[4.0].prospect.interval_s == pytest.approx(2 * advice.prospect.interval_s, rel=0.01)
    assert dict(advice.by_cost())[0.5].prospect.interval_s == pytest.approx(
        advice.prospect.interval_s / 2**0.5, rel=0.01
    )


def test_the_optimum_is_flat():
    """Twice or half the interval loses a quarter more of what is lost to saves and repeated work, not twice as much."""
    by = {round(factor, 2): one.lost for factor, one in advise(dataclasses.replace(PLAN, durable_s=0.08)).by_interval()}
    assert by[2.0] / by[1.0] == pytest.approx(1.25, abs=0.02)
    assert by[0.5] / by[1.0] == pytest.approx(1.25, abs=0.02)


def test_one_step_has_nothing_below_it():
    """Intervals of no steps are not shown."""
    advice = advise(Plan(cost_s=0.01, durable_s=1, step_s=600, mtbf_s=HOUR))
    assert [one.steps for _, one in advice.by_interval()] == [1, 2, 4]


def test_saves_that_cost_more_than_runs_live_are_no_sound_plan():
    """There is an interval, and it is said that it is no help."""
    advice = advise(Plan(cost_s=300, durable_s=300, step_s=1, mtbf_s=60))
    assert not advice.sound
    assert advice.prospect.lost > 0.99
    assert advise(PLAN).sound


def test_figures_out_of_all_proportion_are_figures():
    """Nothing overflows: the extremes of what is allowed, against each other."""
    for cost in (1e-9, 1e12):
        for mtbf in (1e-9, 1e12):
            for step in (1e-9, 1e12):
                advice = advise(Plan(cost, 1e12, step, mtbf, budget=1e-9))
                assert advice.prospect.steps >= 1
                assert 0 <= advice.prospect.lost <= 1
                assert advice.by_mtbf()
                assert advice.by_cost()
                assert advice.by_interval()


def test_the_default_budget_is_the_published_one():
    """3.5 %."""
    assert Plan(1, 1, 1, 1).budget == BUDGET == 0.035
