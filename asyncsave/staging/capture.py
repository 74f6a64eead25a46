"""Pickle an object graph as ``torch.save`` does, and take each storage out of it once.

The result means what ``torch.save``'s own pickle means: ties and views survive, device tags are kept.
Plain tensors and parameters go through a reducer of our own in ``Pickler.dispatch_table``, which
writes the same opcodes with a third of the Python calls; everything else takes torch's own path.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import types
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch.serialization import location_tag, normalize_storage_type

from asyncsave.errors import StagingError
from asyncsave.staging.storages import Storages, StorageSpan

__all__ = ["Captured", "capture"]


class Captured(NamedTuple):
    """An object graph, pickled, and the storages that its pickle refers to by number.

    Attributes:
        pickle: The bytes of ``data.pkl``.
        spans: What record ``data/i`` holds, for every ``i``. Live memory: copy it before the caller
            may change it.
        unreferenced: Bytes of the storages that no saved tensor can see.
        unsafe: What ``weights_only=True`` will refuse, by full name; empty if nothing.
        tensors: How many tensors there are; several may share a storage.
    """

    pickle: bytes
    spans: list[StorageSpan]
    unreferenced: int
    unsafe: tuple[str, ...]
    tensors: int


def capture(obj: object, *, pickle_module: Any, pickle_protocol: int, compact: bool) -> Captured:
    """Pickle ``obj`` on the calling thread; copy no tensor.

    Args:
        obj: Anything that ``torch.save`` takes.
        pickle_module: As for ``torch.save``: it must have ``Pickler``.
        pickle_protocol: As for ``torch.save``.
        compact: Take only the part of each storage that the saved tensors can see, as far as they
            are plain tensors; a storage that anything else refers to is taken whole.

    Raises:
        StagingError: The object cannot be pickled, or ``torch.save`` would refuse it; the cause is
            chained.
    """
    try:
        storages = Storages()
        data = _dump(obj, storages, pickle_module, pickle_protocol)
        if compact and storages.unreferenced:
            storages = Storages(first=storages)
            data = _dump(obj, storages, pickle_module, pickle_protocol)
    except Exception as error:
        message = (
            f"cannot capture the state ({type(obj).__name__}): {type(error).__name__}: {error}. Nothing was written"
        )
        raise StagingError(message) from error
    return Captured(data, storages.spans(), storages.unreferenced, _unsafe(storages.globals), storages.tensors)


class _Ref:
    """Stands for a storage in a pickle; its persistent id is known already."""

    __slots__ = ("pid",)

    def __init__(self, pid: tuple[Any, ...]) -> None:
        self.pid = pid


class _Hooks:
    """Pickles as the empty ``OrderedDict`` of hooks that torch writes, at a third of its cost.

    One for every tensor: a shared one would be one object after loading too, and a hook registered
    on one tensor would run for all.
    """

    __slots__ = ()


_BY_NAME = frozenset((type(...), type(NotImplemented)))
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_PLAIN = frozenset(
    (str, int, float, bool, type(None), tuple, list, dict, OrderedDict, bytes, complex,
     torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device, torch.layout, _Hooks)
)  # fmt: skip
_STORAGE_TYPES: dict[torch.dtype, type] = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_REBUILD_TENSOR = torch._utils._rebuild_tensor_v2  # noqa: SLF001 - what torch.save's pickles name
_REBUILD_PARAMETER = torch._utils._rebuild_parameter  # noqa: SLF001
_NAMED = hasattr(torch.Tensor, "has_names")
"""Whether this torch has named tensors, which it refuses to save."""
_NO_HOOKS: tuple[Any, ...] = (OrderedDict, ())
_KNOWN = frozenset(map(id, (_REBUILD_TENSOR, _REBUILD_PARAMETER, *_STORAGE_TYPES.values(), OrderedDict)))


def _allowed() -> set[str]:
    unpickler = torch._weights_only_unpickler  # noqa: SLF001 - the only list of what is allowed
    return {
        *unpickler._get_allowed_globals(),  # noqa: SLF001
        *unpickler._get_user_allowed_globals(),  # noqa: SLF001
    }


def _unsafe(found: set[Any]) -> tuple[str, ...]:
    """Name what the weights-only unpickler will refuse of the classes and functions in a pickle."""
    names = {f"{item.__module__}.{item.__qualname__}" for item in found}
    return tuple(sorted(names - _allowed())) if names else ()


def _dump(obj: object, storages: Storages, pickle_module: Any, protocol: int) -> bytes:
    buffer = io.BytesIO()
    if pickle_module is pickle:
        pickler: Any = _TensorPickler(buffer, protocol)
        pickler.dispatch_table = {
            torch.Tensor: lambda tensor: _reduce_tensor(storages, tensor, protocol),
            torch.nn.Parameter: lambda parameter: _reduce_parameter(parameter, protocol),
            _Hooks: lambda _: _NO_HOOKS,
            **copyreg.dispatch_table,  # last: a user's own reducer of tensors is obeyed
        }
    else:
        pickler = type("Pickler", (_PersistentId, pickle_module.Pickler), {})(buffer, protocol=protocol)
    pickler.storages = storages
    pickler.dump(obj)
    return buffer.getvalue()


class _PersistentId:
    """Gives storages their persistent ids, and notes classes and functions as they go by."""

    storages: Storages

    def persistent_id(self, item: Any) -> tuple[Any, ...] | None:
        """Return the id of a storage; None for everything else, which is pickled as usual."""
        kind = type(item)
        if kind in _PLAIN:
            return None
        if kind is _Ref:
            return item.pid  # type: ignore[no-any-return]
        if id(item) in _KNOWN:
            return None
        if isinstance(item, (torch.TypedStorage, torch.UntypedStorage)):
            return _storage_id(self.storages, item)
        if isinstance(item, type) or kind in _FUNCTIONS:
            self.storages.globals.add(item)
        elif kind in _BY_NAME or kind in copyreg.dispatch_table:
            self.storages.globals.add(kind)  # may go by as a name only, as numpy's functions do
        return None


class _TensorPickler(_PersistentId, pickle.Pickler):
    """The C pickler, with a table of reducers of its own."""


def _storage_id(storages: Storages, item: Any) -> tuple[Any, ...]:
    """Return the persistent id that ``torch.save`` gives a storage, and take the storage whole."""
    if isinstance(item, torch.TypedStorage):
        storage = item._untyped_storage  # noqa: SLF001 - the public accessor warns
        dtype = item.dtype
        kind: Any = getattr(torch, item._pickle_storage_type())  # noqa: SLF001
        numel = item._size()  # noqa: SLF001
    else:
        storage, dtype = item, torch.uint8
        kind = normalize_storage_type(type(item))
        numel = item.nbytes()
    if storage.device.type == "meta":
        raise RuntimeError("a storage on the meta device has no bytes to save")
    seen = storages.add(storage, dtype)
    seen.see_all()
    return ("storage", kind, seen.key, location_tag(storage), numel)


def _reduce_tensor(storages: Storages, tensor: torch.Tensor, protocol: int) -> Any:
    """Reduce a plain strided tensor; leave every other one to torch."""
    kind = _STORAGE_TYPES.get(dtype := tensor.dtype)
    if (
        kind is None
        or not (tensor.is_cpu or tensor.is_cuda)
        or tensor.layout is not torch.strided
        or tensor.is_nested
        or tensor.is_neg()
        or (_NAMED and tensor.has_names())  # type: ignore[attr-defined] # gone from newer torch
        or tensor._backward_hooks  # noqa: SLF001 - torch warns about them on its own path
        or tensor.__dict__
    ):
        return tensor.__reduce_ex__(protocol)
    seen = storages.add(tensor.untyped_storage(), dtype)
    start, stop = seen.taken
    offset, size, stride = int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()
    itemsize = dtype.itemsize
    if tensor.nbytes == seen.nbytes:
        seen.see_all()
    elif tensor.numel():
        last = sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        seen.see(offset * itemsize, (offset + last + 1) * itemsize)
        offset -= start // itemsize
    elif start or stop != seen.nbytes:
        offset = 0  # sees nothing; where it points to may be cut off
    location = "cpu" if tensor.is_cpu else f"cuda:{tensor.device.index}"
    pid = ("storage", kind, seen.key, location, (stop - start) // itemsize)
    return _REBUILD_TENSOR, (_Ref(pid), offset, size, stride, tensor.requires_grad, _Hooks())


def _reduce_parameter(parameter: torch.nn.Parameter, protocol: int) -> Any:
    """Reduce a plain parameter; leave one with attributes of its own to torch."""
    if parameter.__dict__:
        return parameter.__reduce_ex__(protocol)
    return _REBUILD_PARAMETER, (parameter.data, parameter.requires_grad, _Hooks())
