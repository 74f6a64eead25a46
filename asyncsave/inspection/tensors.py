"""Which calls in a pickle make tensors, and what tensors they make: torch's rebuild functions, read and not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from asyncsave.inspection.dtypes import ITEMSIZES, STORAGES
from asyncsave.inspection.saved import SavedTensor
from asyncsave.inspection.tree import Call, Dict, Global, Persistent

__all__ = ["MalformedTensorError", "Storage", "Tensors"]

_TENSOR, _PARAMETER = "torch.Tensor", "torch.nn.Parameter"
_NESTING = 4
_MOST_DIMS = 256
_INT64 = 1 << 63

_REBUILDERS: dict[str | None, str] = {
    "torch._utils._rebuild_tensor": "_on_storage",
    "torch._utils._rebuild_tensor_v2": "_on_storage",
    "torch._utils._rebuild_tensor_v3": "_on_storage",
    "torch._utils._rebuild_qtensor": "_quantized",
    "torch._utils._rebuild_sparse_tensor": "_sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "_sparse",
    "torch._utils._rebuild_nested_tensor": "_nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "_meta",
    "torch._utils._rebuild_wrapper_subclass": "_wrapper",
    "torch._utils._rebuild_device_tensor_from_numpy": "_moved",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "_moved",
    "torch._utils._rebuild_xla_tensor": "_moved",
    "torch._utils._rebuild_parameter": "_parameter",
    "torch._utils._rebuild_parameter_with_state": "_parameter",
    "torch._tensor._rebuild_from_type": "_from_type",
    "torch._tensor._rebuild_from_type_v2": "_from_type",
    "torch.tensor._rebuild_from_type": "_from_type",
    "torch.tensor._rebuild_from_type_v2": "_from_type",
}
"""Which method reads the arguments of a function."""


class MalformedTensorError(Exception):
    """A call to one of torch's rebuild functions, with arguments that it cannot have."""


class Storage(NamedTuple):
    """A storage, as a pickle refers to it.

    Attributes:
        key: Its name.
        dtype: What its elements are said to be.
        nbytes: Its size.
        device: Where it was.
    """

    key: str
    dtype: str
    nbytes: int
    device: str


class Rebuilt(NamedTuple):
    """A tensor that a call makes.

    Attributes:
        tensor: The tensor, without a name.
        inner: What makes it, below the wrappers that only add a class or attributes: one object, one tensor.
        states: Attributes that are set on it.
    """

    tensor: SavedTensor
    inner: Call
    states: tuple[Any, ...]


class Tensors:
    """What is known of a pickle's storages and tensors.

    Attributes:
        storages: Every storage that was met, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._known: dict[int, Rebuilt | None] = {}

    def storage(self, node: Any) -> Storage | None:
        """Return the storage that a node refers to; None if it refers to none.

        Raises:
            MalformedTensorError: It refers to one in a way that torch does not.
        """
        if type(node) is not Persistent or type(pid := node.pid) is not tuple or not pid or pid[0] != "storage":
            return None
        if len(pid) not in (5, 6) or type(pid[1]) is not Global or type(pid[3]) is not str:
            raise MalformedTensorError("a storage's persistent id")
        kind, key, device, numel = pid[1].path.rpartition(".")[2], pid[2], pid[3], _count(pid[4])
        dtype = STORAGES.get(kind)
        if dtype is None or type(key) is not str:
            raise MalformedTensorError(f"a storage of type {kind!r}")
        found = Storage(key, dtype, numel * ITEMSIZES[dtype], device)
        if self.storages.setdefault(key, found).nbytes != found.nbytes:
            raise MalformedTensorError(f"storage {key!r} of two sizes")
        return found

    def rebuilt(self, node: Any) -> Rebuilt | None:
        """Return the tensor that a node makes; None if it makes none.

        Raises:
            MalformedTensorError: It calls one of torch's functions with arguments that no tensor has.
        """
        return self._rebuilt(node, _NESTING)

    def _rebuilt(self, node: Any, nesting: int) -> Rebuilt | None:
        if type(node) is not Call or node.path not in _REBUILDERS:
            return None
        if id(node) not in self._known:
            if not nesting:
                raise MalformedTensorError("tensors made of tensors made of tensors")
            self._known[id(node)] = None  # one that is made of itself
            try:
                self._known[id(node)] = self._reader(node)(node, nesting - 1)
            except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
                name = str(node.path).rpartition(".")[2]
                raise MalformedTensorError(f"the arguments of {name}") from error
        return self._known[id(node)]

    def _reader(self, node: Call) -> Callable[[Call, int], Rebuilt | None]:
        return getattr(self, _REBUILDERS[node.path])  # type: ignore[no-any-return]

    def _part(self, node: Any, name: str, nesting: int) -> SavedTensor:
        found = self._rebuilt(node, nesting)
        if found is None:
            raise MalformedTensorError(f"{name} that are no tensor")
        return replace(found.tensor, name=name)

    def _on_storage(self, node: Call, nesting: int) -> Rebuilt:
        """Read ``(storage, offset, size, stride, requires_grad, hooks, ...)``."""
        del nesting
        args = node.args
        storage = self.storage(args[0])
        if storage is None:
            raise MalformedTensorError("a tensor on no storage")
        dtype = _dtype(args[6]) if node.path == "torch._utils._rebuild_tensor_v3" else storage.dtype
        offset, shape, stride = _count(args[1]), _counts(args[2]), _counts(args[3])
        nbytes = _check(storage, dtype, offset, shape, stride)
        requires_grad = args[4] is True if len(args) > 4 else False  # noqa: PLR2004 - _rebuild_tensor has four
        return Rebuilt(
            SavedTensor("", _TENSOR, "strided", shape, stride, offset, dtype, nbytes, storage.key, storage.device,
                        requires_grad),
            node,
            (),
        )  # fmt: skip

    def _quantized(self, node: Call, nesting: int) -> Rebuilt:
        scheme, *params = node.args[4]
        plain = self._on_storage(Call(node.func, (*node.args[:4], node.args[5])), 0).tensor
        parts: tuple[SavedTensor, ...] = ()
        if _name(scheme).startswith("torch.per_channel"):
            names = ("scales", "zero_points")
            found = zip(params, names, strict=False)
            parts = tuple(self._part(one, name, nesting) for one, name in found if type(one) is Call)
        return Rebuilt(_made_of(plain, parts, layout="quantized", own=plain.nbytes), node, ())

    def _sparse(self, node: Call, nesting: int) -> Rebuilt:
        layout = node.args[0]
        layout = layout.args[0] if type(layout) is Call else layout
        layout, data = layout.removeprefix("torch."), node.args[1]
        compressed = layout != "sparse_coo"
        rows = layout in {"sparse_csr", "sparse_bsr"}
        both = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
        names = (*both, "values") if compressed else ("indices", "values")
        parts = tuple(self._part(one, name, nesting) for one, name in zip(data, names, strict=False))
        values = parts[len(names) - 1]
        whole = replace(values, shape=_counts(data[len(names)]), stride=None, offset=0, storage=None)
        return Rebuilt(_made_of(whole, parts, layout=layout), node, ())

    def _nested(self, node: Call, nesting: int) -> Rebuilt:
        names = ("values", "sizes", "strides", "offsets")
        parts = tuple(self._part(one, name, nesting) for one, name in zip(node.args, names, strict=True))
        count, dims = (*parts[1].shape, 0, 0)[:2]
        if dims > _MOST_DIMS:
            raise MalformedTensorError("a tensor of too many dimensions")
        whole = replace(parts[0], shape=(count, *[-1] * dims), stride=None, offset=0, storage=None)
        return Rebuilt(_made_of(whole, parts, layout="nested"), node, ())

    def _jagged(self, args: tuple[Any, ...], nesting: int) -> SavedTensor:
        said = {key: value for key, value in zip(args[0][::2], args[0][1::2], strict=True) if type(key) is str}
        names = ("values", "offsets", "lengths")
        parts = tuple(self._part(said[name], name, nesting) for name in names if type(said.get(name)) is Call)
        values, offsets = parts[:2]
        ragged = _count(said["_ragged_idx"])
        shape = (max(0, offsets.shape[0] - 1), *values.shape[: ragged - 1], -1, *values.shape[ragged:])
        requires_grad = said.get("requires_grad") is True
        whole = replace(values, shape=shape, stride=None, offset=0, storage=None, requires_grad=requires_grad)
        return _made_of(whole, parts, layout="jagged")

    def _meta(self, node: Call, nesting: int) -> Rebuilt:
        del nesting
        dtype, shape, stride, requires_grad = node.args
        tensor = SavedTensor("", _TENSOR, "meta", _counts(shape), _counts(stride), 0, _dtype(dtype), 0, None, "meta",
                             requires_grad is True)  # fmt: skip
        return Rebuilt(tensor, node, ())

    def _wrapper(self, node: Call, nesting: int) -> Rebuilt:
        del nesting
        kind, dtype, shape, stride, offset, _, device, requires_grad = node.args
        device = device if type(device) is str else _device(device)
        tensor = SavedTensor("", _name(kind), "wrapper", _counts(shape), _counts(stride), _count(offset),
                             _dtype(dtype), 0, None, device, requires_grad is True)  # fmt: skip
        return Rebuilt(tensor, node, ())

    def _moved(self, node: Call, nesting: int) -> Rebuilt:
        """Read one that was copied to the host to be saved: as a tensor, or as an array of numpy's."""
        data, dtype, device, requires_grad = node.args
        device = device if type(device) is str else _device(device)
        found = self._rebuilt(data, nesting)
        parts = () if found is None else (replace(found.tensor, name="data"),)
        shape = parts[0].shape if parts else _array_shape(data)
        tensor = SavedTensor("", _TENSOR, "strided", shape, None, 0, _dtype(dtype), 0, None, device,
                             requires_grad is True, parts)  # fmt: skip
        return Rebuilt(replace(tensor, nbytes=_numel(shape) * ITEMSIZES[tensor.dtype]), node, ())

    def _parameter(self, node: Call, nesting: int) -> Rebuilt:
        data, requires_grad, _, *state = node.args
        found = self._wrapped(data, nesting)
        kind = _PARAMETER if found.tensor.kind == _TENSOR else found.tensor.kind
        tensor = replace(found.tensor, kind=kind, requires_grad=requires_grad is True)
        return Rebuilt(tensor, found.inner, (*found.states, *state))

    def _from_type(self, node: Call, nesting: int) -> Rebuilt | None:
        func, kind, args, state = node.args
        if type(args) is not tuple:
            raise MalformedTensorError("arguments that are no tuple")
        made = Call(func, args)
        if made.path == "torch.nested._internal.nested_tensor._rebuild_njt":
            return Rebuilt(replace(self._jagged(args, nesting), kind=_name(kind)), node, ())
        if made.path not in _REBUILDERS:
            return None
        if not nesting:
            raise MalformedTensorError("tensors made of tensors made of tensors")
        if (found := self._reader(made)(made, nesting - 1)) is None:
            return None
        name = _PARAMETER if _name(kind) == "torch.nn.parameter.Parameter" else _name(kind)
        return Rebuilt(replace(found.tensor, kind=name), node, (*found.states, state))

    def _wrapped(self, node: Any, nesting: int) -> Rebuilt:
        found = self._rebuilt(node, nesting)
        if found is None:
            raise MalformedTensorError("a parameter that is no tensor")
        return found


def _made_of(whole: SavedTensor, parts: tuple[SavedTensor, ...], *, layout: str, own: int = 0) -> SavedTensor:
    nbytes = own + sum(part.nbytes for part in parts)
    return replace(whole, name="", layout=layout, nbytes=nbytes, parts=parts)


def _check(storage: Storage, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Hold a tensor against its storage; return the bytes of its elements."""
    if len(shape) != len(stride):
        raise MalformedTensorError("as many sizes as strides")
    if not (numel := _numel(shape)):
        return 0
    last = sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    itemsize = ITEMSIZES[dtype]
    if (needed := (offset + last + 1) * itemsize) > storage.nbytes:
        raise MalformedTensorError(f"a tensor of {needed} bytes on storage {storage.key!r} of {storage.nbytes}")
    return numel * itemsize


def _numel(shape: tuple[int, ...]) -> int:
    if 0 in shape:
        return 0
    numel = 1
    for length in shape:
        numel *= length
        if numel >= _INT64:
            raise MalformedTensorError("a tensor of more than 2^63 elements")
    return numel


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _INT64:
        raise MalformedTensorError("a size that is none")
    return value


def _counts(value: Any) -> tuple[int, ...]:
    if type(value) is Call and value.path == "torch.Size":
        value = value.args[0]
    if type(value) not in (tuple, list) or type(value) is Dict or len(value) > _MOST_DIMS:
        raise MalformedTensorError("sizes that are none")
    return tuple(map(_count, value))


def _array_shape(node: Call) -> tuple[int, ...]:
    """Return the shape of an array of numpy's, which protocol 5 writes in another way than those before."""
    return _counts(node.states[0][1] if node.states else node.args[2])


def _name(node: Any) -> str:
    if type(node) is not Global:
        raise MalformedTensorError("a class that is none")
    return node.path


def _dtype(node: Any) -> str:
    name = _name(node).removeprefix("torch.")
    if name not in ITEMSIZES:
        raise MalformedTensorError(f"elements of type {name!r}")
    return name


def _device(node: Any) -> str:
    if type(node) is not Call or node.path != "torch.device":
        raise MalformedTensorError("a device that is none")
    kind, *index = node.args
    return str(kind) if not index else f"{kind}:{_count(index[0])}"
