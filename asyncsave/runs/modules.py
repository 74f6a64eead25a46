"""Put a saved state into a live module, a few megabytes at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from asyncsave.runs.prefixes import renamed, unwrapped, wrapped

__all__ = ["Mismatch", "load_module"]

_CHUNK = 64 << 20
"""Bytes of tensors that are in memory beside the module at a time; one larger tensor counts as one."""


class Mismatch(Exception):  # noqa: N818 - it is what is told, not what is raised to the user
    """Names that are saved and not there, or there and not saved, or of another shape."""

    def __init__(self, missing: list[str], unexpected: list[str], shapes: list[str]) -> None:
        super().__init__("; ".join(shapes))
        self.missing = missing
        self.unexpected = unexpected
        self.shapes = shapes


def load_module(
    module: nn.Module, saved: dict[str, Any], read: Callable[[object], None], *, strict: bool
) -> tuple[list[str], list[str]]:
    """Put a state back into a module, in place: on its devices, in its dtypes.

    A module that does nothing of its own on loading gets its tensors in chunks, and ``saved`` is emptied on the way;
    any other is given the whole state at once.

    Args:
        module: The live module.
        saved: What its ``state_dict()`` has been; names may differ by wrappers' prefixes.
        read: Called with a part of ``saved`` before the bytes of its tensors are needed.
        strict: Whether names on one side only are an error.

    Returns:
        Names that were not saved, and saved names that nobody takes.

    Raises:
        Mismatch: Names differ and ``strict``, or shapes differ. Nothing has been changed then.
    """
    live = module.state_dict()
    metadata = getattr(saved, "_metadata", None)
    names = renamed(saved, live)
    if names:
        metadata = _renamed_metadata(metadata, wrapped(saved), getattr(live, "_metadata", None), wrapped(live))
        rest = [(names[name], saved.pop(name)) for name in list(saved)]  # popped: the caller must not keep them all
        saved.update(rest)
        del rest
    missing, unexpected = [n for n in live if n not in saved], [n for n in saved if n not in live]
    shapes = [_difference(name, saved[name], live[name]) for name in saved if name in live]
    shapes = [difference for difference in shapes if difference]
    if shapes or (strict and (missing or unexpected)):
        raise Mismatch(missing, unexpected, shapes)
    chunks = _chunks(saved) if _is_ordinary(module) else iter([saved])
    for chunk in chunks:
        part = OrderedDict(chunk)
        if metadata is not None:
            part._metadata = metadata  # type: ignore[attr-defined] # noqa: SLF001 - as state_dict() makes it
        read(part)
        module.load_state_dict(part, strict=False)
    return missing, unexpected


def _chunks(saved: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Empty a state by chunks; what belongs to one submodule stays together."""
    chunk: dict[str, Any] = {}
    nbytes = 0
    owner = None
    for name in list(saved):
        here = name.rpartition(".")[0]
        if nbytes >= _CHUNK and here != owner:
            yield chunk
            chunk, nbytes = {}, 0
        owner = here
        chunk[name] = value = saved.pop(name)
        nbytes += value.nbytes if isinstance(value, torch.Tensor) and value.layout is torch.strided else 0
    if chunk:
        yield chunk


def _is_ordinary(module: nn.Module) -> bool:
    """Tell whether loading a part of a module is the same as loading it with the rest."""
    return all(
        type(one).load_state_dict is nn.Module.load_state_dict
        and type(one)._load_from_state_dict.__module__.startswith("torch.nn.")  # noqa: SLF001
        and not one._load_state_dict_pre_hooks  # noqa: SLF001
        and not one._load_state_dict_post_hooks  # noqa: SLF001
        and not isinstance(one, nn.modules.lazy.LazyModuleMixin)
        for one in module.modules()
    )


def _difference(name: str, saved: object, live: object) -> str:
    if not isinstance(saved, torch.Tensor) or not isinstance(live, torch.Tensor):
        return ""
    if live.is_meta:
        return f"{name} is on the meta device, and has no memory yet"
    if nn.parameter.is_lazy(live) or saved.shape == live.shape:
        return ""
    return f"{name} is {tuple(saved.shape)} in the checkpoint and {tuple(live.shape)} in the model"


def _renamed_metadata(
    saved: Mapping[str, Any] | None, in_saved: set[str], live: Mapping[str, Any] | None, in_live: set[str]
) -> Mapping[str, Any] | None:
    """Give the versions of the modules, which go along with a state, the live modules' names."""
    if saved is None or live is None:
        return None
    # A wrapper and what it wraps become one; the inner one, which comes later, is the one that counts.
    by_unwrapped = {unwrapped(name, in_saved): value for name, value in saved.items()}
    return OrderedDict((name, by_unwrapped.get(unwrapped(name, in_live), value)) for name, value in live.items())
