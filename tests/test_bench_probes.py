"""The raw probe of a disk: it writes what it says, where it says, and leaves nothing."""

from __future__ import annotations

import errno
import os
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from disks import mounted
from gates import SHORT, Failing, Recording
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave.bench import probes
from asyncsave.bench.probes import RawDisk, WriteTimes, blocks, share, takes_direct, warm_pages
from asyncsave.storage.system import System

steady = settings(derandomize=True, database=None, deadline=None, max_examples=100)

PAGE = 4096


@pytest.fixture
def memory():
    """Return sixteen pages."""
    with closing(warm_pages(16 * PAGE)) as pages:
        yield pages


@pytest.fixture
def disk(tmp_path, memory):
    """Return a probe of an empty folder, three threads with small blocks."""
    with closing(RawDisk(tmp_path, memory, threads=3, block=2 * PAGE)) as made:
        yield made


@pytest.fixture
def tiny_disk(tmp_path):
    """Mount a file system of 1 MB."""
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


@pytest.mark.parametrize("nbytes", [1, PAGE, PAGE + 1, 5 * PAGE, 16 * PAGE])
def test_a_file_holds_what_the_memory_does(disk, memory, tmp_path, nbytes):
    """Every byte, in whole pages; the phases have times."""
    times = disk.write("probe", nbytes)
    whole = -(-nbytes // PAGE) * PAGE
    assert (tmp_path / "probe").read_bytes() == bytes(memory.view[:whole])
    assert min(times.allocate, times.write, times.sync) >= 0
    assert times.total == times.allocate + times.write + times.sync
    assert WriteTimes(1, 2, 4).total == 7


def test_a_file_is_no_larger_than_the_memory(disk, tmp_path):
    """As it says."""
    disk.write("probe", 99 * PAGE)
    assert (tmp_path / "probe").stat().st_size == 16 * PAGE


def test_everything_is_flushed_and_allocated_before(disk):
    """Allocation, writes, the file's flush, the folder's."""
    disk._system = system = Recording()
    disk.write("probe", 16 * PAGE)
    assert system.names() == ["allocate", *["pwrite"] * 8, "fsync", "fsync folder"]


@pytest.mark.parametrize("nbytes", [PAGE, 7 * PAGE, 16 * PAGE])
def test_what_is_read_is_what_was_written(disk, memory, nbytes):
    """It goes into the memory, and takes time."""
    disk.write("probe", nbytes)
    before = bytes(memory.view)
    memory.view[:] = bytes(len(memory.view))
    assert disk.read("probe") > 0
    assert bytes(memory.view) == before[:nbytes] + bytes(len(before) - nbytes)


def test_a_file_of_somebody_else_is_read_to_its_last_byte(disk, memory, tmp_path):
    """Whose size is no number of pages, so that the last read ends early."""
    data = os.urandom(3 * PAGE + 17)
    (tmp_path / "other").write_bytes(data)
    disk.read("other")
    assert bytes(memory.view[: len(data)]) == data


def test_nothing_is_overwritten(disk, tmp_path):
    """A name that is taken is refused, and stays as it is."""
    (tmp_path / "probe").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        disk.write("probe", PAGE)
    assert (tmp_path / "probe").read_bytes() == b"mine"


def test_removing(disk, tmp_path):
    """A file goes, with its name flushed; one that is not there is no error."""
    disk.write("probe", PAGE)
    disk._system = system = Recording()
    disk.remove("probe")
    disk.remove("probe")
    assert system.names().count("fsync folder") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["allocate", "pwrite", "fsync"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_write_that_fails_leaves_nothing(disk, tmp_path, method, at):
    """The error reaches the caller, the file is gone, and the next one works."""
    disk._system = system = Failing(method, errno.ENOSPC, at=at)
    if (method, at) == ("allocate", 2):
        disk.write("first", PAGE)
    with pytest.raises(OSError, match="No space") as raised:
        disk.write("probe", 16 * PAGE)
    assert raised.value.errno == errno.ENOSPC
    assert system.fired == 1
    assert not (tmp_path / "probe").exists()
    disk._system = System()
    disk.write("probe", PAGE)


def test_a_short_write_is_no_write(disk, tmp_path):
    """Half of a block is told with its numbers."""
    disk._system = Failing("pwrite", SHORT, at=3)
    with pytest.raises(OSError, match=rf"the raw probe wrote {PAGE} of {2 * PAGE} bytes at "):
        disk.write("probe", 16 * PAGE)
    assert not list(tmp_path.iterdir())


def test_a_file_that_shrinks_is_no_read(disk, tmp_path, monkeypatch):
    """What is missing is told with its numbers."""
    disk.write("probe", 4 * PAGE)
    real = disk._system.uncache
    monkeypatch.setattr(disk._system, "uncache", lambda fd: (os.truncate(tmp_path / "probe", PAGE), real(fd)))
    with pytest.raises(OSError, match=r"the raw probe read \d+ of \d+ bytes at"):
        disk.read("probe")


def test_a_full_disk(tiny_disk):
    """For real: ENOSPC, and nothing stays."""
    with closing(warm_pages(4 << 20)) as pages, closing(RawDisk(tiny_disk, pages, block=64 << 10)) as disk:
        with pytest.raises(OSError, match="No space") as raised:
            disk.write("probe", 4 << 20)
        assert raised.value.errno == errno.ENOSPC
        assert not list(tiny_disk.iterdir())
        disk.write("probe", 256 << 10)
        assert disk.read("probe") > 0
        disk.remove("probe")


class Buffered(System):
    """A file system that refuses ``O_DIRECT``."""

    def open(self, path, flags, mode=0o666, *, dir_fd=None):
        """Open, if it is to go through the page cache."""
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return super().open(path, flags, mode, dir_fd=dir_fd)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")
def test_without_direct_io_the_page_cache_has_to_do(tmp_path, memory, monkeypatch):
    """It says so, and works."""
    monkeypatch.setattr(probes, "System", Buffered)
    assert not takes_direct(tmp_path)
    with closing(RawDisk(tmp_path, memory)) as disk:
        assert disk.direct is False
        disk.write("probe", 3 * PAGE)
        assert (tmp_path / "probe").read_bytes() == bytes(memory.view[: 3 * PAGE])
        assert disk.read("probe") > 0
        disk.remove("probe")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")
def test_asking_for_direct_io_leaves_nothing(tmp_path):
    """Neither where the answer is yes, nor where there is no folder."""
    try:
        os.close(os.open(tmp_path / "try", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
        answer = True
    except OSError:
        answer = False
    (tmp_path / "try").unlink(missing_ok=True)
    assert takes_direct(tmp_path) is answer
    assert takes_direct(tmp_path / "missing") is False
    assert not list(tmp_path.iterdir())


def test_warm_memory():
    """Whole pages, on a page's boundary, no two alike, and nothing that a disk could compress."""
    with closing(warm_pages(3_000_001)) as pages:
        assert len(pages.view) == -(-3_000_001 // PAGE) * PAGE
        assert pages.address % PAGE == 0
        found = [bytes(pages.view[offset : offset + PAGE]) for offset in range(0, len(pages.view), PAGE)]
        assert len(set(found)) == len(found)
        whole = b"".join(found)
        assert len(zlib.compress(whole, 1)) > 0.99 * len(whole)


@steady
@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_blocks_are_the_whole(nbytes, size):
    """One after the other, none empty, none too large."""
    found = blocks(nbytes, size)
    ends = [offset + length for offset, length in found]
    assert [offset for offset, _ in found] == [0, *ends[:-1]]
    assert ends[-1] == nbytes
    assert all(0 < length <= size for _, length in found)


def test_sharing_does_everything_once():
    """By as many threads as are asked for."""
    done, threads = [], set()
    everybody = threading.Barrier(3, timeout=30)

    def work(item):
        if item < 3:
            everybody.wait()
        threads.add(threading.get_ident())
        done.append(item)

    with ThreadPoolExecutor(4) as pool:
        share(pool, range(100), work, threads=3)
    assert sorted(done) == list(range(100))
    assert len(threads) == 3


def test_an_error_waits_for_those_who_are_still_at_work():
    """Or they would go on with a descriptor that the caller has closed, and that is another file's by then."""
    both, finished = threading.Barrier(2, timeout=30), []

    def work(item):
        both.wait()
        if item == 0:
            raise OSError(errno.EIO, "broken")
        time.sleep(0.1)
        finished.append(item)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(OSError, match="broken"):
            share(pool, [0, 1], work, threads=2)
        assert finished == [1]
