"""The public face: which names there are, what they say of themselves, and how they are called."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.resources
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

import asyncsave
from asyncsave import aio

NAMES = [
    "AsyncSaveError",
    "CheckpointFile",
    "CheckpointInfo",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "Contents",
    "CorruptCheckpointError",
    "FormatVersionError",
    "LoadError",
    "OptionError",
    "PreemptionGuard",
    "Problem",
    "Profile",
    "ProtectedRun",
    "QueueFullError",
    "RestoreError",
    "Retention",
    "SaveError",
    "SaveHandle",
    "SaveResult",
    "SavedRecord",
    "SavedTensor",
    "SavedValue",
    "StagingError",
    "TrainingState",
    "Verdict",
    "VerifyReport",
    "VersionInUseError",
    "Versions",
    "WeightsOnly",
    "Writer",
    "WriterClosedError",
    "WriterDiedError",
    "WriterProcess",
    "WriterStats",
    "aio",
    "check_errors",
    "flush",
    "inspect",
    "load",
    "profile",
    "save",
    "save_async",
    "shutdown",
    "verify",
    "warmup",
]

MODULES = ["asyncsave"] + [found.name for found in pkgutil.walk_packages(asyncsave.__path__, "asyncsave.")]


def parameters(function: object) -> list[str]:
    """Return the names of a function's parameters, with their kinds, as in a signature."""
    found = inspect.signature(function).parameters.values()
    return [f"*{one.name}" if one.kind is one.KEYWORD_ONLY else one.name for one in found]


def test_the_public_names_are_these():
    """A name more or less is a decision, and this list is where it is made."""
    assert asyncsave.__all__ == NAMES
    assert aio.__all__ == ["copy", "load", "save", "verify"]


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_offers_exists_and_is_described(module):
    """Every module has a docstring and a true __all__; every class and function in it says what it does."""
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name in getattr(loaded, "__all__", []):
        item = getattr(loaded, name)
        if inspect.isclass(item) or inspect.isfunction(item):
            assert inspect.getdoc(item), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isclass(getattr(asyncsave, name))])
def test_what_a_class_offers_is_described(name):
    """Every public method and property of a public class, of our own making."""
    for attribute, value in vars(getattr(asyncsave, name)).items():
        if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{name}.{attribute} has no docstring"


def test_save_async_is_called_as_torch_save_is():
    """The arguments that both have stand in the same places, under the same names."""
    ours, theirs = parameters(asyncsave.save_async), parameters(torch.save)
    assert ours[:4] == theirs[:4] == ["obj", "f", "pickle_module", "pickle_protocol"]
    assert ours[4:] == ["*writer", "*on_busy", "*compact"]
    for function in (asyncsave.save_async, asyncsave.save, asyncsave.Writer.save, torch.save):
        found = inspect.signature(function).parameters
        assert found["pickle_protocol"].default == 2
        assert found["pickle_module"].default.__name__ == "pickle"


def test_the_signatures_of_the_rest():
    """What is optional is named, so that options can be added."""
    assert parameters(asyncsave.save) == ["obj", "f", "pickle_module", "pickle_protocol", "*compact"]
    assert parameters(asyncsave.load) == ["f", "map_location", "*weights_only", "*mmap", "*verify"]
    assert parameters(asyncsave.load)[:2] == parameters(torch.load)[:2]
    assert parameters(asyncsave.verify) == parameters(asyncsave.inspect) == ["f"]
    assert parameters(asyncsave.flush) == parameters(asyncsave.shutdown) == ["timeout"]
    assert parameters(asyncsave.check_errors) == []
    assert parameters(asyncsave.warmup) == ["state"]
    assert all(one.startswith("*") for one in parameters(asyncsave.Writer))


@pytest.mark.parametrize("name", ["save", "load", "verify"])
def test_the_functions_for_asyncio_are_called_as_the_others_are(name):
    """The same arguments; a save may name its writer, as save_async does."""
    assert inspect.iscoroutinefunction(getattr(aio, name))
    like = asyncsave.save_async if name == "save" else getattr(asyncsave, name)
    assert parameters(getattr(aio, name)) == parameters(like)


def test_a_handle_is_a_future(tmp_path):
    """Whatever takes a Future takes it."""
    handle = asyncsave.save_async({"a": 1}, tmp_path / "f.pt")
    assert isinstance(handle, concurrent.futures.Future)
    assert isinstance(handle, asyncsave.SaveHandle)
    assert list(concurrent.futures.as_completed([handle])) == [handle]
    assert handle.result().path == str(tmp_path / "f.pt")


@pytest.mark.parametrize("kind", [asyncsave.SaveResult, asyncsave.VerifyReport, asyncsave.Problem])
def test_results_are_values(kind):
    """They compare, they show all they hold, and nobody can change them."""
    blank = kind(*[None] * len(dataclasses.fields(kind)))
    assert blank == kind(*[None] * len(dataclasses.fields(kind)))
    assert all(field.name in repr(blank) for field in dataclasses.fields(kind))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(blank, dataclasses.fields(kind)[0].name, "x")


def test_the_package_tells_its_types():
    """The file py.typed is what type checkers look for."""
    assert (importlib.resources.files("asyncsave") / "py.typed").is_file()


def test_there_is_one_version():
    """What the package says of itself is what it is built as."""
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{asyncsave.__version__}"' in project.splitlines()
