"""What differs between two checkpoints, by what is said of them: a pure function; no file is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from asyncsave.inspection.saved import Contents, SavedTensor, SavedValue

__all__ = ["Change", "Compared", "Pair", "compare"]


@dataclass(frozen=True, slots=True)
class Change:
    """Something that both have, in two ways.

    Attributes:
        name: Its place in the state; a part of a tensor (the values of a sparse one) comes after it with a dot.
        what: ``"kind"``: its type; ``"shape"``; ``"dtype"``; ``"value"``.
        a: How it is in the first: a type's name, a shape, or a value as Python would write it; of a tensor's
            values that which differs most.
        b: How it is in the second.
        elements: How many elements a tensor has whose values differ; None for all else.
        differing: How many of them differ. Two NaNs do not.
        greatest: The greatest absolute difference, which may be infinite; None if there is no number: where
            a number meets NaN only, and for types that torch does not calculate with.
    """

    name: str
    what: str
    a: Any
    b: Any
    elements: int | None = None
    differing: int | None = None
    greatest: float | None = None


class Pair(NamedTuple):
    """Two tensors of one name, shape and type, whose bytes may differ."""

    name: str
    a: SavedTensor
    b: SavedTensor


class Compared(NamedTuple):
    """What differs.

    Attributes:
        only_a: Names that only the first has.
        only_b: Names that only the second has.
        changed: What both have, in two ways.
        pairs: The tensors that are alike in all but their bytes, at which nobody has looked.
    """

    only_a: list[str]
    only_b: list[str]
    changed: list[Change]
    pairs: list[Pair]


def compare(a: Contents, b: Contents, *, values: bool = False) -> Compared:
    """Compare two checkpoints by names, types and shapes.

    Where the tensors lay, whether they take gradients, in which order and in which storages they are, does
    not count.

    Args:
        a: The first.
        b: The second.
        values: Compare the plain values, too.
    """
    first, second = _leaves(a), _leaves(b)
    compared = Compared([name for name in first if name not in second], [], [], [])
    compared.only_b.extend(name for name in second if name not in first)
    for name, one in first.items():
        other = second.get(name)
        if other is None:
            continue
        if _kind(one) != _kind(other):
            compared.changed.append(Change(name, "kind", _kind(one), _kind(other)))
        elif isinstance(one, SavedTensor) and isinstance(other, SavedTensor):
            _compare_tensors(compared, name, one, other)
        elif isinstance(one, SavedValue) and isinstance(other, SavedValue) and values and one.text != other.text:
            compared.changed.append(Change(name, "value", one.text, other.text))
    return compared


def _leaves(contents: Contents) -> dict[str, SavedTensor | SavedValue]:
    leaves: dict[str, SavedTensor | SavedValue] = {tensor.name: tensor for tensor in contents.tensors}
    leaves.update((value.name, value) for value in contents.values)
    return leaves


def _kind(leaf: SavedTensor | SavedValue) -> str:
    if isinstance(leaf, SavedValue) or leaf.layout in {"strided", "storage"}:
        return leaf.kind
    return f"{leaf.kind} ({leaf.layout})"


def _compare_tensors(compared: Compared, name: str, a: SavedTensor, b: SavedTensor) -> None:
    changes = list(_outer(name, a, b))
    compared.changed.extend(changes)
    if changes:
        return
    if a.storage is not None and b.storage is not None:
        compared.pairs.append(Pair(name, a, b))
    others = {part.name: part for part in b.parts}
    for part in a.parts:
        if (other := others.get(part.name)) is not None:
            _compare_tensors(compared, f"{name}.{part.name}", part, other)


def _outer(name: str, a: SavedTensor, b: SavedTensor) -> Iterator[Change]:
    if a.shape != b.shape:
        yield Change(name, "shape", list(a.shape), list(b.shape))
    if a.dtype != b.dtype:
        yield Change(name, "dtype", a.dtype, b.dtype)
