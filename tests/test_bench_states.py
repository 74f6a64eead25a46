"""States to measure with: their sizes, what a checkpoint of them holds, and whether two are the same."""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
import zlib
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from asyncsave import CheckpointNotFoundError, CorruptCheckpointError, OptionError
from asyncsave.bench.states import (
    DTYPES,
    dtype_of,
    flatten,
    like,
    moved,
    same_tensors,
    saved_bytes,
    synthetic,
    tensor_bytes,
)

steady = settings(derandomize=True, database=None, deadline=None, max_examples=100)


@steady
@given(st.integers(1, 100_000), st.integers(1, 50), st.sampled_from(sorted(DTYPES)))
def test_a_state_is_as_large_as_was_asked_for(nbytes, tensors, dtype):
    """Down to whole values, shared out evenly; each tensor has a storage of its own. Or it is refused."""
    size = DTYPES[dtype].itemsize
    if nbytes // size < tensors:
        with pytest.raises(OptionError, match="there are"):
            synthetic(nbytes, tensors, dtype)
        return
    state = synthetic(nbytes, tensors, dtype)
    found = flatten(state)
    assert len(found) == tensors
    assert tensor_bytes(state) == saved_bytes(state) == nbytes // size * size
    assert max(map(len, found.values())) - min(map(len, found.values())) <= 1
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == tensors
    assert dtype_of(state) == dtype


@pytest.mark.parametrize(("dtype", "share"), [("float32", 0.8), ("float64", 0.85), ("float16", 0.75), ("int8", 0.99)])
def test_nobody_below_can_gain_from_what_is_in_it(dtype, share):
    """Values are random to their last bit: what compresses is at most the exponents."""
    (tensor,) = flatten(synthetic(1_000_000, 1, dtype)).values()
    data = tensor.view(torch.uint8).numpy().tobytes()
    assert len(zlib.compress(data, 1)) > share * len(data)


@pytest.mark.parametrize(("tensors", "dtype"), [(0, "float32"), (-1, "float32"), (3, "float64"), (1, "float3")])
def test_a_state_that_cannot_be(tensors, dtype):
    """No tensors, more than there are values, and types that nobody knows."""
    with pytest.raises(OptionError):
        synthetic(20, tensors, dtype)


def nested():
    """Return a nested tensor, without torch's warning that it is a prototype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.rand(2), torch.rand(3)])


def compressed(layout):
    """Return a sparse tensor in a compressed layout, without torch's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(4).to_sparse(layout=layout, blocksize=(2, 2) if "bs" in str(layout) else None)


def quantized():
    """Return a quantized tensor, without torch's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8)


KINDS = {
    "plain": lambda: torch.rand(5, 3),
    "scalar": lambda: torch.tensor(1.5),
    "empty": lambda: torch.empty(0, 3),
    "transposed": lambda: torch.rand(5, 3).t(),
    "expanded": lambda: torch.rand(1).expand(9),
    "cut": lambda: torch.rand(100)[7:9],
    "parameter": lambda: nn.Parameter(torch.rand(3)),
    "bool": lambda: torch.tensor([True, False]),
    "complex": lambda: torch.rand(3, dtype=torch.complex64),
    "conjugated": lambda: torch.rand(3, dtype=torch.complex64).conj(),
    "negated": lambda: torch.rand(3, dtype=torch.complex64).conj().imag,
    "float8": lambda: torch.rand(4).to(torch.float8_e4m3fn),
    "NaN": lambda: torch.tensor([float("nan"), -0.0]),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse, not coalesced": lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2)),
    "csr": lambda: compressed(torch.sparse_csr),
    "csc": lambda: compressed(torch.sparse_csc),
    "bsr": lambda: compressed(torch.sparse_bsr),
    "bsc": lambda: compressed(torch.sparse_bsc),
    "quantized": quantized,
    "nested": nested,
    "meta": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind(kind, tmp_path):
    """A saved one is the same, has a size, and can be told from another."""
    state = {"x": KINDS[kind]()}
    torch.save(state, tmp_path / "f.pt")
    again = torch.load(tmp_path / "f.pt", weights_only=True)
    assert same_tensors(state, again)
    if kind != "nested":  # whose sizes are in the file as well
        assert saved_bytes(state) == in_file(tmp_path / "f.pt")
    assert (tensor_bytes(state) > 0) is (kind != "empty")
    assert not same_tensors(state, {"x": torch.rand(2, 2, 2)})


def copied(tensor):
    """Return a tensor as it comes out of a file; not every kind can be copied otherwise."""
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def in_file(path):
    """Return the bytes of all storages in a checkpoint."""
    with zipfile.ZipFile(path) as file:
        return sum(info.file_size for info in file.infolist() if "/data/" in info.filename)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"empty", "meta", "bool"}])
@pytest.mark.filterwarnings("ignore")
def test_one_value_makes_a_difference(kind):
    """Also in a layout that is not strided."""
    left = KINDS[kind]()
    right = copied(left)
    assert same_tensors({"x": left}, {"x": right})
    with torch.no_grad():
        values = right.detach()
        if values.is_nested or values.layout is not torch.strided:
            values = values._values() if values.layout is torch.sparse_coo else values.values()
        values.fill_(3)
    assert not same_tensors({"x": left}, {"x": right})


def test_bits_count_and_not_values():
    """-0.0 is not 0.0, and a NaN is itself."""
    assert not same_tensors({"x": torch.tensor(0.0)}, {"x": torch.tensor(-0.0)})
    assert same_tensors({"x": torch.tensor(float("nan"))}, {"x": torch.tensor(float("nan"))})


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.ones(2)},
        {"a": torch.ones(2, dtype=torch.float64)},
        {"a": torch.ones(1, 2)},
        {"a": [torch.ones(2)]},
        {},
    ],
)
def test_names_types_and_shapes_count(other):
    """Other names, more or fewer tensors, another type or shape: not the same, either way round."""
    mine = {"a": torch.ones(2)}
    assert same_tensors(mine, {"a": torch.ones(2), "step": 3})
    assert not same_tensors(mine, other)
    assert not same_tensors(other, mine)


def test_two_names_that_read_alike_are_two_tensors():
    """``{"a": {"b": x}, "a.b": y}`` and ``{1: x, "1": y}``: both count, both are compared."""
    for state in ({"a": {"b": torch.zeros(2)}, "a.b": torch.ones(2)}, {1: torch.zeros(2), "1": torch.ones(2)}):
        assert tensor_bytes(state) == saved_bytes(state) == 16
        other = copy.deepcopy(state)
        next(iter(flatten({"x": list(other.values())[0]}).values())).fill_(7)  # noqa: RUF015
        assert not same_tensors(state, other)


def test_ties_and_views_are_saved_once(tmp_path):
    """What a file holds: each storage whole, and once. What the tensors show: as often as they show it."""
    base = torch.rand(1000)
    state = {"tied": [base, base, base[:10]], "part": torch.rand(100)[:1]}
    torch.save(state, tmp_path / "f.pt")
    assert saved_bytes(state) == in_file(tmp_path / "f.pt") == 4400
    assert tensor_bytes(state) == 4 * (1000 + 1000 + 10 + 1)


def test_names():
    """Dotted, in order, through dicts, lists and tuples; what is no tensor has none."""
    state = {"a": {"w": torch.ones(1), 3: torch.ones(1)}, "b": [1, (torch.ones(1), "text")], "c": b"\0", "d": None}
    assert list(flatten(state)) == ["a.w", "a.3", "b.1.0"]
    assert flatten(state)["a.w"] is state["a"]["w"]


def test_the_type_of_a_state():
    """One name, or mixed."""
    assert dtype_of({"a": torch.ones(1), "b": [torch.zeros(1)]}) == "float32"
    assert dtype_of({"a": torch.ones(1), "b": torch.ones(1, dtype=torch.int64)}) == "mixed"


def test_moving():
    """Everything goes, nothing else changes."""
    state = OrderedDict(a=torch.ones(2), b=[(torch.ones(1), 1)], c="text")
    found = moved(state, "meta")
    assert found["a"].is_meta
    assert found["b"][0][0].is_meta
    assert (found["b"][0][1], found["c"]) == (1, "text")
    assert not state["a"].is_meta


def test_like_a_real_checkpoint(tmp_path):
    """A model with a tie, its optimizer, and a NaN: bit by bit, with its sharing."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(state, tmp_path / "real.pt")
    found = like(str(tmp_path / "real.pt"))
    assert same_tensors(state, found)
    assert found["epoch"] == 3
    weights = found["model"]
    assert weights["0.weight"].data_ptr() == weights["1.weight"].data_ptr()
    assert saved_bytes(found) == in_file(tmp_path / "real.pt")


def test_like_a_bare_tensor(tmp_path):
    """What is no dict gets one around it."""
    torch.save([torch.ones(3)], tmp_path / "f.pt")
    assert same_tensors(like(str(tmp_path / "f.pt")), {"state": [torch.ones(3)]})


@pytest.mark.parametrize("content", [{"step": 3}, [], 7, {"x": torch.empty(0)}, {"x": torch.empty(3, device="meta")}])
def test_like_nothing(tmp_path, content):
    """Without values there is nothing to measure."""
    torch.save(content, tmp_path / "f.pt")
    with pytest.raises(OptionError, match=r"f\.pt.* holds no tensors with values"):
        like(str(tmp_path / "f.pt"))


def test_like_what_cannot_be_loaded(tmp_path):
    """Missing, or damaged: errors of ours."""
    with pytest.raises(CheckpointNotFoundError):
        like(str(tmp_path / "missing.pt"))
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptCheckpointError):
        like(str(tmp_path / "torn.pt"))
