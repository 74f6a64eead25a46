"""File objects as targets: written from front to back, and refused where they cannot be."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from saves import PATIENCE, Refusing, busy, number_in, state

from asyncsave import (
    OptionError,
    SaveError,
)

pytestmark = pytest.mark.usefixtures("backend")


class Nibbling(io.RawIOBase):
    """A raw file that takes a few bytes at a time."""

    def __init__(self):
        super().__init__()
        self.data = bytearray()

    def writable(self):
        """Say yes."""
        return True

    def write(self, data):
        """Take some of it."""
        taken = bytes(data[:777])
        self.data += taken
        return len(taken)


def test_bytes_io(open_writer):
    """A BytesIO gets the whole checkpoint, which is not durable."""
    sink = io.BytesIO()
    handle = open_writer().save(state(4), sink)
    result = handle.result(PATIENCE)
    assert not result.durable
    assert handle.status == "written"
    assert result.path == "BytesIO"
    assert result.nbytes == len(sink.getvalue())
    sink.seek(0)
    assert torch.load(sink)["number"] == 4


@pytest.mark.parametrize("buffering", [-1, 0])
def test_real_file(open_writer, tmp_path, buffering):
    """An open file is written from where it stands, and flushed."""
    with (tmp_path / "1").open("wb", buffering=buffering) as sink:
        result = open_writer().save(state(5), sink).result(PATIENCE)
        assert (tmp_path / "1").stat().st_size == result.nbytes
        assert result.path == str(tmp_path / "1")
    assert number_in(tmp_path / "1") == 5


def test_the_order_of_files_and_file_objects(open_writer, tmp_path, backend):
    """A thread writes both in the order of the calls. A file object cannot go to a writer process: it goes its own way.

    Among themselves file objects keep their order.
    """
    gate, writer, writing, _ = busy(open_writer, tmp_path, slots=4)
    sinks = [io.BytesIO(), io.BytesIO()]
    first, second = (writer.save(state(number), sink) for number, sink in enumerate(sinks, 5))
    if backend == "process":
        assert second.result(PATIENCE).nbytes
        assert first.done()
        assert not writing.done()
    assert first.done() is (backend == "process")
    gate.release()
    assert second.result(PATIENCE).nbytes
    assert first.done()
    assert writing.done() or backend == "process"
    for number, sink in enumerate(sinks, 5):
        assert torch.load(io.BytesIO(sink.getvalue()))["number"] == number


def test_short_writes_of_a_raw_file(open_writer):
    """A file object that takes less than it is given is given the rest."""
    sink = Nibbling()
    open_writer().save(state(6), sink).result(PATIENCE)
    assert torch.load(io.BytesIO(sink.data))["number"] == 6


def test_a_file_object_that_raises(open_writer, tmp_path):
    """Whatever ``write`` raises comes as a SaveError with the cause; the writer goes on."""
    writer = open_writer()
    handle = writer.save(state(), Refusing("full"))
    with pytest.raises(SaveError, match="ValueError: full") as raised:
        handle.result(PATIENCE)
    assert isinstance(raised.value.__cause__, ValueError)
    assert (raised.value.path, raised.value.outcome) == ("full", "incomplete")
    assert writer.save({"x": torch.zeros(1 << 20)}, tmp_path / "larger").result(PATIENCE).durable
    writer.close()
    assert handle.status == "failed"


def test_a_file_object_that_takes_nothing(open_writer):
    """A ``write`` that returns None or 0 is an error, not an endless loop."""
    sink = Refusing("stuck")
    sink.write = lambda _: None
    with pytest.raises(SaveError, match="took nothing"):
        open_writer().save(state(), sink).result(PATIENCE)


def _closed(_):
    sink = io.BytesIO()
    sink.close()
    return sink


def _read_only(path):
    path.write_bytes(b"")
    return path.open("rb")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_closed, "closed"),
        (_read_only, "not open for writing"),
        (lambda _: io.StringIO(), "binary mode"),
        (lambda path: path.open("w"), "binary mode"),
    ],
    ids=["closed", "read-only", "StringIO", "text"],
)
def test_file_objects_that_cannot_take_bytes(open_writer, tmp_path, make, says):
    """A file object that is no writable binary one is refused by the call."""
    with make(tmp_path / "1") if says != "closed" else contextlib.nullcontext(make(tmp_path)) as sink:
        with pytest.raises(SaveError, match=says) as raised:
            open_writer().save(state(), sink)
        assert raised.value.phase == "target"


@pytest.mark.parametrize("f", [7, None, b"path", {"x": 1}], ids=repr)
def test_what_is_neither_path_nor_file(open_writer, f):
    """What is neither a path nor a file object is a wrong argument, with a word on the order of the two."""
    with pytest.raises(OptionError, match=r"f must be a path .*the object to save comes first"):
        open_writer().save(state(), f)
