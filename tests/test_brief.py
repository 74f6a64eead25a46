"""What is said of a step to another process: it is heard as it was said, and nothing else is taken for it."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import manifest_of

from asyncsave import LoadError, Retention
from asyncsave.catalogue.brief import Brief
from asyncsave.catalogue.names import is_plain

steady = settings(derandomize=True, database=None, deadline=None, max_examples=200)

PATH = "/version/step-00000001"
TEXTS = st.text(max_size=20) | st.sampled_from(["/runs/\udcff", "ü/名"])
NAMES = st.sampled_from(["state.pt", "ema.pt", "名.pt", "x" * 255]) | st.text(min_size=1, max_size=30).filter(is_plain)
POLICIES = st.sampled_from(
    [
        None,
        Retention(last=3),
        Retention(last=1, best=2, metric="val_loss", mode="max", every=1000, hours=0.5),
        Retention(last=1) | Retention(hours=6) | (Retention(every=7) | Retention(best=1, metric="ü")),
    ]
)
BRIEFS = st.builds(
    Brief,
    files=st.lists(NAMES, unique=True, max_size=4).map(tuple),
    manifest=st.builds(
        manifest_of,
        st.integers(0, 10**18 - 1),
        complete=st.booleans(),
        metrics=st.dictionaries(TEXTS, st.none() | st.floats(allow_nan=False), max_size=3),
        metadata=st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=3),
    ),
    retain=POLICIES,
    protected=st.lists(TEXTS, max_size=3).map(tuple),
)
BRIEF = Brief(
    ("state.pt", "ema.pt"), manifest_of(7, metrics={"m": math.nan}), Retention(last=1) | Retention(every=2), (PATH,)
)


@steady
@given(brief=BRIEFS)
def test_what_is_said_is_heard(brief):
    """Files in their order, the manifest, the policy, protected paths of any bytes: all as it was."""
    assert Brief.from_json(brief.to_json(), path=PATH) == brief


@steady
@given(brief=BRIEFS)
def test_it_is_ascii(brief):
    """It has no byte that a message could trip over."""
    data = brief.to_json()
    assert data.isascii()
    assert b"\n" not in data


def said():
    """Return a brief as JSON's own values."""
    return json.loads(BRIEF.to_json())


def refused(document):
    """Tell whether a document is refused, by nothing but the errors that are promised."""
    data = document if isinstance(document, bytes) else json.dumps(document)
    try:
        found = Brief.from_json(data, path=PATH)
    except (ValueError, LoadError):
        return True
    assert all(map(is_plain, found.files))
    assert len(set(found.files)) == len(found.files)
    assert all(isinstance(path, str) for path in found.protected)
    assert found.retain is None or isinstance(found.retain.decide([]), list)
    return False


WRONG = {
    "files": [None, 5, "ab", {"a": 1}, ["../x"], ["a", "a"], [5], [None], ["manifest.json"], [[]], ["\ud800"]],
    "manifest": [None, 5, "", "{}", "[]", {}, "garbage", "\ud800", '{"format": 99}'],
    "retain": [
        *(5, "", [], {}, {"last": 1}, {"others": []}, {"last": 0, "others": []}, {"last": 1, "others": 5}),
        *({"last": 1, "others": [5]}, {"last": 1, "nonsense": 1, "others": []}, {"hours": "1", "others": []}),
    ],
    "protected": [None, 5, "/version", {"/version": 1}, [5]],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG.items() for value in values],
    ids=lambda value: str(value)[:20],
)
def test_a_field_of_another_kind(field, value):
    """What no writer would have said is refused."""
    assert refused(said() | {field: value})


@pytest.mark.parametrize("field", said())
def test_a_field_that_is_missing(field):
    """Every field has to be there."""
    document = said()
    del document[field]
    assert refused(document)


GARBAGE = {
    "nothing": b"",
    "half": BRIEF.to_json()[:-20],
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "a text": b'"files"',
    "noise": bytes(range(256)),
    "deep lists": b"[" * 200_000,
    "a deep policy": b'{"files": [], "manifest": %s, "retain": '
    % json.dumps(manifest_of(1).to_json().decode()).encode()
    + b'{"last": 1, "others": [' * 50_000
    + b"]}" * 50_000
    + b', "protected": []}',
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(what):
    """Whatever is no brief is refused, and costs no other error."""
    assert refused(GARBAGE[what])


def places_in(document, at=()):
    """Yield the way to every value in a document."""
    yield at
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places_in(value, (*at, key))


ODD = st.sampled_from([10**400, math.nan, math.inf, 1e400, "\ud800", "", [], {}, None, True, -1, 0, "../x", [[[]]]])


@settings(steady, max_examples=500)
@given(data=st.data())
def test_damaged_briefs(data):
    """With any value in it taken out or replaced, those of its manifest too, it is refused, or can be used."""
    document = said()
    document["manifest"] = json.loads(document["manifest"])
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from([place for place in places_in(document) if place]))
        inner = document
        for key in way:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = copy.deepcopy(data.draw(ODD))
        else:
            del inner[last]
    if "manifest" in document:
        document["manifest"] = json.dumps(document["manifest"])
    refused(document)


def test_a_manifest_that_is_none_is_told_by_path():
    """An error about the manifest names the step."""
    with pytest.raises(LoadError, match=PATH) as caught:
        Brief.from_json(json.dumps(said() | {"manifest": "{}"}), path=PATH)
    assert caught.value.path == PATH
