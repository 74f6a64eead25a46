"""All that a training needs to go on: a name for each part, and what becomes of it on the way to disk and back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from asyncsave.errors import OptionError
from asyncsave.options import yes_or_no
from asyncsave.runs.rng import capture_rng

__all__ = ["OBJECTS", "RNG", "Stateful", "TrainingState", "is_plain_value"]

RNG = "rng"
"""The name that the random states are saved under."""

OBJECTS = "__objects__"
"""Under this name is saved which parts are objects with a state, and not plain values."""

_PLAIN = {str, int, float, bool, complex, bytes, type(None), torch.dtype, torch.device, torch.Size}
"""Exactly these: a subclass (numpy's float64, an enumeration) does not load with ``weights_only=True``."""


@runtime_checkable
class Stateful(Protocol):
    """Whatever can say what it is, and become that again: modules, optimizers, schedulers, scalers, loaders."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Put a state back."""


class TrainingState:
    """The parts of a training that make up its state.

    Pass it to :meth:`CheckpointManager.save` and :meth:`CheckpointManager.restore`. Parts can be read as attributes;
    plain values can be set the same way: ``state.epoch += 1``.

    Args:
        rng: Whether the random states belong to it: of python, numpy, torch, and every device of an accelerator.
        **parts: By name: anything with ``state_dict()`` and ``load_state_dict()``; a ``torch.Generator``; or a
            plain value (numbers, texts, tensors, and lists, tuples and dicts of those).

    Raises:
        OptionError: A part is none of that.
    """

    def __init__(self, *, rng: bool = True, **parts: object) -> None:
        yes_or_no("rng", rng)
        for name, part in parts.items():
            if name.startswith("_") or hasattr(TrainingState, name):
                raise OptionError(f"a part cannot be called {name!r}: choose another name")
            _check(name, part)
        self.__dict__["_rng"] = rng
        self.__dict__["_parts"] = dict(parts)

    def __repr__(self) -> str:
        """Show the names of the parts."""
        return f"<TrainingState {', '.join([*self._parts, *([RNG] if self._rng else [])])}>"

    def __getattr__(self, name: str) -> Any:
        """Return a part."""
        parts = self.__dict__.get("_parts", {})
        if name not in parts:
            raise AttributeError(f"this training state has no part {name!r}, only {', '.join(parts)}")
        return parts[name]

    def __setattr__(self, name: str, value: object) -> None:
        """Set a plain value."""
        if name not in self._parts:
            raise AttributeError(f"this training state has no part {name!r}: name it when you make the state")
        if not is_plain_value(self._parts[name]) or not is_plain_value(value):
            raise AttributeError(f"only a plain value can be set, and part {name!r} is none, or would be none")
        self._parts[name] = value

    @property
    def parts(self) -> Mapping[str, object]:
        """The parts by name, as they were given."""
        return dict(self._parts)

    @property
    def has_rng(self) -> bool:
        """Whether the random states belong to it."""
        return bool(self._rng)

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved: the state of each part by its name, and the random states. Tensors are live.

        Further, under ``"__objects__"``, the names of the parts that are no plain values.
        """
        saved = {name: _saved(name, part) for name, part in self._parts.items()}
        saved[OBJECTS] = [name for name, part in self._parts.items() if not is_plain_value(part)]
        if self._rng:
            saved[RNG] = capture_rng()
        return saved


def is_plain_value(part: object) -> bool:
    """Tell whether a part is a value, and not an object with a state."""
    kind = type(part)
    if kind in {dict, OrderedDict}:
        return all(is_plain_value(key) and is_plain_value(value) for key, value in part.items())  # type: ignore[attr-defined]
    if kind in {list, tuple, set}:
        return all(map(is_plain_value, part))  # type: ignore[call-overload]
    return kind in _PLAIN or isinstance(part, torch.Tensor)


def _check(name: str, part: object) -> None:
    """Refuse what cannot be saved, or not put back.

    Raises:
        OptionError: That is so.
    """
    if isinstance(part, torch.Generator) or is_plain_value(part):
        return
    if isinstance(part, Stateful) and not isinstance(part, type):
        return
    remedy = "Give it state_dict() and load_state_dict(), or pass what is to be saved of it as a plain value"
    if isinstance(part, torch.utils.data.DataLoader):
        remedy = "A loader that can go on in the midst of an epoch is torchdata's StatefulDataLoader"
    raise OptionError(
        f"part {name!r} is a {type(part).__name__}: it has no state_dict() and load_state_dict(), and is no plain "
        f"value (numbers, texts, tensors, and lists, tuples and dicts of those). {remedy}"
    )


def _saved(name: str, part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    if is_plain_value(part):
        return part
    _check(name, part)
    return part.state_dict()
