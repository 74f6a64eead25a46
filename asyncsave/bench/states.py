"""What is saved: a state of tensors of a given size, number and type, or that of a real checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from asyncsave.errors import OptionError
from asyncsave.loading import load

__all__ = ["DTYPES", "State", "dtype_of", "flatten", "like", "moved", "same_tensors", "synthetic", "tensor_bytes"]

State = dict[str, Any]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "int8": torch.int8,
}


def synthetic(nbytes: int, tensors: int, dtype: str = "float32") -> State:
    """Return a state of random values, so that no layer below can gain from zeros.

    Args:
        nbytes: Bytes of all tensors, rounded down to whole values.
        tensors: How many, each contiguous and in a storage of its own.
        dtype: One of ``DTYPES``.

    Raises:
        OptionError: There are more tensors than values, or there is no such dtype.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    kind = DTYPES[dtype]
    values = nbytes // kind.itemsize
    if not 1 <= tensors <= values:
        raise OptionError(f"{nbytes} bytes of {dtype} cannot be {tensors} tensors: there are {values} values")
    least, more = divmod(values, tensors)
    return {
        "model": {f"tensor.{i}": _noise(least + (i < more), kind) for i in range(tensors)},
        "step": 0,
    }


def like(path: str) -> State:
    """Return the state of a checkpoint, loaded to the CPU with ``weights_only=True``.

    Raises:
        LoadError: It cannot be loaded.
        OptionError: There is no tensor in it.
    """
    found = load(path, "cpu")
    state = found if isinstance(found, dict) else {"state": found}
    if not flatten(state):
        raise OptionError(f"{path!r} holds no tensors: there is nothing to measure")
    return state


def moved(state: Any, device: str) -> Any:
    """Return a nested state with its tensors on another device; ties are undone."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, Mapping):
        return {key: moved(value, device) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [moved(value, device) for value in state]
    return state


def flatten(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a nested state under dotted names, in order; tensors are shared, not copied."""
    return dict(_walk("", state))


def tensor_bytes(state: Mapping[Any, Any]) -> int:
    """Return the bytes of all tensors of a state, each counted as often as it is in it."""
    return sum(tensor.nbytes for tensor in flatten(state).values())


def dtype_of(state: Mapping[Any, Any]) -> str:
    """Return the dtype of a state's tensors; ``"mixed"`` if they have several."""
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in flatten(state).values()}
    return found.pop() if len(found) == 1 else "mixed"


def same_tensors(left: Mapping[Any, Any], right: Mapping[Any, Any]) -> bool:
    """Say whether two states hold the same names with tensors that are equal bit by bit."""
    ours, theirs = flatten(left), flatten(right)
    return list(ours) == list(theirs) and all(_same(ours[name], theirs[name]) for name in ours)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left.layout != torch.strided or torch.equal(_bits(left), _bits(right))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _noise(count: int, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.empty(count, dtype=torch.float32).uniform_(-1.0, 1.0).to(dtype)
    return torch.randint(-128, 128, (count,), dtype=dtype)


def _walk(prefix: str, node: object) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield prefix, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(f"{prefix}.{key}" if prefix else str(key), value)
    elif isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        for index, value in enumerate(node):
            yield from _walk(f"{prefix}.{index}" if prefix else str(index), value)
