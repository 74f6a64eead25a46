"""How two checkpoints differ: by what is said of them, and by their values."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import hollow

import asyncsave
from asyncsave.errors import LoadError
from asyncsave.inspection import amounts
from asyncsave.inspection.amounts import Side, changed_tensors
from asyncsave.inspection.contents import Look, look
from asyncsave.inspection.difference import Change, Pair, compare
from asyncsave.inspection.saved import SavedTensor
from asyncsave.storage.source import MemorySource, open_source


def difference(tmp_path, a, b, *, values=False, save=torch.save):
    """Save two objects; return the comparison of their contents."""
    save(a, tmp_path / "a.pt")
    save(b, tmp_path / "b.pt")
    return compare(*(asyncsave.inspect(tmp_path / name) for name in ("a.pt", "b.pt")), values=values)


def by_value(tmp_path, a, b, **options):
    """Save two objects; return how their tensors differ."""
    compared = difference(tmp_path, a, b, **options)
    assert (compared.only_a, compared.only_b, compared.changed) == ([], [], [])
    with open_source(str(tmp_path / "a.pt")) as one, open_source(str(tmp_path / "b.pt")) as other:
        return list(changed_tensors(Side(one, look(one)), Side(other, look(other)), compared.pairs))


def test_keys_shapes_types_and_kinds(tmp_path):
    """Each difference once, by name."""
    a = {
        "gone": 1,
        "same": torch.ones(2),
        "shape": torch.ones(2),
        "dtype": torch.ones(2),
        "kind": torch.ones(1),
        "n": 1,
    }
    b = {"same": torch.zeros(2), "shape": torch.ones(2, 1), "dtype": torch.ones(2).half(), "kind": 5, "n": 2, "new": {}}
    compared = difference(tmp_path, a, b)
    assert compared.only_a == ["gone"]
    assert compared.only_b == ["new"]
    assert compared.changed == [
        Change("shape", "shape", [2], [2, 1]),
        Change("dtype", "dtype", "float32", "float16"),
        Change("kind", "kind", "torch.Tensor", "int"),
    ]
    assert [pair.name for pair in compared.pairs] == ["same"]
    assert difference(tmp_path, a, b, values=True).changed[3:] == [Change("n", "value", "1", "2")]


def test_the_layout_is_part_of_the_kind(tmp_path):
    """A sparse tensor is no dense one, and a parameter no plain tensor."""
    a = {"s": torch.eye(2), "p": torch.ones(1)}
    b = {"s": torch.eye(2).to_sparse(), "p": torch.nn.Parameter(torch.ones(1))}
    assert difference(tmp_path, a, b).changed == [
        Change("s", "kind", "torch.Tensor", "torch.Tensor (sparse_coo)"),
        Change("p", "kind", "torch.Tensor", "torch.nn.Parameter"),
    ]


@pytest.mark.parametrize("save", [torch.save, asyncsave.save], ids=["torch", "asyncsave"])
def test_what_is_alike_does_not_differ(save, tmp_path):
    """Nor does it matter in which order, on which storages and with which strides it was saved."""
    base = torch.arange(12.0).reshape(3, 4)
    a = {"x": base, "y": base.t(), "z": base[:, 1], "nan": torch.tensor([math.nan, 0.0])}
    b = {"nan": torch.tensor([math.nan, -0.0]), "z": base[:, 1].clone(), "y": base.t().contiguous(), "x": base.clone()}
    assert by_value(tmp_path, a, b, save=save) == []


def test_by_how_much(tmp_path):
    """Number of elements that differ, the greatest difference, and where it is most."""
    a = torch.zeros(4, 5)
    b = a.clone()
    b[1, 2], b[3, 4] = 0.5, -2.0
    assert by_value(tmp_path, {"w": a}, {"w": b}) == [Change("w", "value", "0.0", "-2.0", 20, 2, 2.0)]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("a", "b", "differing", "greatest"),
    [
        ([NAN, 1.0], [NAN, 2.0], 1, 1.0),
        ([NAN, 1.0], [3.0, 1.0], 1, None),
        ([NAN, 1.0], [3.0, 1.5], 2, 0.5),
        ([INF, 1.0], [INF, 1.5], 1, 0.5),
        ([INF, 1.0], [-INF, 1.5], 2, INF),
    ],
)
def test_nan_and_infinity(a, b, differing, greatest, tmp_path):
    """Two NaNs are alike, a NaN and a number are not, and their difference is no number."""
    (change,) = by_value(tmp_path, {"w": torch.tensor(a)}, {"w": torch.tensor(b)})
    assert (change.differing, change.greatest) == (differing, greatest)


FLOATS = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz".split()  # noqa: SIM905
WHOLE = "int64 int32 int16 int8 uint8 uint16 uint32 uint64".split()  # noqa: SIM905


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, "complex64", "complex128", "complex32"])
def test_every_type_of_number(dtype, tmp_path):
    """All that torch calculates with."""
    a = torch.tensor([0.0, 1.0, 2.0, 4.0]).to(getattr(torch, dtype))
    b = torch.tensor([0.0, 1.0, 4.0, 5.0]).to(getattr(torch, dtype))
    (change,) = by_value(tmp_path, {"w": a}, {"w": b})
    assert (change.elements, change.differing, change.greatest) == (4, 2, 2.0)


def test_whole_numbers_are_compared_without_rounding(tmp_path):
    """Where a float would not tell them apart, or a difference would not fit."""
    low, high = -(1 << 63), (1 << 63) - 1
    pairs = [([1 << 60], [(1 << 60) + 1], 1.0), ([low], [high], 2.0**64), ([low], [low + 3], 3.0)]
    for a, b, greatest in pairs:
        (change,) = by_value(tmp_path, {"w": torch.tensor(a)}, {"w": torch.tensor(b)})
        assert (change.differing, change.greatest) == (1, greatest)
    a, b = (torch.tensor(one, dtype=torch.uint64) for one in ([0, 5], [(1 << 64) - 1, 5]))
    (change,) = by_value(tmp_path, {"w": a}, {"w": b})
    assert (change.differing, change.greatest) == (1, 2.0**64)


def test_booleans(tmp_path):
    """They differ by one."""
    (change,) = by_value(tmp_path, {"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])})
    assert (change.differing, change.greatest) == (1, 1.0)


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_the_parts_of_a_tensor_are_compared(tmp_path):
    """Of sparse, quantized and nested ones, each by its name."""
    scales = torch.tensor([0.5, 0.25]), torch.tensor([0, 0])
    a = {"s": torch.eye(2).to_sparse(), "q": torch.quantize_per_channel(torch.ones(2, 2), *scales, 0, torch.qint8)}
    b = {
        "s": (3 * torch.eye(2)).to_sparse(),
        "q": torch.quantize_per_channel(torch.zeros(2, 2), *scales, 0, torch.qint8),
    }
    found = by_value(tmp_path, a, b)
    assert [(one.name, one.differing, one.greatest) for one in found] == [("s.values", 2, 2.0), ("q", 4, 4.0)]
    compared = difference(tmp_path, {"s": torch.eye(3).to_sparse()}, {"s": torch.ones(3, 3).to_sparse()})
    assert {(one.name, one.what) for one in compared.changed} == {("s.indices", "shape"), ("s.values", "shape")}


def test_expanded_tensors_are_compared_once(tmp_path):
    """What is repeated is counted as often as it is seen."""
    a, b = torch.zeros(1).expand(1 << 40), torch.ones(1).expand(1 << 40)
    (change,) = by_value(tmp_path, {"w": a}, {"w": b})
    assert (change.elements, change.differing, change.greatest) == (1 << 40, 1 << 40, 1.0)


def test_elements_that_overlap_without_end_are_refused(tmp_path):
    """A file may say that four bytes are seen a million million times."""
    torch.save({"w": torch.ones(2000)}, tmp_path / "a.pt")
    tensor = replace(asyncsave.inspect(tmp_path / "a.pt").tensors[0], shape=(400, 400, 400), stride=(1, 1, 1))
    with open_source(str(tmp_path / "a.pt")) as source:
        side = Side(source, look(source))
        with pytest.raises(LoadError, match="too many to be compared"):
            list(changed_tensors(side, side, [Pair("w", tensor, tensor)]))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_blocks_cover_each_element_once(data):
    """However small the blocks, whatever the shape and the strides."""
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))
    order = data.draw(st.permutations(range(len(shape))))
    strides = [0] * len(shape)
    step = 1
    for dim in order:
        strides[dim] = step
        step *= max(1, shape[dim])
    plain = torch.empty(shape).stride()
    limit, amounts._BLOCK = amounts._BLOCK, 16
    try:
        blocks = list(amounts._blocks(amounts._Block(shape, 0, 0), (tuple(strides), plain), 4))
    finally:
        amounts._BLOCK = limit
    seen = []
    for block in blocks:
        assert math.prod(block.shape) * 4 <= 16 or math.prod(block.shape) == 1
        places = torch.arange(max(1, math.prod(shape))).as_strided(block.shape, plain, block.b)
        seen += places.reshape(-1).tolist()
    assert sorted(seen) == list(range(math.prod(shape)))


@pytest.mark.parametrize("block", [16, 64, 4 << 20])
def test_the_size_of_the_blocks_does_not_matter(block, tmp_path, monkeypatch):
    """The answer is that of torch on the whole tensors."""
    monkeypatch.setattr(amounts, "_BLOCK", block)
    torch.manual_seed(0)
    base = torch.randn(6, 7, 5)
    other = base + (torch.rand(6, 7, 5) > 0.5) * torch.randn(6, 7, 5)
    views = {"whole": lambda x: x, "transposed": lambda x: x.permute(2, 0, 1), "part": lambda x: x[1:5, ::2, 3]}
    found = by_value(tmp_path, {k: v(base) for k, v in views.items()}, {k: v(other) for k, v in views.items()})
    for change, view in zip(found, views.values(), strict=True):
        one, two = view(base).double(), view(other).double()
        assert change.differing == int((one != two).sum())
        assert change.greatest == float((one - two).abs().max())


def test_the_other_byte_order_is_read(tmp_path):
    """A file that says it is big-endian is compared by its numbers."""
    tensor = SavedTensor(
        "w", "torch.Tensor", "strided", (2,), (1,), 0, "complex64", 16, "0", "cpu", requires_grad=False
    )
    torch.save({}, tmp_path / "f.pt")
    contents = asyncsave.inspect(tmp_path / "f.pt")
    big = replace(contents, versions=replace(contents.versions, byteorder="big"))
    one = Side(MemorySource("a", struct.pack("<4f", 1, 2, 3, 4)), Look(contents, {"0": 0}))
    other = Side(MemorySource("b", struct.pack(">4f", 1, 2, 3, 4)), Look(big, {"0": 0}))
    assert list(changed_tensors(one, other, [Pair("w", tensor, tensor)])) == []


def test_progress_is_told_in_bytes(tmp_path):
    """Of each tensor when it is done."""
    compared = difference(tmp_path, {"a": torch.ones(4), "b": torch.ones(2)}, {"a": torch.ones(4), "b": torch.ones(2)})
    told = []
    with open_source(str(tmp_path / "a.pt")) as source:
        side = Side(source, look(source))
        assert list(changed_tensors(side, side, compared.pairs, told.append)) == []
    assert told == [16, 8]


def test_holes_are_compared_in_little_memory(tmp_path):
    """Two files of 256 MiB in blocks of four megabytes."""
    pickled = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nByteStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\x00\x00\x00\x10tQK\x00J\x00\x00\x00\x10\x85K\x01\x85\x89NtRs."
    )
    sizes = [("archive/data.pkl", len(pickled)), ("archive/data/0", 1 << 28)]
    for name in ("a.pt", "b.pt"):
        hollow(tmp_path / name, sizes, {"archive/data.pkl": pickled})
    with (tmp_path / "b.pt").open("r+b") as file:
        file.seek(1 << 27)
        file.write(b"\x07")
    with open_source(str(tmp_path / "a.pt")) as one, open_source(str(tmp_path / "b.pt")) as other:
        sides = Side(one, look(one)), Side(other, look(other))
        pairs = compare(sides[0].look.contents, sides[1].look.contents).pairs
        assert list(changed_tensors(*sides, pairs)) == [Change("w", "value", "0", "7", 1 << 28, 1, 7.0)]
