"""How many bytes of the storages the tensors show, each counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from asyncsave.inspection.dtypes import ITEMSIZES
from asyncsave.inspection.saved import SavedTensor

__all__ = ["extent", "shown_nbytes"]


def extent(tensor: SavedTensor) -> tuple[int, int]:
    """Return where in its storage a tensor begins and ends, in bytes; what it leaves out between counts as its own."""
    if tensor.stride is None or 0 in tensor.shape:
        return 0, 0
    last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride, strict=True))
    itemsize = ITEMSIZES[tensor.dtype]
    return tensor.offset * itemsize, (tensor.offset + last + 1) * itemsize


def shown_nbytes(tensors: Iterable[SavedTensor]) -> int:
    """Count the bytes of storages that lie between some tensor's first and last element, or some part's."""
    extents: dict[str, list[tuple[int, int]]] = {}
    for tensor in _with_parts(tensors):
        if tensor.storage is not None:
            extents.setdefault(tensor.storage, []).append(extent(tensor))
    return sum(map(_union, extents.values()))


def _with_parts(tensors: Iterable[SavedTensor]) -> Iterator[SavedTensor]:
    for tensor in tensors:
        yield tensor
        yield from _with_parts(tensor.parts)


def _union(extents: list[tuple[int, int]]) -> int:
    total = position = 0
    for start, stop in sorted(extents):
        total += max(0, stop - max(start, position))
        position = max(position, stop)
    return total
