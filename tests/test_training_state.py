"""The parts of a training by name: what may be one, how they are read and set, and what is saved of them."""

from __future__ import annotations

import collections
import copy
import enum
from typing import NamedTuple

import numpy as np
import pytest
import torch
from equality import assert_same
from torch import nn

from asyncsave import OptionError, TrainingState
from asyncsave.runs.training_state import OBJECTS, RNG


class Kind(enum.IntEnum):
    """An integer that is more than that."""

    FIRST = 1


class Pair(NamedTuple):
    """A tuple that is more than that."""

    a: int
    b: int


class Saves:
    """Says what it is, and cannot become that again."""

    def state_dict(self):
        """Return the state."""
        return {}


class Counter(Saves):
    """Can both."""

    def __init__(self):
        self.count = 0

    def state_dict(self):
        """Return the state."""
        return {"count": self.count}

    def load_state_dict(self, state):
        """Put it back."""
        self.count = state["count"]


PLAIN = [
    0,
    1.5,
    True,
    "text",
    b"bytes",
    1j,
    None,
    torch.ones(3),
    nn.Parameter(torch.ones(3)),
    torch.float16,
    torch.device("cpu"),
    torch.Size([1, 2]),
    [1, [2.0, {"a": (None, "b")}]],
    {"a": {1: torch.zeros(2)}},
    {1, 2},
    collections.OrderedDict(b=1, a=2),
]


def test_parts_are_attributes():
    """A part is read by its name, and is the very object that was given."""
    model = nn.Linear(2, 2)
    state = TrainingState(model=model, epoch=3)
    assert state.model is model
    assert state.epoch == 3
    assert state.parts == {"model": model, "epoch": 3}
    assert repr(state) == "<TrainingState model, epoch, rng>"
    assert repr(TrainingState(rng=False, epoch=3)) == "<TrainingState epoch>"


def test_plain_values_can_be_set():
    """A plain value may become another, of another type too."""
    state = TrainingState(epoch=0, best=None)
    state.epoch += 1
    state.best = {"loss": 0.5}
    assert (state.epoch, state.best) == (1, {"loss": 0.5})
    assert state.state_dict()["best"] == {"loss": 0.5}


def test_the_mapping_of_parts_is_a_copy():
    """Nobody changes a state by changing what ``parts`` has returned."""
    state = TrainingState(epoch=0)
    state.parts["epoch"] = 9
    assert state.epoch == 0


@pytest.mark.parametrize("value", [nn.Linear(1, 1), object(), np.float64(1.0), [object()]])
def test_nothing_else_takes_the_place_of_a_plain_value(value):
    """A name stands for a plain value or for an object, from the beginning to the end."""
    state = TrainingState(epoch=0)
    with pytest.raises(AttributeError, match="part 'epoch'"):
        state.epoch = value
    assert state.epoch == 0


def test_an_object_is_not_replaced():
    """A model cannot be exchanged behind the back of those who hold it."""
    model = nn.Linear(1, 1)
    state = TrainingState(model=model)
    with pytest.raises(AttributeError, match="part 'model'"):
        state.model = 3
    assert state.model is model


def test_a_name_that_is_no_part():
    """A misspelt name is an error, on reading and on setting, that says what there is, or what to do."""
    state = TrainingState(epoch=0, model=nn.Linear(1, 1))
    with pytest.raises(AttributeError, match="no part 'epohc', only epoch, model"):
        _ = state.epohc
    with pytest.raises(AttributeError, match="no part 'epohc': name it when you make the state"):
        state.epohc = 1
    assert not hasattr(state, "scheduler")


@pytest.mark.parametrize("name", ["parts", "has_rng", "state_dict", "_parts", "_x", "__objects__", "__class__"])
def test_names_that_are_taken(name):
    """A part cannot be called what a state has already."""
    with pytest.raises(OptionError, match=f"a part cannot be called {name!r}"):
        TrainingState(**{name: 1})


@pytest.mark.parametrize("value", [None, 1, "yes", nn.Linear(1, 1)])
def test_rng_is_yes_or_no(value):
    """``rng`` is no part: what is no bool is refused."""
    with pytest.raises(OptionError, match="rng"):
        TrainingState(rng=value)


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values(value):
    """What torch loads with ``weights_only=True`` is a plain value, alone or in a nest, and is saved as it is."""
    saved = TrainingState(rng=False, value=value, nest={"in": [value]}).state_dict()
    assert saved["value"] is value
    assert saved["nest"]["in"][0] is value
    assert saved[OBJECTS] == []


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (np.float64(1.0), "float64"),
        (np.int64(1), "int64"),
        (np.ones(3), "ndarray"),
        ([1, np.float32(2)], "list"),
        ({"a": np.ones(1)}, "dict"),
        ({np.str_("a"): 1}, "dict"),
        (Kind.FIRST, "Kind"),
        (Pair(1, 2), "Pair"),
        (frozenset({1}), "frozenset"),
        (collections.defaultdict(int), "defaultdict"),
        (object(), "object"),
        (Saves(), "Saves"),
        (nn.Linear, "type"),
        (lambda: 0, "function"),
        ([nn.Linear(1, 1)], "list"),
    ],
    ids=repr,
)
def test_what_cannot_be_put_back_is_refused_by_name(part, said):
    """What would be saved and not come back with ``weights_only=True`` is an error when the state is made."""
    with pytest.raises(OptionError, match=rf"part 'thing' is a {said}: .*no plain value.*state_dict\(\)"):
        TrainingState(epoch=0, thing=part)


def test_a_plain_loader_is_refused():
    """A DataLoader cannot go on in the midst of an epoch: the message names the one that can."""
    loader = torch.utils.data.DataLoader([1, 2])
    with pytest.raises(OptionError, match=r"part 'loader' is a DataLoader.*StatefulDataLoader"):
        TrainingState(loader=loader)


def test_a_value_that_has_become_something_else_is_refused_at_the_save():
    """A list that was plain when the state was made is looked at again when it is saved."""
    state = TrainingState(losses=[])
    state.losses.append(np.float64(0.5))
    with pytest.raises(OptionError, match="part 'losses' is a list"):
        state.state_dict()


def test_what_is_saved():
    """Objects by their state, generators by theirs, values as they are; which are objects; the random states."""
    model, generator, counter = nn.Linear(2, 2), torch.Generator().manual_seed(5), Counter()
    saved = TrainingState(model=model, generator=generator, counter=counter, epoch=2).state_dict()
    assert list(saved) == ["model", "generator", "counter", "epoch", OBJECTS, RNG]
    assert saved["model"]["weight"].data_ptr() == model.weight.data_ptr()
    assert_same(saved["generator"], generator.get_state())
    assert saved["counter"] == {"count": 0}
    assert saved["epoch"] == 2
    assert saved[OBJECTS] == ["model", "generator", "counter"]
    assert RNG not in TrainingState(rng=False).state_dict()


def test_copying_a_state():
    """``copy`` makes another state with the same parts: looking for missing attributes does not go on for ever."""
    state = TrainingState(epoch=1, model=nn.Linear(1, 1))
    other = copy.copy(state)
    assert other.epoch == 1
    assert other.model is state.model
