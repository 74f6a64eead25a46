"""Pruning by hand: what a policy keeps is told with reasons, the rest goes, and nothing else."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
from gates import Failing
from managed import PATIENCE, managed, state, step_folder, steps

import asyncsave
from asyncsave import CheckpointInfo, OptionError, Retention, SaveError, WriterClosedError
from asyncsave.catalogue.listing import Listing
from asyncsave.runs.pruning import carry_out, judge


def filled(manager, *numbers, **options):
    """Save steps, and wait for them."""
    for step in numbers:
        manager.save(step, state(step), metrics={"loss": 1 / (step + 1)}, **options)
    manager.wait(PATIENCE)


def reasons(verdicts):
    """Return the reasons by step."""
    return {verdict.info.step: verdict.reasons for verdict in verdicts}


def info(step, *, complete=True, pinned=False, loss=None):
    """Return what is known of an imagined checkpoint."""
    kind = "step" if complete else "emergency"
    metrics = {} if loss is None else {"loss": loss}
    path = f"/v/step-{step}{'' if complete else '.emergency'}"
    return CheckpointInfo(step, path, metrics=metrics, pinned=pinned, complete=complete, kind=kind)


def test_the_newest_stays_whatever_the_rules():
    """Also where no rule keeps it; the newest is the newest complete one."""
    infos = [info(3), info(1), info(2), info(4, complete=False)]
    assert reasons(judge(infos, Retention(every=2))) == {
        1: (),
        2: ("a multiple of 2",),
        3: ("the newest",),
        4: ("newest state in the midst of a step",),
    }
    assert judge([], Retention(last=1)) == []


def test_pinned_and_protected_ones_stay():
    """With the reason of each."""
    found = judge([info(1), info(2, pinned=True), info(3)], Retention(last=1), protected=["/v/step-1"])
    assert reasons(found) == {1: ("resumed from",), 2: ("pinned",), 3: ("the newest", "one of the last 1")}


def test_a_metric_that_nobody_knows_drops_nothing():
    """A slip of the pen is an error that names the metrics there are; also in the second of two policies."""
    infos = [info(1, loss=0.5), info(2, loss=math.nan)]
    for policy in (
        Retention(best=1, metric="los"),
        Retention(last=1) | Retention(best=1, metric="los"),
    ):
        with pytest.raises(OptionError, match="'los'; known are loss"):
            judge(infos, policy)
    assert reasons(judge(infos, Retention(best=1, metric="loss"))) == {
        1: ("one of the best 1 by loss",),
        2: ("the newest",),
    }


@pytest.mark.usefixtures("backend")
def test_prune_by_the_managers_policy_or_another(tmp_path):
    """A dry run touches nothing; what it says is what is done then."""
    with managed(tmp_path) as manager:
        filled(manager, *range(5))
        manager.pin(0)
        policy = Retention(last=2)
        planned = manager.prune(policy, dry_run=True)
        assert reasons(planned) == {
            0: ("pinned",),
            1: (),
            2: (),
            3: ("one of the last 2",),
            4: ("the newest", "one of the last 2"),
        }
        assert steps(manager) == [0, 1, 2, 3, 4]
        assert manager.prune(policy) == planned
        assert steps(manager) == [0, 3, 4]
        assert not step_folder(manager, 1).exists()
        with pytest.raises(OptionError, match="keeps everything"):
            manager.prune()
    with managed(tmp_path, retain=Retention(last=1)) as manager:
        assert steps(manager) == [0, 3, 4]
        assert [verdict.info.step for verdict in manager.prune() if not verdict.kept] == [3]
        assert steps(manager) == [0, 4]


@pytest.mark.usefixtures("backend")
def test_prune_waits_for_saves_under_way(tmp_path):
    """What was saved before the call is judged too."""
    with managed(tmp_path) as manager:
        for step in range(3):
            manager.save(step, state(step))
        assert [verdict.info.step for verdict in manager.prune(Retention(last=1))] == [0, 1, 2]
        assert steps(manager) == [2]


def test_what_was_restored_stays(tmp_path):
    """As it does after a save."""
    live = asyncsave.TrainingState(number=0)
    with managed(tmp_path) as manager:
        for step in range(3):
            manager.save(step, live).result(PATIENCE)
        assert manager.restore(live, 0) == 1
        assert reasons(manager.prune(Retention(last=1))) == {
            0: ("resumed from",),
            1: (),
            2: ("the newest", "one of the last 1"),
        }
        assert steps(manager) == [0, 2]


def test_what_was_ahead_may_be_pruned_before_the_run_goes_on(tmp_path, caplog):
    """After going back, the steps ahead are put aside at the next save; one that is gone by then is no error."""
    live = asyncsave.TrainingState(number=0)
    with managed(tmp_path) as manager:
        for step in range(4):
            manager.save(step, live).result(PATIENCE)
        manager.restore(live, 0)
        manager.prune(Retention(last=1))
        manager.save(1, live).result(PATIENCE)
        assert [Path(one.path).name for one in manager.list(all=True)] == [
            "step-00000000",
            "step-00000001",
            "step-00000003.abandoned",
        ]
    assert "cannot put" not in caplog.text


@pytest.mark.parametrize("wrong", [{"retain": 3}, {"dry_run": 1}, {"retain": Retention(best=1, metric="acc")}])
def test_wrong_arguments(tmp_path, wrong):
    """They are named, and nothing is dropped."""
    with managed(tmp_path) as manager:
        filled(manager, 1, 2)
        with pytest.raises(OptionError):
            manager.prune(**{"retain": Retention(last=1), **wrong})
        assert steps(manager) == [1, 2]
    with pytest.raises(WriterClosedError):
        manager.prune(Retention(last=1))


def test_what_cannot_be_removed_is_kept_for_that_reason(tmp_path):
    """The others go all the same; the second try succeeds."""
    with managed(tmp_path) as manager:
        filled(manager, 1, 2, 3)
        listing = Listing(manager.path)
        planned = judge(listing.look().infos, Retention(last=1))
        failing = Failing("rename", errno.EACCES)
        done = carry_out(listing, planned, system=failing)
        assert reasons(done) == {
            1: ("cannot be removed: Permission denied",),
            2: (),
            3: ("the newest", "one of the last 1"),
        }
        assert steps(manager) == [1, 3]
        assert reasons(manager.prune(Retention(last=1)))[1] == ()
        assert steps(manager) == [3]


def test_a_removal_that_stops_in_the_midst_is_finished_by_the_next(tmp_path, caplog):
    """The step is no checkpoint any more; its files are told, and go with the next prune."""
    with managed(tmp_path) as manager:
        filled(manager, 1, 2)
        listing = Listing(manager.path)
        failing = Failing("unlink", errno.EACCES, forever=True)
        done = carry_out(listing, judge(listing.look().infos, Retention(last=1)), system=failing)
        assert reasons(done) == {1: (), 2: ("the newest", "one of the last 1")}
        assert "files of it are left: Permission denied" in caplog.text
        assert step_folder(manager, 1).exists()
        manager.prune(Retention(last=1))
        assert not step_folder(manager, 1).exists()


def test_what_changed_since_the_decision_is_left(tmp_path):
    """A step that was saved again, one that was pinned, and one that is gone already."""
    with managed(tmp_path) as manager:
        filled(manager, 1, 2, 3, 4)
        listing = Listing(manager.path)
        planned = judge(listing.look().infos, Retention(last=1))
        filled(manager, 1)
        manager.pin(2)
        manager.prune(Retention(last=2))
        assert steps(manager) == [2, 3, 4]
        filled(manager, 1)
        assert reasons(carry_out(listing, planned)) == {
            1: ("saved again meanwhile",),
            2: ("pinned",),
            3: (),
            4: ("the newest", "one of the last 1"),
        }
        assert steps(manager) == [1, 2, 4]


def test_a_version_that_is_gone(tmp_path):
    """It is an error of ours."""
    with pytest.raises(SaveError, match="No such file"):
        carry_out(Listing(str(tmp_path / "nowhere")), [])
