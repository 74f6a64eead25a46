"""The file is a zip like any other: Python's zipfile, Info-ZIP and torch all read it, also where it is huge."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import pickle
import re
import shutil
import subprocess
import zipfile
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import image_of

import asyncsave
from asyncsave.image.crc import combine, crc32
from asyncsave.image.index import read_index
from asyncsave.image.layout import UINT16, UINT32, plan
from asyncsave.image.torchzip import seal
from asyncsave.staging.capture import capture
from asyncsave.storage.source import MemorySource, open_source

steady = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@steady
@given(
    contents=st.lists(st.binary(max_size=500), max_size=20),
    large=st.lists(st.integers(65_000, 66_000), max_size=3),
)
def test_a_sealed_image_is_a_zip_and_its_digest_is_true(contents, large, tmp_path_factory):
    """Every record is found with its bytes and CRC, and the digest is the CRC-32 of the whole file."""
    contents = contents + [bytes(nbytes) for nbytes in large]
    records = [(f"archive/data/{number}", data) for number, data in enumerate(contents)]
    data, digest = image_of(records)
    assert digest == f"crc32:{zlib.crc32(data):08x}"
    path = tmp_path_factory.getbasetemp() / "image.zip"
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert [(info.filename, archive.read(info)) for info in archive.infolist()] == records
        assert re.fullmatch(rb"asyncsave 1 image=[0-9a-f]{8} index=[0-9a-f]{8}", archive.comment)
        image_crc = int(archive.comment[18:26], 16)
    assert image_crc == zlib.crc32(data[: -len(archive.comment)])
    assert [entry.name for entry in read_index(MemorySource("image", data)).entries] == [
        name.partition("/")[2] for name, _ in records
    ]


def test_an_image_without_records_is_an_empty_zip(tmp_path):
    """The least that a zip can be."""
    data, _ = image_of([])
    (tmp_path / "empty.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "empty.zip") as archive:
        assert archive.infolist() == []


STATES = {
    "small": lambda: {"a": torch.arange(5), "b": "x"},
    "nothing": lambda: None,
    "large": lambda: {"a": torch.arange(1 << 18), "b": torch.ones(3), "c": torch.zeros(100_000)},
    "many": lambda: [torch.full((3,), n) for n in range(500)],
}


@pytest.mark.parametrize("name", STATES)
def test_every_zip_tool_reads_a_checkpoint(name, tmp_path):
    """Python and Info-ZIP find no error, and the digest that the result names is the file's."""
    path = tmp_path / "ü-€ 名.pt"
    result = asyncsave.save(STATES[name](), path)
    data = path.read_bytes()
    assert result.nbytes == len(data)
    assert result.digest == f"crc32:{zlib.crc32(data):08x}"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {"archive/data.pkl", "archive/version", "archive/byteorder"} <= set(archive.namelist())
    _unzip(path)


def _unzip(path) -> None:
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tqq", path], capture_output=True, check=False, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_unzip_is_here():
    """The checks by Info-ZIP above are silent where it is missing; this says so."""
    if shutil.which("unzip") is None:
        pytest.skip("no unzip on this machine: its opinion of our files is not heard")


def test_storages_begin_on_page_boundaries_in_the_file(tmp_path):
    """Large records can be read past the page cache, straight into aligned memory."""
    asyncsave.save([torch.zeros(1 << 16), torch.zeros(3)], tmp_path / "f.pt")
    with open_source(str(tmp_path / "f.pt")) as source:
        offsets = {entry.name: entry.offset for entry in read_index(source).entries}
    assert offsets["data/0"] % 4096 == 0
    assert offsets["data/1"] % 64 == 0


def test_more_records_than_sixteen_bits_count(tmp_path):
    """65,600 storages are really written, and everybody reads them."""
    count = 65_600
    base = torch.arange(count)
    path = tmp_path / "many.pt"
    asyncsave.save([base[n].clone() for n in range(count)], path)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == count + 3
        assert archive.testzip() is None
    _unzip(path)
    assert asyncsave.verify(path).records == count + 3
    for load in (torch.load, asyncsave.load):
        assert torch.stack(load(path, weights_only=False)).equal(base)


@contextlib.contextmanager
def _sparse(path, nbytes: int):
    """Map a file of holes, so that only what is written takes room."""
    with path.open("w+b") as file:
        file.truncate(nbytes)
        with mmap.mmap(file.fileno(), nbytes) as mapping:
            yield mapping


def _crc_of_zeros(nbytes: int) -> int:
    crc, block, length = 0, crc32(b"\0"), 1
    while nbytes:
        if nbytes & 1:
            crc = combine(crc, block, length)
        block, length, nbytes = combine(block, block, length), 2 * length, nbytes >> 1
    return crc


SIZES_BEYOND = {
    "a record of 4 GiB": [UINT32, 40, 70_000],
    "a record just below": [UINT32 - 1, 40, 70_000],
    "the sum only": [3 << 30, 2 << 30, 40],
    "a record of 5 GiB behind another": [40, 5 << 30, 70_000],
}


@pytest.mark.parametrize("name", SIZES_BEYOND)
def test_files_beyond_four_gibibytes(name, tmp_path):
    """Sizes and offsets of 64 bits, in a real file (of holes): zipfile, torch and asyncsave agree on it."""
    sizes = SIZES_BEYOND[name]
    state = []
    for number, nbytes in enumerate(sizes):
        storage = torch.UntypedStorage.from_file(str(tmp_path / f"{number}.raw"), shared=True, nbytes=nbytes)
        state.append(torch.empty(0, dtype=torch.uint8).set_(storage))
    captured = capture(state, pickle_module=pickle, pickle_protocol=2, compact=False)
    version, order = b"3\n", b"little"
    layout = plan(
        [("archive/data.pkl", len(captured.pickle)), ("archive/version", 2), ("archive/byteorder", 6)]
        + [(f"archive/data/{number}", nbytes) for number, nbytes in enumerate(sizes)]
    )
    crcs = [crc32(captured.pickle), crc32(version), crc32(order), *map(_crc_of_zeros, sizes)]
    path = tmp_path / "huge.pt"
    with _sparse(path, layout.nbytes) as mapping:
        for record, data in zip(layout.records, (captured.pickle, version, order), strict=False):
            mapping[record.offset : record.offset + record.nbytes] = data
        with memoryview(mapping) as image:
            seal(image, layout, crcs)
    assert path.stat().st_blocks * 512 < 1 << 20, "it is made of holes"
    with zipfile.ZipFile(path) as archive:
        found = [(info.filename, info.header_offset, info.file_size, info.CRC) for info in archive.infolist()]
        assert archive.read("archive/data/2") == bytes(sizes[2])
    assert found == [(r.name, r.header_offset, r.nbytes, crc) for r, crc in zip(layout.records, crcs, strict=True)]
    with open_source(str(path)) as source:
        entries = read_index(source).entries
    assert [(e.offset, e.nbytes, e.crc) for e in entries] == [
        (r.offset, r.nbytes, crc) for r, crc in zip(layout.records, crcs, strict=True)
    ]
    for load in (torch.load, asyncsave.load):
        tensors = load(path, mmap=True)
        assert [tensor.numel() for tensor in tensors] == sizes
        assert tensors[2].eq(0).all()
    if name == "the sum only":
        assert asyncsave.verify(path).ok, "all of its 5 GiB were read"


@pytest.mark.parametrize("count", [UINT16 - 4, UINT16 - 3, UINT16 - 2])
def test_counts_around_sixteen_bits(count, tmp_path):
    """65,534, 65,535 and 65,536 records: the last number of the old kind, and the first ones of the new."""
    names = itertools.chain(["archive/data.pkl"], (f"archive/data/{n}" for n in range(count + 2)))
    data, _ = image_of([(name, b"") for name in names])
    (tmp_path / "f.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "f.zip") as archive:
        assert len(archive.infolist()) == count + 3
    assert len(read_index(MemorySource("f", data)).entries) == count + 3
