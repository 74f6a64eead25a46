"""The last save of a loop that has to end: made whatever the writer is at, and no longer than there is time."""

from __future__ import annotations

import signal

import pytest
from loops import ALL_BACK, PROTECTED, UNTIL_PREEMPTED
from processes import Trainer

pytestmark = pytest.mark.usefixtures("until_processes_end")

UNSAVED = PROTECTED.replace("if step < 3 and", "if False and")
"""The same loop, which saves nothing by itself."""

BROKEN_PART = """
class Broken:
    def state_dict(self):
        if state.inside == 3:
            raise RuntimeError("the device is gone")
        return {}
    def load_state_dict(self, state):
        pass
"""


@pytest.mark.parametrize(
    ("options", "broken", "said"),
    [
        ("{'system': Failing('fsync', 28, forever=True)}", False, "ENOSPC"),
        ("{}", True, "the device is gone"),
    ],
    ids=["full disk", "broken part"],
)
def test_the_original_exception_comes_through_a_failed_save(protected, options, broken, said):
    """If the last save fails, at the call or later, that is logged, and the loop's own exception is the one raised."""
    source = BROKEN_PART + UNSAVED.replace("inside=-1)", "inside=-1, broken=Broken())") if broken else UNSAVED
    done, _ = protected(extra="raise ZeroDivisionError('mine')", options=options, source=source)
    assert done.rc == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError: mine")
    assert "while another error was on its way, the last save failed" in done.stderr
    assert said in done.stderr


def test_an_unfinished_step_does_not_take_the_place_of_a_whole_one(protected, found):
    """However great the hurry is: a whole step in the queue is worth more than a step that was not finished."""
    before = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    source = PROTECTED.replace("end, options", "gate = Gated('fsync')\nend, options", 1)
    source = source.replace('        say("inside", step)\n', "")
    extra = f"gate.arrival(); threading.Timer(0.2, gate.release).start(); say('inside'); {UNTIL_PREEMPTED}"
    options = "{'system': gate, 'max_pending': 2}"
    done, _ = protected(signal.SIGTERM, extra=extra, options=options, before=before, source=source)
    assert done.rc == 143, done.stderr
    assert found() == (3, 2, 2)
    assert found(emergency=True) == (3, 2, 3)


def test_a_failed_last_save_of_a_preemption_is_raised(protected):
    """Where nothing else is on its way, the error of the last save is not swallowed: the exit code is not 0."""
    done, said = protected(
        signal.SIGTERM, extra=UNTIL_PREEMPTED, options="{'system': Failing('fsync', 28, forever=True)}", source=UNSAVED
    )
    assert done.rc == 1
    assert "SaveError" in done.stderr
    assert "left" not in said
    assert said["handlers"] == ALL_BACK


def test_an_earlier_saves_unread_error_does_not_refuse_the_last_one(protected, found):
    """It is logged, and the last save is made."""
    extra = f"handle = manager.save(step, {{'a': 1}}); handle.durable.wait(30); {UNTIL_PREEMPTED}"
    done, said = protected(signal.SIGTERM, extra=extra, options="{'system': Failing('fsync', 5)}", source=UNSAVED)
    assert said["left"] == ["True", "True"], done.stderr
    assert "an earlier save failed" in done.stderr
    assert found() == (4, 3, 3)


@pytest.mark.parametrize("policy", ["skip", "raise", "replace", "wait"])
def test_a_full_queue_does_not_skip_the_last_save(protected, found, policy):
    """Whatever the writer does when it is busy: the last save gets its place, also if another one has to give way."""
    extra = (
        "other = manager.save(100, {'a': 1}, on_busy='wait'); gate.arrival(); "
        "manager.save(101, {'a': 1}, on_busy='wait'); threading.Timer(0.2, gate.release).start(); " + UNTIL_PREEMPTED
    )
    source = UNSAVED.replace("end, options", "gate = Gated('fsync')\nend, options", 1)
    done, said = protected(
        signal.SIGTERM,
        extra=extra,
        options=f"{{'system': gate, 'on_busy': '{policy}', 'max_pending': 2}}",
        source=source,
    )
    assert done.rc == 0, done.stderr
    assert said["left"] == ["True", "True"]
    assert found(which=3) == (4, 3, 3)


STUCK = """
import signal, sys, threading
from backends import make_writer
from gates import Gated
folder, slots = sys.argv[1], int(sys.argv[2])
gate = Gated("fsync")
writer = make_writer(system=gate, max_pending=slots)
manager = asyncsave.CheckpointManager(folder, version="run", writer=writer)
state = asyncsave.TrainingState(rng=False, done=-1, inside=-1)
with asyncsave.PreemptionGuard(deadline=0.3) as guard, manager.protect(state, guard) as run:
    for step in run.steps(0, 10):
        state.done = step
        if step == 2:
            manager.save(step, state)
            gate.arrival()
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
say("left", step, gate._released, len(guard.signals))
gate.release()
manager.close()
writer.close()
"""


@pytest.mark.parametrize("slots", [1, 2])
def test_the_deadline_is_kept(tmp_path, template, found, slots):
    """With a disk that does not answer the block is left all the same, whether the last save has found a place or not.

    Nothing is lost that was on its way: once the disk answers it is written.
    """
    with Trainer(template, STUCK, tmp_path, slots) as trainer:
        done = trainer.wait()
    assert done.rc == 0, done.stderr
    assert done.stdout.split() == ["left", "3", "False", "2"]
    assert "step 3 is not durable after 0.3 s" in done.stderr
    assert found()[0] == (3 if slots == 1 else 4)
