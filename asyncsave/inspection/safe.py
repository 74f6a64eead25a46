"""Whether ``torch.load(weights_only=True)`` takes it: its rules, as a table that a test holds against torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from asyncsave.inspection.dtypes import ITEMSIZES, STORAGES
from asyncsave.inspection.machine import Pickled
from asyncsave.inspection.saved import WeightsOnly
from asyncsave.inspection.tree import Call, Global, Persistent

__all__ = ["ALLOWED", "OPCODES", "weights_only"]

_SPARSE = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_DENSE = ("Bool", *_SPARSE)
_KINDS = ("ComplexDouble", "ComplexFloat", *_DENSE)
_REBUILDERS = (
    "_rebuild_parameter _rebuild_parameter_with_state _rebuild_qtensor _rebuild_tensor _rebuild_tensor_v2 "
    "_rebuild_tensor_v3 _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage _rebuild_nested_tensor "
    "_rebuild_wrapper_subclass _rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor"
)

ALLOWED: frozenset[str] = frozenset(
    [
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        "torch.nested._internal.nested_tensor.NestedTensor",
        "torch.nested._internal.nested_tensor._rebuild_njt",
        *(f"torch.{name}" for name in ITEMSIZES),
        *(f"torch.{name}" for name in STORAGES if name != "UntypedStorage"),
        *(f"torch.cuda.{kind}Storage" for kind in _KINDS),
        *(f"torch.{place}{kind}Tensor" for place in ("", "cuda.") for kind in _DENSE),
        *(f"torch.{place}sparse.{kind}Tensor" for place in ("", "cuda.") for kind in _SPARSE),
        *(f"torch.per_{what}" for what in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")),
        "torch.per_channel_affine_float_qparams",
        *(f"torch._utils.{name}" for name in _REBUILDERS.split()),
    ]
)
"""The classes and functions that torch 2.13 allows, as they are after ``import torch``."""

_KNOWN = (
    "GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE "
    "NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT BINUNICODE "
    "SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 PROTO STOP"
)

OPCODES: frozenset[str] = frozenset(_KNOWN.split())
"""The opcodes that it knows: those of protocol 2 that ``torch.save`` writes."""

_TABLES = frozenset(("collections.OrderedDict", "collections.Counter"))
_WITHOUT_STATE = frozenset(("builtins.set", "builtins.bytearray", "builtins.complex", "torch.Size", "torch.device"))


def weights_only(pickles: Iterable[Pickled]) -> WeightsOnly:
    """Tell whether the weights-only unpickler accepts all of a file's pickles, and if not why.

    What a program has allowed with ``torch.serialization.add_safe_globals`` does not count. Nor is a device
    looked for that the tensors were on.
    """
    refused: dict[str, None] = {}
    for pickled in pickles:
        refused |= dict.fromkeys(sorted(_refusals(pickled)))
    names = tuple(refused)
    return WeightsOnly(not names, names)


def _refusals(pickled: Pickled) -> Iterator[str]:
    yield from (f"opcode {name}" for name in pickled.opcodes - OPCODES)
    yield from (name for name in pickled.globals if name not in ALLOWED)
    for persistent in pickled.persistent:
        if not _is_storage(persistent):
            yield "a persistent id that is no storage"
    for call in pickled.calls:
        yield from _misuse(call)


def _is_storage(persistent: Persistent) -> bool:
    pid: Any = persistent.pid
    return type(pid) is tuple and len(pid) > 0 and type(pid[0]) is str and pid[0] == "storage"


def _misuse(call: Call) -> Iterator[str]:
    """Name what is wrong with a call, apart from the name of what it calls."""
    name = call.path
    if name is None:
        yield "a call of what is no class or function"
        return
    if name not in ALLOWED:
        return
    if call.items is not None:
        yield f"append to {name}"
    if call.pairs is not None and name not in _TABLES:
        yield f"set items of {name}"
    if call.states and (name in _WITHOUT_STATE or name.startswith("torch.serialization.")):
        yield f"set the state of {name}"
    if name == "torch._tensor._rebuild_from_type_v2" and call.args and type(call.args[0]) is not Global:
        yield "a call of what is no class or function"
