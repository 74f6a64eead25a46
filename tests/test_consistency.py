"""When ``save_async`` returns, the state is the caller's: whatever is done to it then, the file holds what was.

Everything in the state is changed at once after each call, while the writer is held at a gate, so that
nothing can have been written before the change.
"""

from __future__ import annotations

import collections
import io
from typing import Any

import pytest
import torch
from equality import assert_same, difference
from gates import Gated

import asyncsave

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn,
]  # fmt: skip

SIZES = [1, 1000, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, (2 << 20) - 3, 2 << 20, (2 << 20) + 5, 5 << 20]
"""Bytes: around what is copied by the caller itself, and around what one thread copies in one go."""


class Thing:
    """A user's object."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.history = [value]


def change(item: Any) -> None:
    """Change a state in place, everything that can be changed, to its last corner."""
    if isinstance(item, torch.Tensor):
        item.untyped_storage().fill_(1)
    elif isinstance(item, bytearray):
        item[:1] = b"changed"
    elif isinstance(item, set):
        item.pop()
        item.add("new")
    elif hasattr(item, "__dict__") and not isinstance(item, dict):
        change(vars(item))
    elif isinstance(item, (dict, list, tuple, collections.deque)):
        for value in list(item.values() if isinstance(item, dict) else item):
            change(value)
        if isinstance(item, dict):
            item["new"] = item.pop(next(iter(item)), None)
        elif not isinstance(item, tuple):
            item.append("new")
            item.reverse()


def remembered(state: Any) -> Any:
    """Return a copy with the same ties; copy.deepcopy would cut parameters loose from their storage."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


def containers() -> dict[str, Any]:
    """Every kind of container, nested, with tensors in it."""
    return {
        "dict": {"a": 1, "b": {"c": torch.ones(3)}},
        "list": [1, [2, torch.zeros(2)]],
        "tuple": ([1], {"x": 1}, torch.ones(1)),
        "deque": collections.deque([[1], 2], maxlen=5),
        "ordered": collections.OrderedDict([("z", [1]), ("a", torch.ones(2))]),
        "default": collections.defaultdict(list, {"k": [1]}),
        "counter": collections.Counter("abca"),
        "set": {1, 2, 3},
        "bytearray": bytearray(b"abc" * 1000),
        "object": Thing([1, {"deep": Thing(torch.ones(4))}]),
        "string": "unchangeable",
    }


@pytest.fixture
def gated(open_writer):
    """Return a writer that is stopped before it opens a file, and its gate."""
    system = Gated("open")
    return open_writer(system=system, max_pending=12), system


def check_each(states: dict[str, Any], gated: tuple[asyncsave.Writer, Gated], folder: Any) -> None:
    """Save and change each state in turn, let the writer go, and look at what it has written."""
    writer, gate = gated
    expected, handles = {}, {}
    for name, state in states.items():
        expected[name] = remembered(state)
        handles[name] = asyncsave.save_async(state, folder / f"{name}.pt", writer=writer)
        assert handles[name].staged.is_set()
        change(state)
        assert difference(state, expected[name]) is not None, "the change changed something"
    gate.release()
    for name, handle in handles.items():
        handle.result()
        assert_same(asyncsave.load(folder / f"{name}.pt", weights_only=False), expected[name])
        assert_same(torch.load(folder / f"{name}.pt", weights_only=False), expected[name])


@pytest.mark.filterwarnings("ignore:the checkpoint holds")
def test_containers_may_be_changed_at_once(gated, tmp_path):
    """Lists, dicts, sets, deques, byte arrays and objects of the user's are written as they were at the call."""
    check_each({str(number): containers() for number in range(5)}, gated, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_each_dtype_may_be_changed_at_once(dtype, gated, tmp_path):
    """Tensors, views and parameters are written as they were at the call."""
    data = torch.arange(3000 * dtype.itemsize).to(torch.uint8)
    base = (data % 2).bool() if dtype is torch.bool else data.view(dtype)
    base = base[:3000].clone()
    state = {"base": base, "view": base[100:200], "parameter": torch.nn.Parameter(base[5:], requires_grad=False)}
    check_each({"state": state}, gated, tmp_path)


def test_storages_of_each_size_may_be_changed_at_once(gated, tmp_path):
    """Small ones, which the caller copies, and large ones, which are cut into pieces for several threads."""
    state = {str(size): (torch.arange(size) % 251 + 3).to(torch.uint8) for size in SIZES}
    check_each({"all": state, **{name: [tensor.clone()] for name, tensor in state.items()}}, gated, tmp_path)


def test_a_loop_that_changes_everything_between_saves(open_writer, tmp_path):
    """Forty steps on one arena after the other, as in a training: no file holds a later step's bytes."""
    writer = open_writer(max_pending=2, durable=False)
    model = {str(n): torch.zeros(size, dtype=torch.uint8) for n, size in enumerate((10, 1000, 70_000, 3 << 20))}
    state: dict[str, Any] = {"model": model, "step": 0, "log": []}
    for step in range(40):
        state["step"] = step
        state["log"].append(step)
        for tensor in model.values():
            tensor.fill_(step)
        writer.save(state, tmp_path / f"{step}.pt")
        state["step"] = None
        for tensor in model.values():
            tensor.fill_(255)
    writer.flush()
    for step in range(40):
        found = asyncsave.load(tmp_path / f"{step}.pt")
        assert found["step"] == step
        assert found["log"] == list(range(step + 1))
        assert all(tensor.eq(step).all() for tensor in found["model"].values())


def test_an_optimizer_may_step_at_once(open_writer, tmp_path):
    """A real training: each checkpoint is the model and optimizer of its own step."""
    writer = open_writer(durable=False)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    expected = []
    for step in range(10):
        model(torch.randn(4, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        expected.append(remembered(state))
        writer.save(state, tmp_path / f"{step}.pt")
    writer.flush()
    for step in range(10):
        assert_same(asyncsave.load(tmp_path / f"{step}.pt"), expected[step])


def test_the_caller_may_resize_or_drop_its_tensors(gated, tmp_path):
    """The memory that was saved from need not even exist any more."""
    writer, gate = gated
    tensor = torch.full((1 << 20,), 7, dtype=torch.uint8)
    handles = [writer.save({"t": tensor}, tmp_path / "resized.pt")]
    tensor.untyped_storage().resize_(0)
    handles.append(writer.save({"t": torch.full((1 << 20,), 9, dtype=torch.uint8)}, tmp_path / "dropped.pt"))
    gate.release()
    for handle, value in zip(handles, (7, 9), strict=True):
        handle.result()
        assert asyncsave.load(handle.path)["t"].eq(value).all()
