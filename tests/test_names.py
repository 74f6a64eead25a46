"""The names in a version's folder: one for each step, and none that leads elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncsave.catalogue.names import (
    ABANDONED,
    CORRUPT,
    DROPPED,
    MANIFEST,
    PINNED,
    StepName,
    is_plain,
    parse,
    step_name,
)
from asyncsave.storage.temporary import is_temporary

steady = settings(derandomize=True, database=None, deadline=None, max_examples=300)

STEPS = st.integers(0, 10**18 - 1)
ENDS = r"(\.emergency|\.abandoned|\.corrupt|\.corrupt-[0-9]{1,3}|\.|\n)?"
NEARLY = st.from_regex(r"\A(step-|stp-|step)[0-9a ]{6,20}" + ENDS + r"\Z")


@steady
@given(step=STEPS, complete=st.booleans())
def test_a_name_says_what_it_was_made_of(step, complete):
    """The number and whether the step was over are read back as they were written."""
    assert parse(step_name(step, complete=complete)) == StepName(step, complete, None)


@steady
@given(
    step=STEPS,
    complete=st.booleans(),
    why=st.sampled_from([CORRUPT, ABANDONED]),
    again=st.none() | st.integers(1, 99),
)
def test_a_step_that_was_put_aside(step, complete, why, again):
    """The name of a step that was put aside still says which it was, and why."""
    name = step_name(step, complete=complete) + why + ("" if again is None else f"-{again}")
    assert parse(name) == StepName(step, complete, why[1:])


@steady
@given(name=NEARLY | st.text(max_size=40))
@example("step-0000000001200")
@example("step-٠٠٠٠١٢٠٠")
@example("step-00001200\n")
def test_no_step_has_two_names(name):
    """What is taken for the name of a sound step is the very name that would be given to it."""
    said = parse(name)
    if said is not None and said.aside is None:
        assert step_name(said.step, complete=said.complete) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "step-",
        "step-1200",
        "step-0000120",
        "step-000001200",
        "step--0001200",
        "step-0000120x",
        "step-1234567890123456789",
        "STEP-00001200",
        "step-00001200.tmp",
        "step-00001200.corrupt.emergency",
        "step-00001200.corrupt-",
        "step-00001200.corrupt.abandoned",
        "step-00001200.aside",
        "xstep-00001200",
        "step-00001200 ",
        "step-00001200/",
        "step-٠٠٠٠١٢٠٠",
    ],
)
def test_other_names(name):
    """Whatever is not exactly such a name belongs to somebody else."""
    assert parse(name) is None


def test_steps_sort_by_name_as_far_as_eight_digits_go():
    """A listing of the folder by any tool shows them in their order."""
    names = [step_name(step) for step in (0, 9, 10, 99_999_999)]
    assert names == sorted(names)


@steady
@given(step=STEPS, complete=st.booleans())
def test_no_step_is_temporary(step, complete):
    """A step's name is never one that a sweep would remove."""
    assert not is_temporary(step_name(step, complete=complete))


PIECES = st.sampled_from(
    ["/", "\\", "\0", ".", "..", "a", "é", "名", "manifest", ".json", " ", "\n", "\udcff", "\ud800"]
)


@steady
@given(name=st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=300))
@example("\ud800")
@example("\udcff")
@example("x" * 255)
@example("é" * 128)
def test_a_plain_name_is_that_of_a_file_in_its_folder(name):
    """It can be asked for, and leads neither out of the folder nor into another one."""
    if not is_plain(name):
        return
    assert 0 < len(os.fsencode(name)) <= 255
    path = Path(os.path.normpath(f"/version/step/{name}"))
    assert (path.parent, path.name) == (Path("/version/step"), name)
    assert "\0" not in name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", "x" * 256, "é" * 128),
        *(MANIFEST, DROPPED, PINNED),
    ],
)
def test_names_that_are_not_plain(name):
    """What leads elsewhere, is hidden, too long, or has a meaning of ours, is refused."""
    assert not is_plain(name)


@pytest.mark.parametrize("name", ["state.pt", "ema.pt", "a", "x" * 255, "é" * 127, "名.pt", "a b", "...".join("ab")])
def test_plain_names_work(tmp_path, name):
    """A file of any other name can be made."""
    assert is_plain(name)
    (tmp_path / name).write_bytes(b"")
    assert [path.name for path in Path(tmp_path).iterdir()] == [name]
