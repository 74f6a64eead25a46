"""Loading: everything that torch.load can do, checked; and for every bad file a word about what is wrong."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import io
import itertools
import os
import pathlib
import pickle
import socket
import struct
import zipfile
from typing import Any

import pytest
import torch
from equality import assert_same
from gates import Failing, Gated
from images import archive_of, image_of

import asyncsave
from asyncsave.errors import CheckpointNotFoundError, CorruptCheckpointError, FormatVersionError, LoadError
from asyncsave.image.index import read_index
from asyncsave.storage.source import open_source
from asyncsave.storage.system import System

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.ones(3, dtype=torch.int8), "text"], "step": 7}

LARGE = {"large": torch.arange(1 << 19), "small": torch.arange(10), "medium": torch.ones(30_000), "n": 1}
"""4 MiB: read in parallel and past the page cache, in runs of their own and in shared ones."""


class Custom:
    """What weights_only refuses."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom)

    def __hash__(self) -> int:
        return 0


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    """Return a small checkpoint."""
    asyncsave.save(STATE, tmp_path / "f.pt")
    return tmp_path / "f.pt"


@pytest.fixture
def large(tmp_path) -> pathlib.Path:
    """Return a larger one."""
    asyncsave.save(LARGE, tmp_path / "large.pt")
    return tmp_path / "large.pt"


def damage(path: pathlib.Path, record: str, at: int = 0) -> None:
    """Flip a bit of a record."""
    with open_source(str(path)) as source:
        (entry,) = [entry for entry in read_index(source).entries if entry.name == record]
    with path.open("r+b") as file:
        file.seek(entry.offset + at)
        byte = file.read(1)
        file.seek(entry.offset + at)
        file.write(bytes([byte[0] ^ 16]))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("verify", [None, True, False])
@pytest.mark.parametrize("state", [STATE, LARGE], ids=["small", "large"])
def test_a_checkpoint_comes_back(state, verify, mmap, tmp_path):
    """Whether read or mapped, checked or not."""
    asyncsave.save(state, tmp_path / "f.pt")
    assert_same(asyncsave.load(tmp_path / "f.pt", verify=verify, mmap=mmap), state)


@pytest.mark.parametrize("of", [str, pathlib.Path], ids=["str", "Path"])
def test_paths_of_each_kind(of, path, monkeypatch):
    """Strings and path objects, absolute and relative."""
    assert_same(asyncsave.load(of(path)), STATE)
    monkeypatch.chdir(path.parent)
    assert_same(asyncsave.load(of("f.pt")), STATE)


def _to_meta(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
    assert location == "cpu"
    return torch.UntypedStorage(storage.nbytes(), device="meta")


@pytest.mark.parametrize(
    "map_location",
    [
        None,
        "cpu",
        "meta",
        torch.device("cpu"),
        torch.device("meta"),
        {"cpu": "cpu"},
        {"cpu": "meta"},
        {"cuda:0": "cpu"},
        lambda storage, location: storage,
        lambda storage, location: None,
        _to_meta,
    ],
    ids=str,
)
@pytest.mark.parametrize("mmap", [False, True])
def test_map_location_is_torchs(map_location, mmap, path):
    """A name, a device, a table or a function, all with torch's meaning."""
    expected = torch.load(path, map_location, mmap=mmap)
    found = asyncsave.load(path, map_location, mmap=mmap)
    assert found["a"].device == expected["a"].device
    assert_same(found, expected)


def test_map_location_meta_reads_no_tensor(path):
    """Only the pickle is read: damage of a tensor's bytes is not met."""
    damage(path, "data/0")
    assert asyncsave.load(path, "meta")["a"].shape == (2, 3)
    with pytest.raises(CorruptCheckpointError):
        asyncsave.load(path)


def test_an_unknown_map_location_is_a_load_error(path):
    """The message is torch's, with the path."""
    with pytest.raises(LoadError, match="nonsense") as refusal:
        asyncsave.load(path, "nonsense")
    assert refusal.value.path == str(path)


def test_a_device_that_is_not_here(tmp_path):
    """A tensor of a GPU says what torch says where there is none, and map_location brings it home."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    asyncsave.save(torch.arange(3.0), tmp_path / "f.pt")
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        pickled, data = archive.read("archive/data.pkl"), archive.read("archive/data/0")
    pickled = pickled.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    (tmp_path / "f.pt").write_bytes(archive_of(pickled, {"data/0": data}))
    with pytest.raises(LoadError, match="CUDA"):
        asyncsave.load(tmp_path / "f.pt")
    for map_location in ("cpu", {"cuda:0": "cpu"}, torch.device("cpu")):
        assert asyncsave.load(tmp_path / "f.pt", map_location).tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:the checkpoint holds")
@pytest.mark.parametrize("mmap", [False, True])
def test_weights_only_refuses_code_and_says_what_to_do(mmap, tmp_path):
    """The default runs nothing of the file; the message names the type and both ways out."""
    asyncsave.save({"custom": Custom()}, tmp_path / "f.pt")
    with pytest.raises(LoadError, match=r"test_loading\.Custom.*weights_only=False.*add_safe_globals") as refusal:
        asyncsave.load(tmp_path / "f.pt", mmap=mmap)
    assert refusal.value.path == str(tmp_path / "f.pt")
    assert isinstance(refusal.value.__cause__, pickle.UnpicklingError)
    assert asyncsave.load(tmp_path / "f.pt", weights_only=False, mmap=mmap) == {"custom": Custom()}
    with torch.serialization.safe_globals([Custom]):
        assert asyncsave.load(tmp_path / "f.pt", mmap=mmap) == {"custom": Custom()}


def test_a_class_that_is_gone(tmp_path):
    """Code that was there when saving and is not when loading is a LoadError too."""
    pickled = pickle.dumps(Custom(), 2).replace(b"Custom", b"Absent")
    (tmp_path / "f.pt").write_bytes(archive_of(pickled))
    with pytest.raises(LoadError, match="Absent"):
        asyncsave.load(tmp_path / "f.pt", weights_only=False)


def test_what_is_loaded_can_be_written_to(large):
    """Tensors are the caller's own memory, private to this load."""
    found = asyncsave.load(large)
    for name in ("large", "small", "medium"):
        found[name].fill_(1)
    assert_same(asyncsave.load(large), LARGE)


def test_what_is_mapped_is_private(large):
    """With mmap=True writes stay in this process."""
    found = asyncsave.load(large, mmap=True)
    found["large"].fill_(1)
    del found
    assert_same(asyncsave.load(large, verify=True), LARGE)


def test_storages_cannot_be_resized(large):
    """They lie in mappings; torch refuses, instead of moving them behind our back."""
    with pytest.raises(RuntimeError, match="resiz"):
        asyncsave.load(large)["small"].resize_(1000)


def test_a_file_object_is_read_from_where_it_stands(path):
    """BytesIO or an open file, also with something before the checkpoint."""
    data = path.read_bytes()
    assert_same(asyncsave.load(io.BytesIO(data)), STATE)
    behind = io.BytesIO(b"before" + data)
    behind.seek(6)
    assert_same(asyncsave.load(behind, verify=True), STATE)
    with path.open("rb") as file:
        assert_same(asyncsave.load(file), STATE)
        file.seek(0)
        assert_same(asyncsave.load(file, "meta")["step"], 7)


def test_a_large_file_object(large):
    """Its records are checked and cut out in the same way."""
    with large.open("rb") as file:
        assert_same(asyncsave.load(file, verify=True), LARGE)


class Broken(io.RawIOBase):
    """A file object whose disk fails."""

    name = "broken"

    def read(self, nbytes: int = -1) -> bytes:
        """Fail."""
        raise OSError(errno.EIO, "the disk failed")


def _open_for_writing(folder: pathlib.Path) -> Any:
    return (folder / "w").open("wb")


def _open_as_text(folder: pathlib.Path) -> Any:
    (folder / "t").write_text("PK", encoding="utf-8")
    return (folder / "t").open(encoding="utf-8")


def _open_as_text_of_bytes(folder: pathlib.Path) -> Any:
    (folder / "t").write_bytes(b"PK\x03\x04\xff\xff")
    return (folder / "t").open(encoding="utf-8")


def _closed(folder: pathlib.Path) -> Any:
    file = (folder / "w").open("wb+")
    file.close()
    return file


UNREADABLE = {
    "for writing": _open_for_writing,
    "text": _open_as_text,
    "text that is none": _open_as_text_of_bytes,
    "closed": _closed,
    "broken": lambda _: Broken(),
    "StringIO": lambda _: io.StringIO("PK"),
    "no file": lambda _: 5,
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_object_that_cannot_be_read(name, tmp_path):
    """LoadError with the object's name, and no other kind of error."""
    file = UNREADABLE[name](tmp_path)
    try:
        with pytest.raises(LoadError, match="file object") as refusal:
            asyncsave.load(file)
        assert refusal.value.path
    finally:
        if hasattr(file, "close"):
            file.close()


def test_a_file_object_cannot_be_mapped(path):
    """A mapping needs a path; torch says so too."""
    with path.open("rb") as file, pytest.raises(LoadError, match="mmap=True needs a path"):
        asyncsave.load(file, mmap=True)


def _torchs(folder: pathlib.Path, **options: Any) -> pathlib.Path:
    torch.save(STATE, folder / "torch.pt", **options)
    return folder / "torch.pt"


@pytest.mark.parametrize("verify", [None, True, False])
@pytest.mark.parametrize("mmap", [False, True])
def test_files_of_torch(verify, mmap, tmp_path):
    """torch.save's own files are read and checked in the same way."""
    assert_same(asyncsave.load(_torchs(tmp_path), verify=verify, mmap=mmap), STATE)


@pytest.mark.parametrize("verify", [None, False])
def test_files_of_torch_in_the_legacy_format(verify, tmp_path):
    """What torch wrote before version 1.6 goes through torch.load."""
    path = _torchs(tmp_path, _use_new_zipfile_serialization=False)
    assert_same(asyncsave.load(path, verify=verify), STATE)
    with path.open("rb") as file:
        assert_same(asyncsave.load(file, "cpu"), STATE)


def test_the_legacy_format_can_be_neither_mapped_nor_checked(tmp_path):
    """It has no offsets and no checksums, and what was asked for is not left out in silence."""
    path = _torchs(tmp_path, _use_new_zipfile_serialization=False)
    with pytest.raises(LoadError, match=r"legacy format.*mapped"):
        asyncsave.load(path, mmap=True)
    with pytest.raises(LoadError, match=r"no checksums.*verify=True"):
        asyncsave.load(path, verify=True)


@pytest.mark.filterwarnings("ignore:the checkpoint holds")
def test_the_legacy_format_and_weights_only(tmp_path):
    """The same refusal, and the same ways out."""
    torch.save(Custom(), tmp_path / "f.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(LoadError, match=r"Custom.*weights_only=False"):
        asyncsave.load(tmp_path / "f.pt")
    assert asyncsave.load(tmp_path / "f.pt", weights_only=False) == Custom()


def test_a_truncated_legacy_file(tmp_path):
    """It has no checksums, but its end is missed: an error of ours, with torch's inside."""
    path = _torchs(tmp_path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for length in range(1, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(LoadError):
            asyncsave.load(path)


@pytest.fixture
def no_crc():
    """Let torch.save write zeros in place of checksums."""
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def test_files_of_torch_without_checksums(no_crc, tmp_path):
    """They load; verify=True says that it cannot keep its promise, and does not speak of damage."""
    path = _torchs(tmp_path)
    assert_same(asyncsave.load(path), STATE)
    with pytest.raises(LoadError, match=r"no checksums.*verify=True") as refusal:
        asyncsave.load(path, verify=True)
    assert not isinstance(refusal.value, CorruptCheckpointError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archives_are_named(tmp_path):
    """The message says which function loads them."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "f.pt")
    with pytest.raises(LoadError, match=r"TorchScript.*torch\.jit\.load"):
        asyncsave.load(tmp_path / "f.pt")


def _zip_of(*names: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"hello " * 100)
    return buffer.getvalue()


def _safetensors() -> bytes:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


def _safetensors_that_look_like_a_pickle() -> bytes:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(128)
    return struct.pack("<Q", len(header)) + header + bytes(4)


FOREIGN: dict[str, tuple[bytes, str]] = {
    "another zip": (_zip_of("a.txt"), "not a checkpoint: it has no data.pkl"),
    "another zip of two files": (_zip_of("a.txt", "b.txt"), "not a checkpoint: it has no data.pkl"),
    "another zip with folders": (_zip_of("x/a.txt", "y/a.txt", "x/y/b.txt"), "not a checkpoint|damaged"),
    "a compressed zip": (_zip_of("archive/data.pkl", compression=zipfile.ZIP_DEFLATED), "compressed"),
    "an empty zip": (_zip_of(), "damaged|not a checkpoint"),
    "safetensors": (_safetensors(), "not a checkpoint: it begins with"),
    "safetensors like a pickle": (_safetensors_that_look_like_a_pickle(), "cannot rebuild"),
    "text": (b"Hello, this is no checkpoint.\n" * 50, "not a checkpoint: it begins with b'Hell'"),
    "zeros": (bytes(5000), "not a checkpoint: it begins with"),
    "one byte": (b"P", "not a checkpoint"),
    "three bytes": (b"PK\x03", "not a checkpoint"),
    "first bytes only": (b"PK\x03\x04", "truncated"),
    "empty": (b"", "an empty file"),
    "a pickle": (pickle.dumps({"a": 1}), "cannot rebuild"),
    "a tar": (bytes(257) + b"ustar" + bytes(2000), "cannot rebuild"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a checkpoint"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused_by_name(name, tmp_path):
    """What the file is, or begins with, and where; never a bare message of zip or pickle."""
    data, words = FOREIGN[name]
    path = tmp_path / "foreign.pt"
    path.write_bytes(data)
    for options in ({}, {"mmap": True}, {"verify": False}):
        with pytest.raises(LoadError) as refusal:
            asyncsave.load(path, **options)
        assert str(path) in str(refusal.value)
        assert refusal.value.path == str(path)
    with pytest.raises(LoadError, match=words):
        asyncsave.load(path)


def test_a_folder_or_a_fifo_is_refused_and_does_not_hang(tmp_path):
    """An open of a FIFO without a writer would wait for ever."""
    os.mkfifo(tmp_path / "fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("", "fifo", "socket"):
            with pytest.raises(LoadError, match=r"folder|FIFO|cannot read"):
                asyncsave.load(tmp_path / name)
    with pytest.raises(LoadError, match="FIFO, a socket or a device"):
        asyncsave.load("/dev/zero")


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    """Both a LoadError and Python's own FileNotFoundError, with the absolute path."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=str(tmp_path / "absent.pt")) as refusal:
        asyncsave.load("absent.pt")
    assert isinstance(refusal.value, FileNotFoundError)
    with pytest.raises(CheckpointNotFoundError):
        asyncsave.load(tmp_path / "no" / "folder.pt")
    (tmp_path / "dangling.pt").symlink_to("absent.pt")
    with pytest.raises(CheckpointNotFoundError):
        asyncsave.load(tmp_path / "dangling.pt")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("path", ["", "a\0b", "x" * 300, "x/" * 3000])
def test_impossible_paths(path, open_writer, tmp_path):
    """They are LoadErrors too, also while a save is under way, which is looked for first."""
    with pytest.raises(LoadError):
        asyncsave.load(path)
    gate = Gated("fsync")
    open_writer(system=gate).save(1, tmp_path / "other.pt")
    gate.arrival()
    with pytest.raises(LoadError):
        asyncsave.load(path)


def test_no_permission(path):
    """The system's reason, and the path."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.chmod(0)
    with pytest.raises(LoadError, match="Permission denied"):
        asyncsave.load(path)


def test_a_file_that_may_not_be_read(path):
    """The same where root runs the tests, by a system that says no."""
    system = Failing("open", errno.EACCES)
    with pytest.raises(LoadError, match="Permission denied"), open_source(str(path), system=system):
        pytest.fail("it was opened")


def test_a_failing_disk(path):
    """An error while reading is a LoadError with the system's reason."""
    system = Failing("pread_into", errno.EIO, forever=True)
    with (
        pytest.raises(LoadError, match="Input/output error") as refusal,
        open_source(str(path), system=system) as source,
    ):
        source.read(0, 10)
    assert refusal.value.path == str(path)


@pytest.mark.parametrize("nbytes", [1, 4, 100, 600])
def test_overwritten_first_bytes(nbytes, path):
    """Told from a file that was never a checkpoint: its end still is one."""
    with path.open("r+b") as file:
        file.write(b"\0" * nbytes)
    with pytest.raises(CorruptCheckpointError, match=r"first bytes are overwritten|data\.pkl"):
        asyncsave.load(path)


def test_overwritten_last_bytes(path):
    """A file of the right length whose end is gone."""
    nbytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(-30, os.SEEK_END)
        file.write(b"\0" * 30)
    with pytest.raises(CorruptCheckpointError, match=f"{nbytes} bytes|the seal"):
        asyncsave.load(path)


def test_a_truncated_file(large):
    """What should be there, what is there, and what to do."""
    nbytes = large.stat().st_size
    os.truncate(large, nbytes // 2)
    with pytest.raises(CorruptCheckpointError, match="older checkpoint") as refusal:
        asyncsave.load(large)
    assert refusal.value.expected == f"{nbytes} bytes"
    assert refusal.value.found == f"{nbytes // 2} bytes"


@pytest.mark.parametrize("record", ["data.pkl", "version", "byteorder", "data/0", "data/1", "data/2"])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_flipped_bit_names_its_record(record, mmap, large):
    """In the pickle, in a small record or in a large one; with mmap=True if verify=True."""
    damage(large, record)
    with pytest.raises(CorruptCheckpointError, match=record) as refusal:
        asyncsave.load(large, mmap=mmap, verify=True if mmap else None)
    assert refusal.value.record == record
    assert len(refusal.value.expected) == len(refusal.value.found) == 8


@pytest.mark.parametrize("at", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 22) - 1])
def test_a_flipped_bit_anywhere_in_a_large_record(at, large):
    """Its first byte, its last, and those around the borders of blocks."""
    damage(large, "data/0", at)
    with pytest.raises(CorruptCheckpointError, match="data/0"):
        asyncsave.load(large)


def test_a_flipped_bit_in_padding_is_met_by_verify_only(large):
    """No tensor is touched by it; verify=True looks at every byte."""
    with open_source(str(large)) as source:
        entries = read_index(source).entries
    gap = next(b.offset - 1 for a, b in itertools.pairwise(entries) if b.offset - a.offset - a.nbytes > 100)
    with large.open("r+b") as file:
        file.seek(gap)
        file.write(b"\x01")
    assert_same(asyncsave.load(large), LARGE)
    with pytest.raises(CorruptCheckpointError, match="container") as refusal:
        asyncsave.load(large, verify=True)
    assert refusal.value.record is None


@pytest.mark.parametrize("mmap", [False, True])
def test_verify_false_never_checks(mmap, path):
    """Nor does mmap=True by itself: what is not read cannot be checked."""
    damage(path, "data/0")
    expected = {**STATE, "a": STATE["a"].clone()}
    expected["a"].view(torch.uint8)[0, 0] ^= 16
    assert_same(asyncsave.load(path, verify=False, mmap=mmap), expected)
    if mmap:
        assert_same(asyncsave.load(path, mmap=True), expected)


def test_a_record_of_the_wrong_size(path):
    """A pickle that asks for more than its record holds is damage, whatever the checksums say."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    path.write_bytes(image_of([(n, d[:-1] if n.endswith("data/0") else d) for n, d in records])[0])
    with pytest.raises(CorruptCheckpointError, match=r"data/0.*23 bytes.*need 24"):
        asyncsave.load(path)
    path.write_bytes(image_of([(n, d) for n, d in records if not n.endswith("data/1")])[0])
    with pytest.raises(CorruptCheckpointError, match=r"no record 'data/1'"):
        asyncsave.load(path)


def test_a_newer_format_asks_for_an_update(path):
    """FormatVersionError is a LoadError of its own."""
    path.write_bytes(path.read_bytes().replace(b"asyncsave 1 ", b"asyncsave 7 "))
    with pytest.raises(FormatVersionError, match="version 7"):
        asyncsave.load(path)


@pytest.mark.usefixtures("backend")
def test_loading_waits_for_a_save_under_way(open_writer, tmp_path):
    """A file that this process is writing is loaded as it will be, never as it was."""
    path = tmp_path / "f.pt"
    asyncsave.save("old", path)
    (tmp_path / "link.pt").symlink_to("f.pt")
    gate = Gated("fsync")
    handle = open_writer(system=gate).save("new", path)
    gate.arrival()
    with concurrent.futures.ThreadPoolExecutor(3) as others:
        loading = [others.submit(asyncsave.load, name) for name in (path, tmp_path / "link.pt")]
        verifying = others.submit(asyncsave.verify, path)
        while len(handle._waiters) < 3 and not any(each.done() for each in (*loading, verifying)):
            os.sched_yield()
        gate.release()
        assert [each.result() for each in loading] == ["new", "new"]
        assert verifying.result().ok


@pytest.mark.usefixtures("backend")
def test_loading_another_file_does_not_wait(open_writer, path, tmp_path):
    """Only the file that is being written is waited for."""
    gate = Gated("fsync")
    open_writer(system=gate).save("new", tmp_path / "other.pt")
    gate.arrival()
    assert_same(asyncsave.load(path), STATE)


class GatedAndFailing(Gated):
    """A disk that takes its time, and then fails."""

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = super()._call(name, *args, **kwargs)
        if name == self._method:
            raise OSError(errno.EIO, "the disk failed")
        return result


@pytest.mark.usefixtures("backend")
def test_loading_while_a_save_fails_gives_the_old_file(open_writer, tmp_path):
    """The old checkpoint is untouched, and loading says nothing of the failure: the handle does."""
    path = tmp_path / "f.pt"
    asyncsave.save("old", path)
    gate = GatedAndFailing("fsync")
    handle = open_writer(system=gate).save("new", path)
    gate.arrival()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        loading = other.submit(asyncsave.load, path)
        while not handle._waiters and not loading.done():
            os.sched_yield()
        gate.release()
        assert loading.result() == "old"
    assert isinstance(handle.exception(), asyncsave.SaveError)


def test_the_portable_path_gives_the_same(tmp_path, monkeypatch):
    """Where there is no O_DIRECT, files are written and read through the page cache, byte for byte the same."""
    direct = asyncsave.save(LARGE, tmp_path / "direct.pt")
    monkeypatch.delattr(os, "O_DIRECT")
    assert_same(asyncsave.load(tmp_path / "direct.pt", verify=True), LARGE)
    portable = asyncsave.save(LARGE, tmp_path / "portable.pt")
    assert portable.digest == direct.digest
    assert (tmp_path / "portable.pt").read_bytes() == (tmp_path / "direct.pt").read_bytes()
    assert_same(asyncsave.load(tmp_path / "portable.pt"), LARGE)
    assert asyncsave.verify(tmp_path / "portable.pt").ok


def test_fewer_system_calls_than_linux_has(large, monkeypatch):
    """Nor are posix_fadvise and huge pages needed."""
    monkeypatch.delattr(os, "posix_fadvise")
    assert_same(asyncsave.load(large), LARGE)


class NoDirectReads(System):
    """A file system that takes the flag, and then refuses every direct read."""

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Refuse, as the kernel does where memory or offset do not suit it."""
        if os.get_inheritable(fd) or self._is_direct(fd):
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().pread_into(fd, buffer, offset)

    @staticmethod
    def _is_direct(fd: int) -> bool:
        flags = pathlib.Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").split()[3]
        return bool(int(flags, 8) & os.O_DIRECT)


@pytest.mark.skipif(not pathlib.Path("/proc/self/fdinfo").exists(), reason="the flags of a file are read from /proc")
def test_a_file_system_that_refuses_direct_reads(large):
    """The same blocks go through the page cache."""
    with open_source(str(large), system=NoDirectReads()) as source:
        buffer = memoryview(bytearray(8192))
        source.fill(buffer, 4096)
    assert bytes(buffer) == large.read_bytes()[4096 : 4096 + 8192]


def test_too_little_memory(template, tmp_path):
    """A checkpoint that does not fit is a LoadError with its size, and not a MemoryError."""
    asyncsave.save(torch.zeros(80 << 20, dtype=torch.uint8), tmp_path / "f.pt")
    result = template.run(
        """
        import re, resource, sys
        import asyncsave
        used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), resource.RLIM_INFINITY))
        try:
            asyncsave.load(sys.argv[1])
        except asyncsave.LoadError as error:
            print(error)
        """,
        tmp_path / "f.pt",
    )
    assert "not enough memory" in result.stdout, result
    assert "83,8" in result.stdout
