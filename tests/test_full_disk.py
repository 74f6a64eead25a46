"""Full for real: disks, quotas of size, memory. The old file stays, and the writer goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess

import pytest
import torch
from backends import make_writer

import asyncsave
from asyncsave import SaveError
from asyncsave.storage.system import System

pytestmark = pytest.mark.usefixtures("backend")

PATIENCE = 60.0


def state(number, mib):
    """Return a state of so many MiB."""
    return {"number": number, "x": torch.full((mib << 18,), float(number))}


def command(*words):
    """Run a command that needs rights which not everybody has; skip the test where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{words[0]} is not possible here: {done.stderr.strip()}")


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request, tmp_path):
    """Mount a file system of about 16 MB, without a reserve for root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        command("mount", "-t", "tmpfs", "-o", "size=16m", "none", folder)
    else:
        with (tmp_path / "image").open("wb") as image:
            image.truncate(17 << 20)
        command("mkfs.ext4", "-q", "-F", "-m", "0", tmp_path / "image")
        command("mount", "-o", "loop", tmp_path / "image", folder)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder, but):
    """Fill a disk up to so many bytes."""
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        free = os.statvfs(folder)
        os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize - but)


@pytest.mark.parametrize("room", [0, 64 << 10, 3 << 20])
def test_no_space(small_disk, room):
    """A save that does not fit fails with ENOSPC; the old one is untouched; with room the next one works."""
    path = small_disk / "ckpt"
    with make_writer() as writer:
        writer.save(state(1, 4), path).result(PATIENCE)
        old = path.read_bytes()
        fill(small_disk, room)
        error = writer.save(state(2, 4), path).exception(PATIENCE)
        assert isinstance(error, SaveError)
        assert (error.errno, error.outcome) == (errno.ENOSPC, "not_committed")
        assert "Free some space" in str(error)
        assert path.read_bytes() == old
        assert not list(small_disk.glob(".asyncsave-*"))
        (small_disk / "ballast").unlink()
        writer.save(state(3, 4), path).result(PATIENCE)
    assert asyncsave.load(path)["number"] == 3


def test_no_space_for_a_small_one(small_disk):
    """The same for a file of less than a megabyte, without a file there before."""
    fill(small_disk, 0)
    with make_writer() as writer:
        handle = writer.save({"x": torch.zeros(100_000)}, small_disk / "ckpt")
        assert handle.exception(PATIENCE).errno == errno.ENOSPC
        assert not (small_disk / "ckpt").exists()
        assert not list(small_disk.glob(".asyncsave-*"))


def test_no_space_without_allocation(small_disk, monkeypatch):
    """Where nothing can be reserved the disk is found full while writing: the same outcome."""
    monkeypatch.setattr(asyncsave.storage.system, "_fallocate", None)
    path = small_disk / "ckpt"
    with make_writer(system=System()) as writer:
        writer.save(state(1, 4), path).result(PATIENCE)
        fill(small_disk, 1 << 20)
        error = writer.save(state(2, 4), path).exception(PATIENCE)
        assert (error.errno, error.outcome) == (errno.ENOSPC, "not_committed")
        assert error.phase in {"write", "sync"}
        assert not list(small_disk.glob(".asyncsave-*"))
    assert asyncsave.load(path)["number"] == 1


def test_no_inodes(tmp_path, open_writer):
    """A disk without a free inode is a full disk too."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=4", "none", folder)
    writer = open_writer()
    try:
        writer.save({"n": 1}, folder / "ckpt").result(PATIENCE)
        with contextlib.suppress(OSError):
            for number in range(9):
                (folder / str(number)).touch()
        with pytest.raises(SaveError) as raised:
            writer.save({"n": 2}, folder / "ckpt").result(PATIENCE)
        assert (raised.value.errno, raised.value.phase) == (errno.ENOSPC, "open")
        assert asyncsave.load(folder / "ckpt")["n"] == 1
    finally:
        subprocess.run(["umount", folder], check=True)


def test_memory_is_no_disk(small_disk, request, open_writer):
    """On a file system in memory a save is in place, and not called durable; on a disk it is."""
    handle = open_writer().save({"n": 1}, small_disk / "ckpt")
    durable = "ext4" in request.node.callspec.id
    assert handle.result(PATIENCE).durable is durable
    assert handle.status == ("durable" if durable else "written")
    assert handle.durable.wait(PATIENCE) is durable


LIMITED = """
import errno, resource, sys
import torch, asyncsave
from backends import make_writer, process_is_tested
from processes import service_of
path, kind = sys.argv[1:]
small, large = {"x": torch.zeros(1000)}, {"x": torch.zeros(16 << 20)}
writer = make_writer()
writer.save(small, path).result()
old = open(path, "rb").read()
if kind == "file size":
    who = service_of(writer) if process_is_tested() else 0
    resource.prlimit(who, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
elif kind == "trainer's file size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
else:
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (40 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
try:
    writer.save(large, path).result()
except asyncsave.AsyncSaveError as error:
    print(type(error).__name__, errno.errorcode.get(getattr(error, "errno", None)))
    assert "limit" in str(error) or "memory" in str(error), error
assert open(path, "rb").read() == old
assert writer.save(small, path, on_busy="raise").result().durable is not None
writer.close()
print("goes on")
"""


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_file_size_limit(tmp_path, template):
    """A limit on the size of files is EFBIG, with the remedy."""
    done = template.run(LIMITED, tmp_path / "ckpt", "file size")
    assert done.rc == 0, done.stderr
    assert done.stdout.splitlines() == ["SaveError EFBIG", "goes on"]
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_file_size_limit_of_the_trainer(tmp_path, template, backend):
    """The memory that is shared with a writer process is a file to the kernel: the limit is met at the call."""
    done = template.run(LIMITED, tmp_path / "ckpt", "trainer's file size")
    assert done.rc == 0, done.stderr
    assert done.stdout.splitlines() == ["SaveError EFBIG" if backend == "thread" else "StagingError None", "goes on"]
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_out_of_memory_while_staging(tmp_path, template):
    """Memory that the system refuses is a StagingError at the call; nothing dies, the slot is free again."""
    done = template.run(LIMITED, tmp_path / "ckpt", "memory")
    assert done.rc == 0, done.stderr
    assert done.stdout.splitlines() == ["StagingError None", "goes on"]
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]
