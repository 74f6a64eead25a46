"""Any nesting of containers and tensors comes back as it comes back from torch, bit for bit and tie for tie."""

from __future__ import annotations

import collections
import io
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backends import make_writer
from equality import assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncsave
from asyncsave import notices

quick = settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
DIFFERENTIABLE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.one_of(
    st.integers(-(1 << 300), 1 << 300), st.integers(-300, 70_000), st.floats(), st.complex_numbers(), st.booleans()
)
plain = st.one_of(st.none(), numbers, text, st.binary(max_size=300))
keys = st.one_of(text, st.integers(), st.none(), st.tuples(text, st.integers()))


@st.composite
def bases(draw: st.DrawFn) -> torch.Tensor:
    """A tensor with memory of its own, of any dtype and up to three dimensions, some of them empty."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    data = torch.frombuffer(bytearray(draw(st.binary(min_size=nbytes, max_size=nbytes)) + b"\0"), dtype=torch.uint8)
    data = data[:nbytes].clone()
    return (data % 2).bool().reshape(shape) if dtype is torch.bool else data.view(dtype).reshape(shape)


@st.composite
def views(draw: st.DrawFn, base: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or something that shares its memory."""
    kind = draw(st.sampled_from(["itself", "slice", "step", "transposed", "row", "expanded", "parameter"]))
    if kind == "parameter":
        wants = base.dtype in DIFFERENTIABLE and draw(st.booleans())
        return torch.nn.Parameter(base, requires_grad=wants)
    if kind == "transposed" and base.dim():
        return base.transpose(0, -1)
    if kind == "row" and base.numel():
        return base.flatten()[draw(st.integers(0, base.numel() - 1))]
    if kind == "expanded":
        return base.expand(3, *base.shape)
    if kind in ("slice", "step") and base.dim():
        start = draw(st.integers(0, base.shape[0]))
        return base[start :: draw(st.integers(2, 3)) if kind == "step" else 1]
    return base


@st.composite
def states(draw: st.DrawFn, leaves: st.SearchStrategy[Any] = plain) -> Any:
    """A graph of containers in which some tensors, storages and containers are met more than once."""
    tensors = [
        draw(views(base)) for base in draw(st.lists(bases(), max_size=3)) for _ in range(draw(st.integers(1, 3)))
    ]
    shared = [*tensors, [1, "shared"], {"shared": None}, bytearray(b"shared")]
    return draw(
        st.recursive(
            st.one_of(leaves, st.sampled_from(shared), *([st.sampled_from(tensors)] * 2 if tensors else [])),
            lambda inner: st.one_of(
                st.lists(inner, max_size=5),
                st.lists(inner, max_size=4).map(tuple),
                st.dictionaries(keys, inner, max_size=5),
                st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict),
                st.sets(st.one_of(st.none(), st.integers(), text), max_size=4),
            ),
            max_leaves=12,
        )
    )


Saved = Callable[..., tuple[bytes, bool]]


@pytest.fixture
def saved(backend: str, tmp_path: pathlib.Path) -> Iterator[Saved]:
    """Return a function that saves, and tells whether the user was warned about ``weights_only``.

    One writer serves all examples. To a writer process a file object cannot go: it writes a file.
    """
    with make_writer(durable=False) as writer:

        def save(state: object, **options: Any) -> tuple[bytes, bool]:
            notices._said.clear()
            buffer, path = io.BytesIO(), tmp_path / "f.pt"
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                writer.save(state, buffer if backend == "thread" else path, **options).result()
            data = buffer.getvalue() if backend == "thread" else path.read_bytes()
            return data, any("weights_only" in str(warning.message) for warning in told)

        yield save


def saved_by_torch(state: object) -> bytes:
    """Save as torch does."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@quick
@given(state=states())
def test_round_trip_is_torchs(state, saved):
    """torch.load of our file gives what torch.load of torch's file gives, and so does our load of either."""
    theirs, (ours, _) = saved_by_torch(state), saved(state)
    expected = torch.load(io.BytesIO(theirs), weights_only=False)
    assert_same(expected, state)
    assert_same(torch.load(io.BytesIO(ours), weights_only=False), expected)
    assert_same(asyncsave.load(io.BytesIO(ours), weights_only=False), expected)
    assert_same(asyncsave.load(io.BytesIO(theirs), weights_only=False), expected)


@quick
@given(state=states())
def test_compact_round_trip(state, saved):
    """With compact=True every tensor has the same elements, and the same ones share memory."""
    ours, _ = saved(state, compact=True)
    assert_same(torch.load(io.BytesIO(ours), weights_only=False), state, storages=False)
    assert_same(asyncsave.load(io.BytesIO(ours), weights_only=False), state, storages=False)


odd = st.one_of(
    plain,
    st.frozensets(st.integers(), max_size=2),
    st.sampled_from([..., NotImplemented, len, dict, collections.deque([1]), range(3), torch.Size([2]), torch.int8]),
    st.sampled_from([torch.device("cpu"), collections.Counter("ab"), collections.defaultdict(int), slice(1)]),
)


@quick
@given(state=states(leaves=odd))
def test_a_warning_tells_what_weights_only_will_refuse(state, saved):
    """Without a warning the file loads with weights_only=True; where torch's own would not, there was one."""
    ours, warned = saved(state)
    found = []
    for data in (ours, saved_by_torch(state)):
        try:
            torch.load(io.BytesIO(data), weights_only=True)
            found.append(True)
        except Exception:  # noqa: BLE001 - whatever torch says
            found.append(False)
    loads, loads_theirs = found
    assert loads is loads_theirs
    assert loads or warned
    try:
        asyncsave.load(io.BytesIO(ours))
    except asyncsave.LoadError:
        assert not loads
    else:
        assert loads
