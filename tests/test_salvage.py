"""The file of a dropped step is overwritten by the next one, and never while anybody can still see it."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import sys

import pytest
from gates import METHODS, Failing, Recording
from steps import assemble, clear, put_step, stock, target_of, temporaries, whole

from asyncsave.catalogue import removal
from asyncsave.catalogue.names import step_name
from asyncsave.catalogue.removal import Removal
from asyncsave.storage import assembly, spare
from asyncsave.storage.mounts import file_system
from asyncsave.storage.spare import _TRUSTED, Spares
from asyncsave.storage.system import System

LARGE = b"x" * 10_000


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch, tmp_path):
    """Let files of a page be worth keeping; skip where nothing is kept at all."""
    if (kind := file_system(str(tmp_path))[0]) not in _TRUSTED:
        pytest.skip(f"spares are kept on {sorted(_TRUSTED)} only, this is {kind or 'unknown'}")
    for module in (spare, assembly, removal):
        monkeypatch.setattr(module, "SPARE_FROM", 4096)
    monkeypatch.setattr(assembly, "DIRECT_FROM", 4096)


@pytest.fixture
def shelf():
    """Return an empty shelf, emptied again after the test."""
    made = Spares(System())
    yield made
    made.close()


def drop(version, step, spares, *, system=None, sync=True):
    """Drop a step, as retention does."""
    with Removal(system or System(), str(version), sync=sync, spares=spares) as gone:
        return gone.drop(step_name(step))


def inode_of(path):
    """Return which file a path stands for."""
    return path.stat().st_ino


def test_the_largest_file_of_a_dropped_step_is_written_again(shelf, tmp_path):
    """Step after step, with the oldest dropped, goes on in the same few files."""
    inodes = []
    for step in range(8):
        files = {"ema.pt": b"%d" % step * 5000, "state.pt": b"%d" % step * 9000}
        assemble(System(), target_of(tmp_path, step), files, spares=shelf)
        inodes.append(inode_of(tmp_path / step_name(step) / "state.pt"))
        assert whole(tmp_path / step_name(step)) == files
        if step:
            assert drop(tmp_path, step - 1, shelf)
        assert len(temporaries(tmp_path)) == (1 if step else 0)
    assert inodes[2:] == inodes[:-2]
    assert len(set(inodes)) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [step_name(7)]


@pytest.mark.parametrize("size", [4096, 10_000, 20_000])
def test_a_spare_becomes_the_largest_file(shelf, tmp_path, size):
    """Its blocks are written again, in the new size, with the mode that a new file has and none of the old bytes."""
    inode = stock(shelf, tmp_path)
    files = {"small.pt": b"s", "state.pt": b"n" * size}
    assemble(System(), target_of(tmp_path, 1), files, spares=shelf)
    step = tmp_path / step_name(1)
    assert whole(step) == files
    assert (step / "state.pt").stat().st_ino == inode
    assert (step / "state.pt").stat().st_mode == (step / "small.pt").stat().st_mode
    assert not temporaries(tmp_path)


def test_a_small_file_is_not_made_of_a_spare(shelf, tmp_path):
    """What fits in a few blocks leaves the spare for what does not."""
    stock(shelf, tmp_path)
    assemble(System(), target_of(tmp_path, 1), {"state.pt": b"n" * 4095}, spares=shelf)
    assert len(temporaries(tmp_path)) == 1


def test_a_full_disk_takes_the_spare_first(shelf, tmp_path):
    """A disk too full for a new file gives up the spare, and the save succeeds."""
    stock(shelf, tmp_path)
    system, files = Failing("allocate", errno.ENOSPC), {"ema.pt": b"n" * 5000, "state.pt": b"n" * 6000}
    assemble(system, target_of(tmp_path, 1), files, spares=shelf)
    assert system.fired == 1
    assert whole(tmp_path / step_name(1)) == files
    assert not temporaries(tmp_path)


def test_no_more_than_one_is_kept(shelf, tmp_path):
    """Of many dropped steps the last one's file is kept, and the others are gone."""
    for step in range(4):
        put_step(tmp_path, step, {"state.pt": LARGE, "ema.pt": LARGE})
    for step in range(4):
        drop(tmp_path, step, shelf)
    assert len(list(tmp_path.iterdir())) == len(temporaries(tmp_path)) == 1


@pytest.mark.parametrize("nbytes", [0, 4095, 4096])
def test_only_large_files_are_worth_it(shelf, tmp_path, nbytes):
    """A file that fits in a few blocks is removed."""
    put_step(tmp_path, 1, {"state.pt": bytes(nbytes)})
    assert drop(tmp_path, 1, shelf)
    assert len(temporaries(tmp_path)) == (nbytes == 4096)


@pytest.mark.parametrize("kind", ["overlay", "tmpfs", "nfs4", ""])
def test_nothing_is_kept_where_a_lease_says_too_little(shelf, tmp_path, monkeypatch, kind):
    """On other file systems nobody can tell who else has the file: it is removed."""
    monkeypatch.setattr(spare, "file_system", lambda _: (kind, ""))
    put_step(tmp_path, 1, {"state.pt": LARGE})
    assert drop(tmp_path, 1, shelf)
    assert not list(tmp_path.iterdir())


def test_nothing_is_kept_without_sync(shelf, tmp_path):
    """A drop that is not flushed may be undone by a power cut: its files are not overwritten."""
    put_step(tmp_path, 1, {"state.pt": LARGE})
    assert drop(tmp_path, 1, shelf, sync=False)
    assert not list(tmp_path.iterdir())


def test_the_drop_is_flushed_before_a_file_is_kept(tmp_path):
    """No byte of a checkpoint is given up before it is certain that it is none any more."""
    system = Recording()
    shelf = Spares(system)
    put_step(tmp_path, 1, {"state.pt": LARGE})
    drop(tmp_path, 1, shelf, system=system)
    moves = [name for name in system.names() if name.startswith(("rename", "fsync"))]
    assert moves == ["rename", "fsync folder", "rename"]
    assert [call.kind for call in system.trace if call.name == "rename"] == ["manifest.json", "state.pt"]
    shelf.close()


def test_a_failed_flush_keeps_nothing(shelf, tmp_path):
    """Where the drop could not be flushed its files stay as they are."""
    step = put_step(tmp_path, 1, {"state.pt": LARGE})
    with pytest.raises(OSError, match="error"):
        drop(tmp_path, 1, shelf, system=Failing("fsync", errno.EIO))
    assert (step / "state.pt").read_bytes() == LARGE
    assert not temporaries(tmp_path)


def next_step(version, shelf):
    """Save a step that would overwrite the spare."""
    assemble(System(), target_of(version, 9), {"state.pt": b"n" * len(LARGE)}, spares=shelf)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hard_linked_file_is_never_overwritten(shelf, tmp_path, when):
    """A name that somebody else has given a file protects it, whether given before the drop or after."""
    step, rescued = put_step(tmp_path, 1, {"state.pt": LARGE}), tmp_path / "rescued.pt"
    if when == "before":
        rescued.hardlink_to(step / "state.pt")
    drop(tmp_path, 1, shelf)
    if when == "after":
        rescued.hardlink_to(temporaries(tmp_path)[0])
    next_step(tmp_path, shelf)
    assert rescued.read_bytes() == LARGE
    assert inode_of(rescued) != inode_of(tmp_path / step_name(9) / "state.pt")
    assert not temporaries(tmp_path)


@pytest.mark.parametrize("what", ["open", "mapped"])
def test_a_reader_keeps_what_it_reads(shelf, tmp_path, what):
    """A dropped file that this process has open, or mapped with its descriptor closed, never changes."""
    step = put_step(tmp_path, 1, {"state.pt": LARGE})
    with (step / "state.pt").open("rb") as reader:
        if what == "mapped":
            mapping = mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ)
            reader.close()
        drop(tmp_path, 1, shelf)
        for _ in range(3):
            next_step(tmp_path, shelf)
        if what == "mapped":
            assert mapping[:] == LARGE
            mapping.close()
        else:
            assert reader.read() == LARGE
    assert (tmp_path / step_name(9) / "state.pt").read_bytes() == b"n" * len(LARGE)
    clear(tmp_path)


READER = """
import mmap, sys
file = open(sys.argv[1], "rb")
found = file if sys.argv[2] == "open" else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
if sys.argv[2] == "mapped":
    file.close()
print("ready", flush=True)
sys.stdin.readline()
data = found.read()
print(len(data), set(data), flush=True)
"""


@pytest.mark.parametrize("what", ["open", "mapped"])
def test_a_reader_in_another_process_keeps_what_it_reads(shelf, tmp_path, what):
    """A dropped file that another process has open or mapped never changes; once it is closed, others are kept."""
    step = put_step(tmp_path, 1, {"state.pt": LARGE})
    command = [sys.executable, "-c", READER, str(step / "state.pt"), what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "ready\n"
        drop(tmp_path, 1, shelf)
        (kept,) = temporaries(tmp_path)
        shared = inode_of(kept)
        next_step(tmp_path, shelf)
        assert inode_of(tmp_path / step_name(9) / "state.pt") != shared
        out, _ = reader.communicate("\n")
    assert out == f"{len(LARGE)} {{{LARGE[0]}}}\n"
    inode = stock(shelf, tmp_path)
    next_step(tmp_path, shelf)
    assert inode_of(tmp_path / step_name(9) / "state.pt") == inode, "with the reader gone nothing is in the way"
    clear(tmp_path)


def test_files_that_are_not_plain(shelf, tmp_path):
    """A link, a FIFO or a folder in place of a step's file is never opened, followed or kept."""
    (tmp_path / "precious").write_bytes(LARGE)
    (tmp_path / "precious").chmod(0o644)
    for step, kind in enumerate(["link", "fifo"]):
        file = put_step(tmp_path, step, {"state.pt": LARGE}) / "state.pt"
        file.unlink()
        if kind == "link":
            file.symlink_to(tmp_path / "precious")
        else:
            os.mkfifo(file)
        assert drop(tmp_path, step, shelf)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_bytes() == LARGE
    assert stat.S_IMODE((tmp_path / "precious").stat().st_mode) == 0o644


def test_a_file_with_attributes_is_not_kept(shelf, tmp_path):
    """Extended attributes of a dropped file do not appear on a new one."""
    file = put_step(tmp_path, 1, {"state.pt": LARGE}) / "state.pt"
    try:
        os.setxattr(file, "user.note", b"mine")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    drop(tmp_path, 1, shelf)
    assert not list(tmp_path.iterdir())


def test_what_was_dropped_is_nobody_elses_to_read(shelf, tmp_path):
    """A spare has no permissions for others, whatever the checkpoint had."""
    (put_step(tmp_path, 1, {"state.pt": LARGE}) / "state.pt").chmod(0o666)
    drop(tmp_path, 1, shelf)
    (kept,) = temporaries(tmp_path)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_sweeper_leaves_it_alone(shelf, tmp_path):
    """It is locked like any temporary file, so nobody takes it for a dead writer's."""
    stock(shelf, tmp_path)
    fd = os.open(temporaries(tmp_path)[0], os.O_RDONLY)
    assert not System().lock(fd)
    os.close(fd)


def test_a_closed_shelf_keeps_nothing(tmp_path):
    """After the shelf was closed a dropped file is removed."""
    shelf = Spares(System())
    shelf.close()
    put_step(tmp_path, 1, {"state.pt": LARGE})
    assert drop(tmp_path, 1, shelf)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault_of_a_salvage(tmp_path, method):
    """Whichever call fails: the file is where it was, or on the shelf, or gone; the descriptors are closed."""
    at = 0
    while True:
        at += 1
        step = put_step(tmp_path, 1, {"state.pt": LARGE})
        system = Failing(method, errno.EIO, at=at)
        shelf = Spares(system)
        fds = [os.open(path, os.O_RDONLY) for path in (tmp_path, step)]
        has_left = shelf.salvage(str(tmp_path), fds[0], "state.pt", dir_fd=fds[1])
        for fd in fds:
            os.close(fd)
        if has_left:
            assert not (step / "state.pt").exists()
            assert len(temporaries(tmp_path)) == (shelf._kept is not None)
        elif (step / "state.pt").exists():
            assert (step / "state.pt").read_bytes() == LARGE
            assert not temporaries(tmp_path)
        shelf.close()
        assert not temporaries(tmp_path) or method == "unlink"
        clear(tmp_path)
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
        if not system.fired:
            return
