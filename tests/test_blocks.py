"""Images go to the disk whole: in blocks, directly where that works, through the page cache where not."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading

import pytest
from gates import SHORT, Failing, Recording, Wrapped

from asyncsave.storage import blocks
from asyncsave.storage.blocks import DIRECT_FROM, read_into, write_all, write_image
from asyncsave.storage.system import System
from asyncsave.workers import Workers

PAGE = 4096


@pytest.fixture
def file(tmp_path):
    """Return an open, empty file."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def workers():
    """Return two workers."""
    made = Workers(2, "test")
    yield made
    made.close()


def image(nbytes):
    """Return page-aligned memory of random bytes."""
    view = memoryview(mmap.mmap(-1, (nbytes + PAGE - 1) & -PAGE))
    view[:] = os.urandom(len(view))
    return view


def write(system, file, nbytes, workers):
    """Write an image; return it, and what progress was told."""
    data, told = image(nbytes), []
    write_image(system, file, data, nbytes, workers, told.append)
    return data[:nbytes], told


def content(file):
    """Return a file's bytes."""
    return os.pread(file, os.fstat(file).st_size + 1, 0)


SIZES = [1, PAGE - 1, PAGE, PAGE + 1, DIRECT_FROM - 1, DIRECT_FROM, DIRECT_FROM + 1, 5 * PAGE * 100 + 17]


@pytest.mark.parametrize("nbytes", SIZES)
def test_sizes(file, workers, nbytes, monkeypatch):
    """Every size arrives as it is, in one block and in many, and progress adds up to it."""
    monkeypatch.setattr(blocks, "BLOCK", 64 * PAGE)
    data, told = write(System(), file, nbytes, workers)
    assert content(file) == data
    assert sum(told) == nbytes
    assert not fcntl.fcntl(file, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0)


class Direct(Wrapped):
    """Notes whether writes were made past the page cache."""

    def __init__(self):
        super().__init__()
        self.direct = set()

    def _call(self, name, *args, **kwargs):
        if name == "pwrite":
            self.direct.add(bool(fcntl.fcntl(args[0], fcntl.F_GETFL) & os.O_DIRECT))
        return super()._call(name, *args, **kwargs)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct I/O")
def test_large_files_go_past_the_page_cache(file, workers):
    """Direct I/O is what is used for large files, and not for small ones."""
    system = Direct()
    if not system.set_direct(file, direct=True):
        pytest.skip("this file system has no direct I/O")
    system.set_direct(file, direct=False)
    write(system, file, DIRECT_FROM, workers)
    assert system.direct == {True}
    system.direct.clear()
    write(system, file, 1000, workers)
    assert system.direct == {False}


class Refusing(Direct):
    """A file system that takes the flag and refuses every direct write, or from some write on."""

    def __init__(self, after=0):
        super().__init__()
        self._after = after
        self._lock = threading.Lock()

    def _call(self, name, *args, **kwargs):
        if name == "pwrite" and fcntl.fcntl(args[0], fcntl.F_GETFL) & os.O_DIRECT:
            with self._lock:
                self._after -= 1
            if self._after < 0:
                raise OSError(errno.EINVAL, "not aligned enough for me")
        return super()._call(name, *args, **kwargs)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_refused_at_run_time(file, workers, monkeypatch, after):
    """Direct writes that are refused, at once or later, are made through the page cache: the same bytes."""
    monkeypatch.setattr(blocks, "BLOCK", 64 * PAGE)
    system = Refusing(after)
    data, told = write(system, file, DIRECT_FROM * 2 + 5, workers)
    assert content(file) == data
    assert sum(told) == len(data)
    assert False in system.direct


def test_refused_at_once(file, workers):
    """Where the flag itself is refused, everything goes through the page cache."""

    class Without(Direct):
        def _call(self, name, *args, **kwargs):
            return not kwargs["direct"] if name == "set_direct" else super()._call(name, *args, **kwargs)

    system = Without()
    data, _ = write(system, file, DIRECT_FROM + 1, workers)
    assert content(file) == data
    assert system.direct == {False}


def test_without_direct_io(file, workers, monkeypatch):
    """A system without ``O_DIRECT`` writes the same bytes."""
    monkeypatch.delattr(os, "O_DIRECT")
    data, _ = write(System(), file, DIRECT_FROM + 1, workers)
    assert content(file) == data


@pytest.mark.parametrize("nbytes", [1000, DIRECT_FROM + 1, 3 * DIRECT_FROM])
def test_short_writes(file, workers, nbytes):
    """A write that takes only half is gone on with, aligned or not."""
    system = Failing("pwrite", SHORT, forever=True)
    data, told = write(system, file, nbytes, workers)
    assert content(file) == data
    assert sum(told) == nbytes
    assert system.fired > 1


def test_a_write_that_writes_nothing():
    """No progress is an error, not an endless loop."""

    class Nothing(System):
        def pwrite(self, fd, data, offset):
            return 0

    with pytest.raises(OSError, match="wrote nothing"):
        write_all(Nothing(), 0, memoryview(b"x"), 0)


def test_other_errors_are_raised(file, workers):
    """EINVAL of a buffered write, and everything else, is an error."""
    for number in (errno.EIO, errno.ENOSPC):
        with pytest.raises(OSError, match=r"Input/output|No space") as raised:
            write(Failing("pwrite", number), file, DIRECT_FROM * 2, workers)
        assert raised.value.errno == number
    with pytest.raises(OSError, match="Invalid"):
        write(Failing("pwrite", errno.EINVAL), file, 10, workers)


def test_nothing_to_write(file, workers):
    """An image of no bytes is no call."""
    system = Recording()
    write_image(system, file, memoryview(b""), 0, workers, lambda _: None)
    assert not system.trace


@pytest.mark.parametrize("nbytes", [0, 1, PAGE, 3 * PAGE + 5])
def test_read_into(file, nbytes):
    """A buffer is filled as far as the file goes, also in short reads."""
    data = os.urandom(nbytes)
    os.pwrite(file, data, 0)

    class Short(System):
        def pread_into(self, fd, buffer, offset):
            return super().pread_into(fd, buffer[: max(1, len(buffer) // 2)], offset)

    for system in (System(), Short()):
        buffer = memoryview(bytearray(5 * PAGE))
        assert read_into(system, file, buffer, 0) == nbytes
        assert buffer[:nbytes] == data
