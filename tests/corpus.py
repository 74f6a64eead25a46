"""Objects of all kinds that people save, and what is in them: the truth that an inspection is held against."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["CORPUS", "truth"]


class Color(enum.Enum):
    """An enumeration."""

    RED = 1


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - what people save


@dataclass
class Config:
    """A dataclass with a tensor in it."""

    lr: float
    scale: torch.Tensor
    tags: list[str]


class Slotted:
    """An object without a __dict__."""

    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a = torch.ones(2)
        self.b = "x"


class Tagged(torch.Tensor):
    """A subclass that carries an attribute."""


class TwoTensors(torch.Tensor):
    """A wrapper around two others, as quantization libraries make them."""

    a: torch.Tensor
    b: torch.Tensor

    @staticmethod
    def __new__(cls, a, b):
        """Wrap two tensors of one shape."""
        made = torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype)
        made.a, made.b = a, b
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        """Know only how to be detached."""
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


class Net(torch.nn.Module):
    """A module with tied weights, a buffer and a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def _trained() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    model(torch.ones(5, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "best": 0.5,
        "rng": torch.get_rng_state(),
    }


def _views() -> dict[str, Any]:
    base = torch.arange(100.0)
    return {"head": base[:10], "tail": base[90:], "column": base.view(10, 10)[:, 3], "empty": base[50:50]}


def _parameters() -> dict[str, Any]:
    plain = torch.nn.Parameter(torch.ones(2, 2))
    marked = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    marked.note = {"inner": torch.zeros(1)}
    return {"plain": plain, "again": plain, "marked": marked, "buffer": torch.nn.Buffer(torch.ones(1))}


def _tagged() -> dict[str, Any]:
    made = torch.ones(2, 3).as_subclass(Tagged)
    made.tag = "x"
    plain = torch.ones(4)
    plain.extra = torch.zeros(2)
    return {"sub": made, "attributes": plain}


def _dtypes() -> dict[str, Any]:
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
    return {name: torch.ones(5).to(getattr(torch, name)) for name in names.split()}


def _new_dtypes() -> dict[str, Any]:
    names = "complex32 uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    return {name: torch.ones(5).to(getattr(torch, name)) for name in names.split()}


def _sparse() -> dict[str, Any]:
    dense = torch.eye(4)
    return {
        "coo": dense.to_sparse().coalesce(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "bsc": dense.to_sparse_bsc((2, 2)),
    }


def _quantized() -> dict[str, Any]:
    channels = (torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0)
    return {
        "tensor": torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),
        "channels": torch.quantize_per_channel(torch.ones(2, 3), *channels, torch.quint8),
        "wide": torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint32),
    }


def _nested() -> dict[str, Any]:
    return {"strided": torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)])}


def _jagged() -> dict[str, Any]:
    return {"jagged": torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged)}


def _shared() -> dict[str, Any]:
    state = {"w": torch.ones(2), "b": torch.zeros(1)}
    loop: list[Any] = [torch.ones(1), state]
    loop.append(loop)
    return {"model": state, "ema": state, "loop": loop, "alone": [state["w"]]}


def _plain() -> dict[str, Any]:
    return {
        "none": None, "true": True, "int": 3, "negative": -5, "big": 10**30, "huge": 10**400, "float": 1.5,
        "nan": float("nan"), "text": "a\x1b[31mb \u2603", "long text": "ab" * 5000, "bytes": b"a\xff", "no bytes": b"",
        "long bytes": bytes(range(256)) * 40, "bytearray": bytearray(b"ab"), "complex": 1 + 2j, "tuple": (1, (2, "x")),
        "set": {"b", "a"}, "no set": set(), "frozen": frozenset([1]), "list": list(range(500)), "empty": [[], {}, ()],
        "size": torch.Size([2, 3]), "device": torch.device("cpu"), "gpu": torch.device("cuda", 1),
        "dtype": torch.bfloat16, "layout": torch.sparse_coo, "table": {str(n): n for n in range(600)},
        7: "int key", 1.5: "float key", (1, "a"): "tuple key", None: "None key", "": "no key", "a.b": "dotted",
    }  # fmt: skip


def _objects() -> dict[str, Any]:
    return {
        "ordered": collections.OrderedDict(a=torch.ones(1), b=2), "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"a": [torch.ones(1)]}), "deque": collections.deque([1, 2], 3),
        "point": Point(1, torch.ones(2)), "config": Config(0.1, torch.ones(1), ["x"]), "slotted": Slotted(),
        "color": Color.RED, "date": dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc),
        "path": pathlib.PurePosixPath("a/b"), "range": range(3), "type": Config, "function": len,
    }  # fmt: skip


def _numpy() -> dict[str, Any]:
    return {
        "array": np.arange(6.0).reshape(2, 3), "large": np.zeros(5000), "scalar": np.float32(1.5), "int": np.int64(7),
        "strings": np.array(["a", "bc"]), "objects": np.array([None, 1], dtype=object), "rng": np.random.RandomState(0),
    }  # fmt: skip


CORPUS: dict[str, Any] = {
    "training": _trained,
    "views": _views,
    "parameters": _parameters,
    "subclass": _tagged,
    "wrapper": lambda: {"two": TwoTensors(torch.ones(3), torch.zeros(3)), "after": torch.ones(1)},
    "dtypes": _dtypes,
    "new dtypes": _new_dtypes,
    "sparse": _sparse,
    "quantized": _quantized,
    "nested": _nested,
    "jagged": _jagged,
    "shared": _shared,
    "plain": _plain,
    "objects": _objects,
    "numpy": _numpy,
    "module": Net,
    "modules": lambda: {"net": Net(), "list": torch.nn.ModuleList([torch.nn.Linear(1, 1)])},
    "meta": lambda: {"meta": torch.empty(3, 2, device="meta"), "real": torch.ones(1)},
    "shapes": lambda: [
        torch.ones(()),
        torch.empty(0),
        torch.empty(2, 0, 3),
        torch.ones(2, 3).t(),
        torch.ones(1).expand(4),
    ],
    "conjugate": lambda: {"conj": torch.ones(2, dtype=torch.complex64).conj(), "imag": torch.ones(2).neg()},
    "storage": lambda: {"untyped": torch.ones(3).untyped_storage()},
    "tensor": lambda: torch.ones(2),
    "number": lambda: 5,
    "nothing": lambda: None,
}
"""What makes each."""


def truth(root: Any) -> dict[str, Any]:
    """Return the tensors of a loaded object, by the names that an inspection gives."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(name: tuple[str, ...], item: Any) -> None:
        if isinstance(item, (torch.UntypedStorage, torch.TypedStorage)):
            found[".".join(name)] = item
            return
        if isinstance(item, torch.Tensor):
            found[".".join(name)] = item
        if id(item) in seen:
            return
        seen.add(id(item))
        for key, child in _inside(item):
            visit(name if key is None else (*name, key), child)

    visit((), root)
    return found


def _inside(item: Any) -> list[tuple[str | None, Any]]:
    if isinstance(item, dict):
        inside = [(key if isinstance(key, str) else repr(key), value) for key, value in item.items()]
        return inside + list(vars(item).items()) if isinstance(item, collections.OrderedDict) else inside
    if isinstance(item, (list, tuple)) and not isinstance(item, torch.Size):
        return [(str(number), value) for number, value in enumerate(item)]
    if isinstance(item, torch.nn.Module):
        dropped = {"_parameters", "_buffers", "_modules"}
        return [(None if key in dropped else key, value) for key, value in vars(item).items()]
    if isinstance(item, torch.Tensor):
        return [] if item.is_nested else list(vars(item).items())
    if isinstance(item, (Config, Slotted)):
        return [(key, getattr(item, key)) for key in ("lr", "scale", "tags", "a", "b") if hasattr(item, key)]
    return []
