"""Whether two object graphs are the same: types, bits, order, and who shares what with whom.

Stricter than ``==`` on purpose: ``1`` is not ``True``, ``0.0`` is not ``-0.0``, a NaN is itself, a view is no
copy, and two names of one list are not two lists.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["assert_same", "difference", "storage_bytes", "tensor_bytes"]

_COMPRESSED = {
    torch.sparse_csr: (torch.Tensor.crow_indices, torch.Tensor.col_indices),
    torch.sparse_csc: (torch.Tensor.ccol_indices, torch.Tensor.row_indices),
    torch.sparse_bsr: (torch.Tensor.crow_indices, torch.Tensor.col_indices),
    torch.sparse_bsc: (torch.Tensor.ccol_indices, torch.Tensor.row_indices),
}


def assert_same(left: object, right: object, *, storages: bool = True) -> None:
    """Fail unless both graphs are the same; ``storages=False`` lets storages be cut (``compact=True``)."""
    found = difference(left, right, storages=storages)
    assert found is None, found


def difference(left: object, right: object, *, storages: bool = True) -> str | None:
    """Say where two graphs differ first, or return None."""
    try:
        _Comparison(storages=storages).compare(left, right, "state")
    except _DifferError as found:
        return str(found)
    return None


def storage_bytes(storage: torch.UntypedStorage) -> bytes:
    """Return a copy of what a storage holds."""
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements of a strided tensor, in order, bit for bit."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return storage_bytes(plain.clone(memory_format=torch.contiguous_format).untyped_storage())


def _bits(number: complex) -> bytes:
    return struct.pack("2d", number.real, number.imag)


def _untyped(storage: torch.UntypedStorage | torch.TypedStorage) -> torch.UntypedStorage:
    return storage._untyped_storage if isinstance(storage, torch.TypedStorage) else storage


class _DifferError(Exception):
    """Two graphs differ; says where."""


class _Comparison:
    def __init__(self, *, storages: bool) -> None:
        self._storages = storages
        self._partners: dict[tuple[str, int], int] = {}
        self._compared: set[tuple[int, int]] = set()
        self._kept: list[object] = []

    def compare(self, left: Any, right: Any, where: str) -> None:
        self._equal(type(left), type(right), where, "type")
        if isinstance(left, torch.Tensor):
            self._twice(self._tensors, left, right, where)
        elif isinstance(left, type) or (callable(left) and not isinstance(left, torch.nn.Module)):
            self._equal(left, right, where, "value")
        elif isinstance(left, (list, dict, set, bytearray, np.ndarray)) or hasattr(left, "__dict__"):
            self._twice(self._objects, left, right, where)
        else:
            self._objects(left, right, where)

    def _twice(self, compare: Callable[[Any, Any, str], None], left: Any, right: Any, where: str) -> None:
        """Compare two objects that have an identity, once, and see that each is only the other's partner."""
        self._kept += (left, right)
        self._pair("object", id(left), id(right), where)
        if (id(left), id(right)) not in self._compared:
            self._compared.add((id(left), id(right)))
            compare(left, right, where)

    def _pair(self, kind: str, left: int, right: int, where: str) -> None:
        partners = (
            self._partners.setdefault((f"{kind} left", left), right),
            self._partners.setdefault((f"{kind} right", right), left),
        )
        if partners != (right, left):
            raise _DifferError(f"{where}: not the same {kind}s are shared")

    def _equal(self, left: Any, right: Any, where: str, what: str) -> None:
        if left != right:
            raise _DifferError(f"{where}: {what}: {left!r} is not {right!r}")

    def _objects(self, left: Any, right: Any, where: str) -> None:
        if isinstance(left, (dict, list, tuple, set, frozenset, deque)):
            self._members(left, right, where)
        elif isinstance(left, (float, complex)):
            self._equal(_bits(left), _bits(right), where, "bits")
        elif isinstance(left, (np.ndarray, np.generic)):
            for what in ("dtype", "shape"):
                self._equal(getattr(left, what), getattr(right, what), where, what)
            self._equal(left.tobytes(), right.tobytes(), where, "bytes")
        elif isinstance(left, torch.Generator):
            self.compare(left.get_state(), right.get_state(), f"{where}.state")
        elif isinstance(left, (torch.UntypedStorage, torch.TypedStorage)):
            self._storage(_untyped(left), _untyped(right), where)
        elif not getattr(left, "__dict__", None):
            self._equal(left, right, where, "value")
        if attributes := getattr(left, "__dict__", None):
            self.compare(dict(attributes), dict(right.__dict__), f"{where}.__dict__")

    def _members(self, left: Any, right: Any, where: str) -> None:
        self._equal(len(left), len(right), where, "length")
        if isinstance(left, (set, frozenset)):
            self._equal(sorted(map(repr, left)), sorted(map(repr, right)), where, "members")
            return
        for number, (mine, yours) in enumerate(zip(left, right, strict=True)):
            self.compare(mine, yours, f"{where}[{number}]")
            if isinstance(left, dict):
                self.compare(left[mine], right[yours], f"{where}[{mine!r}]")

    def _tensors(self, left: torch.Tensor, right: torch.Tensor, where: str) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            for what in ("dtype", "layout", "device", "requires_grad", "is_quantized", "is_nested"):
                self._equal(getattr(left, what), getattr(right, what), where, what)
            if left.layout is torch.jagged:
                for part in ("_values", "_offsets", "_lengths"):
                    self.compare(getattr(left, part), getattr(right, part), f"{where}.{part}")
                return
            self.compare(dict(left.__dict__), dict(right.__dict__), f"{where}.__dict__")
            if left.layout is torch.sparse_coo:
                self._equal(left.shape, right.shape, where, "shape")
                self._equal(left.is_coalesced(), right.is_coalesced(), where, "is_coalesced")
                self.compare(left._indices(), right._indices(), f"{where}.indices")
                self.compare(left._values().detach(), right._values().detach(), f"{where}.values")
            elif left.layout in _COMPRESSED:
                self._compressed(left.detach(), right.detach(), where)
            elif left.is_quantized:
                self._quantized(left, right, where)
            elif left.is_nested:
                for part in ("_nested_tensor_size", "_nested_tensor_strides", "_nested_tensor_storage_offsets"):
                    self.compare(getattr(left, part)(), getattr(right, part)(), f"{where}.{part}")
                self._strided(left.detach().values(), right.detach().values(), where)
            elif not torch.nn.parameter.is_lazy(left):
                self._strided(left, right, where)

    def _compressed(self, left: torch.Tensor, right: torch.Tensor, where: str) -> None:
        self._equal(left.shape, right.shape, where, "shape")
        for part in (*_COMPRESSED[left.layout], torch.Tensor.values):
            self.compare(part(left), part(right), f"{where}.{part.__name__}")

    def _quantized(self, left: torch.Tensor, right: torch.Tensor, where: str) -> None:
        self._equal(left.qscheme(), right.qscheme(), where, "qscheme")
        self._strided(left.int_repr(), right.int_repr(), where)
        self._storage(left.untyped_storage(), right.untyped_storage(), where)
        if left.qscheme() is torch.per_tensor_affine:
            self._equal(left.q_scale(), right.q_scale(), where, "scale")
            self._equal(left.q_zero_point(), right.q_zero_point(), where, "zero point")
        else:
            self._equal(left.q_per_channel_axis(), right.q_per_channel_axis(), where, "axis")
            self._strided(left.q_per_channel_scales(), right.q_per_channel_scales(), where)
            self._strided(left.q_per_channel_zero_points(), right.q_per_channel_zero_points(), where)

    def _strided(self, left: torch.Tensor, right: torch.Tensor, where: str) -> None:
        for what in ("dtype", "shape", "is_conj", "is_neg", "stride"):
            mine, yours = getattr(left, what), getattr(right, what)
            self._equal(mine() if callable(mine) else mine, yours() if callable(yours) else yours, where, what)
        if left.device.type == "meta":
            return
        self._equal(tensor_bytes(left), tensor_bytes(right), where, "bits")
        if self._storages:
            self._equal(left.storage_offset(), right.storage_offset(), where, "storage_offset")
        self._storage(left.untyped_storage(), right.untyped_storage(), where)

    def _storage(self, left: torch.UntypedStorage, right: torch.UntypedStorage, where: str) -> None:
        if self._storages:
            self._equal(left.nbytes(), right.nbytes(), where, "storage's size")
            self._equal(storage_bytes(left), storage_bytes(right), where, "storage's bits")
        if left.nbytes() and right.nbytes():  # an empty one has no identity after loading
            self._kept += (left, right)
            self._pair("storage", left._cdata, right._cdata, where)
