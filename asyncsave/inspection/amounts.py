"""By how much tensors differ: their bytes, read from both files block by block; nothing is unpickled."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch

from asyncsave.errors import LoadError
from asyncsave.inspection.contents import Look
from asyncsave.inspection.coverage import extent
from asyncsave.inspection.difference import Change, Pair
from asyncsave.inspection.dtypes import ITEMSIZES
from asyncsave.inspection.saved import SavedTensor
from asyncsave.storage.source import Source

__all__ = ["Side", "changed_tensors"]

_BLOCK = 4 << 20
"""Bytes that are read of each file at once."""
_MOST_OVERLAP = 64
_SAME_BITS = {"bool": torch.uint8, "qint8": torch.int8, "quint8": torch.uint8, "qint32": torch.int32}
"""Types that torch calculates with only as with others: which have the same bits."""
_SIGN = -(1 << 63)


class Side(NamedTuple):
    """One of the two checkpoints."""

    source: Source
    look: Look


class _Block(NamedTuple):
    """A part of both tensors: its shape, and where it begins in each, in elements."""

    shape: tuple[int, ...]
    a: int
    b: int


class _Amount(NamedTuple):
    differing: int
    greatest: float | None
    a: str
    b: str


def changed_tensors(
    a: Side, b: Side, pairs: Iterable[Pair], moved: Callable[[float], None] = lambda _: None
) -> Iterator[Change]:
    """Yield the tensors of which some elements differ, and by how much.

    Memory is that of a few blocks of 4 MiB, whatever the tensors' sizes. Two elements are equal if they are
    numbers that are equal (zeros of both signs are), or both NaN.

    Args:
        a: The first checkpoint.
        b: The second.
        pairs: What to compare.
        moved: Called with the bytes of each tensor when it has been compared.

    Raises:
        LoadError: A tensor's elements overlap so much that comparing it would take forever.
    """
    for pair in pairs:
        found = _compare(a, b, pair)
        moved(pair.a.nbytes)
        if found is not None and found.differing:
            yield Change(pair.name, "value", found.a, found.b, math.prod(pair.a.shape), found.differing, found.greatest)


def _compare(a: Side, b: Side, pair: Pair) -> _Amount | None:
    strides = _strides(pair.a), _strides(pair.b)
    # What an expanded tensor repeats, in both alike, is looked at once.
    repeated = [
        length
        for length, one, other in zip(pair.a.shape, *strides, strict=True)
        if length > 1 and not one and not other
    ]
    shape = tuple(
        1 if not one and not other and length else length
        for length, one, other in zip(pair.a.shape, *strides, strict=True)
    )
    itemsize = ITEMSIZES[pair.a.dtype]
    largest = max(extent(one)[1] - extent(one)[0] for one in (pair.a, pair.b))
    if math.prod(shape) * itemsize > _MOST_OVERLAP * largest + _BLOCK:
        message = (
            f"{pair.name!r} of {a.source.path!r} or {b.source.path!r} shows {math.prod(shape):,} elements of "
            f"{largest:,} bytes: too many to be compared"
        )
        raise LoadError(message, path=a.source.path)
    total: _Amount | None = None
    for block in _blocks(_Block(shape, pair.a.offset, pair.b.offset), strides, itemsize):
        ones, others = _read(a, pair.a, block.shape, block.a), _read(b, pair.b, block.shape, block.b)
        if not _same_bytes(ones, others):
            total = _sum(total, _amount(_numbers(ones, pair.a.dtype), _numbers(others, pair.b.dtype)))
    if total is None:
        return None
    greatest = total.greatest if _kind(pair.a.dtype)[1] else None
    return total._replace(differing=total.differing * math.prod(repeated), greatest=greatest)


def _strides(tensor: SavedTensor) -> tuple[int, ...]:
    return tensor.stride or ()


def _blocks(whole: _Block, strides: tuple[tuple[int, ...], ...], itemsize: int) -> Iterator[_Block]:
    """Halve along the longest side until both parts are within a block; in order."""
    if 0 in whole.shape:
        return
    left = [whole]
    while left:
        block = left.pop()
        reach = [(length - 1) * max(1, *steps) for length, *steps in zip(block.shape, *strides, strict=True)]
        spans = [1 + sum((n - 1) * step for n, step in zip(block.shape, steps, strict=True)) for steps in strides]
        if max(*spans, math.prod(block.shape)) * itemsize <= _BLOCK:
            yield block
            continue
        side = max(range(len(reach)), key=reach.__getitem__)
        half = block.shape[side] // 2
        before, after = (
            (*block.shape[:side], length, *block.shape[side + 1 :]) for length in (half, block.shape[side] - half)
        )
        moved = (half * steps[side] for steps in strides)
        left += [_Block(after, block.a + next(moved), block.b + next(moved)), _Block(before, block.a, block.b)]


def _read(side: Side, tensor: SavedTensor, shape: tuple[int, ...], offset: int) -> torch.Tensor:
    """Return the elements of a block as bytes: a tensor of its shape, and one dimension more."""
    itemsize, strides = ITEMSIZES[tensor.dtype], _strides(tensor)
    nbytes = (1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))) * itemsize
    start = side.look.places[str(tensor.storage)] + offset * itemsize
    flat = torch.frombuffer(bytearray(side.source.read(start, nbytes)), dtype=torch.uint8)
    if side.look.contents.versions.byteorder != sys.byteorder:
        unit = itemsize // 2 if tensor.dtype.startswith("complex") else itemsize
        flat = flat.view(-1, unit).flip(1).reshape(-1)
    return flat.as_strided((*shape, itemsize), (*(step * itemsize for step in strides), 1))


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


def _numbers(data: torch.Tensor, dtype: str) -> torch.Tensor:
    flat = data.reshape(-1)
    if dtype == "complex32":  # which torch hardly calculates with, and warns of
        return flat.view(torch.float16).to(torch.float32).view(torch.complex64)
    return flat.view(_kind(dtype)[0])


@functools.cache
def _kind(dtype: str) -> tuple[torch.dtype, bool]:
    """Return as what type to compare elements, and whether their differences mean anything."""
    if dtype == "complex32":
        return torch.complex64, True
    kind = _SAME_BITS.get(dtype) or getattr(torch, dtype, None)
    try:
        torch.zeros(16, dtype=torch.uint8).view(cast("torch.dtype", kind)).to(torch.complex128)
    except (RuntimeError, TypeError):
        return (torch.int16 if ITEMSIZES[dtype] > 1 else torch.uint8), False
    return cast("torch.dtype", kind), True


def _amount(a: torch.Tensor, b: torch.Tensor) -> _Amount:
    differs, sizes = _whole(a, b) if _is_whole(a.dtype) else _real(a, b)
    differing = int(differs.sum())
    if not differing:
        return _Amount(0, None, "", "")
    known = ~sizes.isnan() & differs
    at = int(torch.where(known, sizes, -1.0).argmax()) if known.any() else int(differs.nonzero()[0])
    greatest = float(sizes[at]) if known.any() else None
    return _Amount(differing, greatest, _text(a[at]), _text(b[at]))


def _text(element: Any) -> str:
    return repr(element.item())


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def _real(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    return (a != b) & ~(a.isnan() & b.isnan()), (a - b).abs()


def _whole(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take differences of whole numbers without rounding: they fit 64 bits without a sign."""
    if a.dtype == torch.uint64:
        a, b = (one.view(torch.int64) ^ _SIGN for one in (a, b))
    else:
        a, b = a.to(torch.int64), b.to(torch.int64)
    sizes = torch.where(a > b, a - b, b - a)
    return a != b, torch.where(sizes < 0, sizes.to(torch.float64) + 2.0**64, sizes.to(torch.float64))


def _sum(one: _Amount | None, other: _Amount) -> _Amount:
    if one is None or not one.differing:
        return other
    larger = other if (other.greatest or -1.0) > (one.greatest or -1.0) else one
    return larger._replace(differing=one.differing + other.differing)
