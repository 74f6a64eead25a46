"""What is saved: a state of tensors of a given size, number and type, or that of a real checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from asyncsave.errors import OptionError
from asyncsave.loading import load

__all__ = [
    "DTYPES",
    "State",
    "dtype_of",
    "flatten",
    "like",
    "moved",
    "same_tensors",
    "saved_bytes",
    "synthetic",
    "tensor_bytes",
]

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
        OptionError: There is no tensor in it, or none with values.
    """
    found = load(path, "cpu")
    state = found if isinstance(found, dict) else {"state": found}
    try:
        nbytes = saved_bytes(state)
    except RecursionError:
        raise OptionError(f"{path!r} is nested too deep, or holds itself: it cannot be measured") from None
    if not nbytes:
        raise OptionError(f"{path!r} holds no tensors with values: there is nothing to measure")
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
    return sum(part.nbytes for _, tensor in _walk("", state) for part in _parts(tensor))


def saved_bytes(state: Mapping[Any, Any]) -> int:
    """Return the bytes that a checkpoint of a state holds: every storage whole, and once, however many share it."""
    storages = (part.untyped_storage() for _, tensor in _walk("", state) for part in _parts(tensor))
    held = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.device.type != "meta"}
    return sum(held.values())


def dtype_of(state: Mapping[Any, Any]) -> str:
    """Return the dtype of a state's tensors; ``"mixed"`` if they have several."""
    found = {str(tensor.dtype).removeprefix("torch.") for _, tensor in _walk("", state)}
    return found.pop() if len(found) == 1 else "mixed"


def same_tensors(left: Mapping[Any, Any], right: Mapping[Any, Any]) -> bool:
    """Say whether two states hold the same names with tensors that are equal bit by bit."""
    ours, theirs = list(_walk("", left)), list(_walk("", right))
    return [name for name, _ in ours] == [name for name, _ in theirs] and all(
        _same(mine, yours) for (_, mine), (_, yours) in zip(ours, theirs, strict=True)
    )


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.dtype, left.layout, left.is_nested) != (right.dtype, right.layout, right.is_nested):
        return False
    if not left.is_nested and left.shape != right.shape:
        return False
    return left.is_meta or all(
        torch.equal(_bits(mine), _bits(yours)) for mine, yours in zip(_parts(left), _parts(right), strict=True)
    )


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the strided tensors that a tensor is made of: itself, or indices and values."""
    plain = tensor.detach()
    if plain.is_nested:
        return [plain.values()]
    if plain.layout is torch.sparse_coo:
        return [plain._indices(), plain._values()]  # noqa: SLF001 - the public ones refuse what is not coalesced
    if plain.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [plain.crow_indices(), plain.col_indices(), plain.values()]
    if plain.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [plain.ccol_indices(), plain.row_indices(), plain.values()]
    return [plain]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    return tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _noise(count: int, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.empty(count, dtype=dtype).uniform_(-1.0, 1.0)
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
