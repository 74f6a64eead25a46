"""A saved state back into a live module: in place, in chunks where that is the same, under whatever wraps it."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from equality import assert_same
from torch import nn

from asyncsave import RestoreError, TrainingState
from asyncsave.runs import modules
from asyncsave.runs.modules import load_module


@pytest.fixture(autouse=True, params=["one chunk", "many chunks"])
def _chunks(request, monkeypatch):
    """Run every test with states that are put back at once, and tensor by tensor."""
    if request.param == "many chunks":
        monkeypatch.setattr(modules, "_CHUNK", 1)


@pytest.fixture
def restored(manager):
    """Return a function that saves one module and restores it into another, which it returns."""

    def restore(saved, live, **options):
        manager.save(0, TrainingState(rng=False, model=saved)).result()
        manager.restore(TrainingState(rng=False, model=live), **options)
        return live

    return restore


@pytest.fixture
def refused(manager):
    """Return a function that saves one module, and returns the error of restoring it into another, left as it was."""

    def restore(saved, live):
        manager.save(0, TrainingState(rng=False, model=saved)).result()
        before = repr(live.state_dict())
        with pytest.raises(RestoreError, match="part 'model' of") as raised:
            manager.restore(TrainingState(rng=False, model=live))
        assert repr(live.state_dict()) == before
        return raised.value

    return restore


def net(*extra):
    """Return a model with buffers, and with parameters beside a submodule's."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1)), *extra)
    model.scale = nn.Parameter(torch.randn(2))
    model.train()(torch.randn(8, 2)) if not extra else None
    return model


class Named(nn.Module):
    """A model that really has a submodule called ``module``, beside parameters of the same names."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.randn(3))


class Only(nn.Module):
    """A model that has nothing but a submodule called ``module``."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)


class Extra(nn.Module):
    """A module with a state that is no tensor."""

    def __init__(self, seen):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.seen = seen

    def get_extra_state(self):
        """Return it."""
        return {"seen": self.seen, "at": torch.full((2,), float(self.seen))}

    def set_extra_state(self, state):
        """Put it back."""
        assert torch.equal(state["at"], torch.full((2,), float(state["seen"])))
        self.seen = state["seen"]


def compiled(model):
    """Return a model as ``torch.compile`` gives it; nothing is compiled before it is called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch imports for it
        return torch.compile(model, backend="eager")


def inside(wrap):
    """Return a way to wrap a model's submodule instead of the model."""

    def wrapped(model):
        for name, child in list(model.named_children())[-1:]:
            setattr(model, name, wrap(child))
        return model

    return wrapped


WRAPPINGS = {
    "bare": lambda model: model,
    "parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled parallel": lambda model: compiled(nn.DataParallel(model)),
    "parallel compiled": lambda model: nn.DataParallel(compiled(model)),
    "compiled inside": inside(compiled),
    "parallel inside, compiled": lambda model: compiled(inside(nn.DataParallel)(model)),
}


def values(model):
    """Return the values of a model's state, in order."""
    return list(model.state_dict().values())


@pytest.mark.parametrize("make", [net, Named, Only], ids=lambda make: make.__name__)
@pytest.mark.parametrize("saved", WRAPPINGS)
def test_wrappers(manager, make, saved):
    """A model goes into itself whatever wraps it on either side, at any depth, also if names are a wrapper's."""
    before = WRAPPINGS[saved](make())
    manager.save(0, TrainingState(rng=False, model=before)).result()
    for wrap in WRAPPINGS.values():
        after = wrap(make())
        manager.restore(TrainingState(rng=False, model=after))
        assert_same(values(before), values(after))


class Migrating(nn.Module):
    """A module whose second version stores the square of what the first one stored."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.square = nn.Parameter(torch.zeros(1))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 2) < 2:
            state_dict[f"{prefix}square"] = state_dict[f"{prefix}square"] ** 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("saved", ["bare", "parallel", "compiled parallel"])
@pytest.mark.parametrize("live", ["bare", "parallel", "compiled parallel"])
def test_the_versions_of_modules(restored, monkeypatch, version, saved, live):
    """A module is told by which version of it a state was saved, under whatever wraps it, at the root and below."""
    for around in (lambda one: one, nn.Sequential):
        with monkeypatch.context() as patch:
            patch.setattr(Migrating, "_version", version)
            before = WRAPPINGS[saved](around(Migrating()))
            nn.init.constant_(next(before.parameters()), 3.0)
            after = WRAPPINGS[live](around(Migrating()))
            state = before.state_dict()
        monkeypatch.setattr(before, "state_dict", lambda state=state: state, raising=False)
        assert next(restored(before, after).parameters()).item() == (9.0 if version == 1 else 3.0)


def test_names_that_differ(refused):
    """Parameters on one side only are named with their part, and nothing was changed."""
    error = refused(net(nn.Linear(1, 1)), net(nn.Identity(), nn.Linear(1, 1)))
    assert error.missing == ("model.4.weight", "model.4.bias")
    assert error.unexpected == ("model.3.weight", "model.3.bias")
    assert "nothing was saved for model.4.weight, model.4.bias; nobody takes model.3.weight" in str(error)


def test_wrappers_are_not_the_only_difference(refused):
    """Where something else differs too, the names are told as they are."""
    error = refused(nn.DataParallel(nn.Linear(2, 2)), nn.Linear(2, 2, bias=False))
    assert error.missing == ("model.weight",)
    assert error.unexpected == ("model.module.weight", "model.module.bias")


def test_names_that_differ_and_not_strict(restored, caplog):
    """``strict=False`` restores the parameters on both sides and tells the others in the log."""
    saved, live = net(nn.Linear(1, 1)), net(nn.Identity(), nn.Linear(1, 1))
    with caplog.at_level(logging.WARNING, "asyncsave"):
        restored(saved, live, strict=False)
    assert_same(values(saved)[:-2], values(live)[:-2])
    [record] = caplog.records
    assert "part 'model' of" in record.message
    assert "nothing was saved for 4.weight, 4.bias; nobody takes 3.weight, 3.bias" in record.message


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_that_differ(manager, strict):
    """Parameters of other shapes are an error, strict or not, that names each and both shapes; nothing was changed."""
    saved, live = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 2))
    manager.save(0, TrainingState(rng=False, model=saved)).result()
    before = repr(live.state_dict())
    with pytest.raises(RestoreError) as raised:
        manager.restore(TrainingState(rng=False, model=live), strict=strict)
    assert "model.1.weight is (1, 3) in the checkpoint and (2, 4) in the model" in str(raised.value)
    assert "model.1.bias is (1,) in the checkpoint and (2,) in the model" in str(raised.value)
    assert repr(live.state_dict()) == before


def test_other_dtypes(restored):
    """Values take the live module's dtype: a model may be trained in one and looked at in another."""
    saved, live = nn.Linear(4, 4).double(), nn.Linear(4, 4).bfloat16()
    restored(saved, live)
    assert live.weight.dtype == torch.bfloat16
    assert torch.equal(live.weight, saved.weight.bfloat16())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.uint16]
)
def test_buffers_of_any_dtype(restored, dtype):
    """A buffer comes back bit for bit, whatever it holds."""
    models = [nn.Linear(1, 1), nn.Linear(1, 1)]
    models[0].register_buffer("x", torch.arange(6).to(dtype))
    models[1].register_buffer("x", torch.zeros(6).to(dtype))
    restored(*models)
    assert_same(models[0].x, models[1].x)


def test_tied_weights(restored):
    """Tied weights stay tied; a state saved with ties fits a model without, and gives both names the same values."""
    models = [nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)) for _ in range(3)]
    for model in models[:2]:
        model[1].weight = model[0].weight
    tied = restored(models[0], models[1])
    assert tied[0].weight is tied[1].weight
    loose = restored(models[0], models[2])
    assert loose[0].weight is not loose[1].weight
    for model in (tied, loose):
        assert torch.equal(model[0].weight, models[0][0].weight)
        assert torch.equal(model[1].weight, models[0][0].weight)


def test_sparse_and_shared_buffers(restored):
    """Buffers that are sparse, or views of one another, come back."""
    made = []
    for factor in (3, 0):
        model = nn.Linear(2, 2)
        model.register_buffer("sparse", (torch.eye(3) * factor).to_sparse())
        model.register_buffer("base", torch.arange(6.0) * factor)
        model.register_buffer("view", model.base[1:3])
        made.append(model)
    saved, live = made
    restored(saved, live)
    assert torch.equal(live.sparse.to_dense(), saved.sparse.to_dense())
    assert torch.equal(live.base, saved.base)
    assert torch.equal(live.view, saved.view)


def test_extra_state(restored):
    """What a module adds to its state by itself is given to it once, with its tensors read."""
    live = restored(
        nn.Sequential(Extra(3), nn.Linear(1, 1), Extra(5)), nn.Sequential(Extra(0), nn.Linear(1, 1), Extra(0))
    )
    assert (live[0].seen, live[2].seen) == (3, 5)


def test_lazy_modules(restored):
    """A module that does not know its shapes yet takes those of the checkpoint."""
    saved, live = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), nn.Sequential(nn.LazyLinear(2), nn.LazyLinear(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that they are new
        restored(saved, live)
    assert_same(values(saved), values(live))


def test_a_model_without_memory(refused):
    """On the ``meta`` device there is nothing to restore into: that is said, instead of doing nothing."""
    assert "meta" in str(refused(nn.Linear(1, 1), nn.Linear(1, 1, device="meta")))


def test_hooks_see_the_whole_state(restored):
    """A module with a hook on loading is given everything at once: the hook may look at any of it."""
    saved, live = net(), net()
    seen = []
    live.register_load_state_dict_pre_hook(lambda _, state, *__: seen.append(set(state)))
    live[2].register_load_state_dict_post_hook(lambda *_: seen.append("after"))
    restored(saved, live)
    assert seen == [set(saved.state_dict()), "after"]
    assert_same(values(saved), values(live))


def test_a_loading_of_its_own_sees_the_whole_state(restored):
    """A module that overrides ``load_state_dict`` is given everything at once, too."""
    seen = []

    class Own(nn.Sequential):
        def load_state_dict(self, state, *args, **kwargs):
            seen.append(list(state))
            return super().load_state_dict(state, *args, **kwargs)

    saved, live = Own(nn.Linear(2, 2), nn.Linear(2, 2)), Own(nn.Linear(2, 2), nn.Linear(2, 2))
    restored(saved, live)
    assert seen == [list(saved.state_dict())]
    assert_same(values(saved), values(live))


def test_parametrizations(restored):
    """Weights that are computed from others come back through those."""
    made = [
        nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    ]
    others = [
        nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    ]
    saved, live = nn.Sequential(*made), nn.Sequential(*others)
    restored(saved, live)
    assert torch.equal(saved[0].weight, live[0].weight)
    assert torch.equal(saved[1].weight, live[1].weight)


def test_only_a_chunk_is_asked_for_at_a_time():
    """The bytes of a submodule are asked for just before they are copied, and are let go of after that."""
    saved = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)]).state_dict()
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
    asked = []
    load_module(model, saved, lambda part: asked.append((list(part), len(saved))), strict=True)
    names = [name for part, _ in asked for name in part]
    assert names == list(model.state_dict())
    assert not saved
    if modules._CHUNK == 1:
        assert asked == [([f"{n}.weight", f"{n}.bias"], 2 * (2 - n)) for n in range(3)]
