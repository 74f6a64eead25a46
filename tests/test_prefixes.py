"""The prefixes of wrappers: found where they are the only difference, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncsave.runs.prefixes import renamed

WRAPPERS = ("module", "_orig_mod")
NAMES = st.sampled_from(["a", "b", "weight", *WRAPPERS])
"""A model may have submodules, and parameters, that are called like a wrapper's."""

TREES = st.recursive(st.none(), lambda trees: st.dictionaries(NAMES, trees, min_size=1, max_size=3), max_leaves=8)
MODELS = st.dictionaries(NAMES, TREES, min_size=1, max_size=3)
"""A module is a dict of what is in it, a parameter is None."""


def names(model, path=""):
    """Return the names of a model's parameters."""
    for name, child in model.items():
        if child is None:
            yield path + name
        else:
            yield from names(child, f"{path}{name}.")


def wrap(draw, model):
    """Put any number of wrappers around a module and around any module in it; order and parameters stay."""
    inner = {name: child if child is None else wrap(draw, child) for name, child in model.items()}
    for wrapper in draw(st.lists(st.sampled_from(WRAPPERS), max_size=2)):
        inner = {wrapper: inner}
    return inner


@st.composite
def wrapped_twice(draw):
    """Return one model's names, wrapped in two ways, each name beside its other one."""
    model = draw(MODELS)
    return list(names(wrap(draw, model))), list(names(wrap(draw, model)))


@given(wrapped_twice())
def test_one_model_wrapped_in_two_ways(both):
    """Every name finds its other one, whatever wraps what on either side, also where a real name is a wrapper's."""
    saved, live = both
    expected = {} if set(saved) == set(live) else dict(zip(saved, live, strict=True))
    assert renamed(saved, live) == expected


@given(wrapped_twice(), st.data())
def test_another_difference_is_left_alone(both, data):
    """If a name is missing on one side nothing is renamed: the user is told the names as they are."""
    saved, live = both
    lost = data.draw(st.sampled_from(live))
    fewer = [name for name in live if name != lost]
    assert renamed(saved, fewer) == {}
    assert renamed(fewer, saved) == {}


@given(st.lists(st.lists(NAMES, min_size=1, max_size=3).map(".".join), unique=True, max_size=5), st.data())
def test_whatever_the_names_are(saved, data):
    """Names that no model could have do no harm: what is renamed is renamed one to one, to names that are there."""
    live = data.draw(st.lists(st.lists(NAMES, min_size=1, max_size=3).map(".".join), unique=True, max_size=5))
    found = renamed(saved, live)
    assert not found or (list(found) == saved and sorted(found.values()) == sorted(live))


def test_the_order_is_the_saved_one():
    """A state is put back in the order in which it lies in the file."""
    assert list(renamed(["module.b", "module.a"], ["a", "b"])) == ["module.b", "module.a"]


def test_a_parameter_called_module():
    """The last piece of a name is a parameter's own."""
    assert renamed(["_orig_mod.module"], ["module"]) == {"_orig_mod.module": "module"}
    assert renamed(["module"], ["_orig_mod"]) == {}


def test_a_submodule_called_module_beside_others():
    """What has neighbours is no wrapper: it is not stripped, and its parameters are not taken for the neighbours'."""
    live = ["weight", "module.weight"]
    assert renamed([f"module.{name}" for name in live], live) == {"module.weight": "weight"} | {
        "module.module.weight": "module.weight"
    }
    assert renamed(["head.weight", "module.weight"], ["head.weight", "weight"]) == {}
