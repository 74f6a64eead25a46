"""Which versions lie below a folder, and in which order a manager would choose them."""

from __future__ import annotations

import json
import os

import pytest

from asyncsave import CheckpointManager, CheckpointNotFoundError, LoadError
from asyncsave.catalogue.versions import RECORD, Known, versions, versions_below


def made(folder, *, sequence=None, steps=()):
    """Make a folder as a version's is."""
    folder.mkdir(parents=True)
    if sequence is not None:
        (folder / RECORD).write_text(json.dumps({"format": 1, "sequence": sequence}))
    for step in steps:
        (folder / f"step-{step:08d}").mkdir()
    return folder


def known(name, sequence=0, *, number=0, has_steps=False):
    """Return what is said of a version."""
    return Known(has_steps, sequence, number, name)


def test_versions_at_a_folder_or_below(tmp_path):
    """From the version itself up to the root; by experiment, oldest first."""
    experiment = tmp_path / "root" / "p" / "e"
    first = made(experiment / "b", sequence=1, steps=[1])
    made(experiment / "a", sequence=2)
    made(tmp_path / "root" / "q" / "e" / "1", steps=[5])
    of_experiment = [known("b", 1, has_steps=True), known("a", 2)]
    assert versions_below(str(first)) == {str(experiment): of_experiment[:1]}
    for folder in (experiment, experiment.parent):
        assert versions_below(str(folder)) == {str(experiment): of_experiment}
    assert list(versions_below(str(tmp_path / "root")).items()) == [
        (str(experiment), of_experiment),
        (str(tmp_path / "root" / "q" / "e"), [known("1", number=1, has_steps=True)]),
    ]
    assert versions_below(str(tmp_path)) == {}, "four levels above"


def test_what_is_no_version(tmp_path):
    """Hidden folders, numbers without a record or steps, files, and what cannot be read."""
    made(tmp_path / ".hidden", sequence=1, steps=[1])
    made(tmp_path / "7")
    (tmp_path / "step-00000001").touch()
    (tmp_path / "step-00000001").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert versions_below(str(tmp_path)) == {}


@pytest.mark.parametrize(
    "record",
    [b"", b"[" * 5000, b'{"sequence": 1e999}', b'{"sequence": null}', b"\xff"],
)
def test_a_record_that_is_none(tmp_path, record):
    """Is passed over; so is a FIFO, whose open would hang."""
    (made(tmp_path / "a") / RECORD).write_bytes(record)
    os.mkfifo(made(tmp_path / "b") / RECORD)
    assert versions_below(str(tmp_path)) == {}
    assert list(versions(str(tmp_path))) == []


def test_a_folder_that_cannot_be_read(tmp_path):
    """Is an error of ours."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointNotFoundError, match="No such file"):
        versions_below(str(tmp_path / "nowhere"))
    with pytest.raises(LoadError, match="Not a directory"):
        versions_below(str(tmp_path / "file"))


def test_the_greatest_is_what_a_manager_goes_on_with(tmp_path):
    """One with steps before newer ones without."""
    for name in ("new", "new", "other"):
        with CheckpointManager(tmp_path, project="p", experiment="e", version=name):
            pass
    (tmp_path / "p" / "e" / "2" / "step-00000001").mkdir()
    (found,) = versions_below(str(tmp_path)).values()
    with CheckpointManager(tmp_path, project="p", experiment="e") as manager:
        assert manager.version == max(found).name == "2"
