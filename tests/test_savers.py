"""The ways of saving side by side: each writes what it says, flushes what it says, and lets its errors be known."""

from __future__ import annotations

import errno
import gc
import threading
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import pytest
import torch
from disks import mounted
from gates import Failing, Gated, Recording

from asyncsave import SaveError, StagingError, Writer
from asyncsave.bench import savers
from asyncsave.bench.plan import ALL_MODES
from asyncsave.bench.savers import SAVERS, AsyncSave, Saving, TorchSave, discard
from asyncsave.storage.mounts import is_durable
from asyncsave.verification import verify

PROMISES = {
    "torch.save": "page cache",
    "torch.save+fsync": "file",
    "naive-thread": "file",
    "aiofiles": "file",
    "thread": "file + folder",
    "process": "file + folder",
}
OURS = ("thread", "process")
OTHERS = tuple(name for name in PROMISES if name not in OURS)
BACKGROUND = ("naive-thread", "aiofiles", *OURS)


def state(number=1.0, count=50_000):
    """Return a state with a tie and a NaN."""
    tied = torch.full((count,), number)
    tied[0] = float("nan")
    return {"model": {"a": tied, "b": tied, "c": torch.arange(7)}, "step": 3}


@pytest.fixture(params=PROMISES)
def name(request):
    """Run a test with every way of saving."""
    return request.param


@pytest.fixture
def path(tmp_path):
    """Return where to save to."""
    return str(tmp_path / "ckpt.pt")


@pytest.fixture
def tiny_disk(tmp_path):
    """Mount a file system of 2 MB."""
    with mounted(tmp_path / "disk", "size=2m") as folder:
        yield folder


def test_all_modes_are_there():
    """What can be planned can be made, under the same name, with its promise."""
    assert tuple(SAVERS) == ALL_MODES
    for name, make in SAVERS.items():
        with closing(make(None)) as saver:
            assert (saver.name, saver.promise) == (name, PROMISES[name])


@pytest.mark.parametrize("warm", [False, True])
def test_what_is_written_is_what_was_there(name, path, warm):
    """Over an older file, whatever the caller does with the state once the call has returned."""
    first, second = state(1.0), state(2.0)
    with closing(SAVERS[name](first if warm else None)) as saver:
        saver.save(first, path).wait()
        saving = saver.save(second, path)
        for tensor in second["model"].values():
            tensor.zero_()
        mark = saving.mark()
        assert saving.done()
        assert saver.check(state(2.0), path)
        assert not saver.check(first, path)
        assert not saver.check(second, path)
    assert mark.called < mark.returned <= mark.completed
    assert saving.blocked == mark.returned - mark.called
    assert saving.wait() == mark.completed - mark.called
    assert [found.name for found in Path(path).parent.iterdir()] == ["ckpt.pt"]


def test_phases_are_ours_alone(name, path):
    """Nobody else tells how long what took."""
    with closing(SAVERS[name](None)) as saver:
        phases = saver.save(state(), path).mark().phases
    assert bool(phases) is (name in OURS)
    if name in OURS:
        assert {"wait", "capture", "stage", "queue", "seal", "write", "sync"} <= set(phases)


@pytest.mark.parametrize("name", ["torch.save", "torch.save+fsync"])
def test_a_synchronous_save_is_done_when_it_returns(name, path):
    """There is nothing to wait for."""
    saving = SAVERS[name](None).save(state(), path)
    assert saving.done()
    assert saving.wait() >= saving.blocked


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_promised_is_flushed(name, path, monkeypatch):
    """The file once, or not at all; never the folder."""
    system = Recording()
    monkeypatch.setattr(savers, "_system", system)
    with closing(SAVERS[name](None)) as saver:
        saver.save(state(), path).wait()
    assert [call.kind for call in system.trace if call.name == "fsync"] == ["file"] * (PROMISES[name] != "page cache")


@pytest.mark.parametrize("name", OURS)
def test_ours_are_durable_where_that_can_be(name, path):
    """File and folder, says the save's own result; and every checksum is right."""
    with closing(SAVERS[name](None)) as saver:
        saving = saver.save(state(), path)
        assert saving.future.result().durable is is_durable(str(Path(path).parent.resolve()))
    assert verify(path).ok


@pytest.mark.parametrize("name", OURS)
def test_ours_see_damage(name, path):
    """A byte of padding that nobody loads is enough."""
    with closing(SAVERS[name](None)) as saver:
        saver.save(state(), path).wait()
        assert saver.check(state(), path)
        found = bytearray(Path(path).read_bytes())
        place = found.index(b"FB") + 4
        found[place] ^= 1
        Path(path).write_bytes(found)
        assert not saver.check(state(), path)


def test_a_missing_folder_is_told(name, tmp_path):
    """By the call, or when the end is waited for: an error of ours, with the path; the next save works."""
    bad, good = str(tmp_path / "missing" / "f.pt"), str(tmp_path / "f.pt")
    with closing(SAVERS[name](None)) as saver:
        with pytest.raises(SaveError) as raised:
            saver.save(state(), bad).wait()
        assert raised.value.path == bad
        saver.save(state(), good).wait()
        assert saver.check(state(), good)


def test_a_full_disk_is_told(name, tiny_disk):
    """An error of ours, also where torch says "unexpected pos"; nothing is left open, and closing works."""
    path = str(tiny_disk / "f.pt")
    with closing(SAVERS[name](None)) as saver:
        with pytest.raises(SaveError) as raised:
            saver.save(state(count=1_000_000), path).mark()
        assert raised.value.path == path
        assert raised.value.errno in {errno.ENOSPC, None}
        raised = None  # torch keeps its file open for as long as its error is there
        gc.collect()
        discard(path)
        saver.save(state(), path).wait()


@pytest.mark.parametrize("name", ["torch.save+fsync", "naive-thread", "aiofiles"])
def test_a_flush_that_fails_is_told(name, path, monkeypatch):
    """The disk's own number comes through."""
    monkeypatch.setattr(savers, "_system", Failing("fsync", errno.EIO))
    with closing(SAVERS[name](None)) as saver, pytest.raises(SaveError) as raised:
        saver.save(state(), path).wait()
    assert (raised.value.errno, raised.value.outcome) == (errno.EIO, "incomplete")


@pytest.mark.parametrize("name", BACKGROUND)
def test_closing_finishes_what_is_under_way(name, path):
    """Whoever is interrupted closes at once: the file is whole, and nothing is left open."""
    with closing(SAVERS[name](None)) as saver:
        saving = saver.save(state(), path)
    assert saving.done()
    assert saver.check(state(), path)


def test_closing_waits_for_a_coroutine_in_its_midst(path, monkeypatch):
    """It is stopped at its flush; closing waits until it has done that, and closed its file."""
    gate = Gated("fsync")
    monkeypatch.setattr(savers, "_system", gate)
    saver = SAVERS["aiofiles"](None)
    saving = saver.save(state(), path)
    gate.arrival()
    closer = threading.Thread(target=saver.close)
    closer.start()
    assert not saving.done()
    gate.release()
    closer.join(30)
    assert saving.wait() > 0


@pytest.mark.parametrize("name", OURS)
def test_memory_that_is_not_there_leaves_no_writer(name, monkeypatch):
    """It is closed again: no thread and no process stays."""

    def refuse(self, state):
        raise StagingError("there is not enough memory")

    monkeypatch.setattr(Writer, "warmup", refuse)
    with pytest.raises(StagingError):
        AsyncSave(name, state())


def test_an_error_of_the_call_is_the_callers():
    """Nothing is under way then."""
    with pytest.raises(ZeroDivisionError):
        Saving.at_once(lambda: 1 / 0)


def test_an_error_in_the_background_is_told_as_often_as_it_is_asked_for():
    """By wait and by mark."""
    future = Future()
    saving = Saving.start(lambda: future)
    assert not saving.done()
    future.set_exception(OSError(errno.EIO, "broken"))
    assert saving.done()
    for ask in (saving.wait, saving.mark, saving.wait):
        with pytest.raises(OSError, match="broken"):
            ask()


def test_the_end_is_when_it_happened_and_not_when_it_was_asked_for():
    """The moment is taken by whoever ends the save."""
    future, later = Future(), threading.Event()
    saving = Saving.start(lambda: future)
    future.set_result(None)
    first = saving.wait()
    assert not later.wait(0.05)
    assert saving.wait() == first
    assert saving.mark().completed - saving.called == first


def test_discarding(tmp_path, monkeypatch):
    """The file is gone, and the folder flushed; a second time is no error."""
    system = Recording()
    monkeypatch.setattr(savers, "_system", system)
    path = tmp_path / "f.pt"
    TorchSave(fsync=False).save(state(), str(path)).wait()
    for _ in range(2):
        discard(str(path))
        assert not path.exists()
    assert system.names().count("fsync folder") == 2
