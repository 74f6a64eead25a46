"""A file takes its target's place whole or not at all, whatever call fails, and says which.

The sweep is exhaustive: every system call of a save, at its every occurrence, fails with every number
that matters, once and for ever. A writer process runs the same code behind its socket: there two numbers
show that every failure is told, and heard. The planted bugs at the end show that these checks can fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

import pytest
import torch
from backends import make_writer
from gates import METHODS, SHORT, Failing, Recording

import asyncsave
from asyncsave import SaveError
from asyncsave.storage import blocks, replacement
from asyncsave.storage.replacement import Replacement
from asyncsave.storage.system import System
from asyncsave.storage.target import resolve

PATIENCE = 30.0
PHASES = {"open", "allocate", "write", "sync", "close", "rename", "sync folder"}
NUMBERS = {
    "thread": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE),
    "process": (errno.EIO, errno.ENOSPC),
}
SIZES = {"buffered": 1000, "direct": (3 << 20) // 4 + 5}
MUST_REPORT = {"allocate", "pwrite", "truncate", "fsync", "rename", "duplicate", "exchange"}
"""Calls whose failure a save has to report: none of them is made for comfort."""


def state(number, numel=1000):
    """Return a state that says which version it is."""
    return {"number": number, "x": torch.full((numel,), float(number))}


def version_at(path, numel):
    """Return the version at a path, after a look at every byte of it."""
    assert asyncsave.verify(path).ok, "torn"
    loaded = asyncsave.load(path)
    assert torch.equal(loaded["x"], torch.full((numel,), float(loaded["number"])))
    return loaded["number"]


def calls_of_one_save(folder, numel):
    """Return how often a save onto an old file makes each system call."""
    system = Recording()
    with make_writer(system=system, threads=1) as writer:
        writer.save(state(0, numel), folder / "ckpt").result(PATIENCE)
        writer.save(state(1, numel), folder / "other").result(PATIENCE)  # opens no old file
    names = [call.name for call in system.trace]
    return {name: (names.count(name) + 1) for name in METHODS}


class Outcome(NamedTuple):
    """What a save with a fault came to."""

    case: str
    error: BaseException | None
    system: Failing


def check(outcome, path, old, numel):
    """Hold the promises against what is on the disk after a save of version 2 over version 1."""
    case, error, system = outcome
    if error is None:
        assert not (system.fired and system._method in MUST_REPORT and system._number != SHORT), f"false ack: {case}"
        assert version_at(path, numel) == 2, f"acknowledged, but not there: {case}"
    else:
        assert isinstance(error, SaveError), case
        assert error.phase in PHASES, case
        assert error.path == str(path), case
        if error.outcome == "not_committed":
            assert path.read_bytes() == old, f"the old version is gone: {case}"
        else:
            assert (error.phase, error.outcome) == ("sync folder", "durability_unknown"), case
            assert version_at(path, numel) == 2, case
    assert not system.after_failed_sync, f"a failed sync was repeated: {case}"
    left = list(path.parent.glob(".asyncsave-*"))
    if system._method != "unlink":
        assert not left, f"left behind: {case}"
    for file in left:
        file.unlink()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault(tmp_path, method, kind, backend):
    """Whichever call fails: the old file or the new one, an honest answer, nothing left, and on it goes."""
    numel, path = SIZES[kind], tmp_path / "ckpt"
    times = calls_of_one_save(tmp_path, numel)[method]
    for at in range(1, times + 1):
        for number in (*NUMBERS[backend], *((SHORT,) if method == "pwrite" else ())):
            for forever in (False, True):
                case = f"{method} #{at} {errno.errorcode.get(number, 'short')} {'for ever' if forever else 'once'}"
                asyncsave.save(state(1, numel), path)
                old = path.read_bytes()
                system = Failing(method, number, at=at, forever=forever)
                with make_writer(system=system, threads=1) as writer:
                    handle = writer.save(state(2, numel), path)
                    check(Outcome(case, handle.exception(PATIENCE), system), path, old, numel)
                    system.heal()
                    assert writer.save(state(3, numel), path).result(PATIENCE).durable is not None, case
                    assert version_at(path, numel) == 3, case
                if not system.fired:
                    break  # fewer calls than that


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault_while_recycling(tmp_path, monkeypatch, method, number):
    """The same where the blocks of an older version are written again."""
    monkeypatch.setattr(replacement, "SPARE_FROM", 1 << 20)
    numel, path = SIZES["direct"], tmp_path / "ckpt"
    armed = []
    at = 0
    while True:
        at += 1
        armed.clear()
        system = Failing(method, number, at=at, only=lambda *_, **__: bool(armed))
        with make_writer(system=system) as writer:
            for _ in range(2):
                writer.save(state(1, numel), path).result(PATIENCE)
            writer.flush()
            old = path.read_bytes()
            armed.append(True)
            error = writer.save(state(2, numel), path).exception(PATIENCE)
            armed.clear()
            if error is None:
                # A spare that cannot be taken, or kept, is only a spare: the save itself is whole.
                must_report = MUST_REPORT - {"allocate", "duplicate"}
                assert not (system.fired and method in must_report), f"false ack: {method} #{at}"
                assert version_at(path, numel) == 2
            elif error.outcome == "not_committed":
                assert path.read_bytes() == old, f"{method} #{at}"
            else:
                assert error.phase == "sync folder"
                assert version_at(path, numel) == 2
            assert not system.after_failed_sync
            assert writer.save(state(3, numel), path).result(PATIENCE)
            assert version_at(path, numel) == 3
        left = list(tmp_path.glob(".asyncsave-*"))
        assert not left or method == "unlink", f"left behind: {method} #{at}"
        for file in left:
            file.unlink()
        if not system.fired:
            return


@pytest.mark.usefixtures("backend")
def test_a_recycled_file_has_exactly_the_new_bytes(tmp_path, monkeypatch):
    """A smaller or larger version in an older one's blocks has its own size and bytes."""
    monkeypatch.setattr(replacement, "SPARE_FROM", 1 << 20)
    path, system = tmp_path / "ckpt", Recording()
    sizes = [700_000, 800_000, 300_000, 900_000, 300_001]
    with make_writer(system=system) as writer:
        for number, numel in enumerate(sizes):
            result = writer.save(state(number, numel), path).result(PATIENCE)
            assert path.stat().st_size == result.nbytes
            assert version_at(path, numel) == number
    assert [call.name for call in system.trace].count("exchange") >= 2, "nothing was recycled"
    assert not list(tmp_path.glob(".asyncsave-*"))


@pytest.mark.usefixtures("backend")
def test_a_reader_keeps_its_version(tmp_path, monkeypatch):
    """Who has an old version open, or mapped, goes on reading that version."""
    monkeypatch.setattr(replacement, "SPARE_FROM", 1 << 20)
    path, numel = tmp_path / "ckpt", SIZES["direct"]
    with make_writer(system=System()) as writer:
        writer.save(state(0, numel), path).result(PATIENCE)
        mapped = torch.load(path, mmap=True)
        with path.open("rb") as reader:
            for number in range(1, 5):
                writer.save(state(number, numel), path).result(PATIENCE)
            assert len(reader.read()) > 4 * numel
        assert torch.equal(mapped["x"], torch.zeros(numel))
    del mapped


def order(names):
    """Check the order of the calls of one save: reserve, write, sync, rename, sync the folder."""
    assert names.count("fsync") == 1, "the file was not synced, once"
    assert names.count("fsync folder") == 1, "the folder was not synced"
    begun = [names.index(name) for name in ("allocate", "pwrite", "fsync", "rename", "fsync folder")]
    assert begun == sorted(begun)
    assert max(at for at, name in enumerate(names) if name in {"pwrite", "truncate"}) < names.index("fsync")


def trace_of_one_save(path, system, numel=1000):
    """Return the calls of a save, as far as they change anything."""
    with make_writer(system=system) as writer:
        writer.save(state(1, numel), path).result(PATIENCE)
    return system.names()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", SIZES)
def test_the_order_of_the_calls(tmp_path, kind):
    """Blocks are reserved, bytes written, the file synced, renamed, and the folder synced, in that order."""
    (tmp_path / "ckpt").write_bytes(b"old")
    order(trace_of_one_save(tmp_path / "ckpt", Recording(), SIZES[kind]))


@pytest.mark.usefixtures("backend")
def test_not_durable_syncs_nothing(tmp_path):
    """With ``durable=False`` no sync is asked for; the file is still put in place whole."""
    system = Recording()
    with make_writer(system=system, durable=False) as writer:
        writer.save(state(1), tmp_path / "ckpt").result(PATIENCE)
    assert "fsync" not in {call.name for call in system.trace}
    assert version_at(tmp_path / "ckpt", 1000) == 1


@pytest.mark.usefixtures("backend")
def test_a_failed_folder_sync_is_durability_unknown(tmp_path, open_writer):
    """When only the sync of the folder fails, the new version is there, and the error says both."""
    system = Failing("fsync", errno.EIO, at=2)
    handle = open_writer(system=system).save(state(2), tmp_path / "ckpt")
    error = handle.exception(PATIENCE)
    assert (error.phase, error.outcome, error.errno) == ("sync folder", "durability_unknown", errno.EIO)
    assert "a power cut may still bring the old one back" in str(error)
    assert version_at(tmp_path / "ckpt", 1000) == 2
    assert not handle.durable.is_set()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced(tmp_path, open_writer, number):
    """Where the file system knows no sync of folders the save is in place, and not called durable."""
    result = open_writer(system=Failing("fsync", number, at=2)).save(state(1), tmp_path / "ckpt").result(PATIENCE)
    assert not result.durable


def test_a_taken_name_is_tried_again(tmp_path):
    """A temporary file, or a link, that has the name already is never opened."""
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / ".asyncsave-0000000000000000.tmp").symlink_to("precious")

    class Predictable(System):
        numbers = iter(range(9))

        def token(self):
            return f"{next(self.numbers):016x}"

    with Replacement(Predictable(), resolve(str(tmp_path / "ckpt")), 0, sync=True) as new:
        assert new.temporary.endswith("1.tmp")
        new.commit()
        new.commit()
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert (tmp_path / "ckpt").read_bytes() == b""
    (tmp_path / ".asyncsave-0000000000000000.tmp").unlink()


def test_no_free_name(tmp_path):
    """A folder where every name is taken is an error, not an endless loop."""
    (tmp_path / ".asyncsave-same.tmp").touch()

    class Stuck(System):
        def token(self):
            return "same"

    with pytest.raises(SaveError, match="no free name"):
        Replacement(Stuck(), resolve(str(tmp_path / "ckpt")), 0, sync=True).open()
    (tmp_path / ".asyncsave-same.tmp").unlink()


def test_a_sweeper_that_was_quicker(tmp_path):
    """A temporary file that is removed between its open and its lock is made again."""
    removed = []

    class Swept(System):
        def lock(self, fd):
            locked = super().lock(fd)
            if not removed:
                removed.extend(tmp_path.glob(".asyncsave-*"))
                removed[0].unlink()
            return locked

    with Replacement(Swept(), resolve(str(tmp_path / "ckpt")), 0, sync=True) as new:
        new.commit()
    assert removed
    assert (tmp_path / "ckpt").exists()


@pytest.mark.usefixtures("backend")
def test_a_rename_that_was_sent_twice(tmp_path, open_writer):
    """A network file system may report that a rename failed which it has done."""

    class Twice(System):
        def rename(self, source, target, *, dir_fd):
            super().rename(source, target, dir_fd=dir_fd)
            raise FileNotFoundError(errno.ENOENT, "no such file", source)

    assert open_writer(system=Twice()).save(state(5), tmp_path / "ckpt").result(PATIENCE).durable
    assert version_at(tmp_path / "ckpt", 1000) == 5


@pytest.mark.usefixtures("backend")
def test_a_temporary_file_that_is_gone(tmp_path, open_writer):
    """A temporary file that somebody removed is an error, and the old version stays."""

    class Removed(System):
        def rename(self, source, target, *, dir_fd):
            self.unlink(source, dir_fd=dir_fd)
            super().rename(source, target, dir_fd=dir_fd)

    asyncsave.save(state(1), tmp_path / "ckpt")
    handle = open_writer(system=Removed()).save(state(2), tmp_path / "ckpt")
    assert handle.exception(PATIENCE).phase == "rename"
    assert version_at(tmp_path / "ckpt", 1000) == 1


def test_a_file_of_the_wrong_size(tmp_path):
    """A file that is not as long as it should be is never given the name."""
    new = Replacement(System(), resolve(str(tmp_path / "ckpt")), 100, sync=True)
    new.open()
    os.ftruncate(new.fd, 99)
    with pytest.raises(SaveError, match="wrote 100 bytes, the file has 99"):
        new.commit()
    new.close()
    new.close()
    assert not list(tmp_path.iterdir())


def test_leaving_without_commit(tmp_path):
    """Leaving without a commit leaves nothing."""
    (tmp_path / "ckpt").write_bytes(b"old")
    with Replacement(System(), resolve(str(tmp_path / "ckpt")), 10, sync=True):
        assert len(list(tmp_path.iterdir())) == 2
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("ckpt", b"old")]


# Planted bugs: what the checks above are worth.


class Dropping(Recording):
    """A program that leaves out one kind of call."""

    def __init__(self, dropped, kind):
        super().__init__()
        self._dropped = (dropped, kind)

    def _call(self, name, *args, **kwargs):
        if self._dropped == (name, self._kind(*args)):
            return None
        return super()._call(name, *args, **kwargs)


class RenamingEarly(Recording):
    """A program that renames before it syncs."""

    def _call(self, name, *args, **kwargs):
        if name == "fsync" and self._kind(*args) == "file":
            self._late = args
            return None
        result = super()._call(name, *args, **kwargs)
        if name == "rename":
            super()._call("fsync", *self._late)
        return result


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "planted",
    [lambda: Dropping("fsync", "file"), lambda: Dropping("fsync", "folder"), RenamingEarly],
    ids=["no fsync", "no folder fsync", "rename before fsync"],
)
def test_the_trace_catches(tmp_path, planted):
    """A save without a sync, or with its steps in another order, fails the check of the trace."""
    (tmp_path / "ckpt").write_bytes(b"old")
    names = trace_of_one_save(tmp_path / "ckpt", planted())
    with pytest.raises(AssertionError):
        order(names)


class Swallowing(Failing):
    """A program that takes an error for success."""

    def _call(self, name, *args, **kwargs):
        with contextlib.suppress(OSError):
            return super()._call(name, *args, **kwargs)
        return len(args[1]) if name == "pwrite" else None


class Repeating(Failing):
    """A program that repeats a failed sync."""

    def _call(self, name, *args, **kwargs):
        try:
            return super()._call(name, *args, **kwargs)
        except OSError:
            if name != "fsync":
                raise
            return super()._call(name, *args, **kwargs)


def _once(system, fd, data, offset):
    system.pwrite(fd, data, offset)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("make", "patch"),
    [
        (lambda: Swallowing("fsync", errno.EIO), None),
        (lambda: Swallowing("pwrite", errno.ENOSPC, forever=True), None),
        (lambda: Repeating("fsync", errno.EIO), None),
        (lambda: Failing("pwrite", SHORT, forever=True), _once),
        (lambda: Failing("unlink", errno.EIO), "in place"),
    ],
    ids=["swallow fsync", "swallow write", "repeat fsync", "short write", "in place"],
)
def test_the_sweep_catches(tmp_path, monkeypatch, make, patch):
    """A program that lies about an error, or tears the file, fails the check of the sweep."""
    path, system, error = tmp_path / "ckpt", make(), None
    asyncsave.save(state(1), path)
    old = path.read_bytes()
    if callable(patch):
        monkeypatch.setattr(blocks, "write_all", patch)
    if patch == "in place":
        path.write_bytes(old[:1000])
        error = SaveError("half", path=str(path), phase="write")
    else:
        with make_writer(system=system) as writer:
            error = writer.save(state(2), path).exception(PATIENCE)
    with pytest.raises((AssertionError, asyncsave.LoadError)):
        check(Outcome("planted", error, system), path, old, 1000)
    for file in tmp_path.glob(".asyncsave-*"):
        file.unlink()
