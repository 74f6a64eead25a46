"""What ``torch.save`` and ``torch.load`` give, asyncsave gives: every kind of object, both ways, all ways to load."""

from __future__ import annotations

import collections
import copyreg
import datetime as dt
import decimal
import enum
import functools
import io
import marshal
import pathlib
import pickle
import random
import threading
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from equality import assert_same, difference

import asyncsave
from asyncsave.staging.capture import capture

pytestmark = [
    # What torch says of its own old parts is no concern of these tests.
    pytest.mark.filterwarnings("ignore:.*(quantiz|torch.jit|nested|ComplexHalf|TypedStorage|UntypedStorage|beta)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

DTYPES = [
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    )
    if hasattr(torch, name)  # the newest ones came later than torch 2.6
]


@pytest.fixture
def writer():
    """Return a writer that does not wait for the disk: what is written is the subject, not when."""
    with asyncsave.Writer(durable=False) as writer:
        yield writer


def raw(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return a tensor of any dtype whose bytes all differ from their neighbours."""
    count = torch.Size(shape).numel()
    data = (torch.arange(count * dtype.itemsize) * 37 % 251).to(torch.uint8)
    return (data % 2).bool().reshape(shape) if dtype is torch.bool else data.view(dtype).reshape(shape)


class Outcome(NamedTuple):
    """What loading a file gave: the object, or the kind of the error."""

    value: Any
    error: type[Exception] | None


def loaded(load: Callable[[], Any]) -> Outcome:
    """Load, and say what came of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            return Outcome(load(), None)
        except Exception as error:  # noqa: BLE001 - its kind is compared
            return Outcome(None, type(error))


def saved(state: object, path: pathlib.Path, writer: asyncsave.Writer, **options: Any) -> bool:
    """Save, and tell whether the user was warned about ``weights_only``."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        writer.save(state, path, **options).result()
    return any("weights_only" in str(warning.message) for warning in told)


def check_like_torch(state: object, folder: pathlib.Path, writer: asyncsave.Writer, **options: Any) -> Any:
    """Save both ways, load all ways, and hold every outcome against torch's own; return the object loaded."""
    theirs, ours = folder / "theirs.pt", folder / "ours.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(state, theirs, **options)
    warned = saved(state, ours, writer, **options)
    assert asyncsave.verify(ours).ok
    for weights_only in (True, False):
        for mmap in (False, True):
            by_torch = functools.partial(torch.load, weights_only=weights_only, mmap=mmap)
            by_us = functools.partial(asyncsave.load, weights_only=weights_only, mmap=mmap)
            expected = loaded(functools.partial(by_torch, theirs))
            found = loaded(functools.partial(by_torch, ours))
            assert found.error is expected.error
            assert_same(found.value, expected.value)
            for path in (ours, theirs):
                found = loaded(functools.partial(by_us, path))
                assert found.error is (asyncsave.LoadError if expected.error else None)
                assert_same(found.value, expected.value)
            if weights_only and options.get("pickle_protocol", 2) == 2:
                assert warned is (expected.error is not None)
            elif weights_only and expected.error:
                assert warned
    return expected.value


class Plain(torch.Tensor):
    """A subclass without anything of its own."""


class Counting(torch.Tensor):
    """A subclass that takes part in every function called on it."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Count, and do as usual."""
        cls.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@dataclass
class Settings:
    """A user's dataclass."""

    rate: float = 0.1
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    weight: torch.Tensor = field(default_factory=lambda: torch.ones(2))


class Step(NamedTuple):
    """A user's named tuple."""

    number: int
    loss: float


class Colour(enum.Enum):
    """A user's enumeration."""

    RED = 1


class Slotted:
    """A user's class without a ``__dict__``."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and self.value == other.value

    def __hash__(self) -> int:
        return 0


class Net(torch.nn.Module):
    """A module with tied weights, buffers of both kinds, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.arange(4), persistent=False)

    def get_extra_state(self) -> object:
        """Return what is no tensor."""
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        """Take it back."""


def _with_attributes(tensor: torch.Tensor) -> torch.Tensor:
    tensor.origin = "here"
    tensor.scales = [torch.ones(2), 3]
    return tensor


def _trained() -> dict[str, Any]:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.norm(net.head.weight @ torch.ones(3, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "step": 1,
    }


def _views() -> dict[str, torch.Tensor]:
    base = raw(torch.float32, 6, 8)
    return {
        "base": base,
        "row": base[2],
        "column": base[:, 3],
        "block": base[1:3, 2:5],
        "transposed": base.t(),
        "permuted": base.reshape(2, 3, 8).permute(2, 0, 1),
        "strided": base.flatten()[::5],
        "expanded": base[0, :1].expand(4, 8),
        "overlapping": base.flatten().unfold(0, 4, 1),
        "scalar": base[3, 3],
        "empty": base[6:],
        "again": base,
    }


def _ragged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 3)])


def _jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 3)], layout=torch.jagged)


def _cyclic() -> list[Any]:
    state: list[Any] = [1]
    state.append({"self": state})
    return state


def _per_channel() -> torch.Tensor:
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([1, 2])
    return torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.qint8)


STATES: dict[str, Callable[[], Any]] = {
    **{str(dtype): functools.partial(raw, dtype, 3, 4) for dtype in DTYPES},
    "zero size": lambda: [torch.empty(0), torch.empty(3, 0, 2, dtype=torch.int8), torch.empty(0).double()],
    "zero size of each dtype": lambda: [torch.empty(0, 2, dtype=dtype) for dtype in DTYPES],
    "zero dim": lambda: [torch.tensor(3.5), torch.tensor(7), torch.tensor(1j)],
    "zero dim of each dtype": lambda: [raw(dtype) for dtype in DTYPES],
    "views": _views,
    "a view without its base": lambda: raw(torch.float64, 9, 9)[2:4, 1:3],
    "views of each dtype": lambda: [raw(dtype, 8)[2:5] for dtype in DTYPES],
    "channels last": lambda: raw(torch.float32, 2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "as strided": lambda: raw(torch.int32, 30).as_strided((3, 2), (7, 3), 4),
    "detached and attached": lambda: (base := torch.ones(3, requires_grad=True), base.detach()),
    "not a leaf": lambda: torch.ones(3, requires_grad=True) * 2,
    "requires grad": lambda: torch.ones(3, requires_grad=True),
    "with a gradient": lambda: (leaf := torch.ones(3, requires_grad=True), leaf.sum().backward())[0],
    "storage resized to nothing": lambda: (emptied := torch.ones(0), emptied.untyped_storage().resize_(0))[0],
    "inference": lambda: torch.inference_mode()(torch.ones)(3),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2, 3)),
    "frozen parameter": lambda: torch.nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False),
    "parameter of each dtype": lambda: [torch.nn.Parameter(raw(d, 2), requires_grad=False) for d in DTYPES],
    "parameter with attributes": lambda: _with_attributes(torch.nn.Parameter(torch.ones(2))),
    "tied parameters": lambda: [p := torch.nn.Parameter(torch.ones(2)), p, torch.nn.Parameter(p.data), p.detach()],
    "parameter list": lambda: torch.nn.ParameterList([torch.ones(1), torch.ones(2)]).state_dict(),
    "uninitialized parameter": lambda: torch.nn.LazyLinear(3).weight,
    "buffer": lambda: torch.nn.Buffer(torch.ones(2)),
    "tensor with attributes": lambda: _with_attributes(torch.ones(2)),
    "sparse coo": lambda: torch.eye(3).to_sparse(),
    "sparse coo uncoalesced": lambda: torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=True),
    "sparse csr": lambda: torch.eye(4).to_sparse_csr(),
    "sparse csc": lambda: torch.eye(4).to_sparse_csc(),
    "sparse bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "sparse bsc": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(4.0), 0.5, 3, torch.quint8),
    "quantized qint32": lambda: torch.quantize_per_tensor(torch.arange(4.0), 0.5, 0, torch.qint32),
    "quantized per channel": _per_channel,
    "nested": _ragged,
    "jagged": _jagged,
    "meta": lambda: [torch.empty(3, 4, device="meta"), torch.nn.Parameter(torch.empty(2, device="meta"))],
    "subclass": lambda: raw(torch.float32, 2, 3).as_subclass(Plain),
    "subclass with attributes": lambda: _with_attributes(torch.ones(3).as_subclass(Plain)),
    "subclass with torch function": lambda: raw(torch.float32, 4).as_subclass(Counting),
    "subclass and its base": lambda: (base := raw(torch.float32, 4), base[1:].as_subclass(Plain)),
    "parameter of a subclass": lambda: torch.nn.Parameter(torch.ones(3).as_subclass(Plain)),
    "conjugated": lambda: torch.tensor([1 + 2j, 3 - 4j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "typed storage": lambda: torch.ones(3)._typed_storage(),
    "untyped storage": lambda: torch.ones(3, dtype=torch.uint8).untyped_storage(),
    "a tensor and its storage": lambda: (bytes_ := raw(torch.uint8, 5), bytes_[1:], bytes_.untyped_storage()),
    "size": lambda: torch.Size([2, 3]),
    "dtypes": lambda: list(DTYPES),
    "device": lambda: [torch.device("cpu"), torch.device("cuda", 1)],
    "layout": lambda: torch.strided,
    "generator": lambda: torch.Generator().manual_seed(5),
    "random states": lambda: [torch.get_rng_state(), torch.Generator().manual_seed(5).get_state()],
    "python's and numpy's random states": lambda: [
        random.getstate(),
        np.random.default_rng(3).bit_generator.state,
    ],
    "state dict": lambda: Net().state_dict(),
    "training state": _trained,
    "module": Net,
    "stock module": lambda: torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()),
    "numpy array": lambda: np.arange(6.0).reshape(2, 3).T,
    "numpy scalars": lambda: [np.float32(1.5), np.int64(3), np.bool_(1), np.datetime64("2020-01-01")],
    "numpy strings": lambda: np.array(["a", "ü"]),
    "numpy function": lambda: np.add,
    "numpy dtype": lambda: np.dtype("f4"),
    "dataclass": Settings,
    "named tuple": lambda: Step(3, 0.5),
    "enumeration": lambda: Colour.RED,
    "slots": lambda: Slotted([1, torch.ones(1)]).value,
    "slotted object": lambda: Slotted(5),
    "function": lambda: raw,
    "builtin function": lambda: len,
    "class": lambda: collections.deque,
    "standard library": lambda: [
        decimal.Decimal("1.5"),
        dt.datetime(2020, 1, 2, tzinfo=dt.timezone.utc),
        pathlib.PurePosixPath("a/b"),
        collections.deque([1, 2], maxlen=3),
        collections.defaultdict(list, {1: [2]}),
    ],
    "counter": lambda: collections.Counter("abca"),
    "ordered dict": lambda: collections.OrderedDict([("b", 1), ("a", torch.ones(1))]),
    "default dict": lambda: collections.defaultdict(list, {1: [2]}),
    "plain values": lambda: [
        None,
        True,
        False,
        0,
        -1,
        255,
        256,
        65536,
        2**31,
        -(2**63),
        2**100,
        1.5,
        "x",
        "ü€😀",
        b"x",
    ],
    "special floats": lambda: [float("nan"), float("inf"), -0.0, 5e-324, complex("nan+infj")],
    "containers": lambda: [(), (1,), (1, 2, 3, 4), [], {}, set(), {1, "a"}, frozenset({2}), {(1, 2): {3: [4]}}],
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({1}),
    "bytes": lambda: [b"", b"\0\xff" * 200],
    "bytearray": lambda: bytearray(b"abc"),
    "ellipsis": lambda: [...],
    "not implemented": lambda: NotImplemented,
    "range and slice": lambda: [range(3), slice(1, 2)],
    "one list twice": lambda: (one := [1], one, {"one": one}),
    "cyclic": _cyclic,
    "nothing": lambda: None,
    "long string": lambda: "x" * 100_000,
    "many keys": lambda: {f"key {n}": n for n in range(3000)},
}


@pytest.mark.parametrize("name", STATES)
def test_anything_comes_back_as_from_torch(name, tmp_path, writer):
    """Whatever torch.save keeps, asyncsave keeps bit for bit, and its file loads wherever torch's own does."""
    check_like_torch(STATES[name](), tmp_path, writer)


@pytest.mark.parametrize("name", ["views", "training state", "tied parameters", "subclass with attributes", "set"])
def test_what_is_loaded_is_what_was_saved(name, tmp_path, writer):
    """The oracle itself: not only equal to torch's, but to the state at hand."""
    state = STATES[name]()
    assert_same(check_like_torch(state, tmp_path, writer), state)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["training state", "views", "dataclass", "numpy array", "containers", "plain values"])
def test_every_pickle_protocol(name, protocol, tmp_path, writer):
    """pickle_protocol means what it means to torch.save, and a warning says what weights_only will not read."""
    state = STATES[name]()
    refused = loaded(lambda: torch.save(state, tmp_path / "theirs.pt", pickle_protocol=protocol)).error
    if refused is None:
        check_like_torch(state, tmp_path, writer, pickle_protocol=protocol)
        return
    with pytest.raises(asyncsave.StagingError) as refusal:
        writer.save(state, tmp_path / "ours.pt", pickle_protocol=protocol)
    assert type(refusal.value.__cause__) is refused


def test_more_storages_than_one_byte_counts(tmp_path, writer):
    """Pickle changes its opcodes after 256 memoized objects; ties survive that."""
    shared = torch.arange(7.0)
    state = [shared[n % 7 :] for n in range(700)] + [torch.full((2,), float(n)) for n in range(700)]
    assert_same(check_like_torch(state, tmp_path, writer), state)


def test_metadata_of_a_state_dict(tmp_path, writer):
    """The versions that load_state_dict needs are an attribute of the OrderedDict, and stay."""
    state = Net().state_dict()
    found = check_like_torch(state, tmp_path, writer)
    assert found._metadata == state._metadata
    assert found._metadata["norm"] == {"version": 2}
    Net().load_state_dict(found)


def test_views_share_memory_after_loading(tmp_path, writer):
    """A change through one name is seen through the other, as it was before saving."""
    base = torch.zeros(6)
    writer.save({"base": base, "view": base[2:4]}, tmp_path / "f.pt").result()
    for load in (torch.load, asyncsave.load):
        found = load(tmp_path / "f.pt")
        found["view"].fill_(5)
        assert found["base"].tolist() == [0, 0, 5, 5, 0, 0]


def test_tied_weights_of_a_module_stay_tied(tmp_path, writer):
    """One Parameter under two names is one Parameter after loading, and is stored once."""
    net = torch.nn.Module()
    net.first = torch.nn.Linear(200, 200, bias=False)
    net.second = torch.nn.Linear(200, 200, bias=False)
    net.second.weight = net.first.weight
    with pytest.warns(UserWarning, match="weights_only"):
        result = writer.save(net, tmp_path / "f.pt").result()
    assert 200 * 200 * 4 < result.nbytes < 1.5 * 200 * 200 * 4
    found = torch.load(tmp_path / "f.pt", weights_only=False)
    assert found.first.weight is found.second.weight


@pytest.mark.parametrize("load", [torch.load, asyncsave.load])
def test_each_tensor_has_hooks_of_its_own(load, tmp_path, writer):
    """A hook registered on one loaded tensor does not run for another."""
    writer.save([torch.ones(1, requires_grad=True) for _ in range(3)], tmp_path / "f.pt").result()
    first, second, third = load(tmp_path / "f.pt")
    calls = []
    first.register_hook(calls.append)
    second.register_hook(lambda gradient: None)
    (second * 2 + third * 3).sum().backward()
    assert calls == []
    assert first._backward_hooks is not second._backward_hooks


def test_hooks_are_dropped_with_torchs_own_warning(tmp_path, writer):
    """Hooks are code, not state: torch warns that they are not saved, and so do we."""
    tensor = torch.ones(2, requires_grad=True)
    tensor.register_hook(print)
    with pytest.warns(UserWarning, match="will not be serialized"):
        writer.save(tensor, tmp_path / "f.pt").result()
    assert not torch.load(tmp_path / "f.pt")._backward_hooks


def _function(code: bytes) -> types.FunctionType:
    return types.FunctionType(marshal.loads(code), {})  # noqa: S302 - written by this test


class FunctionPickler(pickle._Pickler):
    """Pickles lambdas by value, as cloudpickle and dill do, with Python's own slow pickler."""

    def reducer_override(self, item):
        """Take a lambda apart; leave everything else."""
        if isinstance(item, types.FunctionType) and item.__name__ == "<lambda>":
            return _function, (marshal.dumps(item.__code__),)
        return NotImplemented


class TablePickler(pickle.Pickler):
    """The C pickler with a table of reducers."""

    dispatch_table = copyreg.dispatch_table | {Slotted: lambda item: (Slotted, (item.value + 1,))}


def _pickle_module(pickler: type) -> types.ModuleType:
    module = types.ModuleType("like_pickle")
    module.Pickler, module.Unpickler, module.load = pickler, pickle.Unpickler, pickle.load
    return module


@pytest.mark.parametrize("pickler", [pickle._Pickler, pickle.Pickler, FunctionPickler, TablePickler])
@pytest.mark.parametrize("name", ["training state", "views", "tied parameters", "dataclass", "meta", "sparse csr"])
def test_pickle_module(name, pickler, tmp_path, writer):
    """Any module with a Pickler does the pickling, as for torch.save."""
    check_like_torch(STATES[name](), tmp_path, writer, pickle_module=_pickle_module(pickler))


def test_pickle_module_of_the_users_decides(tmp_path, writer):
    """The user's pickler is really asked: it saves lambdas, which plain pickle cannot, and has its own reducers."""
    module = _pickle_module(FunctionPickler)
    saved({"f": lambda x: x + 1, "t": torch.ones(2)}, tmp_path / "f.pt", writer, pickle_module=module)
    assert torch.load(tmp_path / "f.pt", weights_only=False)["f"](2) == 3
    found = check_like_torch(Slotted(1), tmp_path, writer, pickle_module=_pickle_module(TablePickler))
    assert found.value == 2


def test_global_reducers_are_obeyed(tmp_path, writer, monkeypatch):
    """What a library registered with copyreg is used, also beside our own reducers."""
    monkeypatch.setitem(copyreg.dispatch_table, Slotted, lambda item: (Slotted, (item.value * 10,)))
    assert check_like_torch(Slotted(2), tmp_path, writer).value == 20


class Refusal(NamedTuple):
    """A state that torch.save refuses, and what it says."""

    state: Callable[[], Any]
    cause: type[Exception]
    message: str


def _two_dtypes(first: torch.dtype, second: torch.dtype) -> list[torch.Tensor]:
    base = raw(torch.uint8, 16)
    return [base.view(first), base.view(second)]


REFUSALS = {
    "lambda": Refusal(lambda: {"f": lambda: 0}, Exception, "lambda"),
    "lock": Refusal(lambda: [threading.Lock()], TypeError, "lock"),
    "generator": Refusal(lambda: (n for n in range(3)), TypeError, "generator"),
    "memory format": Refusal(lambda: torch.channels_last, TypeError, "module"),
    "module": Refusal(lambda: types, TypeError, "module"),
    "two dtypes": Refusal(lambda: _two_dtypes(torch.float32, torch.int32), RuntimeError, "different types"),
    "two new dtypes": Refusal(lambda: _two_dtypes(torch.float32, torch.uint32), RuntimeError, "different types"),
    "view as complex": Refusal(
        lambda: [t := torch.ones(2, 2), torch.view_as_complex(t)], RuntimeError, "different types"
    ),
    "two dtypes after parameters": Refusal(
        lambda: [torch.nn.Parameter(t := torch.ones(2)), t.view(torch.int32)], RuntimeError, "different types"
    ),
    "endless": Refusal(
        lambda: functools.reduce(lambda inner, _: [inner], range(50_000), []), RecursionError, "recursion"
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_torch_refuses_is_refused_at_the_call(name, tmp_path, writer):
    """The call raises StagingError with torch's own reason as its cause, and nothing is written."""
    refusal = REFUSALS[name]
    with pytest.raises(refusal.cause, match=refusal.message) as theirs:
        torch.save(refusal.state(), tmp_path / "theirs.pt")
    (tmp_path / "theirs.pt").unlink(missing_ok=True)
    with pytest.raises(asyncsave.StagingError, match=refusal.message) as ours:
        writer.save(refusal.state(), tmp_path / "ours.pt")
    assert type(ours.value.__cause__) is type(theirs.value)
    assert list(tmp_path.iterdir()) == []
    assert writer.save([1], tmp_path / "ours.pt").result().nbytes, "the writer still works"


@pytest.mark.parametrize("pair", [(torch.uint16, torch.uint32), (torch.uint8, torch.uint64)])
def test_two_dtypes_that_torch_takes_are_taken(pair, tmp_path, writer):
    """The newer dtypes are stored as bytes, so torch lets them share a storage."""
    check_like_torch(_two_dtypes(*pair), tmp_path, writer)


def test_script_modules_are_refused_as_torch_refuses_them(tmp_path, writer):
    """TorchScript has a file format of its own."""
    script = torch.jit.script(torch.nn.ReLU())
    with pytest.raises(Exception, match="serialize object") as theirs:
        torch.save(script, tmp_path / "theirs.pt")
    with pytest.raises(asyncsave.StagingError, match="serialize object") as ours:
        writer.save(script, tmp_path / "ours.pt")
    assert type(ours.value.__cause__) is type(theirs.value)


def test_an_error_in_a_users_reducer_is_the_cause(tmp_path, writer):
    """What the user's own code raised is found in the chain."""

    class Failing:
        def __reduce__(self):
            raise KeyError("mine")

    with pytest.raises(asyncsave.StagingError, match="mine") as refusal:
        writer.save([torch.ones(3), Failing()], tmp_path / "f.pt")
    assert isinstance(refusal.value.__cause__, KeyError)


def test_capture_copies_nothing(monkeypatch):
    """Spans are the live storages themselves, once each, in the order of their appearance."""
    first, second = torch.ones(3), torch.ones(4, dtype=torch.uint16)
    captured = capture(
        [second, first, first[1:], torch.nn.Parameter(first)], pickle_module=pickle, pickle_protocol=2, compact=False
    )
    assert [span.storage.data_ptr() for span in captured.spans] == [second.data_ptr(), first.data_ptr()]
    assert [(span.start, span.nbytes) for span in captured.spans] == [(0, 8), (0, 12)]


COMPACT: dict[str, Callable[[], Any]] = {
    "one view": lambda: raw(torch.float32, 1000, 100)[500:510],
    "a row and a column": lambda: (base := raw(torch.float32, 100, 100), [base[3], base[7, 2:5]])[1],
    "overlapping views": lambda: (base := raw(torch.int16, 10_000), [base[100:300], base[200:400], base[250:]])[1],
    "tied views": lambda: (base := raw(torch.int16, 10_000), [base[10:20], base[10:20], base[12:14]])[1],
    "one view twice": lambda: (view := raw(torch.int16, 10_000)[10:20], {"again": view}),
    "scalar views": lambda: list(raw(torch.float64, 10_000)[5:8]),
    "the last one": lambda: raw(torch.uint8, 70_000)[-1],
    "strided": lambda: raw(torch.float32, 10_000)[100:200:7],
    "transposed": lambda: raw(torch.float32, 100, 100).t()[3:5, 10:20],
    "expanded": lambda: raw(torch.float32, 10_000)[7:8].expand(5, 3),
    "expanded to the storage's size": lambda: [raw(torch.float32, 4)[1:2].expand(4), raw(torch.float32, 9000)[8:9]],
    "nothing of it": lambda: [raw(torch.float32, 10_000)[5:5], raw(torch.float32, 10_000)[:, None][3:, :0]],
    "nothing and something": lambda: (base := raw(torch.float32, 10_000), [base[9000:9000], base[10:12], base[:0]])[1],
    "parameters": lambda: [torch.nn.Parameter(raw(torch.float32, 10_000)[5:9]), raw(torch.bool, 10_000)[1:3]],
    "with requires_grad": raw(torch.float32, 10_000)[5:9].requires_grad_,
    "whole and cut": lambda: [raw(torch.float32, 100), raw(torch.float32, 10_000)[:3]],
    "taken whole: a new dtype": lambda: [raw(torch.uint16, 10)[2:4], raw(torch.float32, 10_000)[2:4]],
    "taken whole: attributes": lambda: (
        base := raw(torch.float32, 10),
        [base[1:3], _with_attributes(base[2:5]), raw(torch.int8, 10_000)[4:6]],
    )[1],
    "taken whole: a subclass": lambda: (
        base := raw(torch.float32, 10),
        [base[1:3].as_subclass(Plain), base[5:], raw(torch.int8, 10_000)[4:6]],
    )[1],
    "sparse beside a view": lambda: [torch.eye(3).to_sparse(), raw(torch.int8, 10_000)[4:6]],
    "a user's class": lambda: Settings(weight=raw(torch.float32, 10_000)[4:6]),
}


@pytest.mark.parametrize("name", COMPACT)
@pytest.mark.parametrize("module", [pickle, None], ids=["fast", "another pickler"])
def test_compact_keeps_what_is_seen(name, module, tmp_path, writer):
    """compact=True saves the same tensors with the same ties, in less space; another pickler takes all whole."""
    state = COMPACT[name]()
    options = {"pickle_module": module or _pickle_module(pickle._Pickler)}
    saved(state, tmp_path / "small.pt", writer, compact=True, **options)
    saved(state, tmp_path / "large.pt", writer, **options)
    assert asyncsave.verify(tmp_path / "small.pt").ok
    if module:
        assert (tmp_path / "small.pt").stat().st_size < (tmp_path / "large.pt").stat().st_size
    else:
        assert (tmp_path / "small.pt").stat().st_size <= (tmp_path / "large.pt").stat().st_size
    for mmap in (False, True):
        for load in (torch.load, asyncsave.load):
            found = load(tmp_path / "small.pt", weights_only=False, mmap=mmap)
            assert_same(found, state, storages=False)


def test_compact_stores_the_seen_bytes_only(tmp_path, writer):
    """A view costs what it shows: here 40 bytes of 400,000."""
    view = raw(torch.float32, 100_000)[500:510]
    assert writer.save(view, tmp_path / "f.pt", compact=True).result().nbytes < 2000
    assert torch.load(tmp_path / "f.pt").untyped_storage().nbytes() == 40


def test_compact_keeps_sharing(tmp_path, writer):
    """Overlapping views are cut from one storage after loading too."""
    base = raw(torch.float32, 100_000)
    writer.save([base[500:510], base[505:520]], tmp_path / "f.pt", compact=True).result()
    left, right = torch.load(tmp_path / "f.pt")
    left.fill_(0.0)
    assert right[:5].eq(0.0).all()
    assert right[5:].eq(base[510:520]).all()


def test_compact_lets_no_tensor_point_behind_its_storage(tmp_path, writer):
    """A tensor without elements sees nothing: what it pointed to may be cut off, so it points to the start."""
    base = raw(torch.float32, 10_000)
    writer.save([base[9000:9000], base[10:12]], tmp_path / "f.pt", compact=True).result()
    for found in torch.load(tmp_path / "f.pt"):
        assert found.untyped_storage().nbytes() == 8
        assert found.storage_offset() == 0


class Fresh:
    """Makes a new tensor each time it is pickled, as a module's extra state may."""

    def __init__(self, numel: int) -> None:
        self.numel = numel

    def __reduce__(self):
        """Refer to a tensor that nobody else knows."""
        return torch.Tensor.clone, (torch.arange(float(self.numel))[1:].clone(),)


@pytest.mark.parametrize("count", [1, 20])
def test_compact_with_tensors_made_while_pickling(count, tmp_path, writer):
    """The second pass meets storages that the first has not seen, also where freed memory was used again."""
    state = [raw(torch.float32, 10_000)[5:7]]
    for number in range(count):
        state += [Fresh(5 + 7 * number % 11), raw(torch.float32, 300)[number : number + 2]]
    saved(state, tmp_path / "f.pt", writer, compact=True)
    found = torch.load(tmp_path / "f.pt", weights_only=False)
    assert_same(found[0], state[0], storages=False)
    for made, given in zip(found[1:], state[1:], strict=True):
        expected = torch.arange(float(given.numel))[1:] if isinstance(given, Fresh) else given
        assert_same(made, expected, storages=False)


def test_a_warning_names_what_weights_only_refuses_once(tmp_path, writer):
    """One word for each kind of trouble, at the user's own line, and not for every save."""
    with pytest.warns(UserWarning, match=r"test_capture\.Settings.*weights_only=False") as told:
        writer.save(Settings(), tmp_path / "f.pt").result()
    assert [warning.filename for warning in told] == [__file__]
    writer.save(Settings(), tmp_path / "f.pt").result()  # a warning would be an error here
    with pytest.warns(UserWarning, match=r"test_capture\.Step"):
        writer.save(Step(1, 2.0), tmp_path / "f.pt").result()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_warning_names_a_protocol_that_weights_only_may_not_read(protocol, tmp_path, writer):
    """The weights-only unpickler knows the operations of protocol 2."""
    with pytest.warns(UserWarning, match=f"protocol {protocol}.*weights_only"):
        writer.save([1], tmp_path / "f.pt", pickle_protocol=protocol).result()


def test_no_warning_for_what_the_user_allowed(tmp_path, writer):
    """torch.serialization.safe_globals counts."""
    with torch.serialization.safe_globals([Settings]):
        writer.save(Settings(), tmp_path / "f.pt").result()
        assert torch.load(tmp_path / "f.pt").rate == 0.1


def test_a_warning_says_when_most_of_the_file_is_unreferenced(tmp_path, writer):
    """A view of a large storage saves all of it: the warning says how much, once, and compact=True is silent."""
    view = torch.zeros(1 << 20)[:10]
    writer.save(view, tmp_path / "f.pt", compact=True).result()
    with pytest.warns(UserWarning, match=r"100% of the checkpoint \(4,194,264 bytes\).*compact=True") as told:
        writer.save(view, tmp_path / "f.pt").result()
    assert [warning.filename for warning in told] == [__file__]
    writer.save(view, tmp_path / "f.pt").result()


def test_no_warning_where_little_is_unreferenced(tmp_path, writer):
    """Less than half, or less than a mebibyte, is not worth a word."""
    writer.save([torch.zeros(1 << 20)[: 1 << 19]], tmp_path / "f.pt").result()
    writer.save([torch.zeros(1000)[:1]], tmp_path / "f.pt").result()


def test_the_comparison_sees_what_it_is_for():
    """The helper of these tests tells apart what must not be mixed up."""
    base, other = torch.zeros(4), torch.zeros(4)
    assert difference([base, base[1:]], [other, other[1:]]) is None
    for left, right in (
        ([base, base[1:]], [base.clone(), base[1:].clone()]),
        ([base, base], [other, other.clone()]),
        (0.0, -0.0),
        (True, 1),
        (base, base.double()),
        (base, torch.nn.Parameter(base)),
        ([one := [1], one], [[1], [1]]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (base, torch.tensor([0.0, 0.0, 0.0, -0.0])),
        (base[:2], torch.zeros(2)),
    ):
        assert difference(left, right) is not None


def test_a_users_reducer_of_tensors_is_obeyed(tmp_path, monkeypatch):
    """What copyreg says of tensors goes before the fast way, as it goes before torch's own."""
    table = {**copyreg.dispatch_table, torch.Tensor: lambda _: (float, (42.0,))}
    monkeypatch.setattr(copyreg, "dispatch_table", table)
    with pytest.warns(UserWarning, match=r"builtins\.float"):
        asyncsave.save({"x": torch.zeros(3)}, tmp_path / "f.pt")
    assert asyncsave.load(tmp_path / "f.pt", weights_only=False) == {"x": 42.0}


def test_a_storage_without_bytes_is_refused():
    """A storage on the meta device has nothing to save."""
    with pytest.raises(asyncsave.StagingError, match="meta"):
        asyncsave.save({"x": torch.empty(3, device="meta").untyped_storage()}, io.BytesIO())
