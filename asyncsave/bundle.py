"""Several images in one memory: where each lies, and how another process learns of them.

A plain save is one image with its table behind it. A step of a run has an image for each of its files,
every one on a page of its own with its table behind it, and behind all of them the brief::

    image | table | image | table | ... | places and brief, as JSON
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable

from asyncsave.catalogue.brief import Brief
from asyncsave.image.layout import PAGE
from asyncsave.image.table import nbytes_with_table, read_table, write_table
from asyncsave.persist import Image, Job

__all__ = ["brief_room", "places", "read_bundle", "write_bundle"]

_PLACE = len("[18446744073709551615, 18446744073709551615], ")
_FRAME = len('{"places": [], "brief": }')


def places(rooms: Iterable[int]) -> list[int]:
    """Return where images begin that take so much room each, on page boundaries; and last, where they end."""
    at = [0]
    for nbytes in rooms:
        at.append((at[-1] + nbytes + PAGE - 1) & -PAGE)
    return at


def brief_room(brief: Brief) -> int:
    """Return how many bytes the places and the brief of a step take at most."""
    return len(brief.to_json()) + _FRAME + _PLACE * len(brief.files)


def write_bundle(job: Job) -> tuple[int, int]:
    """Write behind every image its table, and behind all of them the brief; return where that is, and its size."""
    for image in job.images:
        write_table(image.memory, image.layout, image.crcs)
    if job.brief is None:
        return 0, 0
    text = b'{"places": %s, "brief": %s}' % (
        json.dumps([(image.offset, image.layout.nbytes) for image in job.images]).encode("ascii"),
        job.brief.to_json(),
    )
    last = job.images[-1]
    at = last.offset + len(last.memory)
    job.view[at : at + len(text)] = text
    return at, len(text)


def read_bundle(
    memory: memoryview, nbytes: int, *, brief_at: int, brief_nbytes: int, path: str
) -> tuple[list[Image], Brief | None]:
    """Find the images in a memory, and the brief if they are a step, trusting nothing.

    Args:
        memory: All of it.
        nbytes: Size of the image, or of all images together.
        brief_at: Where the brief begins.
        brief_nbytes: Its size; 0: there is none.
        path: How an error names the step.

    Raises:
        ValueError: This is nothing that a writer would have sent.
        LoadError: The manifest in the brief is none.
    """
    if not brief_nbytes:
        return [_image(memory, 0, nbytes)], None
    if not 0 <= brief_at <= len(memory) - brief_nbytes:
        raise ValueError(f"no brief of {brief_nbytes} bytes at {brief_at} in {len(memory)} bytes of memory")
    try:
        said = json.loads(bytes(memory[brief_at : brief_at + brief_nbytes]))
        images, end = [], 0
        for at, size in said["places"]:
            images.append(_image(memory, operator.index(at), operator.index(size), end))
            end = at + nbytes_with_table(images[-1].layout)
        brief = Brief.from_json(json.dumps(said["brief"]), path=path)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"this does not say where the images are: {type(error).__name__}: {error}") from error
    if len(images) != len(brief.files) or not images or sum(image.layout.nbytes for image in images) != nbytes:
        raise ValueError("the images are not those of the brief")
    return images, brief


def _image(memory: memoryview, at: int, nbytes: int, end: int = 0) -> Image:
    if at < end or at % PAGE or at > len(memory):
        raise ValueError(f"no image begins at byte {at}")
    layout, crcs = read_table(memory[at:], nbytes)
    return Image(memory[at:], layout, crcs, at)
