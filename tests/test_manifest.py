"""The manifest: strict JSON, read back as it was written, and nothing else taken for one."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from steps import manifest_of

from asyncsave import CorruptCheckpointError, FormatVersionError
from asyncsave.catalogue.info import CheckpointFile, CheckpointInfo
from asyncsave.catalogue.manifest import DEEPEST, FORMAT, Manifest
from asyncsave.catalogue.names import is_plain

steady = settings(derandomize=True, database=None, deadline=None, max_examples=200)

TEXTS = st.text(max_size=20)
FILES = st.sampled_from(["state.pt", "ema.pt", "名.pt", "a b"]) | st.text(min_size=1, max_size=30).filter(is_plain)
SIZES = st.integers(0, 1 << 63)
METRICS = st.none() | st.floats() | st.integers(-(1 << 60), 1 << 60)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 80), 1 << 80) | FINITE | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
MANIFESTS = st.builds(
    Manifest,
    step=st.integers(0, 10**18 - 1),
    complete=st.booleans(),
    epoch=st.none() | st.integers(-1, 1 << 40),
    metrics=st.dictionaries(TEXTS, METRICS, max_size=4),
    metadata=st.dictionaries(TEXTS, JSON, max_size=4),
    time=st.floats(0, 1e12),
    tensors=SIZES,
    asyncsave=TEXTS,
    torch=TEXTS,
    host=TEXTS,
    commit=st.none() | TEXTS,
    files=st.dictionaries(FILES, st.builds(CheckpointFile, SIZES, TEXTS), max_size=4),
)

COMPLETE = manifest_of(
    1200,
    {"state.pt": b"state", "ema.pt": b"ema"},
    epoch=3,
    metrics={"loss": 0.5, "acc": None, "odd": math.nan},
    metadata={"note": "good", "lr": [0.1, 0.2]},
    tensors=7,
    commit="0123abc",
)


def nothing_odd(constant):
    """Refuse what is no JSON, though Python reads it."""
    raise AssertionError(f"{constant} is no JSON")


def said(manifest=COMPLETE):
    """Return what a manifest says as JSON's own values."""
    return json.loads(manifest.to_json(), parse_constant=nothing_odd)


def read(document):
    """Read a manifest of JSON's values, or of bytes."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Manifest.from_json(data, path="/runs/step-00000001/manifest.json")


@steady
@given(manifest=MANIFESTS)
def test_what_is_written_is_read(manifest):
    """Every field comes out as it went in, numbers that JSON lacks among them, and of the same type."""
    found = read(manifest.to_json())
    for name in Manifest.__slots__:
        if name != "metrics":
            assert getattr(found, name) == getattr(manifest, name)
            assert type(getattr(found, name)) is type(getattr(manifest, name))
    assert list(map(repr, found.metrics.items())) == list(map(repr, manifest.metrics.items()))


@steady
@given(manifest=MANIFESTS)
def test_it_is_strict_json(manifest):
    """Any reader of JSON can read it: it has no NaN and no Infinity, and is ASCII with an end of line."""
    data = manifest.to_json()
    assert json.loads(data, parse_constant=nothing_odd)["format"] == FORMAT
    assert data.isascii()
    assert data.endswith(b"}\n")


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_numbers_that_json_lacks(value, text):
    """They are written as texts, and read as numbers."""
    data = manifest_of(1, metrics={"m": value}).to_json()
    assert json.loads(data, parse_constant=nothing_odd)["metrics"] == {"m": text}
    found = read(data).metrics["m"]
    assert repr(found) == repr(value)


def test_metadata_that_json_lacks_is_refused():
    """What has no spelling in JSON is an error when it is written, not when it is read."""
    with pytest.raises(ValueError, match="JSON"):
        manifest_of(1, metadata={"x": [math.nan]}).to_json()


def test_metadata_as_deep_as_may_be():
    """Is read, and can be copied."""
    nested = {"a": json.loads("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))}
    assert copy.deepcopy(read(said() | {"metadata": nested}).metadata) == nested


@pytest.mark.parametrize("version", [FORMAT + 1, 99, 10**30])
@pytest.mark.parametrize("rest", [{}, {"step": "elsewhere"}], ids=["nothing else", "another step"])
def test_a_newer_format(version, rest):
    """A manifest of a newer asyncsave says so, whatever else is in it."""
    with pytest.raises(FormatVersionError, match=r"update asyncsave") as caught:
        read({"format": version, **rest})
    assert caught.value.path.endswith("manifest.json")


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5, [1], {}])
def test_other_formats(version):
    """A format that never was is damage."""
    with pytest.raises(CorruptCheckpointError, match="no manifest of asyncsave"):
        read(said() | {"format": version})


GARBAGE = {
    "nothing": b"",
    "blanks": b"  \n",
    "nulls": bytes(4096),
    "half": COMPLETE.to_json()[: len(COMPLETE.to_json()) // 2],
    "without its end": COMPLETE.to_json()[:-3],
    "two": COMPLETE.to_json() * 2,
    "a number": b"1",
    "a text": b'"manifest"',
    "a list": b"[1, 2]",
    "null": b"null",
    "an empty object": b"{}",
    "not UTF-8": b"\xff\xfe\xfa" + bytes(range(128, 256)),
    "UTF-16 of something else": "garbage".encode("utf-16"),
    "a zip": b"PK\x03\x04" + bytes(100),
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"format": ' * 100_000,
    "deep metadata": b'{"format": 1, "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of too many digits": b'{"format": 1, "step": ' + b"1" * 10_000 + b"}",
    "a format of too many digits": b'{"format": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(what):
    """Whatever is no manifest is a CorruptCheckpointError that names the file and what was expected."""
    with pytest.raises(CorruptCheckpointError, match="step-00000001") as caught:
        read(GARBAGE[what])
    assert caught.value.expected == "a manifest"
    assert caught.value.__cause__ is not None


WRONG = {
    "step": [None, "1", 1.0, -1, True, [], {}],
    "complete": [None, 1, 0, "true", []],
    "epoch": ["1", 1.5, True, []],
    "metrics": [None, [], 1, "x", {"m": []}, {"m": {}}, {"m": True}, {"m": "1.0"}, {"m": "nan"}, {"m": 10**400}],
    "metadata": [None, [], 1, "x", {"a": json.loads("[" * DEEPEST + "]" * DEEPEST)}],
    "time": [None, [], {}, "yesterday", "NaN", "12", True, 10**400, math.nan, math.inf],
    "tensors": [None, -1, 1.0, "1", True, 1 << 64, 10**4000],
    "asyncsave": [None, 1, []],
    "torch": [None, 1, []],
    "host": [None, 1, []],
    "commit": [1, [], True],
    "files": [None, [], 1, "x", {"a": None}, {"a": []}, {"a": {}}, {"a": {"nbytes": 1}}, {"a": {"digest": "x"}}],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG.items() for value in values],
    ids=lambda value: str(value)[:20],
)
def test_a_field_of_another_kind(field, value):
    """A field that is not what it should be makes the whole no manifest."""
    with pytest.raises(CorruptCheckpointError):
        read(said() | {field: value})


@pytest.mark.parametrize("field", [name for name in said() if name not in {"epoch", "commit"}])
def test_a_field_that_is_missing(field):
    """Without any of its fields it is no manifest; only what may be None may be left out."""
    document = said()
    del document[field]
    with pytest.raises(CorruptCheckpointError):
        read(document)


def test_what_may_be_left_out():
    """An epoch and a commit that are missing are None; what is not known is passed over."""
    document = said() | {"new in format 1.1": [1]}
    del document["epoch"], document["commit"]
    found = read(document)
    assert (found.epoch, found.commit, found.step) == (None, None, 1200)


@pytest.mark.parametrize(
    "file",
    [
        {"nbytes": -1, "digest": "x"},
        {"nbytes": 1.5, "digest": "x"},
        {"nbytes": 1 << 64, "digest": "x"},
        {"nbytes": 10**4000, "digest": "x"},
        {"nbytes": 1, "digest": 5},
    ],
)
def test_files_of_impossible_size(file):
    """A size is a whole number, a digest a text."""
    with pytest.raises(CorruptCheckpointError):
        read(said() | {"files": {"state.pt": file}})


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "x" * 256, ".bashrc", "\ud800"),
        *("manifest.json", "dropped.json", "pinned"),
    ],
)
def test_files_that_would_lie_elsewhere(name):
    """A name that leads out of the folder, or stands for a file of ours, or for none, is refused."""
    with pytest.raises(CorruptCheckpointError, match="is no file of a step"):
        read(said() | {"files": {name: {"nbytes": 1, "digest": "crc32:00000000"}}})


def places_in(document, at=()):
    """Yield the way to every value in a document."""
    yield at
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places_in(value, (*at, key))


ODD = st.sampled_from(
    [10**400, -(10**400), math.nan, math.inf, "NaN", "\ud800", "", [], {}, None, True, -1, 1.0, "../x"]
)


@settings(steady, max_examples=500)
@given(data=st.data())
def test_damaged_manifests(data):
    """With any value in it taken out or replaced by another it is refused by name, or what it says can be used."""
    document = copy.deepcopy(said())
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from([place for place in places_in(document) if place]))
        inner = document
        for key in way:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = copy.deepcopy(data.draw(ODD | JSON))
        else:
            del inner[last]
    check(json.dumps(document).encode())


@settings(steady, max_examples=500)
@given(data=st.data())
def test_damaged_bytes(data):
    """Cut, flipped, with noise in it: refused by name, or what it says can be used."""
    damaged = bytearray(COMPLETE.to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        how = data.draw(st.sampled_from(["flip", "cut", "noise"]))
        if how == "flip" and damaged:
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del damaged[at:]
        else:
            damaged[at:at] = data.draw(st.binary(max_size=5))
    check(bytes(damaged))


@steady
@given(data=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"format": 1e400}')
@example(b'{"format": NaN}')
@example(b"\x00\x00\x00{")
def test_noise(data):
    """Noise, and JSON that says something else, are refused by name."""
    check(data)


def check(data):
    """Read bytes: they are refused by name, or a manifest whose numbers compare, and which can be written again."""
    try:
        found = read(data)
    except (CorruptCheckpointError, FormatVersionError):
        return
    info = CheckpointInfo(found.step, "/step", metrics=found.metrics, time=found.time)
    assert math.isfinite(found.time)
    for name in found.metrics:
        value = info.value(name)
        assert value is None or value <= math.inf
    assert all(map(is_plain, found.files))
    assert said(found)["step"] == found.step >= 0


def test_with_files_leaves_the_original():
    """Files are filled in on a copy, which is what was given, not the very dict."""
    files = {"a.pt": CheckpointFile(1, "crc32:00000001")}
    bare = manifest_of(1)
    filled = bare.with_files(files)
    assert (bare.files, filled.files) == ({}, files)
    files.clear()
    assert filled.files
