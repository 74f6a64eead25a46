"""The seam: each call does what it says, on this very system."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat

import pytest

from asyncsave.storage import system as system_module
from asyncsave.storage.system import System


@pytest.fixture
def folder(tmp_path):
    """Return an open folder."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def file(tmp_path):
    """Return an open, empty file."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_files(tmp_path, folder):
    """Open, write, read, truncate, stat, rename, list and unlink, relative to a folder."""
    system = System()
    fd = system.open("a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
    assert not os.get_inheritable(fd)
    assert system.pwrite(fd, memoryview(b"hello"), 3) == 5
    buffer = bytearray(16)
    assert system.pread_into(fd, memoryview(buffer), 0) == 8
    assert buffer[:8] == b"\0\0\0hello"
    system.truncate(fd, 5)
    assert system.fstat(fd).st_size == 5
    system.chmod(fd, 0o640)
    assert stat.S_IMODE(system.stat("a", dir_fd=folder).st_mode) == 0o640
    other = system.duplicate(fd)
    system.close(fd)
    system.fsync(other)
    system.fsync(folder)
    system.uncache(other)
    system.close(other)
    system.rename("a", "b", dir_fd=folder)
    assert system.listdir(folder) == ["b"]
    system.unlink("b", dir_fd=folder)
    assert not list(tmp_path.iterdir())


def test_stat_does_not_follow(tmp_path, folder):
    """A link is described itself."""
    (tmp_path / "link").symlink_to("nowhere")
    assert stat.S_ISLNK(System().stat("link", dir_fd=folder).st_mode)


def test_lock_is_exclusive(tmp_path, file):
    """Somebody else's lock is a plain False, and ours is theirs to wait for."""
    assert System().lock(file)
    other = os.open(tmp_path / "file", os.O_RDWR)
    assert not System().lock(other)
    fcntl.flock(file, fcntl.LOCK_UN)
    assert System().lock(other)
    os.close(other)


def test_allocate_reserves(file):
    """Allocation makes the file that long, with blocks behind it."""
    System().allocate(file, 1 << 20)
    found = os.fstat(file)
    assert found.st_size == 1 << 20
    assert found.st_blocks * 512 >= 1 << 20


def test_allocate_errors(file, monkeypatch):
    """Not supported is no error; interrupted is tried again; everything else is raised."""
    answers = [errno.EINTR, errno.EINTR, 0, errno.EOPNOTSUPP, errno.ENOSPC]

    def fallocate(*_):
        number = answers.pop(0)
        ctypes.set_errno(number)
        return -1 if number else 0

    monkeypatch.setattr(system_module, "_fallocate", fallocate)
    System().allocate(file, 1)
    assert len(answers) == 2
    System().allocate(file, 1)
    with pytest.raises(OSError, match="No space") as raised:
        System().allocate(file, 1)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.setattr(system_module, "_fallocate", None)
    System().allocate(file, 1)


def test_allocate_on_a_full_disk_is_known_at_once(file):
    """More than the disk has is refused before a byte is written."""
    with pytest.raises(OSError, match=r"No space|too large") as raised:
        System().allocate(file, 1 << 55)
    assert raised.value.errno in {errno.ENOSPC, errno.EFBIG}


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct I/O")
def test_set_direct(file):
    """Direct I/O is switched on and off on an open file."""
    system = System()
    if not system.set_direct(file, direct=True):
        pytest.skip("this file system has no direct I/O")
    assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT
    page = memoryview(mmap.mmap(-1, 4096))
    assert system.pwrite(file, page, 0) == 4096
    assert system.set_direct(file, direct=False)
    assert not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT
    assert system.pwrite(file, memoryview(b"odd"), 1) == 3


def test_set_direct_where_there_is_none(file, monkeypatch):
    """Without ``O_DIRECT``, or where the file system refuses it, the answer is no, not an error."""
    reader, writer = os.pipe()
    assert System().set_direct(writer, direct=False)
    os.close(reader)
    os.close(writer)
    monkeypatch.delattr(os, "O_DIRECT")
    assert not System().set_direct(file, direct=True)
    assert System().set_direct(file, direct=False)


def test_set_direct_refused(file, monkeypatch):
    """A refusal by the file system is a plain False."""

    def refuse(*_):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(system_module.fcntl, "fcntl", lambda fd, command, *rest: refuse() if rest else 0)
    assert not System().set_direct(file, direct=True)


def test_exchange(tmp_path, folder):
    """Two names are swapped in one step."""
    for name in "ab":
        (tmp_path / name).write_text(name)
    if not System().exchange("a", "b", dir_fd=folder):
        pytest.skip("this file system cannot swap names")
    assert (tmp_path / "a").read_text() == "b"
    assert (tmp_path / "b").read_text() == "a"
    with pytest.raises(FileNotFoundError):
        System().exchange("a", "missing", dir_fd=folder)


def test_is_unshared(tmp_path, file):
    """A file that somebody else has open, or mapped, is shared."""
    if not System().is_unshared(file):
        pytest.skip("this file system grants no leases")
    with (tmp_path / "file").open("rb"):
        assert not System().is_unshared(file)
    assert System().is_unshared(file)
    os.truncate(file, 4096)
    with (tmp_path / "file").open("rb") as reader:
        mapping = mmap.mmap(reader.fileno(), 4096, prot=mmap.PROT_READ)
    assert not System().is_unshared(file)
    mapping.close()
    assert System().is_unshared(file)


def test_has_attributes(file):
    """Attributes of a file's own are seen."""
    assert not System().has_attributes(file)
    try:
        os.setxattr(file, "user.mine", b"1")
    except OSError:
        pytest.skip("this file system has no attributes")
    assert System().has_attributes(file)


def test_tokens():
    """64 random bits, never the same."""
    tokens = {System().token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(token) == 16 for token in tokens)
