"""A folder takes its target's place with all its files, or not at all, whatever call fails, and says which.

The sweep is exhaustive: every system call of a commit, at its every occurrence, fails once. The planted bugs
at the end show that these checks can fail.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from gates import METHODS, SHORT, Failing
from steps import assemble, clear, content, put_step, stock, target_of, temporaries, whole

from asyncsave import SaveError
from asyncsave.catalogue.names import step_name
from asyncsave.catalogue.upkeep import tidy
from asyncsave.storage import assembly, spare
from asyncsave.storage.assembly import Assembly
from asyncsave.storage.blocks import write_all
from asyncsave.storage.mounts import file_system
from asyncsave.storage.spare import _TRUSTED, Spares
from asyncsave.storage.system import System
from asyncsave.workers import Workers

OLD = {"state.pt": b"old" * 3000, "gone.pt": b"old too"}
NEW = {"state.pt": b"new" * 4000, "ema.pt": b"new as well" * 100, "empty.pt": b""}
PHASES = {"open", "allocate", "write", "sync", "close", "rename", "sync folder"}
MUST_REPORT = {"mkdir", "allocate", "pwrite", "fsync", "rename", "exchange"}
"""Calls whose failure has to be reported: none of them is made for comfort."""


class WithoutExchange(Failing):
    """A system that cannot swap two names."""

    def _call(self, name, *args, **kwargs):
        return False if name == "exchange" else super()._call(name, *args, **kwargs)


class Outcome(NamedTuple):
    """What a commit with a fault came to."""

    case: str
    error: OSError | None
    system: Failing


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch):
    """Let the blocks of files of a page be reserved."""
    monkeypatch.setattr(assembly, "DIRECT_FROM", 4096)


def attempt(system, version, files=NEW, **options):
    """Try to put a new step 1 into its place; return what went wrong."""
    try:
        assemble(system, target_of(version, 1), files, **options)
    except OSError as error:  # what a caller's own write raises is the caller's to describe
        return error
    return None


def check(outcome, version, old):
    """Hold the promises against what is on the disk after a commit of a new step 1, over an old one or over none."""
    case, error, system = outcome
    step = version / step_name(1)
    left = temporaries(version)
    if error is not None and system._method != "pwrite":
        assert isinstance(error, SaveError), case
        assert error.phase in PHASES, case
        assert error.path == str(step), case
    if error is None:
        assert not (system.fired and system._method in MUST_REPORT and system._number != SHORT), f"false ack: {case}"
    if error is None or getattr(error, "outcome", "") == "durability_unknown":
        assert whole(step) == NEW, f"not the new one: {case}"
        assert error is None or error.phase == "sync folder", case
        if old is None:
            assert not left, f"left behind: {case}"
        else:
            (replaced,) = left
            assert content(replaced) == old, f"the replaced step was touched: {case}"
    else:
        found = content(step) if step.exists() else None
        assert found == old, f"the old step is gone, or a new one is visible: {case}"
        assert not left or system._method in {"unlink", "rmdir"}, f"left behind: {case}"
    assert not system.after_failed_sync, f"a failed sync was repeated: {case}"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, SHORT], ids=["EIO", "ENOSPC", "short"])
@pytest.mark.parametrize("way", ["new", "exchange", "aside"])
@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault(tmp_path, method, way, number):
    """Whichever call fails: nothing of the new step, or all of it; the old one as it was; nothing left or open."""
    if number == SHORT and method != "pwrite":
        return
    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        old = None if way == "new" else content(put_step(version, 1, OLD))
        system = (WithoutExchange if way == "aside" else Failing)(method, number, at=at)
        check(Outcome(f"{method} #{at}", attempt(system, version), system), version, old)
        tidy(System(), str(version))
        step = version / step_name(1)
        assert not step.exists() or content(step) == old or whole(step) == NEW, f"a torn step: {method} #{at}"
        assert not temporaries(version), f"left behind for good: {method} #{at}"
        clear(version)
        if not system.fired:
            assert at > 1 or method not in MUST_REPORT - {"exchange", "rename"}, "the sweep has swept nothing"
            return


@pytest.mark.parametrize("at", [5, 6], ids=["the folder", "the folder above"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed(tmp_path, at, number):
    """Where the file system knows no flush of folders the step is in place, and not called durable."""
    system = Failing("fsync", number, at=at)
    new = assemble(system, target_of(tmp_path, 1), NEW)
    assert system.fired
    assert not new.durable
    assert whole(tmp_path / step_name(1)) == NEW


def open_descriptors():
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("threads", [1, 4])
def test_many_files(tmp_path, threads):
    """Hundreds of files are in one commit, added and written by several threads; a flush closes what it has flushed."""
    files = {f"model-{number}.pt": b"%d" % number for number in range(200)}
    workers = Workers(threads, "flusher")
    before = open_descriptors()
    system, names = System(), list(files)

    def put(name):
        write_all(system, new.add(name, len(files[name])), memoryview(files[name]), 0)

    with Assembly(system, target_of(tmp_path, 1), workers, sync=True) as new:
        for start in range(0, len(names), 50):
            workers.each(put, names[start : start + 50])
            new.flush()
            assert open_descriptors() == before + 2, "the folder and the one above"
        new.commit()
    workers.close()
    assert content(tmp_path / step_name(1)) == files


def test_a_file_of_the_wrong_size(tmp_path):
    """A file that is not as long as was promised gives up the whole folder."""
    with Assembly(System(), target_of(tmp_path, 1), Workers(1, ""), sync=True) as new:
        os.ftruncate(new.add("state.pt", 100), 99)
        with pytest.raises(SaveError, match=r"wrote 100 bytes of state\.pt, the file has 99") as caught:
            new.commit()
    assert caught.value.phase == "write"
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_added_twice(tmp_path):
    """Two files of one name are an error, and leave nothing."""
    with Assembly(System(), target_of(tmp_path, 1), Workers(1, ""), sync=True) as new:
        new.add("state.pt", 0)
        with pytest.raises(SaveError) as caught:
            new.add("state.pt", 0)
    assert (caught.value.phase, caught.value.errno) == ("open", errno.EEXIST)
    assert not list(tmp_path.iterdir())


def test_leaving_without_commit(tmp_path):
    """Leaving without a commit, or with an error, leaves the old step and nothing else; closing again is allowed."""
    old = content(put_step(tmp_path, 1, OLD))
    with Assembly(System(), target_of(tmp_path, 1), Workers(1, ""), sync=True) as new:
        new.add("state.pt", 10)
        assert len(temporaries(tmp_path)) == 1
    new.close()
    assert not temporaries(tmp_path)
    assert content(tmp_path / step_name(1)) == old


def test_a_commit_is_made_once(tmp_path):
    """A second commit does nothing."""
    with Assembly(System(), target_of(tmp_path, 1), Workers(1, ""), sync=True) as new:
        new.commit()
        (tmp_path / step_name(1)).rmdir()
        new.commit()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_target_that_is_no_folder(tmp_path, kind):
    """A file or a link that has the step's name is left alone, and the error says what failed."""
    target = tmp_path / step_name(1)
    if kind == "file":
        target.write_bytes(b"mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to("elsewhere")
    error = attempt(System(), tmp_path)
    assert (error.phase, error.outcome) == ("rename", "not_committed")
    assert target.is_symlink() if kind == "link" else target.read_bytes() == b"mine"
    assert not temporaries(tmp_path)


def test_the_temporary_folder_is_locked_while_it_is_filled(tmp_path):
    """A sweeper, of this or another process, can tell that it is alive; and that it is not, once it is left."""
    with Assembly(System(), target_of(tmp_path, 1), Workers(1, ""), sync=True):
        fd = os.open(temporaries(tmp_path)[0], os.O_RDONLY)
        assert not System().lock(fd)
    assert System().lock(fd)
    os.close(fd)


def test_a_sweeper_that_was_quicker(tmp_path):
    """A temporary folder that is removed between its making and its lock is made again."""
    removed = []

    class Swept(System):
        def lock(self, fd):
            locked = super().lock(fd)
            if not removed:
                removed.extend(temporaries(tmp_path))
                removed[0].rmdir()
            return locked

    assert attempt(Swept(), tmp_path) is None
    assert removed
    assert whole(tmp_path / step_name(1)) == NEW


def test_a_forked_child_lets_go(tmp_path):
    """A child holds neither the lock of a temporary folder that is being filled, nor any file in it."""
    with Assembly(System(), target_of(tmp_path, 1), Workers(1, ""), sync=True) as new:
        fds = [new.add("state.pt", 10), new._folder, *(fd for fd in new.descriptors() if fd >= 0)]
        pid = os.fork()
        if not pid:
            code = 0
            for fd in fds:
                try:
                    os.fstat(fd)
                except OSError:
                    continue
                code = 1
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for fd in fds:
            os.fstat(fd)


# Spares.


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Return a shelf that holds a spare for the version ``tmp_path``; files of a page are worth keeping."""
    if (kind := file_system(str(tmp_path))[0]) not in _TRUSTED:
        pytest.skip(f"spares are kept on {sorted(_TRUSTED)} only, this is {kind or 'unknown'}")
    monkeypatch.setattr(assembly, "SPARE_FROM", 4096)
    monkeypatch.setattr(spare, "SPARE_FROM", 4096)
    made = Spares(System())
    stock(made, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("method", METHODS)
def test_every_single_fault_while_recycling(shelf, tmp_path, method):
    """Whichever call fails while a spare is overwritten: the old step as it was, or all of the new; nothing left."""
    old = content(put_step(tmp_path, 1, OLD))
    at = 0
    while True:
        at += 1
        shelf.drop()
        stock(shelf, tmp_path)
        system = Failing(method, errno.EIO, at=at)
        shelf._system = system
        error = attempt(system, tmp_path, spares=shelf)
        shelf._system = System()
        shelf.drop()
        if method not in {"unlink", "rmdir"}:
            check(Outcome(f"{method} #{at}", error, system), tmp_path, old)
        clear(tmp_path)
        if (tmp_path / step_name(1)).exists():
            shutil.rmtree(tmp_path / step_name(1))
        put_step(tmp_path, 1, OLD)
        if not system.fired:
            return


# Planted bugs: what the checks above are worth.


class Torn(Failing):
    """A program that puts a step into its place and then says that it has not."""

    def _call(self, name, *args, **kwargs):
        result = super()._call(name, *args, **kwargs)
        if name == "exchange":
            self.fired += 1
            raise OSError(errno.EIO, "it did")
        return result


def test_the_sweep_catches(tmp_path):
    """A commit that is reported to have failed, and did not, fails the check of the sweep."""
    old = content(put_step(tmp_path, 1, OLD))
    system = Torn("token", errno.EIO, at=99)
    error = attempt(system, tmp_path)
    with pytest.raises(AssertionError, match="the old step is gone"):
        check(Outcome("planted", error, system), tmp_path, old)
    clear(tmp_path)
