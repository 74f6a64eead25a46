"""Reading a directory back: right where the file is, and never fooled, hung or crashed where it is not."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zipfile
import zlib

import pytest
import torch
from equality import difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import archive_of

import asyncsave
from asyncsave.errors import AsyncSaveError, CorruptCheckpointError, FormatVersionError, LoadError
from asyncsave.image.index import Index, is_zip, read_index
from asyncsave.storage.source import MemorySource
from asyncsave.verification import check

steady = settings(
    derandomize=True, database=None, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)

STATE = {"weight": torch.arange(5.0), "flags": torch.tensor([1, 0, 1], dtype=torch.bool), "name": "x", "step": 3}


def ours() -> bytes:
    """Return a small checkpoint of asyncsave."""
    buffer = io.BytesIO()
    asyncsave.save(STATE, buffer)
    return buffer.getvalue()


def theirs() -> bytes:
    """Return the same of torch."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Return both, made once."""
    made = {"ours": ours(), "theirs": theirs()}
    asyncsave.shutdown()
    return made


def source(data: bytes) -> MemorySource:
    """Return what the index is read from."""
    return MemorySource("memory", data)


def outcome(data: bytes) -> str:
    """Load and verify; say what came of it. Whatever is not of this package is raised."""
    try:
        report, _ = check(source(data))
        verified = report.ok
    except AsyncSaveError:
        verified = False
    try:
        found = asyncsave.load(io.BytesIO(data))
    except AsyncSaveError:
        loaded = "refused"
    else:
        loaded = "right" if difference(found, STATE) is None else "WRONG"
    return f"{loaded}, {'verified' if verified else 'not verified'}"


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_index_is_what_zipfile_says(kind, files):
    """Names without the folder, offsets of the bytes themselves, and their CRCs, in the file's order."""
    index = read_index(source(files[kind]))
    with zipfile.ZipFile(io.BytesIO(files[kind])) as archive:
        expected = [(info.filename.partition("/")[2], archive.read(info), info.CRC) for info in archive.infolist()]
    found = [(e.name, files[kind][e.offset : e.offset + e.nbytes], e.crc) for e in index.entries]
    assert sorted(found) == sorted(expected)
    assert [e.offset for e in index.entries] == sorted(e.offset for e in index.entries)
    assert all(zlib.crc32(data) == crc for _, data, crc in found)
    assert index.checksums
    assert (index.image_crc is None) is (kind == "theirs")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("count", [1, 40])
def test_the_index_of_larger_files_of_torch(count, large, tmp_path):
    """torch.save's files of any size have the same records for torch's reader and for ours."""
    path = str(tmp_path / "f.pt")
    torch.save([torch.full((1 << 17 if large else 7,), n) for n in range(count)], path)
    data = (tmp_path / "f.pt").read_bytes()
    reader = torch._C.PyTorchFileReader(path)
    names = {name for name in reader.get_all_records() if not name.startswith(".data")}
    index = read_index(source(data))
    assert names <= {entry.name for entry in index.entries}
    for entry in index.entries:
        if entry.name in names:
            assert reader.get_record_offset(entry.name) == entry.offset


def test_a_file_that_was_written_without_checksums_says_so(files, tmp_path):
    """Zeros are no checksums: verify must not call them right, nor wrong."""
    torch.serialization.set_crc32_options(False)
    try:
        data = theirs()
    finally:
        torch.serialization.set_crc32_options(True)
    assert not read_index(source(data)).checksums
    report, _ = check(source(data))
    assert [problem.kind for problem in report.problems] == ["no checksums"]
    assert difference(asyncsave.load(io.BytesIO(data)), STATE) is None


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_every_truncation_is_known(kind, files):
    """Whatever length a file is cut to, load refuses it and verify does not call it right."""
    data = files[kind]
    for length in range(len(data)):
        assert outcome(data[:length]) == "refused, not verified", length


def test_a_truncated_file_says_how_long_it_should_be(files):
    """Both sizes are in the message, wherever the first record is whole."""
    data = files["ours"]
    with pytest.raises(CorruptCheckpointError, match=rf"expected {len(data)} bytes, found {len(data) - 1} bytes"):
        read_index(source(data[:-1]))


def test_every_flipped_bit_of_ours_is_known_to_verify(files):
    """Data, headers, padding, directory, end and seal: verify knows of every changed bit, and load is never wrong."""
    data = files["ours"]
    for position in range(len(data)):
        for bit in (1, 1 << position % 8, 0x80):
            damaged = bytearray(data)
            damaged[position] ^= bit
            assert outcome(bytes(damaged)) in ("refused, not verified", "right, not verified"), (position, bit)


def test_every_flipped_bit_of_torchs_is_harmless(files):
    """Where torch's format has no checksum a flip may go unseen, but then the state is whole."""
    data = files["theirs"]
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        assert "WRONG" not in outcome(bytes(damaged)), position


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_flipped_bit_in_a_record_names_it(kind, files):
    """The error says which record, what was expected and what was found; verify says the same."""
    data = files[kind]
    for entry in read_index(source(data)).entries:
        damaged = bytearray(data)
        damaged[entry.offset + entry.nbytes // 2] ^= 4
        found = zlib.crc32(damaged[entry.offset : entry.offset + entry.nbytes])
        with pytest.raises(CorruptCheckpointError) as refusal:
            asyncsave.load(io.BytesIO(damaged))
        error = refusal.value
        assert (error.record, error.expected, error.found) == (entry.name, f"{entry.crc:08x}", f"{found:08x}")
        assert repr(entry.name) in str(error)
        (problem,) = check(source(bytes(damaged)))[0].problems
        assert (problem.record, problem.kind) == (entry.name, "checksum")
        assert (problem.expected, problem.found) == (error.expected, error.found)


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """A file that was overwritten, cut, stretched or stirred, mostly where its directory is."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        directory = data.rfind(b"PK\x01\x02", 0, len(data)) if draw(st.booleans()) else 0
        at = draw(st.integers(max(0, min(directory - 400, len(changed) - 1)), max(0, len(changed) - 1)))
        kind = draw(st.sampled_from(["bytes", "insert", "delete", "number", "repeat", "signature"]))
        if kind == "bytes":
            new = draw(st.binary(min_size=1, max_size=8))
            changed[at : at + len(new)] = new
        elif kind == "insert":
            changed[at:at] = draw(st.binary(max_size=40))
        elif kind == "delete":
            del changed[at : at + draw(st.integers(1, 200))]
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]))
            changed[at : at + 4] = struct.pack("<I", number)
        elif kind == "repeat":
            changed[at:at] = changed[at : at + draw(st.integers(1, 300))]
        else:
            signature = draw(
                st.sampled_from([b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04", b"PK\x06\x06", b"PK\x06\x07"])
            )
            changed[at : at + 4] = signature
    return bytes(changed)


@steady
@given(draws=st.data(), kind=st.sampled_from(["ours", "theirs"]))
def test_mutated_files_raise_only_errors_of_this_package(draws, kind, files):
    """Whatever the damage, the error is ours, and a state that does come out is the right one."""
    data = draws.draw(mutations(files[kind]))
    assert "WRONG" not in outcome(data)


@steady
@given(data=st.binary(max_size=300), head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80"]))
def test_garbage_raises_only_errors_of_this_package(data, head):
    """Random bytes, also behind the first bytes of a checkpoint of either format."""
    assert outcome(head + data) == "refused, not verified"


ENTRY = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")

numbers = st.one_of(
    st.integers(0, 0xFFFFFFFF), st.integers(0, 600), st.sampled_from([0, 1, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
)


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A well-formed end, and a directory that says anything at all."""
    body = draw(st.sampled_from([b"", b"PK\x03\x04" + bytes(26), b"PK\x03\x04" + b"\xff" * 200, bytes(500)]))
    body = b"PK\x03\x04" + bytes(26) + body
    directory = b""
    count = draw(st.integers(0, 5))
    for _ in range(count):
        name = draw(st.one_of(st.sampled_from([b"archive/data.pkl", b"archive/data/0", b"a"]), st.binary(max_size=20)))
        extra = draw(st.one_of(st.just(b""), st.binary(max_size=40), st.just(b"\x01\x00\x18\x00" + b"\xff" * 24)))
        nbytes = draw(numbers)
        stored = nbytes if draw(st.booleans()) else draw(numbers)
        directory += ENTRY.pack(
            b"PK\x01\x02", 20, 20, draw(st.sampled_from([0, 0, 0, 1, 8])), draw(st.sampled_from([0, 0, 0, 8])), 0, 0,
            draw(numbers), stored, nbytes, len(name), len(extra), 0, 0, 0, 0, draw(numbers),
        ) + name + extra  # fmt: skip
    wide = b""
    if draw(st.booleans()):
        figures = [draw(st.one_of(st.just(count), st.integers(0, (1 << 64) - 1))) for _ in range(2)]
        sizes = (len(directory), len(body)) if draw(st.booleans()) else (draw(numbers), draw(numbers))
        wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *figures, *sizes)
        place = len(body) + len(directory) if draw(st.booleans()) else draw(st.integers(0, (1 << 64) - 1))
        wide += struct.pack("<4sIQI", b"PK\x06\x07", 0, place, 1)
    comment = draw(
        st.sampled_from([b"", b"asyncsave 1 image=00000000 index=00000000", b"asyncsave 999999 image=0 index=0"])
    )
    total = draw(st.sampled_from([count, count, 0xFFFF]))
    end = END.pack(b"PK\x05\x06", 0, 0, total, total, len(directory), len(body), len(comment))
    return body + directory + wide + end + comment


@steady
@given(data=hostile())
def test_hostile_directories_raise_only_errors_of_this_package(data):
    """No figure of the file is believed: no crash, no endless loop, no great allocation."""
    assert outcome(data) == "refused, not verified"


@steady
@given(draws=st.data(), kind=st.sampled_from(["ours", "theirs"]))
def test_hostile_pickles_raise_only_errors_of_this_package(draws, kind, files):
    """A pickle whose checksum is right and whose content is anything is loaded, or refused by a LoadError."""
    entry = next(e for e in read_index(source(files[kind])).entries if e.name == "data.pkl")
    pickled = bytearray(files[kind][entry.offset : entry.offset + entry.nbytes])
    for _ in range(draws.draw(st.integers(1, 3))):
        at = draws.draw(st.integers(0, len(pickled) - 1))
        pickled[at : at + draws.draw(st.integers(0, 2))] = draws.draw(st.binary(max_size=3))
    data = archive_of(bytes(pickled), {"data/0": bytes(20), "data/1": bytes(3)})
    with contextlib.suppress(LoadError):
        asyncsave.load(io.BytesIO(data))


@pytest.mark.parametrize(
    "records", [{"version": b"x"}, {"byteorder": b"middle"}, {"byteorder": b"\xff"}, {".storage_alignment": b"?"}]
)
def test_hostile_small_records_raise_only_errors_of_this_package(records, files):
    """What torch reads beside the pickle can be wrong too."""
    entry = next(e for e in read_index(source(files["ours"])).entries if e.name == "data.pkl")
    pickled = files["ours"][entry.offset : entry.offset + entry.nbytes]
    data = archive_of(pickled, records)
    with pytest.raises(LoadError):
        asyncsave.load(io.BytesIO(data))


def _entry(name: bytes, *, nbytes: int = 0, offset: int = 0, stored: int | None = None, extra: bytes = b"") -> bytes:
    stored = nbytes if stored is None else stored
    fixed = (b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, stored, nbytes, len(name), len(extra), 0, 0, 0, 0, offset)
    return ENTRY.pack(*fixed) + name + extra


LOCAL = b"PK\x03\x04" + bytes(26)
DIRECTORIES: dict[str, tuple[bytes, int, str]] = {
    "fewer entries than counted": (_entry(b"a/b"), 2, "2 entries"),
    "more entries than counted": (_entry(b"a/b") + _entry(b"a/c", offset=30), 1, "directory's size"),
    "not an entry": (b"\0" * 46, 1, "signature"),
    "a record outside": (_entry(b"a/b", nbytes=1000), 1, "its extent"),
    "a header outside": (_entry(b"a/b", offset=5000), 1, "its header"),
    "no header there": (_entry(b"a/b", offset=3), 1, "its header"),
    "two of one name": (_entry(b"a/b") + _entry(b"a/b", offset=30), 2, "duplicates"),
    "two at one place": (_entry(b"a/b", nbytes=1) + _entry(b"a/c", nbytes=1), 2, "its extent"),
    "wide sizes missing": (_entry(b"a/b", nbytes=0xFFFFFFFF), 1, "zip64"),
    "wide sizes cut": (_entry(b"a/b", nbytes=0xFFFFFFFF, extra=b"\x01\x00\x08\x00" + bytes(8)), 1, "zip64"),
    "wide sizes too large": (_entry(b"a/b", nbytes=0xFFFFFFFF, extra=b"\x01\x00\x10\x00" + b"\xff" * 16), 1, "extent"),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_that_lies_is_described(name):
    """Each kind of lie has a message that says what was expected and what was found."""
    directory, count, words = DIRECTORIES[name]
    body = LOCAL + LOCAL
    end = END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    with pytest.raises(CorruptCheckpointError, match=words) as refusal:
        read_index(source(body + directory + end))
    assert refusal.value.expected
    assert refusal.value.found


def test_compressed_and_split_archives_are_no_damage():
    """They are other people's files: a LoadError, and not one that speaks of corruption."""
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    with pytest.raises(LoadError, match="compressed") as refusal:
        read_index(source(compressed.getvalue()))
    assert not isinstance(refusal.value, CorruptCheckpointError)
    with pytest.raises(LoadError, match="split") as refusal:
        read_index(source(LOCAL + END.pack(b"PK\x05\x06", 1, 1, 0, 0, 0, 30, 0)))
    assert not isinstance(refusal.value, CorruptCheckpointError)


def test_a_newer_format_is_named(files):
    """A seal with another version asks for an update, and for nothing else."""
    data = files["ours"].replace(b"asyncsave 1 ", b"asyncsave 2 ")
    with pytest.raises(FormatVersionError, match=r"version 2.*reads 1.*update"):
        read_index(source(data))


def test_figures_of_the_file_cost_no_memory():
    """A directory that claims 2^64 entries and bytes is refused within a few kilobytes."""
    wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1 << 63, 1 << 63, 46, 30)
    wide += struct.pack("<4sIQI", b"PK\x06\x07", 0, 30 + 46, 1)
    entry = _entry(b"", nbytes=0xFFFFFFFF)
    data = LOCAL + entry + wide + END.pack(b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    tracemalloc.start()
    try:
        with pytest.raises(AsyncSaveError):
            read_index(source(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_what_is_a_zip_is_told_from_the_first_bytes():
    """Four of them, no less."""
    assert is_zip(b"PK\x03\x04")
    assert not is_zip(b"PK\x03")
    assert not is_zip(b"PK\x05\x06")


def test_an_index_says_what_the_seal_covers(files):
    """All bytes before it."""
    index: Index = read_index(source(files["ours"]))
    assert index.image_crc == zlib.crc32(files["ours"][: index.sealed_nbytes])
    assert files["ours"][index.sealed_nbytes :].startswith(b"asyncsave 1 ")


def test_an_absurd_directory_is_not_read(tmp_path):
    """A file with a hole of 100 GB that says it is all directory takes no memory, and no time."""
    nbytes, path = 100 << 30, tmp_path / "absurd.pt"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(nbytes)
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, nbytes - 100, 100))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, nbytes, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    with pytest.raises(LoadError, match="its zip directory has 107,374,182,300 bytes"):
        asyncsave.load(path)
