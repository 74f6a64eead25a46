"""Trainings beside a save: ours take a step, a user's own is found, or it is said why not."""

from __future__ import annotations

import sys
from itertools import count

import pytest
import torch

from asyncsave import OptionError
from asyncsave.bench.loops import KINDS, OwnLoop, PythonLoop, Training, loop_of, usual_kind

numbers = count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes a module to the current folder, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = []

    def write(source):
        made.append(f"own_step_{next(numbers)}")
        (tmp_path / f"{made[-1]}.py").write_text(source, encoding="utf-8")
        return made[-1]

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_a_training_really_trains():
    """Its parameters change with every step, all of them."""
    loop = Training(width=8, layers=1, batch=2, length=4)
    before = [parameter.detach().clone() for parameter in loop._model.parameters()]
    loop.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, loop._model.parameters(), strict=True))


def test_every_kind_has_a_loop():
    """By its name; a GPU's where there is one."""
    assert isinstance(loop_of("cpu"), Training)
    assert isinstance(loop_of("python"), PythonLoop)
    loop_of("python").step()
    assert usual_kind() in KINDS
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="no CUDA device here: measure with step cpu or python"):
            loop_of("gpu")


@pytest.mark.parametrize("kind", ["", "CPU", "quick"])
def test_no_such_kind(kind):
    """What there is is named."""
    with pytest.raises(OptionError, match=r"step must be one of cpu, python, gpu, or module:function, not"):
        loop_of(kind)


def test_a_step_of_ones_own(module):
    """From a module of the current folder, called once per step; also a method of something in it."""
    name = module("calls = []\ndef step(): calls.append(1)\nclass Run:\n    @staticmethod\n    def step(): step()\n")
    loop = loop_of(f"{name}:step")
    loop.step()
    loop.step()
    loop_of(f"{name}:Run.step").step()
    assert len(sys.modules[name].calls) == 3


@pytest.mark.parametrize(
    "name", [":", ":step", "no_such_module_anywhere:step", "math:", "math:no", "math:pi.no", "a b:c"]
)
def test_a_step_that_is_not_there(module, name):
    """It is named, with the reason."""
    with pytest.raises(OptionError, match="there is no step") as raised:
        loop_of(name)
    assert repr(name) in str(raised.value)


def test_a_step_that_is_no_function(module):
    """It is told what it is instead."""
    with pytest.raises(OptionError, match=r"'math:pi' is no function, but 3\.14"):
        OwnLoop("math:pi")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def step(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('usage: train DATA')", "SystemExit: usage: train DATA"),
    ],
)
def test_a_script_that_cannot_be_imported(module, source, said):
    """A program without a main guard runs, and ends: that is an error of ours, with its own words."""
    name = module(source)
    with pytest.raises(OptionError, match=f"'{name}' cannot be imported: ") as raised:
        OwnLoop(f"{name}:step")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [("def step(): return {}['loss']", "KeyError: 'loss'"), ("def step(batch): pass", "TypeError")],
)
def test_a_step_that_fails(module, source, said):
    """The same, and the cause is chained; Ctrl-C is none."""
    loop = loop_of(f"{module(source)}:step")
    with pytest.raises(OptionError, match=r"the step 'own_step_\d+:step' has failed: ") as raised:
        loop.step()
    assert said in str(raised.value)
    assert raised.value.__cause__ is not None
    with pytest.raises(KeyboardInterrupt):
        loop_of(f"{module('def step(): raise KeyboardInterrupt')}:step").step()
