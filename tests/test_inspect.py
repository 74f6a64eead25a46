"""Inspecting: what is said of a file is what torch.load finds in it."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
import zlib
from math import prod

import corpus
import numpy as np
import pytest
import torch
from corpus import CORPUS, truth
from gates import Counting
from images import hollow
from programs import run

import asyncsave
from asyncsave.image.index import read_index
from asyncsave.inspection.contents import look
from asyncsave.inspection.coverage import extent
from asyncsave.inspection.dtypes import ITEMSIZES, STORAGES
from asyncsave.inspection.legacy import read_legacy
from asyncsave.inspection.saved import SavedTensor
from asyncsave.storage.source import open_source


def ours(obj, path):
    """Save with asyncsave."""
    asyncsave.save(obj, path)


def theirs(obj, path, **options):
    """Save with torch."""
    torch.save(obj, path, **options)


WRITERS = {
    "asyncsave": (ours, {}),
    "torch": (theirs, {}),
    "protocol 3": (theirs, {"pickle_protocol": 3}),
    "protocol 4": (theirs, {"pickle_protocol": 4}),
    "protocol 5": (theirs, {"pickle_protocol": 5}),
    "legacy": (theirs, {"_use_new_zipfile_serialization": False}),
    "legacy 4": (theirs, {"_use_new_zipfile_serialization": False, "pickle_protocol": 4}),
}
NOT_LEGACY = {"new dtypes", "nested", "storage"}
"""What torch cannot load back from its legacy format."""


def saved(name, writer, path):
    """Save one of the corpus; return it as torch.load gives it back."""
    save, options = WRITERS[writer]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: source not found, storages to be removed
        save(CORPUS[name](), path, **options)
        return torch.load(path, weights_only=False)


def kind_of(tensor):
    """Return the name of a tensor's class as an inspection gives it."""
    kind = type(tensor)
    if kind in {torch.Tensor, torch.nn.Buffer}:
        return "torch.Tensor"
    return "torch.nn.Parameter" if kind is torch.nn.Parameter else f"{kind.__module__}.{kind.__qualname__}"


def nbytes_of(tensor):
    """Return the bytes of a tensor's elements, or those of its parts."""
    if tensor.device.type == "meta" or isinstance(tensor, corpus.TwoTensors):
        return 0
    return tensor.numel() * tensor.element_size()


def check(found: SavedTensor, tensor) -> None:
    """Hold what is said of a tensor against the tensor."""
    if not isinstance(tensor, torch.Tensor):
        assert (found.layout, found.nbytes) == ("storage", tensor.nbytes())
        return
    assert found.dtype == str(tensor.dtype).removeprefix("torch.")
    assert found.requires_grad == tensor.requires_grad
    assert found.kind == kind_of(tensor)
    assert found.device == str(tensor.device)
    if tensor.is_nested:
        ragged = tensor.layout == torch.jagged
        assert found.layout == ("jagged" if ragged else "nested")
        assert found.shape == (2, -1, 3 if ragged else -1)
        return
    assert found.shape == tuple(tensor.shape)
    if tensor.layout != torch.strided:
        assert found.layout == str(tensor.layout).removeprefix("torch.")
        values = tensor.values()
        assert {part.name: part for part in found.parts}["values"].shape == tuple(values.shape)
        assert found.nbytes == sum(part.nbytes for part in found.parts) > values.nbytes
        return
    assert found.stride == tensor.stride()
    if tensor.is_quantized:
        assert found.layout == "quantized"
        assert found.nbytes == nbytes_of(tensor) + sum(part.nbytes for part in found.parts)
        return
    assert found.nbytes == nbytes_of(tensor)
    if found.storage is not None:
        assert found.offset == tensor.storage_offset()


PAIRS = [(name, writer) for name in CORPUS for writer in WRITERS if "legacy" not in writer or name not in NOT_LEGACY]


@pytest.mark.parametrize(("name", "writer"), PAIRS)
def test_it_tells_what_torch_load_finds(name, writer, tmp_path):
    """Every tensor by its name, with class, shape, strides, type, bytes and device; no more and no less."""
    loaded = saved(name, writer, tmp_path / "f.pt")
    contents = asyncsave.inspect(tmp_path / "f.pt")
    tensors = truth(loaded)
    assert {one.name for one in contents.tensors} == set(tensors)
    for found in contents.tensors:
        check(found, tensors[found.name])
    assert contents.path == str(tmp_path / "f.pt")
    assert contents.nbytes == (tmp_path / "f.pt").stat().st_size
    protocol = WRITERS[writer][1].get("pickle_protocol", 2)
    assert (contents.versions.pickle, contents.versions.byteorder) == (protocol, "little")
    kind = "torch-legacy" if "legacy" in writer else "asyncsave" if writer == "asyncsave" else "torch"
    assert contents.format == kind
    assert contents.versions.asyncsave == (1 if writer == "asyncsave" else None)
    assert contents.versions.torch == (None if "legacy" in writer else "3")


@pytest.mark.parametrize(("name", "writer"), [pair for pair in PAIRS if pair[0] != "jagged"])
def test_weights_only_is_as_torch_says(name, writer, tmp_path):
    """The answer is that of a torch.load(weights_only=True), and so are the reasons."""
    saved(name, writer, tmp_path / "f.pt")
    said = asyncsave.inspect(tmp_path / "f.pt").weights_only
    assert said.ok == (not said.refused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols
        try:
            torch.load(tmp_path / "f.pt", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            reason = str(error)
        else:
            assert said.refused == ()
            return
    assert not said.ok, reason
    if "GLOBAL" in reason:
        refused = reason.partition("GLOBAL ")[2].split(" ")[0]
        assert refused in {one.removeprefix("builtins.") for one in said.refused}
    elif "Unsupported operand" in reason:
        assert any(one.startswith("opcode ") for one in said.refused)


def test_weights_only_is_what_a_plain_program_gets(tmp_path):
    """That allows jagged tensors only once torch._dynamo is imported, as it is here, and not by import torch."""
    saved("jagged", "torch", tmp_path / "f.pt")
    assert asyncsave.inspect(tmp_path / "f.pt").weights_only.refused == ("torch._dynamo.decorators._DimRange",)
    done = run("import sys, torch; torch.load(sys.argv[1], weights_only=True)", tmp_path / "f.pt")
    assert "must be imported to load nested jagged tensors" in done.stderr


@pytest.mark.parametrize("writer", ["asyncsave", "torch", "protocol 4"])
@pytest.mark.parametrize("name", CORPUS)
def test_records_are_those_of_the_zip(name, writer, tmp_path):
    """Name, place, size and CRC-32 of each, as zipfile and the bytes themselves say."""
    saved(name, writer, tmp_path / "f.pt")
    contents = asyncsave.inspect(tmp_path / "f.pt")
    data = (tmp_path / "f.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        known = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    assert {record.name for record in contents.records} == set(known)
    for record in contents.records:
        part = data[record.offset : record.offset + record.nbytes]
        assert (record.nbytes, record.crc32) == (known[record.name].file_size, zlib.crc32(part))


@pytest.mark.parametrize("writer", WRITERS)
def test_ties_are_told(writer, tmp_path):
    """Tensors that are one, tensors on one storage, and containers that are one, each group once."""
    saved("parameters", writer, tmp_path / "f.pt")
    assert asyncsave.inspect(tmp_path / "f.pt").ties == (("plain", "again"),)
    saved("views", writer, tmp_path / "f.pt")
    assert asyncsave.inspect(tmp_path / "f.pt").ties == (("head", "tail", "column", "empty"),)
    saved("module", writer, tmp_path / "f.pt")
    assert asyncsave.inspect(tmp_path / "f.pt").ties == (("first.weight", "second.weight"),)
    saved("shared", writer, tmp_path / "f.pt")
    ties = asyncsave.inspect(tmp_path / "f.pt").ties
    assert ties == (("model.w", "alone.0"), ("model", "ema", "loop.1"), ("loop", "loop.2"))


@pytest.mark.parametrize("writer", WRITERS)
def test_bytes_that_no_tensor_shows_are_counted(writer, tmp_path):
    """As by marking each byte that some tensor reaches from its first to its last element."""
    save, options = WRITERS[writer]
    base, other = torch.arange(1000.0), torch.arange(50)
    state = {"a": base[10:20], "b": base[15:40], "c": base[500:700:3], "d": other[:0], "e": torch.ones(3)}
    save(state, tmp_path / "f.pt", **options)
    contents = asyncsave.inspect(tmp_path / "f.pt")
    shown = {number for tensor in contents.tensors if tensor.storage == contents.tensors[0].storage
             for number in range(*extent(tensor))}  # fmt: skip
    assert len(shown) == (30 + 199) * 4
    assert contents.storage_nbytes == 4000 + 400 + 12
    assert contents.unreferenced_bytes == 4000 - len(shown) + 400


def test_compact_saves_leave_nothing_unreferenced(tmp_path):
    """What compact=True is for, seen from here."""
    asyncsave.save({"a": torch.arange(1000.0)[10:20]}, tmp_path / "f.pt", compact=True)
    contents = asyncsave.inspect(tmp_path / "f.pt")
    assert (contents.storage_nbytes, contents.unreferenced_bytes) == (40, 0)


@pytest.mark.parametrize("writer", ["asyncsave", "protocol 4", "protocol 5", "legacy", "legacy 4"])
@pytest.mark.parametrize("name", ["plain", "objects", "numpy", "training"])
def test_plain_values_are_told_alike_whatever_the_protocol(name, writer, tmp_path):
    """A value's text depends on the value: protocols write sets and bytes in different words."""
    saved(name, "torch", tmp_path / "f.pt")
    saved(name, writer, tmp_path / "g.pt")
    first, second = (asyncsave.inspect(tmp_path / file).values for file in ("f.pt", "g.pt"))
    assert {one.name: one for one in first} == {one.name: one for one in second}


def test_plain_values_are_told_as_python_writes_them(tmp_path):
    """Short ones whole; long ones by their beginning, length and digest."""
    saved("plain", "torch", tmp_path / "f.pt")
    values = {one.name: (one.kind, one.text) for one in asyncsave.inspect(tmp_path / "f.pt").values}
    table, text = values.pop("table")[1], values.pop("long text")[1]
    assert table.startswith("{'0': 0, '1': 1, ")
    assert text.startswith("<str> abab")
    assert "sha256" in table
    assert "sha256" in text
    assert "sha256" in values.pop("huge")[1]
    assert "sha256" in values.pop("list")[1]
    assert "sha256" in values.pop("long bytes")[1]
    assert values == {
        "none": ("NoneType", "None"), "true": ("bool", "True"), "int": ("int", "3"), "negative": ("int", "-5"),
        "big": ("int", str(10**30)), "float": ("float", "1.5"), "nan": ("float", "nan"),
        "text": ("str", "'a\\x1b[31mb \u2603'"), "bytes": ("bytes", r"b'a\xff'"), "no bytes": ("bytes", "b''"),
        "bytearray": ("bytearray", "bytearray(b'ab')"), "complex": ("complex", "complex(1.0, 2.0)"),
        "tuple.0": ("int", "1"), "tuple.1": ("tuple", "(2, 'x')"), "set": ("set", "{'a', 'b'}"),
        "no set": ("set", "set()"), "frozen": ("frozenset", "frozenset({1})"), "empty.0": ("list", "[]"),
        "empty.1": ("dict", "{}"), "empty.2": ("tuple", "()"), "size": ("torch.Size", "torch.Size((2, 3))"),
        "device": ("torch.device", "torch.device('cpu')"), "gpu": ("torch.device", "torch.device('cuda', 1)"),
        "dtype": ("torch.dtype", "torch.bfloat16"),
        "layout": ("torch.serialization._get_layout", "torch.serialization._get_layout('torch.sparse_coo')"),
        "7": ("str", "'int key'"), "1.5": ("str", "'float key'"), "(1, 'a')": ("str", "'tuple key'"),
        "None": ("str", "'None key'"), "": ("str", "'no key'"), "a.b": ("str", "'dotted'"),
    }  # fmt: skip


def test_values_of_numpy_are_plain_values(tmp_path):
    """Arrays with type and shape, numbers as numbers."""
    saved("numpy", "torch", tmp_path / "f.pt")
    values = {one.name: (one.kind, one.text) for one in asyncsave.inspect(tmp_path / "f.pt").values}
    assert values["scalar"] == ("numpy.float32", "1.5")
    assert values["int"] == ("numpy.int64", "7")
    assert values["array"][0] == "numpy.ndarray"
    assert values["array"][1].startswith("array of float64 (2, 3): b'")
    assert values["large"][1].startswith("array of float64 (5000,): <bytes> ")


def test_names_that_two_would_have_get_a_number(tmp_path):
    """An int and a text may look alike, and so may a key with a dot."""
    torch.save(
        {"a": {"b": torch.ones(1)}, "a.b": torch.ones(2), 1: torch.ones(3), "1": torch.ones(4)}, tmp_path / "f.pt"
    )
    shapes = {one.name: one.shape for one in asyncsave.inspect(tmp_path / "f.pt").tensors}
    assert shapes == {"a.b": (1,), "a.b (2)": (2,), "1": (3,), "1 (2)": (4,)}


def test_the_tables_of_types_are_torchs(tmp_path):
    """Every dtype with its size, every storage class with its dtype."""
    dtypes = {str(one).removeprefix("torch."): one for one in vars(torch).values() if isinstance(one, torch.dtype)}
    dtypes.pop("bit", None)
    assert {name: dtype.itemsize for name, dtype in dtypes.items() if name in ITEMSIZES} == {
        name: ITEMSIZES[name] for name in ITEMSIZES if name in dtypes
    }
    assert set(dtypes) <= set(ITEMSIZES)
    kinds = {kind.__name__ for kind in torch._storage_classes} - {"TypedStorage"}
    assert kinds == set(STORAGES)
    for name in kinds - {"UntypedStorage"}:
        assert str(torch.serialization.StorageType(name).dtype) == f"torch.{STORAGES[name]}"


def test_a_file_that_is_being_written_is_waited_for(open_writer, tmp_path):
    """What is told is the new file."""
    asyncsave.save("old", tmp_path / "f.pt")
    open_writer().save({"new": torch.ones(1 << 20)}, tmp_path / "f.pt")
    (tensor,) = asyncsave.inspect(tmp_path / "f.pt").tensors
    assert (tensor.name, tensor.nbytes, prod(tensor.shape)) == ("new", 4 << 20, 1 << 20)


def test_only_headers_are_read(tmp_path):
    """A file with a hole of 100 GB where its tensor is: what is read is the beginning, the pickle and the end."""
    with torch.serialization.skip_data():
        torch.save({"w": torch.empty(1, 1).expand(25 << 30, 1)}, tmp_path / "small.pt")
    with open_source(str(tmp_path / "small.pt")) as source:
        entries = {entry.name: source.read(entry.offset, entry.nbytes) for entry in read_index(source).entries}
    pickled = entries["data.pkl"].replace(
        b"cpuq\x06K\x01t", b"cpuq\x06\x8a\x05" + (25 << 30).to_bytes(5, "little") + b"t"
    )
    assert pickled != entries["data.pkl"]
    records = [("archive/data.pkl", len(pickled)), ("archive/data/0", 100 << 30)]
    hollow(tmp_path / "f.pt", records, {"archive/data.pkl": pickled})
    system = Counting()
    with open_source(str(tmp_path / "f.pt"), system=system) as source:
        contents = look(source).contents
    assert contents.storage_nbytes == 100 << 30
    assert contents.unreferenced_bytes == (100 << 30) - 4
    assert system.nbytes < 100_000


class Moved:
    """Pickles as a tensor of a device whose storages torch cannot save."""

    def __init__(self, function, data):
        self.function, self.data = function, data

    def __reduce__(self):
        return self.function, (self.data, torch.float32, "cpu", True)


def test_tensors_of_devices_without_storages(tmp_path):
    """They come by way of the host: as a tensor, or as an array of numpy's."""
    functions = torch._utils._rebuild_device_tensor_from_cpu_tensor, torch._utils._rebuild_device_tensor_from_numpy
    state = {"t": Moved(functions[0], torch.ones(2, 3)), "n": Moved(functions[1], np.ones((2, 3), dtype="float32"))}
    torch.save(state, tmp_path / "f.pt")
    loaded = torch.load(tmp_path / "f.pt", weights_only=False)
    first, second = asyncsave.inspect(tmp_path / "f.pt").tensors
    for found in (first, second):
        tensor = loaded[found.name]
        assert (found.shape, found.nbytes, found.requires_grad) == (tuple(tensor.shape), tensor.nbytes, True)
        assert (found.device, found.dtype, found.storage) == ("cpu", "float32", None)
    assert [part.name for part in first.parts] == ["data"]
    assert asyncsave.inspect(tmp_path / "f.pt").unreferenced_bytes == 0


def test_a_legacy_file_with_a_long_pickle(tmp_path):
    """Its pickles are read as far as they go, in ever larger pieces."""
    state = {"text": "x" * 3_000_000, "w": torch.ones(3)}
    torch.save(state, tmp_path / "f.pt", _use_new_zipfile_serialization=False)
    contents = asyncsave.inspect(tmp_path / "f.pt")
    assert [one.name for one in contents.tensors] == ["w"]
    with pytest.raises(asyncsave.LoadError, match="not looked into"), open_source(str(tmp_path / "f.pt")) as source:
        read_legacy(source, 1 << 20)


def legacy(*, version=1001, keys=("0",), count=2, little=True):
    """Put a legacy file together by hand."""
    parts = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, version, {"little_endian": little})]
    parts.append(
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x02NtQK\x00K\x02\x85K\x01\x85\x89NtR."
    )
    return b"".join(
        [*parts, pickle.dumps(keys if isinstance(keys, int) else list(keys), 2), struct.pack("<q", count), bytes(8)]
    )


def test_a_legacy_file_says_its_byte_order(tmp_path):
    """In its third pickle."""
    for little, order in ((True, "little"), (False, "big")):
        (tmp_path / "f.pt").write_bytes(legacy(little=little))
        assert asyncsave.inspect(tmp_path / "f.pt").versions.byteorder == order


@pytest.mark.parametrize(
    "wrong", [{"version": 7}, {"version": "x"}, {"keys": 5}, {"keys": [1]}, {"keys": ["1"]}, {"keys": []}, {"count": 3}]
)
def test_a_legacy_file_that_does_not_fit_itself_is_damaged(wrong, tmp_path):
    """Version, keys and sizes are held against each other."""
    (tmp_path / "f.pt").write_bytes(legacy(**wrong))
    with pytest.raises(asyncsave.CorruptCheckpointError, match="is damaged"):
        asyncsave.inspect(tmp_path / "f.pt")


def test_a_damaged_pickle_is_known_by_its_checksum(tmp_path):
    """Before anything that it says is believed."""
    asyncsave.save({"epoch": 1}, tmp_path / "f.pt")
    data = (tmp_path / "f.pt").read_bytes()
    (tmp_path / "f.pt").write_bytes(data.replace(b"epoch", b"epocH"))
    with pytest.raises(asyncsave.CorruptCheckpointError, match=r"record 'data\.pkl': expected CRC-32"):
        asyncsave.inspect(tmp_path / "f.pt")
