"""A checkpoint back into the parts of a training: all of it, or a word by name on what does not fit."""

from __future__ import annotations

import collections
import logging

import pytest
import torch
from equality import assert_same
from torch import nn

from asyncsave import LoadError, OptionError, RestoreError, TrainingState


@pytest.fixture
def restored(manager):
    """Return a function that saves one state and restores it into another, which it returns."""

    def restore(saved, live, **options):
        manager.save(7, saved).result()
        assert manager.restore(live, **options) == 8
        return live

    return restore


@pytest.fixture
def refused(manager):
    """Return a function that saves one state and returns the error of restoring it into another."""

    def restore(saved, live, error=RestoreError, **options):
        manager.save(7, saved).result()
        with pytest.raises(error) as raised:
            manager.restore(live, **options)
        assert raised.value.path == manager.latest().path
        assert repr(manager.latest().path) in str(raised.value)
        return raised.value

    return restore


def only(**parts):
    """Return a state without random states."""
    return TrainingState(rng=False, **parts)


def trained(factory=torch.optim.AdamW, size=4):
    """Return a model and an optimizer that has made steps with it, and a scheduler."""
    model = nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size), nn.Linear(size, 1))
    optimizer = factory(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(3):
        model(torch.randn(8, size)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def states(state):
    """Return what all parts are."""
    return {
        name: part if isinstance(part, (int, list, dict)) else part.state_dict() for name, part in state.parts.items()
    }


@pytest.mark.parametrize("factory", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_all_parts_come_back(restored, factory):
    """Model with buffers, optimizer, scheduler, scaler and plain values are what they were; objects stay the same."""
    saved = only(**trained(factory), epoch=3, scaler=torch.amp.GradScaler("cpu", init_scale=4.0), losses=[1.0, 2.0])
    live = only(**trained(factory), epoch=0, scaler=torch.amp.GradScaler("cpu"), losses=[])
    weight = live.model[0].weight
    before = dict(live.parts)
    restored(saved, live)
    assert_same(states(saved)["model"], states(live)["model"])
    assert_same(states(saved)["optimizer"], states(live)["optimizer"])
    assert states(saved)["scheduler"] == states(live)["scheduler"]
    assert live.scaler.get_scale() == 4.0
    assert (live.epoch, live.losses) == (3, [1.0, 2.0])
    assert live.model[0].weight is weight
    assert all(live.parts[name] is before[name] for name in ("model", "optimizer", "scheduler", "scaler"))


def test_training_goes_on_alike(restored):
    """Two steps after a restore give the bits that two steps without it give: nothing that counts was left out."""
    saved, live = only(**trained()), only(**trained())
    restored(saved, live)
    batch = torch.randn(8, 4)
    for state in (saved, live):
        for _ in range(2):
            state.model(batch).square().mean().backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.scheduler.step()
    assert_same(states(saved)["model"], states(live)["model"])
    assert_same(states(saved)["optimizer"], states(live)["optimizer"])


def test_what_was_restored_is_independent_of_the_file(restored, manager):
    """Steps that change the restored tensors in place change nothing on the disk."""
    saved, live = only(**trained(), ema=torch.ones(3)), only(**trained(), ema=torch.zeros(3))
    restored(saved, live)
    before = manager.load(7)
    live.model(torch.randn(8, 4)).square().mean().backward()
    live.optimizer.step()
    live.ema.zero_()
    assert_same(before, manager.load(7))


def test_generators(restored):
    """A generator of the user's own goes on where it was, also if a loader draws from it meanwhile."""
    mine = torch.Generator().manual_seed(1)
    torch.rand(3, generator=mine)
    live = only(generator=torch.Generator().manual_seed(2))
    restored(only(generator=mine), live)
    assert torch.equal(torch.rand(5, generator=live.generator), torch.rand(5, generator=mine))


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, (2.0, None)], "b": {3}},
        collections.OrderedDict(b=torch.ones(2), a=1),
        [torch.arange(3), {"deep": (torch.zeros(1),)}],
        torch.Size([1, 2]),
        b"bytes",
        1j,
        torch.float16,
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_keep_their_types(restored, value):
    """What was a list of tensors, an OrderedDict or a set is that again, whatever the part was until then."""
    live = restored(only(value=value, first=1), only(value=None, first=0))
    assert_same(live.value, value, storages=False)


def test_tensors_that_fit_are_filled_in_place(restored):
    """Who holds the tensor sees the restored values; one of another shape or dtype is exchanged instead."""
    held, small, halves = torch.zeros(3), torch.zeros(2), torch.zeros(3, dtype=torch.float16)
    live = only(held=held, small=small, halves=halves, parameter=nn.Parameter(torch.zeros(2)))
    restored(
        only(held=torch.ones(3), small=torch.ones(3), halves=torch.ones(3), parameter=nn.Parameter(torch.ones(2))), live
    )
    assert live.held is held
    assert torch.equal(held, torch.ones(3))
    assert live.small.shape == (3,)
    assert live.halves.dtype == torch.float32
    assert torch.equal(small, torch.zeros(2))
    assert live.parameter.requires_grad
    assert torch.equal(live.parameter, torch.ones(2))


@pytest.mark.parametrize("where", ["meta", torch.device("meta")])
def test_map_location(restored, where):
    """Tensors that are plain values go where they are told to, in any nest; live ones stay where they are."""
    saved = only(exchanged=torch.ones(2), nest={"in": [torch.ones(2)]}, held=torch.ones(2), model=nn.Linear(1, 1))
    live = only(exchanged=None, nest={}, held=torch.zeros(2), model=nn.Linear(1, 1))
    restored(saved, live, map_location=where)
    assert live.exchanged.is_meta
    assert live.nest["in"][0].is_meta
    assert torch.equal(live.held, torch.ones(2))
    assert torch.equal(live.model.weight, saved.model.weight)


def test_by_default_they_go_to_the_cpu(restored):
    """Without ``map_location`` a tensor that replaces another one is on the CPU, as it was saved."""
    assert restored(only(x=torch.ones(2)), only(x=torch.ones(3, device="meta"))).x.device.type == "cpu"


def test_whole_parts_that_do_not_fit(refused):
    """All parts on one side only are named, the random states among them, and nothing at all was changed."""
    live = TrainingState(**trained(), epoch=0, ema=torch.zeros(2))
    saved = only(**trained(), epoch=3, discriminator=nn.Linear(1, 1), loss=1.0)
    before, drawn = (repr(live.model.state_dict()), repr(live.optimizer.state_dict())), torch.get_rng_state()
    error = refused(saved, live)
    assert error.missing == ("ema", "rng")
    assert error.unexpected == ("discriminator", "loss")
    assert "nothing was saved for ema, rng; nobody takes discriminator, loss. Nothing was changed" in str(error)
    assert (repr(live.model.state_dict()), repr(live.optimizer.state_dict())) == before
    assert live.epoch == 0
    assert torch.equal(torch.get_rng_state(), drawn)


def test_random_states_that_nobody_takes(refused):
    """A state with ``rng=False`` says so where random states were saved, instead of leaving them out silently."""
    assert refused(TrainingState(epoch=1), only(epoch=0)).unexpected == ("rng",)


def test_not_strict(restored, caplog):
    """``strict=False`` restores what is on both sides, and tells the rest in the log."""
    with caplog.at_level(logging.WARNING, "asyncsave"):
        live = restored(
            only(epoch=3, old=1, model=nn.Linear(1, 1)), only(epoch=0, new=2, model=nn.Linear(1, 1)), strict=False
        )
    assert (live.epoch, live.new) == (3, 2)
    [record] = caplog.records
    assert "nothing was saved for new; nobody takes old" in record.message


@pytest.mark.parametrize(
    ("saved", "live", "missing", "unexpected"),
    [
        (None, "object", ("part",), ()),
        ("object", None, (), ("part",)),
        ("object", 1, (), ("part",)),
        (1, "object", ("part",), ()),
        ("state", "object", ("part",), ()),
        ("object", "state", (), ("part",)),
    ],
)
def test_an_object_on_one_side_only(refused, saved, live, missing, unexpected):
    """A scheduler that was none, or that is none now, is told, also where a plain value looks like its state."""
    choices = {"object": nn.Linear(1, 1), "state": dict(nn.Linear(1, 1).state_dict())}
    error = refused(only(part=choices.get(saved, saved)), only(part=choices.get(live, live)))
    assert (error.missing, error.unexpected) == (missing, unexpected)


def test_none_on_both_sides(restored):
    """A part that was None may be None again, and a plain value may take the place of None, and the other way."""
    live = restored(only(a=None, b={"x": 1}, c=None), only(a=None, b=None, c={"y": 2}))
    assert (live.a, live.b, live.c) == (None, {"x": 1}, None)


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (nn.Linear(1, 1), torch.Generator()),
        (torch.Generator(), nn.Linear(1, 1)),
        (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu")),
        (torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0), torch.optim.SGD([torch.ones(1)], lr=1.0)),
    ],
    ids=["module, generator", "generator, module", "disabled scaler", "parameters"],
)
def test_a_part_that_refuses_is_named(refused, saved, live):
    """What a part's own ``load_state_dict`` raises comes with the part's name, and with the reason as its cause."""
    error = refused(only(first=1, part=saved), only(first=0, part=live))
    assert "part 'part' of" in str(error)


@pytest.mark.parametrize("obj", [5, [1], {1: 2}, torch.ones(1)], ids=repr)
def test_what_is_no_training_state(refused, obj):
    """A checkpoint of something else is told apart, with the way to read it."""
    error = refused(obj, only(epoch=0), LoadError)
    assert "not the state of a training: read it with load()" in str(error)


def test_a_dict_made_by_hand(restored):
    """A dict with the right names, saved without a TrainingState, is restored like one."""
    model = nn.Linear(2, 2)
    live = restored({"model": model.state_dict(), "epoch": 4}, only(model=nn.Linear(2, 2), epoch=0))
    assert torch.equal(live.model.weight, model.weight)
    assert live.epoch == 4


@pytest.mark.parametrize("state", [None, {}, nn.Linear(1, 1)])
def test_only_a_training_state_is_restored(manager, state):
    """Anything else is an error at the call, also where there is nothing to restore."""
    with pytest.raises(OptionError, match="state"):
        manager.restore(state)


def test_a_restored_state_can_be_saved_again(restored, manager):
    """A chain of restores loses nothing: what is saved after one is what was saved before it."""
    saved = TrainingState(**trained(), epoch=1, nest=[torch.ones(2)])
    live = restored(saved, TrainingState(**trained(), epoch=0, nest=[]))
    first = manager.load(7)
    manager.save(8, live).result()
    assert_same(first, manager.load(8), storages=False)
