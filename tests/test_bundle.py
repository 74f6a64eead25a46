"""Several images in one memory: each is found where it was put, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import manifest_of

from asyncsave import LoadError, Retention
from asyncsave.bundle import brief_room, places, read_bundle, write_bundle
from asyncsave.catalogue.brief import Brief
from asyncsave.image.layout import PAGE, plan
from asyncsave.image.table import nbytes_with_table
from asyncsave.persist import Image, Job
from asyncsave.storage.target import Target

steady = settings(derandomize=True, database=None, deadline=None, max_examples=150)

PATH = "/version/step-00000001"
RECORDS = st.lists(
    st.tuples(st.sampled_from(["archive/data.pkl", "archive/data/0", "x"]), st.integers(0, 70_000)), max_size=4
)
FILES = st.lists(RECORDS, min_size=1, max_size=4)


def bundle_of(files, *, with_brief=True):
    """Return a memory with images of such records, and the job that it was made for."""
    layouts = [plan(records) for records in files]
    *starts, end = places(map(nbytes_with_table, layouts))
    names = tuple(f"part-{number}.pt" for number in range(len(files)))
    brief = Brief(names, manifest_of(1), Retention(last=2), (PATH,)) if with_brief else None
    view = memoryview(bytearray(b"\xaa" * (end + (brief_room(brief) if brief else 0))))
    images = [
        Image(
            view[start:until], layout, [None if number % 2 else number for number in range(len(layout.records))], start
        )
        for start, until, layout in zip(starts, [*starts[1:], end], layouts, strict=True)
    ]
    target = Target(PATH, "/version", "step-00000001")
    return Job(images, target, PATH, sync=True, timings={}, started=time.perf_counter(), brief=brief, view=view)


def read(job, at, size, **other):
    """Read a bundle back."""
    said = {"memory": job.view, "nbytes": job.nbytes, "brief_at": at, "brief_nbytes": size} | other
    return read_bundle(said.pop("memory"), said.pop("nbytes"), **said, path=PATH)


@steady
@given(files=FILES)
def test_what_is_written_is_read(files):
    """Layouts, checksums and places of all images, and the brief."""
    job = bundle_of(files)
    at, size = write_bundle(job)
    images, brief = read(job, at, size)
    assert brief == job.brief
    assert [(image.layout, image.crcs, image.offset) for image in images] == [
        (image.layout, image.crcs, image.offset) for image in job.images
    ]
    for found, made in zip(images, job.images, strict=True):
        made.memory[:1] = b"!"
        assert found.memory[:1] == b"!", "it is the same memory"


@steady
@given(records=RECORDS)
def test_a_plain_save_has_no_brief(records):
    """One image, at the very beginning, and no step."""
    job = bundle_of([records], with_brief=False)
    assert write_bundle(job) == (0, 0)
    (image,), brief = read(job, 0, 0)
    assert (image.layout, image.crcs, image.offset, brief) == (job.images[0].layout, job.images[0].crcs, 0, None)


@steady
@given(files=FILES)
def test_nothing_is_written_into_the_images(files):
    """Tables and brief lie behind the images, and in the room that was asked for."""
    job = bundle_of(files)
    at, size = write_bundle(job)
    for image in job.images:
        assert bytes(image.memory[: image.layout.nbytes]) == b"\xaa" * image.layout.nbytes
        assert image.offset + nbytes_with_table(image.layout) <= at
    assert at + size <= len(job.view)


@steady
@given(rooms=st.lists(st.integers(0, 10 * PAGE), min_size=1, max_size=8))
def test_places(rooms):
    """Every image has its room, on a page boundary, behind the one before and not a page further."""
    *starts, end = places(rooms)
    assert len(starts) == len(rooms)
    for start, until, room in zip(starts, [*starts[1:], end], rooms, strict=True):
        assert start % PAGE == 0
        assert start + room <= until < start + room + PAGE
    assert places([]) == [0]


def test_the_room_for_places_is_enough():
    """Also where images lie beyond all that 64 bits can count."""
    brief = Brief(tuple(f"{number}.pt" for number in range(300)), manifest_of(1))
    largest = (1 << 64) - 1
    text = json.dumps({"places": [(largest, largest)] * 300, "brief": json.loads(brief.to_json())})
    assert len(text) <= brief_room(brief)


FILES_OF_TWO = [[("archive/data.pkl", 100), ("archive/data/0", 70_000)], [("archive/data.pkl", 5)]]


def lie(change):
    """Return what is read where the text behind the images is another one."""
    job = bundle_of(FILES_OF_TWO)
    at, size = write_bundle(job)
    said = json.loads(bytes(job.view[at : at + size]))
    changed = change(said)
    text = changed if isinstance(changed, bytes) else json.dumps(changed if changed is not None else said).encode()
    memory = memoryview(bytearray(bytes(job.view[:at]) + text))
    return read(job, at, len(text), memory=memory)


SECOND = places([nbytes_with_table(plan(FILES_OF_TWO[0]))])[1]
SIZES = [plan(records).nbytes for records in FILES_OF_TWO]
PLACES = {
    "none": [],
    "one": [[0, SIZES[0]]],
    "three": [[0, SIZES[0]], [SECOND, SIZES[1]], [SECOND, SIZES[1]]],
    "the other order": [[SECOND, SIZES[1]], [0, SIZES[1]]],
    "not on a page": [[1, SIZES[0]], [SECOND, SIZES[1]]],
    "before the memory": [[-PAGE, SIZES[0]], [SECOND, SIZES[1]]],
    "behind the memory": [[PAGE << 30, SIZES[0]], [SECOND, SIZES[1]]],
    "a byte more": [[0, SIZES[0] + 1], [SECOND, SIZES[1] - 1]],
    "negative": [[0, -1], [SECOND, SIZES[0] + SIZES[1] + 1]],
    "enormous": [[0, 10**400], [SECOND, SIZES[1]]],
    "at infinity": [[math.inf, SIZES[0]], [SECOND, SIZES[1]]],
    "of infinite size": [[0, math.inf], [SECOND, SIZES[1]]],
    "nowhere": [[math.nan, SIZES[0]], [SECOND, SIZES[1]]],
    "nulls": [[None, None], [None, None]],
    "texts": [["a", "b"], ["c", "d"]],
    "triples": [[0, SIZES[0], 1], [SECOND, SIZES[1], 1]],
    "numbers": [0, SECOND],
    "a number": 5,
    "a text": "places",
    "nothing": None,
    "an object": {"0": SIZES[0]},
}


@pytest.mark.parametrize("what", PLACES)
def test_lies_about_places(what):
    """Images that are not where they are said to be are refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        lie(lambda said: said | {"places": PLACES[what]})


def test_two_images_in_one_place():
    """Two files of one memory would each be sealed over the other: that is refused."""
    job = bundle_of([FILES_OF_TWO[0]] * 2)
    at, size = write_bundle(job)
    said = json.loads(bytes(job.view[at : at + size]))
    said["places"][1] = said["places"][0]
    text = json.dumps(said).encode()
    memory = memoryview(bytearray(bytes(job.view[:at]) + text))
    with pytest.raises(ValueError):  # noqa: PT011
        read(job, at, len(text), memory=memory)


def test_images_beside_the_pages():
    """Images that are whole, with their tables, and do not begin on a page could not be written directly."""
    job = bundle_of(FILES_OF_TWO)
    at, size = write_bundle(job)
    said = json.loads(bytes(job.view[at : at + size]))
    said["places"] = [(place + 64, nbytes) for place, nbytes in said["places"]]
    text = json.dumps(said).encode()
    memory = memoryview(bytearray(bytes(64) + bytes(job.view[:at]) + text))
    with pytest.raises(ValueError, match="no image begins at byte 64"):
        read(job, at + 64, len(text), memory=memory)


TEXTS = {
    "nothing but blanks": b" " * 50,
    "garbage": b"\xff" * 50,
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "a text": b'"x"',
    "no brief": b'{"places": []}',
    "no places": b'{"brief": {}}',
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"places": ' * 100_000,
    "a deep brief": b'{"places": [], "brief": ' + b"[" * 900 + b"]" * 900 + b"}",
    "too many digits": b'{"places": [[' + b"1" * 10_000 + b", 1]]}",
}


@pytest.mark.parametrize("what", TEXTS)
def test_lies_about_everything(what):
    """A text that is no JSON, or other JSON, or deeper than any, is refused."""
    with pytest.raises((ValueError, LoadError)):
        lie(lambda _: TEXTS[what])


@pytest.mark.parametrize("at", [-1, -PAGE, 1 << 62, None])
@pytest.mark.parametrize("size", [1, -1, 1 << 62, None])
def test_a_brief_that_lies_elsewhere(at, size):
    """A brief before or behind the memory, of any size, is refused."""
    job = bundle_of(FILES_OF_TWO)
    right_at, right_size = write_bundle(job)
    if (at, size) == (None, None):
        size = right_size + 1_000_000
    with pytest.raises(ValueError):  # noqa: PT011
        read(job, right_at if at is None else at, right_size if size is None else size)


@pytest.mark.parametrize("nbytes", [0, -1, 1, 1 << 62, sum(SIZES) - 1, sum(SIZES) + 1])
def test_another_size(nbytes):
    """The size of all images together has to be right."""
    job = bundle_of(FILES_OF_TWO)
    at, size = write_bundle(job)
    with pytest.raises(ValueError):  # noqa: PT011
        read(job, at, size, nbytes=nbytes)
    assert len(read(job, at, size)[0]) == 2


@settings(steady, max_examples=500)
@given(data=st.data())
def test_damaged_memory(data):
    """Flipped, cut and overwritten anywhere, with other figures in the message: a ValueError or a LoadError."""
    job = bundle_of(data.draw(st.sampled_from([FILES_OF_TWO, [[]], [[("x", 3)]] * 3])))
    at, size = write_bundle(job)
    memory, nbytes = bytearray(job.view), job.nbytes
    tables = [image.offset + (image.layout.nbytes + PAGE - 1) // PAGE * PAGE for image in job.images]
    for _ in range(data.draw(st.integers(1, 4))):
        how = data.draw(st.sampled_from(["flip", "noise", "cut", "size", "brief", "table"]))
        place = data.draw(st.integers(at, max(at, len(memory) - 1)))
        if how == "flip" and place < len(memory):
            memory[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "noise":
            noise = data.draw(
                st.sampled_from([b"Infinity", b"1e999", b"NaN", b"null", b"-1", b'"', b"]", b"{", b"9" * 30])
            )
            memory[place : place + len(noise)] = noise
        elif how == "cut":
            del memory[place:]
        elif how == "size":
            nbytes = data.draw(st.sampled_from([0, -1, nbytes + 1, 1 << 62]))
        elif how == "brief":
            at, size = data.draw(st.integers(-10, len(memory) + 10)), data.draw(st.integers(-10, len(memory) + 10))
        elif how == "table":
            start = data.draw(st.sampled_from(tables)) + 8 * data.draw(st.integers(0, 8))
            memory[start : start + 8] = data.draw(st.integers(0, (1 << 64) - 1)).to_bytes(8, "little")
    with contextlib.suppress(ValueError, LoadError):
        images, brief = read_bundle(memoryview(memory), nbytes, brief_at=at, brief_nbytes=size, path=PATH)
        assert sum(image.layout.nbytes for image in images) == nbytes
        assert all(image.layout.nbytes <= len(image.memory) for image in images)
        assert len(images) == (len(brief.files) if brief else 1)
