"""The random states: what is drawn after they are put back is what would have been drawn."""

from __future__ import annotations

import logging
import random
import sys

import numpy as np
import pytest
import torch
from equality import assert_same

import asyncsave
from asyncsave.runs.rng import capture_rng, restore_rng


def draw():
    """Draw from every generator, in the ways that leave something behind in them."""
    return [
        [random.random(), random.gauss(0, 1), random.getrandbits(70)],  # noqa: S311 - to be compared
        [np.random.rand(2).tolist(), float(np.random.randn()), int(np.random.randint(1 << 30))],  # noqa: NPY002
        [torch.rand(3).tolist(), torch.randn(5).tolist(), torch.nn.functional.dropout(torch.ones(20)).tolist()],
    ]


@pytest.fixture(autouse=True)
def _states_are_kept():
    """Leave the generators as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    torch.set_rng_state(before[2])


@pytest.mark.parametrize("drawn_before", [0, 1, 2])
def test_what_is_drawn_next(tmp_path, drawn_before):
    """Python's, numpy's and torch's generators go on where they were, through a file, halves of pairs included."""
    for _ in range(drawn_before):
        random.gauss(0, 1), np.random.randn(), torch.randn(3)  # noqa: NPY002 - each leaves another one behind
    asyncsave.save(capture_rng(), tmp_path / "rng.pt")
    expected = draw()
    draw()
    restore_rng(asyncsave.load(tmp_path / "rng.pt"))
    assert draw() == expected


def test_capturing_draws_nothing():
    """Looking at the generators does not move them, and what was captured does not follow them."""
    saved = capture_rng()
    assert_same(capture_rng(), saved)
    expected = draw()
    restore_rng(saved)
    assert draw() == expected


def test_the_states_come_back_the_same():
    """What is captured after a restore is what was restored, bit for bit."""
    draw()
    saved = capture_rng()
    draw()
    restore_rng(saved)
    assert_same(capture_rng(), saved)


def test_numpy_is_not_imported_for_it(template):
    """A training that has not imported numpy saves nothing of it; one that finds nothing of it leaves it alone."""
    done = template.run(
        """
        import sys
        sys.modules.pop("numpy", None)
        from asyncsave.runs.rng import capture_rng
        sys.modules.pop("numpy", None)
        print("numpy" in capture_rng(), "numpy" in sys.modules)
        """
    )
    assert (done.rc, done.stdout) == (0, "False False\n"), done.stderr
    saved = capture_rng()
    del saved["numpy"]
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.get_state()[1].tolist()  # noqa: NPY002
    restore_rng(saved)
    assert np.random.get_state()[1].tolist() == expected  # noqa: NPY002
    assert "numpy" in sys.modules


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")
def test_an_accelerator_that_is_not_here_is_told(caplog):
    """The state of a device that this machine does not have is left out with a word; the others are put back."""
    saved = {**capture_rng(), "cuda": [torch.zeros(16, dtype=torch.uint8)]}
    expected = draw()
    with caplog.at_level(logging.WARNING, "asyncsave"):
        restore_rng(saved)
    assert draw() == expected
    assert [record.message for record in caplog.records] == [
        "the random state of cuda was saved, and this machine has none: it is left out"
    ]


def test_restore_puts_them_back_last(tmp_path):
    """A part that draws random numbers while it is put back does not disturb what is drawn next."""

    class Drawing:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self.drawn = draw()

    with asyncsave.CheckpointManager(tmp_path) as manager:
        state = asyncsave.TrainingState(drawing=Drawing())
        manager.save(0, state).result()
        expected = draw()
        manager.restore(state)
        assert state.drawing.drawn
        assert draw() == expected


def test_without_rng(tmp_path):
    """``rng=False``: nothing of the generators is saved, and restoring moves none."""
    with asyncsave.CheckpointManager(tmp_path) as manager:
        state = asyncsave.TrainingState(rng=False, epoch=0)
        manager.save(0, state).result()
        assert "rng" not in manager.load(0)
        before = capture_rng()
        manager.restore(state)
        assert_same(capture_rng(), before)


@pytest.mark.parametrize("saved", [{}, {"python": 1}, 5, None], ids=repr)
def test_random_states_that_are_none(tmp_path, saved):
    """What lies under the name and is something else is a RestoreError that names it."""
    with asyncsave.CheckpointManager(tmp_path) as manager:
        manager.save(0, {"epoch": 1, "rng": saved}).result()
        with pytest.raises(asyncsave.RestoreError, match="rng"):
            manager.restore(asyncsave.TrainingState(epoch=0))
