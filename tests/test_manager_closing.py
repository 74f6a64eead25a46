"""The end of a manager: what it waits for, what it lets go of, and what it raises."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest
from backends import make_writer
from gates import Failing, Gated
from managed import PATIENCE, managed, number_in, state, steps
from processes import Trainer

import asyncsave
from asyncsave import CheckpointManager, VersionInUseError

pytestmark = pytest.mark.usefixtures("backend")


def test_repr(tmp_path):
    """It shows where, and what is under way."""
    gate = Gated("mkdir")
    with managed(tmp_path, system=gate) as manager:
        assert repr(manager) == f"<CheckpointManager {manager.path!r}, 0 under way>"
        manager.save(1, state(1))
        manager.save(2, state(2))
        assert repr(manager) == f"<CheckpointManager {manager.path!r}, 2 under way>"
        gate.release()
        manager.wait(PATIENCE)
        assert repr(manager) == f"<CheckpointManager {manager.path!r}, 0 under way>"
    assert repr(manager) == f"<CheckpointManager {manager.path!r}, closed, 0 under way>"


def test_closing_finishes_what_was_begun(tmp_path):
    """What is under way is there afterwards; then every call that writes is refused, closing again is not."""
    with managed(tmp_path, writing={"max_pending": 4}) as manager:
        for step in range(4):
            manager.save(step, state(step, 300_000))
        manager.close()
        assert steps(manager) == [0, 1, 2, 3]
        manager.close()
        training = asyncsave.TrainingState(epoch=1)
        for call in (lambda: manager.save(5, 1), manager.clean, lambda: manager.protect(training)):
            with pytest.raises(asyncsave.WriterClosedError, match="this manager is closed"):
                call()
        manager.close(0)


def test_the_managers_own_writer_is_closed_with_it(tmp_path):
    """Its threads end, and the version is free; a version that is closed twice is not taken from who has it then."""
    first = CheckpointManager(tmp_path, version="v")
    handle = first.save(1, state(1))
    first.close()
    assert handle.status == "durable"
    with CheckpointManager(tmp_path, version="v") as second:
        first.close()
        with pytest.raises(VersionInUseError):
            CheckpointManager(tmp_path, version="v")
        second.save(2, state(2)).result(PATIENCE)
        assert steps(first) == steps(second) == [1, 2]


def test_a_writer_that_is_closed_first(tmp_path):
    """Its saves are done; the manager then refuses new ones, and can be closed."""
    with make_writer() as writer:
        manager = CheckpointManager(tmp_path, version="v", writer=writer)
        manager.save(1, state(1))
    with pytest.raises(asyncsave.WriterClosedError, match="this writer is closed"):
        manager.save(2, state(2))
    assert steps(manager) == [1]
    manager.close()
    CheckpointManager(tmp_path, version="v").close()


def test_running_out_of_time(tmp_path):
    """``wait`` and ``close`` raise TimeoutError and name what is under way; it goes on, and so does a second call."""
    gate = Gated("mkdir")
    with make_writer(system=gate) as writer:
        manager = CheckpointManager(tmp_path, version="v", writer=writer)
        handle = manager.save(1, state(1))
        with pytest.raises(TimeoutError, match="1 save"):
            manager.wait(0)
        with pytest.raises(TimeoutError, match="1 save"):
            manager.close(0)
        with pytest.raises(asyncsave.WriterClosedError):
            manager.save(2, state(2))
        with pytest.raises(VersionInUseError):
            CheckpointManager(tmp_path, version="v", writer=writer)
        gate.release()
        manager.close(PATIENCE)
        assert handle.result(0).path.endswith("step-00000001")
        CheckpointManager(tmp_path, version="v", writer=writer).close()


def test_a_block_that_raises(tmp_path, caplog):
    """Its own error goes through, that of a save is logged; what was saved before is there."""

    def run():
        with CheckpointManager(tmp_path, writer=writer) as manager:
            manager.save(1, state(1)).result(PATIENCE)
            manager.save(2, state(2)).durable.wait(PATIENCE)
            raise KeyError("mine")

    with make_writer(system=Failing("mkdir", errno.EACCES, at=2)) as writer:
        with pytest.raises(KeyError, match="mine"):
            run()
        with pytest.raises(asyncsave.SaveError, match="step-00000002"):
            writer.flush()
    with CheckpointManager(tmp_path) as manager:
        assert number_in(manager.load("latest")) == 1


def test_a_block_that_raises_over_its_own_writer(tmp_path, caplog):
    """There too: the error that nobody has read is in the log."""

    def run():
        with CheckpointManager(tmp_path) as manager:
            (tmp_path / "default" / "default" / "1" / "step-00000001").write_text("in the way")
            manager.save(1, state(1)).durable.wait(PATIENCE)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run()
    assert "while another error was on its way: cannot save" in caplog.text


def test_an_error_at_closing_lets_go_of_the_version(tmp_path):
    """``close`` of the manager's own writer raises what nobody has read; the version is free all the same."""
    manager = CheckpointManager(tmp_path, version="v")
    (tmp_path / "default" / "default" / "v" / "step-00000001").write_text("in the way")
    manager.save(1, state(1)).durable.wait(PATIENCE)
    with pytest.raises(asyncsave.SaveError, match="step-00000001"):
        manager.close()
    manager.close()
    CheckpointManager(tmp_path, version="v").close()


def test_what_was_saved_is_not_kept(tmp_path):
    """After a save neither the manager nor its handle holds on to the object."""

    class Model:
        def __init__(self):
            self.x = state(1)

        def state_dict(self):
            return self.x

        def load_state_dict(self, _):
            raise NotImplementedError

    with managed(tmp_path) as manager:
        model = Model()
        training = asyncsave.TrainingState(model=model)
        handle = manager.save(1, training)
        handle.result(PATIENCE)
        manager.wait(PATIENCE)
        known = [weakref.ref(model), weakref.ref(training)]
        del model, training
        gc.collect()
        assert [reference() for reference in known] == [None, None]
        assert handle.done()


PROGRAM = """
from backends import make_writer
manager = asyncsave.CheckpointManager(folder, version="v", writer=make_writer(max_pending=4))
for step in range(4):
    manager.save(step, state(step, 300_000))
if "fails" in sys.argv:
    (folder / "default" / "default" / "v" / "step-00000009").write_text("in the way")
    manager.save(9, state(9))
"""


@pytest.mark.parametrize("how", ["ends", "fails"])
def test_a_program_that_does_not_close_it(folder, template, until_processes_end, how):
    """Its exit finishes the saves; one that failed unread is a 1. The version is free."""
    with Trainer(template, PROGRAM, folder, how) as trainer:
        done = trainer.wait()
    assert done.rc == (how == "fails"), done.stderr
    assert ("a save failed, and nobody has read that" in done.stderr) == (how == "fails")
    until_processes_end()
    (folder / "default" / "default" / "v" / "step-00000009").unlink(missing_ok=True)
    with CheckpointManager(folder, version="v") as manager:
        assert [number_in(manager.load(step)) for step in steps(manager)] == [0, 1, 2, 3]
