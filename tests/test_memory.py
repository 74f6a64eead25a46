"""Memory for the arenas: a process's own, and memory that another process maps too."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from asyncsave import descriptors, memory
from asyncsave.memory import Pages, SharedPages, map_shared, nameless_file

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
SIZES = [PAGE, 3 * PAGE, HUGE - PAGE, HUGE, HUGE + PAGE, 3 * HUGE, (64 << 20) + PAGE]
KINDS = [Pages, SharedPages]
_EHWPOISON = 133


@pytest.fixture
def without_memfd(monkeypatch):
    """Be a system that has no memory with a descriptor."""
    monkeypatch.delattr(os, "memfd_create")


@pytest.fixture(params=["there", "missing", "refused"])
def memfd(request, monkeypatch):
    """Run a test with a memfd, where there is none, and where the system (a sandbox) does not let have one."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if request.param == "missing":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif request.param == "refused":
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memfd")
    return request.param


def in_memory(pages):
    """Return how many bytes of memory a file takes."""
    return os.fstat(pages.descriptor).st_blocks * 512


def open_files():
    """Return how many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nbytes", SIZES)
def test_memory(kind, nbytes):
    """It is as large as asked, page-aligned, on a huge page's boundary where it has one, writable, and zero."""
    pages = kind(nbytes)
    assert len(pages.view) == nbytes
    assert pages.address % PAGE == 0
    assert not pages.view.readonly
    assert (pages.view.format, pages.view.ndim, pages.view.itemsize) == ("B", 1, 1)
    pages.touch(0, nbytes)
    assert bytes(pages.view[:PAGE]) == bytes(PAGE)
    pages.view[:3], pages.view[-3:] = b"abc", b"xyz"
    assert bytes(pages.view[:4]) == b"abc\0" if nbytes > PAGE else pages.view[0] == ord("a")
    assert bytes(pages.view[-3:]) == b"xyz"
    pages.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nbytes", [size for size in SIZES if size >= HUGE])
def test_large_memory_begins_on_a_huge_page(kind, nbytes):
    """Only what begins on a huge page's boundary can lie on huge pages."""
    pages = kind(nbytes)
    at = pages.address % HUGE
    pages.close()
    assert at == 0


def _smaps(pages):
    """Return what the kernel says of a mapping: its figures in KiB."""
    found, here = {}, False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if (span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            here = int(span[1], 16) <= pages.address < int(span[2], 16)
        elif here and (figure := re.match(r"(\w+): +(\d+) kB", line)) is not None:
            found[figure[1]] = int(figure[2])
    return found


def _can_collapse():
    """Tell whether the kernel puts shared memory that lies right onto huge pages when it is asked to."""
    fd = os.memfd_create("test")
    reserved = memory._Mapping(2 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        os.ftruncate(fd, HUGE)
        aligned = -(-reserved.address // HUGE) * HUGE
        fixed = mmap.MAP_SHARED | 0x10  # MAP_FIXED
        assert memory._mmap(aligned, HUGE, mmap.PROT_READ | mmap.PROT_WRITE, fixed, fd, 0) == aligned
        assert memory._madvise(aligned, HUGE, memory._MADV_POPULATE_WRITE) == 0
        return memory._madvise(aligned, HUGE, memory._MADV_COLLAPSE) == 0
    finally:
        reserved.close()
        os.close(fd)


def test_shared_memory_lies_on_huge_pages():
    """Where the kernel can (Linux 6.1), touched memory is mapped by huge pages, without anybody's leave."""
    if not hasattr(os, "memfd_create") or not sys.platform.startswith("linux"):
        pytest.skip("this system has no memfd")
    if not _can_collapse():
        pytest.skip("this kernel does not collapse shared memory onto huge pages")
    nbytes = 16 * HUGE
    pages = SharedPages(nbytes)
    pages.touch(0, nbytes)
    found = _smaps(pages)
    pages.close()
    assert found["ShmemPmdMapped"] << 10 == nbytes, f"only {found['ShmemPmdMapped']} KiB lie on huge pages"


@pytest.mark.parametrize("kind", KINDS)
def test_touched_memory_is_there(kind):
    """After the touch no page is missing: the copy that follows meets no page fault."""
    if not Path("/proc/self/smaps").exists():
        pytest.skip("this system does not say what is present")
    nbytes = 4 * HUGE + 3 * PAGE
    pages = kind(nbytes)
    pages.touch(0, HUGE)
    pages.touch(HUGE, nbytes - HUGE)
    found = _smaps(pages)["Rss"] << 10
    pages.close()
    if found == 0:
        pytest.skip("this kernel populates nothing (before Linux 5.14)")
    assert found >= nbytes


def test_touching_a_part_takes_that_part():
    """Memory is taken where it is touched, and nowhere else."""
    pages = SharedPages(8 * HUGE)
    assert in_memory(pages) == 0
    pages.touch(2 * HUGE, HUGE)
    assert in_memory(pages) == HUGE
    pages.touch(HUGE // 2, PAGE)
    assert in_memory(pages) <= 2 * HUGE
    pages.close()


# Shared.


def test_both_mappings_see_the_bytes(memfd):
    """What one writes the other reads, also where shared memory has to lie in a file."""
    pages = SharedPages(3 * PAGE)
    assert pages.descriptor >= 0
    pages.touch(0, 3 * PAGE)
    pages.view[:5] = b"there"
    other = map_shared(pages.descriptor)
    assert len(other) >= 3 * PAGE
    assert bytes(other[:5]) == b"there"
    other[-1:] = pages.view[-1:] = b"!"
    other[:4] = b"back"
    assert bytes(pages.view[:4]) == b"back"
    other.release()
    pages.close()


def test_another_process_sees_the_bytes(memfd):
    """A process that has got the descriptor maps the same memory; it needs no other leave."""
    pages = SharedPages(HUGE + PAGE)
    pages.view[-5:] = b"there"
    code = """
import sys
from asyncsave.memory import map_shared
fd, nbytes = map(int, sys.argv[1:])
view = map_shared(fd)
assert bytes(view[nbytes - 5 : nbytes]) == b"there"
view[:4] = b"back"
"""
    command = [sys.executable, "-c", code, str(pages.descriptor), str(HUGE + PAGE)]
    subprocess.run(command, pass_fds=[pages.descriptor], check=True)
    assert bytes(pages.view[:4]) == b"back"
    pages.close()


def test_without_a_memfd_the_file_has_no_name(without_memfd, tmp_path, monkeypatch):
    """The file that takes its place is in the folder for temporary files, and in no listing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pages = SharedPages(PAGE)
    found = os.fstat(pages.descriptor)
    assert found.st_dev == tmp_path.stat().st_dev
    assert found.st_nlink == 0
    assert list(tmp_path.iterdir()) == []
    pages.close()


@pytest.mark.parametrize("nbytes", [PAGE, HUGE, 3 * HUGE + PAGE])
def test_it_cannot_change_its_size(nbytes):
    """Nobody can take memory away under who has it mapped, nor make a file of it that grows."""
    pages = SharedPages(nbytes)
    size = os.fstat(pages.descriptor).st_size
    if not pages._in_memory:
        pytest.skip("this system has no memfd: a file has no seals")
    for other in (0, PAGE - 1, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(pages.descriptor, other)
    with pytest.raises(PermissionError):
        os.pwrite(pages.descriptor, b"x", size)
    assert fcntl.fcntl(pages.descriptor, fcntl.F_GET_SEALS) & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    pages.close()


@pytest.mark.parametrize("nbytes", [PAGE, HUGE, 3 * HUGE + PAGE])
def test_closed_memory_is_free_at_once(nbytes):
    """A process that still has the memory mapped keeps nothing of it: it reads zeros, and is not killed."""
    pages = SharedPages(nbytes)
    if not pages._in_memory:
        pytest.skip("this system has no memfd")
    pages.touch(0, nbytes)
    pages.view[:] = b"x" * nbytes
    kept, other = os.dup(pages.descriptor), map_shared(pages.descriptor)
    assert os.fstat(kept).st_blocks * 512 >= nbytes
    pages.close()
    assert os.fstat(kept).st_blocks == 0
    assert bytes(other[:nbytes]) == bytes(nbytes)
    other.release()
    os.close(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_close_is_idempotent(kind):
    """The second call does nothing; the descriptor may be somebody else's by then."""
    pages = kind(PAGE)
    fd = pages.descriptor
    pages.close()
    with open(os.devnull, "rb") as stranger:  # noqa: PTH123 - by its descriptor
        assert fd in {-1, stranger.fileno()}
        pages.close()
        os.fstat(stranger.fileno())
    assert pages.descriptor == -1


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_keeps_the_memory(kind):
    """Who still holds a piece of the view after the close can read and write it; then it goes."""
    nbytes = 2 * HUGE
    pages = kind(nbytes)
    pages.view[:3] = b"abc"
    address, piece = pages.address, pages.view[:PAGE]
    pages.close()
    piece[:3] = b"xyz"
    assert bytes(piece[:3]) == b"xyz"
    assert _is_mapped(address)
    del piece, pages
    gc.collect()
    assert not _is_mapped(address)


def test_a_mapping_outlives_its_descriptor(memfd):
    """What was mapped stays when the descriptor is closed, and goes with its view."""
    pages = SharedPages(PAGE)
    fd = os.dup(pages.descriptor)
    pages.view[:3] = b"abc"
    other = map_shared(fd)
    os.close(fd)
    assert bytes(other[:3]) == b"abc"
    pages.close()
    other[:3] = b"xyz"
    assert bytes(other[:3]) == b"xyz"


def _is_mapped(address):
    """Tell whether there is anything at an address."""
    spans = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    return any(int(start, 16) <= address < int(end, 16) for start, end in spans)


FORKED = """
import gc, mmap, os, sys
from asyncsave import memory
from asyncsave.memory import Pages, SharedPages

def maps():
    with open("/proc/self/maps") as table:
        return table.read().splitlines()

def is_mapped(address):
    spans = [line.split()[0].split("-") for line in maps()]
    return any(int(start, 16) <= address < int(end, 16) for start, end in spans)

kind, nbytes = getattr(memory, sys.argv[1]), int(sys.argv[2])
pages = kind(nbytes)
pages.touch(0, nbytes)
pages.keep_from_children()
fd, address = pages.descriptor, pages.address

def fork(child):
    pid = os.fork()
    if not pid:
        child()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


@pytest.mark.parametrize("kind", ["Pages", "SharedPages"])
@pytest.mark.parametrize("nbytes", [PAGE, HUGE, HUGE + PAGE, 3 * HUGE - PAGE])
def test_a_forked_child_does_not_have_it(template, kind, nbytes):
    """Neither mapping nor descriptor is there: a child that outlives everybody else keeps no memory."""
    done = template.run(
        FORKED
        + """
def child():
    assert fd < 0 or not os.path.exists(f"/proc/self/fd/{fd}")
    assert not is_mapped(address) and not is_mapped(address + nbytes - 1)
    left = [line for line in maps() if "memfd:asyncsave" in line]
    assert not left, left

fork(child)
assert is_mapped(address)
""",
        kind,
        nbytes,
    )
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize("kind", ["Pages", "SharedPages"])
def test_a_child_that_forgets_it_unmaps_nothing(template, kind):
    """In a child the addresses may be somebody else's: forgetting, closing and collecting touch nothing."""
    done = template.run(
        FORKED
        + """
def child():
    global pages
    there = memory._mmap(address, PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert there == address, "the place was free"
    pages.abandon()
    pages.close()
    del pages
    gc.collect()
    assert is_mapped(address)

PAGE = mmap.PAGESIZE
fork(child)
pages.view[:1] = b"x"
pages.close()
""",
        kind,
        4 * PAGE,
    )
    assert done.rc == 0, done.stderr


# What the system refuses.


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EFAULT, _EHWPOISON])
def test_too_little_memory_is_an_error(monkeypatch, number):
    """Memory that is not there is told by the touch, not by a SIGBUS of the copy."""
    advise = memory._madvise

    def full(address, nbytes, advice):
        return number if advice == memory._MADV_POPULATE_WRITE else advise(address, nbytes, advice)

    pages = SharedPages(HUGE)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_madvise", full)
        with pytest.raises(OSError, match=r"[Mm]emory") as error:
            pages.touch(0, HUGE)
    assert error.value.errno == errno.ENOMEM
    pages.close()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr!r}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_file_system_is_an_error(without_memfd, small_disk, monkeypatch):
    """A file in place of the memory, on a disk that is full: an error by the touch, and nobody is killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    pages = SharedPages(4 * HUGE)
    with pytest.raises(OSError, match=r"[Mm]emory|[Ss]pace"):
        pages.touch(0, 4 * HUGE)
    pages.close()


def test_an_older_kernel_reserves_the_memory(monkeypatch):
    """Where no page can be populated (before Linux 5.14), the file's blocks are reserved: the promise is the same."""
    advise = memory._madvise

    def old(address, nbytes, advice):
        known = advice not in {memory._MADV_POPULATE_WRITE, memory._MADV_COLLAPSE}
        return advise(address, nbytes, advice) if known else errno.EINVAL

    monkeypatch.setattr(memory, "_madvise", old)
    pages = SharedPages(2 * HUGE)
    pages.touch(0, HUGE)
    assert in_memory(pages) == HUGE
    pages.touch(HUGE, HUGE)
    assert in_memory(pages) == 2 * HUGE
    pages.close()


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_is(kind):
    """A mapping that is refused is an OSError, and leaves no descriptor."""
    for nbytes in (1 << 62, (1 << 63) - HUGE):
        with pytest.raises(OSError, match=r".+"):
            kind(nbytes)


def test_a_memfd_that_fails_otherwise(monkeypatch):
    """No free descriptor is an error that is told; it does not make a file of memory."""

    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    with pytest.raises(OSError, match="open files") as error:
        SharedPages(PAGE)
    assert error.value.errno == errno.EMFILE


@pytest.mark.parametrize("step", ["ftruncate", "fcntl", "_Mapping"])
def test_a_failure_leaves_no_descriptor(monkeypatch, step):
    """Whatever fails on the way, an arena that was not made has no descriptor."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {"ftruncate": os, "fcntl": memory.fcntl, "_Mapping": memory}[step]
    monkeypatch.setattr(where, step, fail)
    with pytest.raises(OSError, match="space"):
        SharedPages(PAGE)
    assert not descriptors._private


def test_one_descriptor_for_each(memfd):
    """An arena takes one descriptor, however large it is, and whatever is done with it."""
    before = open_files()
    many = [SharedPages(nbytes) for nbytes in (PAGE, HUGE, 2 * HUGE)]
    for pages in many:
        pages.touch(0, len(pages.view))
    views = [map_shared(pages.descriptor) for pages in many]
    assert open_files() == before + len(many)
    assert not any(os.get_inheritable(pages.descriptor) for pages in many)
    for pages in many:
        pages.close()
    assert open_files() == before
    del views


@pytest.mark.parametrize("what", ["a pipe", "a folder", "a device", "an empty file", "a read-only file", "a socket"])
def test_what_cannot_be_mapped(what, tmp_path):
    """Whatever another process may have sent instead of memory: an OSError."""
    (tmp_path / "file").write_bytes(b"x" * PAGE)
    (tmp_path / "empty").touch()
    spare = -1
    if what == "a pipe":
        fd, spare = os.pipe()
    elif what == "a socket":
        one, other = socket.socketpair()
        fd, spare = one.detach(), other.detach()
    else:
        name, flags = {
            "a folder": (tmp_path, os.O_RDONLY),
            "a device": (os.devnull, os.O_RDWR),
            "an empty file": (tmp_path / "empty", os.O_RDWR),
            "a read-only file": (tmp_path / "file", os.O_RDONLY),
        }[what]
        fd = os.open(name, flags)
    try:
        with pytest.raises(OSError, match=r".+"):
            map_shared(fd)
    finally:
        os.close(fd)
        if spare >= 0:
            os.close(spare)


def test_a_nameless_file(memfd):
    """It is empty, has no name, and grows: what is written there is read there."""
    fd, in_memory_ = nameless_file()
    assert in_memory_ == (memfd == "there")
    assert os.fstat(fd).st_size == 0
    assert os.fstat(fd).st_nlink == 0
    os.write(fd, b"last words")
    assert os.pread(fd, 100, 0) == b"last words"
    assert fd in descriptors._private
    descriptors.drop(fd)
