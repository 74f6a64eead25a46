"""Put a checkpoint back into the parts of a training, one after the other, and the random states last."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from asyncsave.errors import LoadError, RestoreError
from asyncsave.runs.modules import Mismatch, load_module
from asyncsave.runs.rng import restore_rng
from asyncsave.runs.training_state import OBJECTS, RNG, Stateful, TrainingState, is_plain_value

__all__ = ["put_back"]

_log = logging.getLogger("asyncsave")


def put_back(
    state: TrainingState, saved: object, read: Callable[[object], None], *, strict: bool, map_location: Any, path: str
) -> None:
    """Put a saved state into the live objects.

    Args:
        state: The live parts.
        saved: What ``state.state_dict()`` has been. It is emptied on the way, so that memory is given back.
        read: Called with a part of ``saved`` before the bytes of its tensors are needed.
        strict: Whether parts and parameters on one side only are an error, or only told in the log.
        map_location: Where tensors that are plain values go: a device; None: to the CPU.
        path: The checkpoint.

    Raises:
        RestoreError: The two do not fit; parts before the one that it names have been put back already, unless
            whole parts are missing or unexpected: that is found before anything is changed.
        LoadError: The file holds something else than a training state.
    """
    if not isinstance(saved, dict) or not all(isinstance(name, str) for name in saved):
        message = f"{path!r} holds a {type(saved).__name__}, not the state of a training: read it with load()"
        raise LoadError(message, path=path)
    parts = state.parts
    objects = saved.pop(OBJECTS, None)
    missing = sorted(name for name, part in parts.items() if _lacks(name, part, saved, objects))
    unexpected = sorted(name for name in saved if name != RNG and _has_no_taker(name, parts, objects))
    if state.has_rng and not isinstance(saved.get(RNG), dict):
        missing.append(RNG)
    if RNG in saved and not state.has_rng:
        unexpected.append(RNG)
    if missing or unexpected:
        message = f"the checkpoint {path!r} and this training state do not fit:{_told(missing, unexpected)}"
        if strict:
            raise RestoreError(
                f"{message}. Nothing was changed. strict=False restores what is on both sides",
                path=path,
                missing=tuple(missing),
                unexpected=tuple(unexpected),
            )
        _log.warning("%s", message)
    wanted = [name for name in parts if name not in missing and name not in unexpected]
    # Loaders draw from generators when they take up their place: those are put back behind them.
    for name in sorted(wanted, key=lambda name: isinstance(parts[name], torch.Generator)):
        _put_back_part(state, name, saved.pop(name), read, strict=strict, to=map_location, path=path)
    if state.has_rng and RNG not in missing:
        read(saved[RNG])
        with _part_of(path, RNG):
            restore_rng(saved[RNG])


def _lacks(name: str, part: object, saved: dict[str, Any], objects: list[str] | None) -> bool:
    """Tell whether nothing was saved for a part, or for an object only that there was none."""
    is_object = not is_plain_value(part)
    return name not in saved or (is_object and (saved[name] is None or (objects is not None and name not in objects)))


def _has_no_taker(name: str, parts: Mapping[str, object], objects: list[str] | None) -> bool:
    """Tell whether nobody asks for what was saved, or it is the state of an object that is not there now."""
    return name not in parts or (objects is not None and name in objects and is_plain_value(parts[name]))


@contextlib.contextmanager
def _part_of(path: str, name: str) -> Iterator[None]:
    """Say which part it was that could not be put back."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        message = f"part {name!r} of {path!r} cannot be put back: {type(error).__name__}: {error}"
        raise RestoreError(message, path=path) from error


def _told(missing: list[str], unexpected: list[str]) -> str:
    told = ""
    if missing:
        told += f" nothing was saved for {', '.join(missing)};"
    if unexpected:
        told += f" nobody takes {', '.join(unexpected)};"
    return told.rstrip(";")


def _put_back_part(
    state: TrainingState, name: str, saved: Any, read: Callable[[object], None], *, strict: bool, to: Any, path: str
) -> None:
    part: Any = state.parts[name]
    with _part_of(path, name):
        if isinstance(part, nn.Module):
            _put_back_module(name, part, saved, read, strict=strict, path=path)
            return
        read(saved)
        if isinstance(part, torch.Generator):
            part.set_state(saved)
        elif is_plain_value(part):
            setattr(state, name, _moved(part, saved, to))
        else:
            part.load_state_dict(saved)
            if isinstance(part, DataLoader) and isinstance(part, Stateful):
                part.state_dict()  # torchdata's makes its iterator now, which draws random numbers, and not later


def _put_back_module(
    name: str, module: nn.Module, saved: Any, read: Callable[[object], None], *, strict: bool, path: str
) -> None:
    try:
        missing, unexpected = load_module(module, saved, read, strict=strict)
    except Mismatch as mismatch:
        missing = [f"{name}.{parameter}" for parameter in mismatch.missing]
        unexpected = [f"{name}.{parameter}" for parameter in mismatch.unexpected]
        shapes = "".join(f" {name}.{shape};" for shape in mismatch.shapes)
        raise RestoreError(
            f"part {name!r} of {path!r} does not fit:{shapes}{_told(missing, unexpected)}",
            path=path,
            missing=tuple(missing),
            unexpected=tuple(unexpected),
        ) from None
    if missing or unexpected:
        _log.warning("part %r of %r:%s", name, path, _told(missing, unexpected))


def _moved(part: object, saved: Any, to: Any) -> Any:
    """Return a saved value for its part: a tensor in the old one's memory where it fits there, others as they are."""
    if isinstance(saved, torch.Tensor):
        if isinstance(part, torch.Tensor) and (part.shape, part.dtype) == (saved.shape, saved.dtype):
            with torch.no_grad():
                return part.copy_(saved)
        return saved if to is None else saved.to(to)
    if type(saved) in {dict, OrderedDict}:
        return type(saved)((key, _moved(None, value, to)) for key, value in saved.items())
    if type(saved) in {list, tuple, set}:
        return type(saved)(_moved(None, value, to) for value in saved)
    return saved
