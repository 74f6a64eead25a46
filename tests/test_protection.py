"""A loop that has to end: by real signals to real processes, and by what its body raises."""

from __future__ import annotations

import os
import re
import signal
import threading

import pytest
from loops import ALL_BACK, PROTECTED, UNTIL_INTERRUPTED, UNTIL_PREEMPTED
from processes import Trainer

import asyncsave

pytestmark = pytest.mark.usefixtures("until_processes_end")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_preemption(protected, found, number):
    """The step is finished and saved, the loop ends by itself, and the program with exit code 0; handlers are back."""
    done, said = protected(number, extra=UNTIL_PREEMPTED)
    assert done.rc == 0, done.stderr
    assert said["left"] == ["True", "True"]
    assert said["handlers"] == ALL_BACK
    assert found() == (4, 3, 3)
    assert "saving step 3 before leaving" in done.stderr


def test_a_step_that_was_saved_is_not_saved_again(protected, found):
    """Where the loop itself has saved the step, that save is waited for, and no second one is made."""
    done, _ = protected(signal.SIGTERM, extra=f"{UNTIL_PREEMPTED}; state.done = step; manager.save(step, state)")
    assert done.rc == 0, done.stderr
    assert "before leaving" not in done.stderr
    assert found() == (4, 3, 3)


@pytest.mark.parametrize(
    "other",
    ["parts={'ema': {'a': 1}}", "{'weights': 1}", "asyncsave.TrainingState(rng=False, done=-5, inside=-5)"],
)
def test_something_else_that_was_saved_as_the_step(protected, tmp_path, other):
    """A save of the step that does not hold the state is none: the state is saved too, and neither is lost."""
    done, _ = protected(signal.SIGTERM, extra=f"{UNTIL_PREEMPTED}; manager.save(step, {other}).result()")
    assert done.rc == 0, done.stderr
    steps = list((tmp_path / "default" / "default" / "run").glob("step-00000003*"))
    saved = [asyncsave.load(file) for step in steps for file in step.glob("*.pt")]
    assert len(saved) == 2
    assert [one for one in saved if one.get("done") == 3 and one["inside"] == 3]


def test_break(protected, found):
    """A loop that looks by itself and breaks has finished its step."""
    source = PROTECTED.replace(
        "            if step < 3", "            if run.preempted: break\n            if step < 3"
    )
    done, said = protected(signal.SIGTERM, extra=UNTIL_PREEMPTED, source=source)
    assert done.rc == 0, done.stderr
    assert said["left"] == ["True", "True"]
    assert found() == (4, 3, 3)


def test_an_earlier_handler_is_called_first(protected, found):
    """A launcher's own handler of SIGTERM hears of it too, and is back afterwards."""
    before = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: say('launcher'))\n"
    done, said = protected(signal.SIGTERM, extra=UNTIL_PREEMPTED, before=before)
    assert done.rc == 0, done.stderr
    assert said["launcher"] == []
    assert said["handlers"] == ["True", "False", "True"]
    assert found() == (4, 3, 3)


def test_an_earlier_handler_that_exits(protected, found):
    """A handler that makes an exit of SIGTERM leaves the step unfinished: saved as such, and the exit code is its."""
    before = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    done, _ = protected(signal.SIGTERM, extra=UNTIL_PREEMPTED, before=before)
    assert done.rc == 143
    assert found() == (3, 2, 2)
    assert found(emergency=True) == (3, 2, 3)


@pytest.mark.usefixtures("backend")
def test_ctrl_c(protected, found):
    """The first one: the step is finished and saved, then KeyboardInterrupt ends the program as it always does."""
    done, said = protected(signal.SIGINT, extra=UNTIL_INTERRUPTED)
    assert done.rc in {130, -signal.SIGINT}
    assert "KeyboardInterrupt" in done.stderr
    assert "left" not in said
    assert said["handlers"] == ALL_BACK
    assert found() == (4, 3, 3)


@pytest.mark.usefixtures("backend")
def test_ctrl_c_twice(tmp_path, template, found):
    """The second one leaves at once, in the midst of the step; nothing more is saved, and what is there is whole."""
    extra = f"{UNTIL_INTERRUPTED}; say('first'); wait_for(lambda: False)"
    with Trainer(template, PROTECTED, tmp_path, "", "{}", extra) as trainer:
        trainer.heard("inside")
        os.kill(trainer.pid, signal.SIGINT)
        trainer.heard("first")
        os.kill(trainer.pid, signal.SIGINT)
        done = trainer.wait()
    assert done.rc in {130, -signal.SIGINT}
    assert "KeyboardInterrupt" in done.stderr
    assert "before leaving" not in done.stderr
    assert found(emergency=True) == (3, 2, 2)
    assert [path.name for path in (tmp_path / "default" / "default" / "run").glob("step-*")] != []
    assert not list(tmp_path.rglob(".asyncsave-*"))


def test_ctrl_c_between_two_loops(protected, found):
    """Outside of a step there is none to finish: it interrupts at once, and the last step is saved as a whole one."""
    source = PROTECTED.replace('    say("left"', "        say('inside'); wait_for(lambda: False)\n    say(\"left\"")
    source = source.replace("if step == 3:", "if False:")
    done, _ = protected(signal.SIGINT, source=source)
    assert done.rc in {130, -signal.SIGINT}
    assert found() == (10, 9, 9)


@pytest.mark.usefixtures("backend")
def test_an_exception_in_the_midst_of_a_step(protected, found):
    """The state is kept beside the complete ones, marked, and used only when asked for; the exception comes through."""
    done, said = protected(extra="1 / 0")
    assert done.rc == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert said["handlers"] == ALL_BACK
    assert re.search("saving step 3, .* before leaving", done.stderr)
    assert found() == (3, 2, 2)
    assert found(emergency=True) == (3, 2, 3)


@pytest.mark.parametrize("code", [0, 3])
def test_sys_exit_in_the_body(protected, found, code):
    """An exit in the midst of a step is saved like any exception, and keeps its code."""
    done, _ = protected(extra=f"sys.exit({code})")
    assert done.rc == code
    assert found(emergency=True) == (3, 2, 3)


def test_in_another_thread(tmp_path):
    """There it watches for no signals, and saves what an exception interrupts; the main thread's handlers stay."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    raised = []

    def loop(manager):
        try:
            with manager.protect(asyncsave.TrainingState(rng=False, x=1)) as run:
                assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
                for step in run.steps(5, 7):
                    assert 1 // (step - 5)
        except ZeroDivisionError as error:
            raised.append(error)

    with asyncsave.CheckpointManager(tmp_path) as manager:
        thread = threading.Thread(target=loop, args=(manager,))
        thread.start()
        thread.join()
        assert raised
        assert manager.restore(asyncsave.TrainingState(rng=False, x=0), emergency=True) == 5


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_an_ignored_ctrl_c_stays_ignored(protected, found, number):
    """Under nohup, or in the background of a shell, SIGINT is ignored: the loop runs to its end."""
    before = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done, said = protected(number, extra="time.sleep(0.1); assert not run.stopped", before=before)
    assert done.rc == 0, done.stderr
    assert said["left"] == ["False", "False"]
    assert found() == (3, 2, 2)


def test_nothing_happens(protected, found):
    """A loop that comes to its end by itself is not saved: that is the loop's own business."""
    done, said = protected()
    assert done.rc == 0, done.stderr
    assert said["left"] == ["False", "False"]
    assert found() == (3, 2, 2)


def test_no_step_was_begun(tmp_path, caplog):
    """An exception before the first step saves nothing, and says why."""
    caplog.set_level("INFO", "asyncsave")
    with asyncsave.CheckpointManager(tmp_path) as manager:
        with pytest.raises(ZeroDivisionError), manager.protect(asyncsave.TrainingState(x=1)):
            raise ZeroDivisionError
        assert manager.list() == []
    assert "no step has been begun by steps()" in caplog.text


def test_a_guard_of_ones_own(tmp_path, template, found):
    """One that is given is watched, and neither entered nor left: it may be used around several loops."""
    source = PROTECTED.replace(
        "manager.protect(state)", "asyncsave.PreemptionGuard([signal.SIGUSR2]) as guard, manager.protect(state, guard)"
    )
    with Trainer(template, source, tmp_path, "", "{}", UNTIL_PREEMPTED) as trainer:
        trainer.heard("inside")
        os.kill(trainer.pid, signal.SIGUSR2)
        done = trainer.wait()
    assert done.rc == 0, done.stderr
    assert "left True True" in done.stdout
    assert found() == (4, 3, 3)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0.5, 3), (0, -1), ("0", 3)])
def test_steps_that_are_none(tmp_path, start, stop):
    """Numbers of steps are checked as ``save`` checks them."""
    with asyncsave.CheckpointManager(tmp_path) as manager, manager.protect(asyncsave.TrainingState()) as run:
        with pytest.raises(asyncsave.OptionError):
            list(run.steps(start, stop))
        assert list(run.steps(5, 5)) == []
        assert list(run.steps(5, 3)) == []
