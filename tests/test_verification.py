"""Verifying: a report for whatever a file holds, from its bytes alone."""

from __future__ import annotations

import concurrent.futures
import io
import os
import pathlib
import pickle
import zipfile
import zlib
from typing import Any

import pytest
import torch
from gates import Counting, Gated
from images import archive_of, image_of

import asyncsave
from asyncsave.errors import CheckpointNotFoundError, LoadError
from asyncsave.image.index import read_index
from asyncsave.storage.source import open_source
from asyncsave.verification import check

STATES: dict[str, Any] = {
    "small": {"a": torch.arange(5), "b": "x"},
    "large": {"a": torch.arange(3 << 20), "b": torch.ones(3), "c": torch.zeros(300_000)},
    "many": [torch.full((3,), n) for n in range(500)],
    "empty storages": [torch.empty(0), torch.ones(2), torch.empty(0)],
    "nothing": None,
}


@pytest.mark.parametrize("name", STATES)
def test_a_whole_file_is_right(name, tmp_path):
    """The report counts bytes and records, and the CRC-32 of all bytes is the digest that the save gave."""
    result = asyncsave.save(STATES[name], tmp_path / "f.pt")
    report = asyncsave.verify(tmp_path / "f.pt")
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        records = len(archive.infolist())
    assert report == asyncsave.VerifyReport(str(tmp_path / "f.pt"), ok=True, nbytes=result.nbytes, records=records)
    with open_source(str(tmp_path / "f.pt")) as source:
        _, found = check(source)
    assert f"crc32:{found:08x}" == result.digest


@pytest.mark.parametrize("name", STATES)
def test_torchs_own_files_are_right(name, tmp_path):
    """Their records carry checksums too, which torch itself never looks at."""
    torch.save(STATES[name], tmp_path / "f.pt")
    report = asyncsave.verify(tmp_path / "f.pt")
    assert report.ok
    assert report.problems == ()
    assert report.nbytes == (tmp_path / "f.pt").stat().st_size


@pytest.mark.parametrize("save", [torch.save, asyncsave.save], ids=["torch", "asyncsave"])
def test_every_damaged_record_is_reported(save, tmp_path):
    """All of them, each with the checksum that was expected and the one that was found."""
    save(STATES["large"], tmp_path / "f.pt")
    with open_source(str(tmp_path / "f.pt")) as source:
        entries = {entry.name: entry for entry in read_index(source).entries}
    data = bytearray((tmp_path / "f.pt").read_bytes())
    expected = []
    for name in ("data.pkl", "data/0", "data/2"):
        entry = entries[name]
        data[entry.offset + entry.nbytes - 1] ^= 1
        found = zlib.crc32(data[entry.offset : entry.offset + entry.nbytes])
        expected.append(asyncsave.Problem(name, "checksum", f"{entry.crc:08x}", f"{found:08x}"))
    (tmp_path / "f.pt").write_bytes(data)
    report = asyncsave.verify(tmp_path / "f.pt")
    assert not report.ok
    assert sorted(report.problems, key=repr) == sorted(expected, key=repr)


def test_damage_between_the_records_is_reported(tmp_path):
    """Headers and padding are covered by the seal."""
    asyncsave.save(STATES["large"], tmp_path / "f.pt")
    with (tmp_path / "f.pt").open("r+b") as file:
        file.seek(4 + 20)
        file.write(b"\x99")
    (problem,) = asyncsave.verify(tmp_path / "f.pt").problems
    assert (problem.record, problem.kind) == (None, "container")
    assert problem.expected != problem.found


def test_a_truncated_file_is_reported(tmp_path):
    """Both sizes are in the report."""
    nbytes = asyncsave.save(STATES["small"], tmp_path / "f.pt").nbytes
    os.truncate(tmp_path / "f.pt", nbytes - 1)
    (problem,) = asyncsave.verify(tmp_path / "f.pt").problems
    assert problem == asyncsave.Problem(None, "container", f"{nbytes} bytes", f"{nbytes - 1} bytes")


def _compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    return buffer.getvalue()


def _legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save(STATES["small"], buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _unchecked() -> bytes:
    torch.serialization.set_crc32_options(False)
    try:
        buffer = io.BytesIO()
        torch.save(STATES["small"], buffer)
    finally:
        torch.serialization.set_crc32_options(True)
    return buffer.getvalue()


def _newer() -> bytes:
    return image_of([("archive/data.pkl", b"N.")])[0].replace(b"asyncsave 1 ", b"asyncsave 9 ")


OTHERS = {
    "empty": (lambda: b"", "container", "an empty file"),
    "text": (lambda: b"hello", "foreign", "b'hell'"),
    "three bytes": (lambda: b"PK\x03", "foreign", "PK"),
    "only the beginning": (lambda: b"PK\x03\x04", "container", "4 bytes"),
    "compressed": (_compressed, "foreign", "compressed"),
    "legacy": (_legacy, "no checksums", "legacy format"),
    "a plain pickle": (lambda: pickle.dumps(1), "no checksums", "legacy format"),
    "without checksums": (_unchecked, "no checksums", "zeros"),
    "newer": (_newer, "foreign", "version 9"),
    "zeros": (lambda: bytes(20 << 20), "foreign", r"b'\x00"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_a_file_holds_there_is_a_report(name, tmp_path):
    """Never an error: one problem, with what was expected and what was found."""
    make, kind, found = OTHERS[name]
    (tmp_path / "f.pt").write_bytes(make())
    report = asyncsave.verify(tmp_path / "f.pt")
    assert not report.ok
    (problem,) = report.problems
    assert problem.kind == kind
    assert problem.record is None
    assert problem.expected
    assert found in problem.found
    assert report.nbytes == (tmp_path / "f.pt").stat().st_size


def test_nothing_is_unpickled(tmp_path):
    """A pickle that would run code is bytes like others."""
    evil = b"cos\n_exit\n(I1\ntR."
    (tmp_path / "f.pt").write_bytes(archive_of(evil))
    assert asyncsave.verify(tmp_path / "f.pt").ok
    with pytest.raises(LoadError, match=r"blocked|not an allowed|Unsupported"):
        asyncsave.load(tmp_path / "f.pt")


def test_what_cannot_be_read_at_all_is_an_error(tmp_path, monkeypatch):
    """A missing file, a folder, a FIFO: there is nothing to report on, and nothing hangs."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CheckpointNotFoundError, match="absent"):
        asyncsave.verify(tmp_path / "absent.pt")
    with pytest.raises(LoadError, match="a folder"):
        asyncsave.verify(tmp_path)
    with pytest.raises(LoadError, match="FIFO"):
        asyncsave.verify(tmp_path / "fifo")


def test_the_path_of_a_report_is_absolute(tmp_path, monkeypatch):
    """As it was at the call."""
    asyncsave.save(1, tmp_path / "f.pt")
    monkeypatch.chdir(tmp_path)
    assert asyncsave.verify("f.pt").path == str(tmp_path / "f.pt")
    assert asyncsave.verify(pathlib.Path("f.pt")).ok


@pytest.mark.usefixtures("backend")
def test_a_file_that_is_being_written_is_waited_for(open_writer, tmp_path):
    """The report is of the new file."""
    asyncsave.save("old", tmp_path / "f.pt")
    gate = Gated("fsync")
    handle = open_writer(system=gate).save(STATES["large"], tmp_path / "f.pt")
    gate.arrival()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        verifying = other.submit(asyncsave.verify, tmp_path / "f.pt")
        while not handle._waiters and not verifying.done():
            os.sched_yield()
        gate.release()
        assert verifying.result().nbytes == handle.result().nbytes


def test_every_byte_is_read_once(tmp_path):
    """Not twice (it would take twice as long), and not less; the directory and the end are read besides."""
    nbytes = asyncsave.save(STATES["large"], tmp_path / "f.pt").nbytes
    system = Counting()
    with open_source(str(tmp_path / "f.pt"), system=system) as source:
        report, _ = check(source)
    assert report.ok
    assert nbytes <= system.nbytes < nbytes + 200_000
