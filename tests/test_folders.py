"""Folders and small files of a run are durable when their making returns, or it says that they are not."""

from __future__ import annotations

import errno
import os

import pytest
from gates import METHODS, SHORT, Failing, Recording
from steps import temporaries

from asyncsave import SaveError
from asyncsave.storage.folders import make_folder, make_folders, put_file
from asyncsave.storage.system import System
from asyncsave.storage.temporary import TEMPORARY, is_temporary, new_name


def test_all_that_is_missing_is_made(tmp_path):
    """Every folder on the way is made, and each is flushed into the one above before the next is made."""
    system = Recording()
    make_folders(system, str(tmp_path / "a" / "b" / "c"))
    assert (tmp_path / "a" / "b" / "c").is_dir()
    names = [name for name in system.names() if not name.startswith("token")]
    assert names == ["mkdir", "fsync folder"] * 3
    made = [call.kind for call in system.trace if call.name == "mkdir"]
    assert made == [str(tmp_path / "a"), str(tmp_path / "a" / "b"), str(tmp_path / "a" / "b" / "c")]


def test_what_is_there_is_left_alone(tmp_path):
    """A folder that is there already costs nothing, and its content stays."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"mine")
    system = Recording()
    make_folders(system, str(tmp_path / "a"))
    assert system.trace == []
    assert (tmp_path / "a" / "file").read_bytes() == b"mine"


def test_a_link_to_a_folder_is_one(tmp_path):
    """A folder may be reached over a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make_folders(System(), str(tmp_path / "link" / "a"))
    assert (tmp_path / "real" / "a").is_dir()


def test_another_process_may_be_quicker(tmp_path):
    """A folder that appears between the look and the making is as good as made."""

    class Racing(System):
        def mkdir(self, name, *, dir_fd=None):
            super().mkdir(name, dir_fd=dir_fd)
            super().mkdir(name, dir_fd=dir_fd)

    make_folders(Racing(), str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("at", ["file", "file/below", "file/below/that"])
def test_a_file_is_in_the_way(tmp_path, at):
    """Where a file has the name of a folder that is needed, that is an error of the target."""
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(SaveError) as caught:
        make_folders(System(), str(tmp_path / at))
    assert caught.value.phase == "target"
    assert caught.value.path == str(tmp_path / at)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_link_to_nothing_is_in_the_way(tmp_path):
    """A link that leads nowhere is no folder either, and says so."""
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SaveError):
        make_folders(System(), str(tmp_path / "link"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("method", ["mkdir", "open", "fsync", "close"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_folder_that_cannot_be_made(tmp_path, method, at, number):
    """Whichever call fails, the error names the folder that was asked for; and a second attempt makes it."""
    path, system = tmp_path / "a" / "b" / "c", Failing(method, number, at=at)
    with pytest.raises(SaveError) as caught:
        make_folders(system, str(path))
    assert (caught.value.phase, caught.value.path, caught.value.errno) == ("target", str(path), number)
    make_folders(System(), str(path))
    assert path.is_dir()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_flushes_of_folders(tmp_path, number):
    """Where folders cannot be flushed they are made all the same."""
    make_folders(Failing("fsync", number, forever=True), str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_one_folder_is_made_by_one_only(tmp_path):
    """Its making decides whose it is: whoever comes second is told."""
    make_folder(System(), str(tmp_path / "0001"))
    with pytest.raises(FileExistsError):
        make_folder(System(), str(tmp_path / "0001"))
    with pytest.raises(FileNotFoundError):
        make_folder(System(), str(tmp_path / "missing" / "0001"))


def test_a_small_file(tmp_path):
    """It is there with all its bytes, flushed, and so is its folder; an older one is replaced."""
    path, system = tmp_path / "version.json", Recording()
    put_file(System(), str(path), b"old")
    put_file(system, str(path), b"new and longer")
    assert path.read_bytes() == b"new and longer"
    names = system.names()
    assert names.index("pwrite") < names.index("fsync") < names.index("rename") < names.index("fsync folder")
    put_file(System(), str(path), b"")
    assert path.read_bytes() == b""


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, SHORT], ids=["EIO", "ENOSPC", "short"])
@pytest.mark.parametrize("method", METHODS)
def test_a_small_file_with_every_fault(tmp_path, method, number):
    """Whichever call fails: the old file or the new one, a SaveError if it is the old one, and nothing left."""
    if number == SHORT and method != "pwrite":
        return
    path, at = tmp_path / "version.json", 0
    while True:
        at += 1
        path.write_bytes(b"old")
        system = Failing(method, number, at=at)
        error = None
        try:
            put_file(system, str(path), b"new" * 10)
        except OSError as caught:
            error = caught
        assert error is None or isinstance(error, SaveError), f"{method} #{at}"
        is_there = error is None or error.outcome == "durability_unknown"
        assert path.read_bytes() == (b"new" * 10 if is_there else b"old"), f"{method} #{at}"
        assert not temporaries(tmp_path) or method == "unlink"
        for left in temporaries(tmp_path):
            left.unlink()
        if not system.fired:
            return


def test_temporary_names():
    """They are new each time, unmistakable, hidden, and of one length."""
    names = {new_name(System()) for _ in range(100)}
    assert len(names) == 100
    assert all(map(is_temporary, names))
    assert {len(name) for name in names} == {len("".join(TEMPORARY)) + 16}
    assert all(name.startswith(".") for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".asyncsave-.tmp",
        ".asyncsave-0123456789abcde.tmp",
        ".asyncsave-0123456789abcdeff.tmp",
        ".asyncsave-0123456789ABCDEF.tmp",
        ".asyncsave-0123456789abcdeg.tmp",
        ".asyncsave-0123456789abcdef.tmp\n",
        ".asyncsave-0123456789abcdef.tmp~",
        ".asyncsave-0123456789abcdef_tmp",
        "asyncsave-0123456789abcdef.tmp",
        "x.asyncsave-0123456789abcdef.tmp",
    ],
)
def test_names_that_are_not_ours(name):
    """Whatever is not exactly such a name is somebody else's."""
    assert not is_temporary(name)


def test_a_name_in_a_forked_child_is_another():
    """Parent and child never come to the same temporary name."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, new_name(System()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100).decode() != new_name(System())
    os.close(reading)
    os.close(writing)
