"""A replaced file's blocks are used again, and never while anybody can still see them."""

from __future__ import annotations

import errno
import mmap
import os

import pytest
import torch
from backends import make_writer
from gates import Failing, Recording

import asyncsave
from asyncsave.storage import replacement
from asyncsave.storage.mounts import file_system
from asyncsave.storage.replacement import Replacement
from asyncsave.storage.spare import _TRUSTED, Spares
from asyncsave.storage.system import System
from asyncsave.storage.target import resolve

LARGE = (32 << 20) // 4
"""So many numbers are worth keeping for a writer process too, which no test can tell otherwise."""


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch, tmp_path):
    """Let files of a page be worth keeping; skip where nothing is kept at all."""
    if (kind := file_system(str(tmp_path))[0]) not in _TRUSTED:
        pytest.skip(f"spares are kept on {sorted(_TRUSTED)} only, this is {kind or 'unknown'}")
    monkeypatch.setattr(replacement, "SPARE_FROM", 4096)


@pytest.fixture
def system():
    """Return the operating system."""
    return System()


@pytest.fixture
def spares(system):
    """Return an empty shelf, emptied again after the test."""
    shelf = Spares(system)
    yield shelf
    shelf.close()


def _put(system, spares, path, data, *, sync=True):
    """Replace a file; return the inode of what is there now."""
    with Replacement(system, resolve(str(path)), len(data), sync=sync, spares=spares) as new:
        system.pwrite(new.fd, memoryview(data), 0)
        new.commit()
    assert path.read_bytes() == data
    return path.stat().st_ino


def _pages(letter, count=2):
    return letter.encode() * 4096 * count


def test_blocks_of_the_replaced_file_are_written_again(system, spares, tmp_path):
    """The third version lies in the first one's file, the fourth in the second's."""
    path = tmp_path / "ckpt.pt"
    inodes = [_put(system, spares, path, _pages(letter)) for letter in "abcd"]
    assert inodes[2:] == inodes[:2]
    assert len(set(inodes)) == 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_spare_takes_the_new_size(system, spares, tmp_path, count):
    """A smaller or larger checkpoint in a spare has its own size, and nothing of the old bytes."""
    path = tmp_path / "ckpt.pt"
    for letter in "ab":
        _put(system, spares, path, _pages(letter))
    _put(system, spares, path, _pages("c", count))
    assert path.stat().st_size == 4096 * count


def test_reader_of_the_old_version_keeps_it(system, spares, tmp_path):
    """While somebody has the replaced file open, it is not written to."""
    path = tmp_path / "ckpt.pt"
    _put(system, spares, path, _pages("a"))
    with path.open("rb") as reader:
        for letter in "bcd":
            _put(system, spares, path, _pages(letter))
        assert reader.read() == _pages("a")


def test_mapping_of_the_old_version_keeps_it(system, spares, tmp_path):
    """While somebody has the replaced file mapped, its descriptor closed, it is not written to."""
    path = tmp_path / "ckpt.pt"
    _put(system, spares, path, _pages("a"))
    with path.open("rb") as reader:
        mapping = mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ)
    for letter in "bcd":
        _put(system, spares, path, _pages(letter))
    assert mapping[:] == _pages("a")
    mapping.close()


@pytest.mark.usefixtures("backend")
def test_tensors_mapped_by_torch_keep_their_values(tmp_path):
    """A checkpoint loaded with mmap=True stays what it was, however often its file is replaced."""
    path = tmp_path / "ckpt.pt"
    with make_writer() as writer:
        writer.save({"x": torch.full((LARGE,), 1.0)}, path).result()
        mapped = torch.load(path, mmap=True)
        for value in (2.0, 3.0, 4.0):
            writer.save({"x": torch.full((LARGE,), value)}, path).result()
        assert torch.equal(mapped["x"], torch.full((LARGE,), 1.0))
        del mapped


def test_hard_linked_file_is_left_alone(system, spares, tmp_path):
    """A version that has another name is that name's."""
    path, other = tmp_path / "ckpt.pt", tmp_path / "best.pt"
    _put(system, spares, path, _pages("a"))
    other.hardlink_to(path)
    for letter in "bcd":
        _put(system, spares, path, _pages(letter))
    assert other.read_bytes() == _pages("a")


def test_link_made_to_a_spare_saves_it(system, spares, tmp_path):
    """A name that a kept file gets later protects it too."""
    path, other = tmp_path / "ckpt.pt", tmp_path / "rescued.pt"
    for letter in "ab":
        _put(system, spares, path, _pages(letter))
    (kept,) = tmp_path.glob(".asyncsave-*.tmp")
    other.hardlink_to(kept)
    _put(system, spares, path, _pages("c"))
    assert other.read_bytes() == _pages("a")


def test_file_with_attributes_is_left_alone(system, spares, tmp_path):
    """Extended attributes of an old version do not appear on a new one."""
    path = tmp_path / "ckpt.pt"
    _put(system, spares, path, _pages("a"))
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    for letter in "bc":
        _put(system, spares, path, _pages(letter))
    assert "user.note" not in os.listxattr(path)


def test_mode_is_the_replaced_files(system, spares, tmp_path):
    """A spare gets the mode bits of the file that it replaces."""
    path = tmp_path / "ckpt.pt"
    for letter in "ab":
        _put(system, spares, path, _pages(letter))
    path.chmod(0o600)
    _put(system, spares, path, _pages("c"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_one_spare_per_folder(system, spares, tmp_path):
    """Replacing many files of one folder keeps one of them."""
    for name in ("a.pt", "b.pt", "c.pt"):
        for letter in "xy":
            _put(system, spares, tmp_path / name, _pages(letter))
    assert len(list(tmp_path.glob(".asyncsave-*.tmp"))) == 1


def test_no_spare_without_sync(system, spares, tmp_path):
    """Without the folder's sync the old file may still be the target after a power cut."""
    path = tmp_path / "ckpt.pt"
    for letter in "ab":
        _put(system, spares, path, _pages(letter), sync=False)
    assert not list(tmp_path.glob(".asyncsave-*.tmp"))


def test_no_spare_when_the_folder_cannot_be_synced(spares, tmp_path):
    """A failed sync of the folder keeps nothing, and says that durability is unknown."""
    path = tmp_path / "ckpt.pt"
    _put(System(), spares, path, _pages("a"))
    failing = Failing("fsync", errno.EIO, at=2)
    with pytest.raises(asyncsave.SaveError) as caught:
        _put(failing, spares, path, _pages("b"))
    assert caught.value.outcome == "durability_unknown"
    assert not list(tmp_path.glob(".asyncsave-*.tmp"))


def test_old_version_is_never_written_before_the_folders_sync(tmp_path):
    """In the trace, every write to a kept file comes after the sync of the exchange that freed it."""
    system = Recording()
    shelf = Spares(system)
    path = tmp_path / "ckpt.pt"
    for letter in "abc":
        _put(system, shelf, path, _pages(letter))
    shelf.close()
    names = system.names()
    exchanges = [number for number, name in enumerate(names) if name.startswith("exchange")]
    assert len(exchanges) == 2
    for number in exchanges:
        assert names[number + 1] == "fsync folder"


@pytest.mark.parametrize("method", ["exchange", "is_unshared", "has_attributes"])
def test_systems_without_the_means_replace_as_usual(monkeypatch, tmp_path, method):
    """Where two names cannot be exchanged, or a file's readers cannot be known, a new file is made."""
    system = System()
    answer = method == "has_attributes"
    monkeypatch.setattr(system, method, lambda *_, **__: answer)
    shelf = Spares(system)
    path = tmp_path / "ckpt.pt"
    inodes = [_put(system, shelf, path, _pages(letter)) for letter in "abc"]
    shelf.close()
    assert inodes[2] != inodes[1]
    assert path.read_bytes() == _pages("c")


def test_full_disk_takes_the_spare_first(tmp_path):
    """A disk too full for a new file gives up the spare of that folder, and the save succeeds."""
    shelf = Spares(System())
    for letter in "ab":
        _put(System(), shelf, tmp_path / "ckpt.pt", _pages(letter))
    system = Failing("allocate", errno.ENOSPC)
    _put(system, shelf, tmp_path / "new.pt", _pages("n"))
    assert system.fired == 1
    assert not list(tmp_path.glob(".asyncsave-*.tmp"))


@pytest.mark.parametrize("method", ["chmod", "truncate", "allocate", "pwrite", "fsync", "exchange"])
def test_failure_on_a_spare_leaves_the_target(tmp_path, method):
    """Whatever fails while a spare is overwritten, the target is whole, and no file is left."""
    shelf = Spares(System())
    path = tmp_path / "ckpt.pt"
    for letter in "ab":
        _put(System(), shelf, path, _pages(letter, 4))
    system = Failing(method, errno.EIO)
    data = _pages("c")
    with pytest.raises((asyncsave.SaveError, OSError)):
        _put(system, shelf, path, data)
    assert path.read_bytes() == _pages("b", 4)
    assert not list(tmp_path.glob(".asyncsave-*.tmp"))


@pytest.mark.usefixtures("backend")
def test_writer_keeps_one_and_removes_it_when_closed(tmp_path):
    """A spare is there while the writer is open, and gone afterwards; the checkpoint is whole."""
    path = tmp_path / "ckpt.pt"
    with make_writer() as writer:
        for step in range(5):
            writer.save({"step": step, "x": torch.full((LARGE,), float(step))}, path).result()
        writer.flush()
        assert len(list(tmp_path.glob(".asyncsave-*.tmp"))) == 1
        assert asyncsave.verify(path).ok
    assert not list(tmp_path.glob(".asyncsave-*.tmp"))
    assert asyncsave.load(path)["step"] == 4


@pytest.mark.parametrize("kind", ["overlay", "tmpfs", "nfs4", "fuse.sshfs", ""])
def test_no_spare_where_a_lease_says_too_little(monkeypatch, tmp_path, kind):
    """On an overlay a mapping holds the file below, over a network others are not seen: nothing is kept."""
    monkeypatch.setattr("asyncsave.storage.spare.file_system", lambda _: (kind, ""))
    shelf = Spares(System())
    path = tmp_path / "ckpt.pt"
    for letter in "ab":
        _put(System(), shelf, path, _pages(letter))
    assert not list(tmp_path.glob(".asyncsave-*.tmp"))
    shelf.close()


def test_renamed_folder_keeps_nothing_of_ours(system, spares, tmp_path):
    """A spare is its folder's, not its path's: a new folder of the same name starts afresh."""
    folder = tmp_path / "run"
    folder.mkdir()
    for letter in "ab":
        _put(system, spares, folder / "ckpt.pt", _pages(letter))
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    for letter in "cd":
        _put(system, spares, folder / "ckpt.pt", _pages(letter))
    spares.close()
    assert (tmp_path / "moved" / "ckpt.pt").read_bytes() == _pages("b")
    assert not list(tmp_path.rglob(".asyncsave-*.tmp"))


def test_full_disk_takes_the_spare_of_another_folder(tmp_path):
    """The space that a spare holds is anybody's who needs it, in whatever folder."""
    shelf = Spares(System())
    for name in ("last", "best"):
        (tmp_path / name).mkdir()
    for letter in "ab":
        _put(System(), shelf, tmp_path / "last" / "ckpt.pt", _pages(letter))
    _put(Failing("allocate", errno.EDQUOT), shelf, tmp_path / "best" / "ckpt.pt", _pages("n"))
    assert not list(tmp_path.rglob(".asyncsave-*.tmp"))


def test_spare_is_nobody_elses_to_read(system, spares, tmp_path):
    """What was replaced by something private does not stay readable under a temporary name."""
    path = tmp_path / "ckpt.pt"
    for letter in "ab":
        _put(system, spares, path, _pages(letter))
    (kept,) = tmp_path.glob(".asyncsave-*.tmp")
    assert kept.stat().st_mode & 0o077 == 0
