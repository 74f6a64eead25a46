"""asyncio programs: saves, loads, checks and copies that leave the loop alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import gc
import os
import pathlib
import subprocess
import threading

import pytest
import torch
from gates import Failing, Gated

import asyncsave
from asyncsave import CheckpointNotFoundError, CorruptCheckpointError, LoadError, SaveError, StagingError, aio, intake

PATIENCE = 30.0


def state(number=0, numel=1000):
    """Return a state that says which one it is."""
    return {"number": number, "x": torch.full((numel,), float(number))}


async def arrival(gate: Gated) -> None:
    """Wait at the loop's leisure until somebody is at a gate."""
    await asyncio.to_thread(gate.arrival)


async def until(condition) -> None:
    """Let the loop turn until something is so that has no event of its own."""
    while not condition():  # noqa: ASYNC110 - there is nothing to wait for
        await asyncio.sleep(0.001)


async def ticks(count: int) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("backend")
def test_save_load_verify(tmp_path, open_writer):
    """A round trip, without another word than ``await``."""

    async def main():
        result = await aio.save(state(3), tmp_path / "ckpt", writer=open_writer())
        loaded = await aio.load(tmp_path / "ckpt")
        report = await aio.verify(tmp_path / "ckpt")
        return result, loaded, report

    result, loaded, report = asyncio.run(main())
    assert result.nbytes == report.nbytes
    assert report.ok
    assert loaded["number"] == 3


@pytest.mark.usefixtures("backend")
def test_errors_come_out(tmp_path, open_writer):
    """What the functions behind them raise is raised by these."""

    async def main():
        with pytest.raises(StagingError):
            await aio.save({"f": lambda: None}, tmp_path / "ckpt")
        with pytest.raises(SaveError):
            await aio.save(state(), tmp_path / "no" / "ckpt")
        with pytest.raises(CheckpointNotFoundError):
            await aio.load(tmp_path / "ckpt")
        with pytest.raises(SaveError, match="ENOSPC"):
            await aio.save(state(), tmp_path / "ckpt", writer=writer)

    writer = open_writer(system=Failing("allocate", errno.ENOSPC))
    asyncio.run(main())
    writer.check_errors()


@pytest.mark.usefixtures("backend")
def test_many_saves_at_once_keep_their_order(tmp_path, open_writer):
    """Saves of one loop are staged and written in the order of the calls, however many there are."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=2, system=gate)
    order: list[int] = []

    async def one(number):
        await aio.save(state(number), tmp_path / "ckpt", writer=writer)
        order.append(number)

    async def main():
        saves = [asyncio.ensure_future(one(number)) for number in range(40)]
        await arrival(gate)
        await ticks(100)
        assert not order
        gate.release()
        await asyncio.gather(*saves)

    asyncio.run(main())
    assert order == list(range(40))
    assert torch.load(tmp_path / "ckpt")["number"] == 39


@pytest.mark.usefixtures("backend")
def test_the_loop_ticks_while_saves_wait(tmp_path, open_writer, monkeypatch):
    """While one save is stuck in its staging, and others wait for it, the loop turns freely."""
    writer = open_writer()
    asyncsave.save(state(9), tmp_path / "there")
    staging, go, fill = threading.Event(), threading.Event(), intake.fill

    def slow(*args):
        staging.set()
        assert go.wait(PATIENCE)
        return fill(*args)

    monkeypatch.setattr(intake, "fill", slow)

    async def main():
        saves = [asyncio.ensure_future(aio.save(state(n), tmp_path / str(n), writer=writer)) for n in range(50)]
        await asyncio.to_thread(staging.wait, PATIENCE)
        await ticks(1000)
        assert (await aio.load(tmp_path / "there"))["number"] == 9
        assert not any(save.done() for save in saves)
        go.set()
        return await asyncio.gather(*saves)

    results = asyncio.run(main())
    assert len(results) == 50


@pytest.mark.usefixtures("backend")
def test_cancelled_while_staging(tmp_path, open_writer, monkeypatch):
    """A save that is cancelled while it is staged ends when its copy has, and is not queued; the next one works."""
    gate = Gated("allocate")
    writer = open_writer(system=gate)
    staging, go, fill = threading.Event(), threading.Event(), intake.fill

    def slow(*args):
        staging.set()
        assert go.wait(PATIENCE)
        return fill(*args)

    async def main():
        first = asyncio.ensure_future(aio.save(state(1), tmp_path / "1", writer=writer))
        await arrival(gate)
        monkeypatch.setattr(intake, "fill", slow)
        second = asyncio.ensure_future(aio.save(state(2), tmp_path / "2", writer=writer))
        await asyncio.to_thread(staging.wait, PATIENCE)
        second.cancel()
        await ticks(100)
        assert not second.done(), "the state is still being copied: the cancellation must not arrive yet"
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await second
        third = asyncio.ensure_future(aio.save(state(3), tmp_path / "3", writer=writer))
        gate.release()
        await asyncio.gather(first, third)

    asyncio.run(main())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


@pytest.mark.usefixtures("backend")
def test_cancelled_while_waiting_for_a_slot(tmp_path, open_writer):
    """A save that waits for a slot is not made any more once it is cancelled."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=1, system=gate)

    async def main():
        first = asyncio.ensure_future(aio.save(state(1), tmp_path / "1", writer=writer))
        await arrival(gate)
        second = asyncio.ensure_future(aio.save(state(2), tmp_path / "2", writer=writer))
        await ticks(100)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.release()
        await first

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.usefixtures("backend")
def test_cancelled_while_waiting_for_memory(tmp_path, open_writer, backend):
    """A save that waits for another's memory is not made any more either, and does not wait for it to end."""
    gate = Gated("allocate")
    small, budget = 1000, 64 << 10
    writer = open_writer(max_pending=2, memory_budget=budget, system=gate)

    async def main():
        first = asyncio.ensure_future(aio.save(state(1, small), tmp_path / "1", writer=writer))
        await arrival(gate)
        second = asyncio.ensure_future(aio.save(state(2, 15 * small), tmp_path / "2", writer=writer))
        await until(lambda: repr(writer) == f"<Writer {backend}, 1 writing, 0 queued, 0/2 free>")
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        gate.release()
        await first

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.usefixtures("backend")
def test_error_met_by_a_cancelled_save_is_said(tmp_path, open_writer, caplog, monkeypatch):
    """What a save that nobody awaits any more was told is logged, not lost."""
    writer = open_writer()
    staging, go = threading.Event(), threading.Event()

    def broken(*_):
        staging.set()
        assert go.wait(PATIENCE)
        raise ZeroDivisionError("broken while it was copied")

    monkeypatch.setattr(intake, "fill", broken)

    async def main():
        save = asyncio.ensure_future(aio.save(state(1), tmp_path / "1", writer=writer))
        await asyncio.to_thread(staging.wait, PATIENCE)
        save.cancel()
        await ticks(10)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await save

    asyncio.run(main())
    assert "broken while it was copied" in caplog.text


@pytest.mark.usefixtures("backend")
def test_cancelled_while_queued_and_while_written(tmp_path, open_writer, backend):
    """A queued save is withdrawn by a cancellation; one that is being written goes on to its end."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=2, system=gate)

    async def main():
        written = asyncio.ensure_future(aio.save(state(1), tmp_path / "1", writer=writer))
        await arrival(gate)
        queued = asyncio.ensure_future(aio.save(state(2), tmp_path / "2", writer=writer))
        await until(lambda: repr(writer) == f"<Writer {backend}, 1 writing, 1 queued, 0/2 free>")
        for task in (queued, written):
            await ticks(10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.release()

    asyncio.run(main())
    writer.flush(PATIENCE)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert writer.stats[:5] == (1, 0, 0, 0, 1)


@pytest.mark.usefixtures("backend")
def test_a_skipped_save(tmp_path, open_writer):
    """A save that is skipped by policy raises the standard library's cancellation, not asyncio's own."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=1, system=gate)

    async def main():
        first = asyncio.ensure_future(aio.save(state(1), tmp_path / "1", writer=writer))
        await arrival(gate)
        with pytest.raises(concurrent.futures.CancelledError):
            await aio.save(state(2), tmp_path / "2", writer=writer, on_busy="skip")
        gate.release()
        await first

    asyncio.run(main())


# Copies.


def copy(src, dst):
    """Copy in a loop of its own."""
    return asyncio.run(aio.copy(src, dst))


@pytest.mark.parametrize("numel", [10, 1 << 20, 6 << 20])
def test_copy(tmp_path, numel):
    """A copy has the same bytes, is verified, and says its size and digest."""
    original = asyncsave.save(state(1, numel), tmp_path / "a")
    result = copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (result.nbytes, result.digest) == (original.nbytes, original.digest)
    assert result.path == str(tmp_path / "b")
    assert result.timings.keys() == {"total"}


@pytest.mark.parametrize("data", [b"", b"x", b"PK\x03\x04 no zip", os.urandom(20 << 20)], ids=len)
def test_copy_of_any_file(tmp_path, data):
    """What is no checkpoint is copied as well."""
    (tmp_path / "a").write_bytes(data)
    assert copy(tmp_path / "a", tmp_path / "b").nbytes == len(data)
    assert (tmp_path / "b").read_bytes() == data


def test_copy_replaces(tmp_path):
    """What is at the destination is replaced whole, and its mode is kept."""
    asyncsave.save(state(1), tmp_path / "a")
    (tmp_path / "b").write_bytes(b"old")
    (tmp_path / "b").chmod(0o600)
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert asyncsave.load(tmp_path / "b")["number"] == 1


@pytest.mark.parametrize("name", ["a", "link", "hard"])
def test_copy_onto_itself(tmp_path, name):
    """A file copied onto itself, by whatever name, is the same afterwards."""
    asyncsave.save(state(1), tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    copy(tmp_path / "a", tmp_path / name)
    assert (tmp_path / name).read_bytes() == before == (tmp_path / "a").read_bytes()


def test_copy_of_a_damaged_checkpoint(tmp_path):
    """A damaged checkpoint is not copied; what is at the destination stays."""
    asyncsave.save(state(1, 1 << 20), tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(CorruptCheckpointError, match=r"not copied: record 'data/0' of .*/a'"):
        copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"old"


@pytest.mark.usefixtures("backend")
def test_copy_waits_for_a_save(tmp_path, open_writer):
    """A file that this process is still writing is copied when it is there."""
    gate = Gated("allocate")
    writer = open_writer(system=gate)

    async def main():
        writer.save(state(2), tmp_path / "a")
        await arrival(gate)
        copying = asyncio.ensure_future(aio.copy(tmp_path / "a", tmp_path / "b"))
        await ticks(100)
        assert not copying.done()
        gate.release()
        await copying

    asyncsave.save(state(1), tmp_path / "a")
    asyncio.run(main())
    assert asyncsave.load(tmp_path / "b")["number"] == 2


def test_copy_of_what_is_not_there(tmp_path):
    """A missing source, a folder, a destination that cannot be: each its own error, and nothing is made."""
    with pytest.raises(CheckpointNotFoundError):
        copy(tmp_path / "no", tmp_path / "b")
    with pytest.raises(LoadError, match="a folder"):
        copy(tmp_path, tmp_path / "b")
    asyncsave.save(state(), tmp_path / "a")
    with pytest.raises(SaveError, match="ENOENT"):
        copy(tmp_path / "a", tmp_path / "no" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("reserves", [True, False])
def test_copy_onto_a_full_disk(tmp_path, monkeypatch, reserves):
    """A copy that does not fit is ENOSPC, known at once or while writing, and nothing is left of it."""
    if not reserves:
        monkeypatch.setattr(asyncsave.storage.system, "_fallocate", None)
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        asyncsave.save(state(1, 1 << 20), tmp_path / "a")
        with pytest.raises(SaveError, match="ENOSPC"):
            copy(tmp_path / "a", folder / "b")
        assert not list(folder.iterdir())
        asyncsave.save(state(1, 10), tmp_path / "a")
        assert not copy(tmp_path / "a", folder / "b").durable
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("method", ["open", "allocate", "duplicate", "rename", "fsync"])
def test_copy_on_a_failing_disk(tmp_path, monkeypatch, method):
    """Whatever step fails, it is a SaveError, and the destination is as it was."""
    asyncsave.save(state(1), tmp_path / "a")
    (tmp_path / "b").write_bytes(b"old")
    monkeypatch.setattr(aio, "System", lambda: Failing(method, errno.EIO, forever=True))
    with pytest.raises(SaveError) as raised:
        copy(tmp_path / "a", tmp_path / "b")
    assert raised.value.errno == errno.EIO
    assert (tmp_path / "b").read_bytes() == b"old"


@pytest.mark.parametrize("method", ["allocate", "fsync", "rename"])
def test_a_cancelled_copy_leaves_nothing(tmp_path, monkeypatch, method):
    """A copy that is cancelled in any of its steps leaves no temporary file; the destination is whole."""
    gate = Gated(method)
    monkeypatch.setattr(aio, "System", lambda: gate)
    asyncsave.save(state(2, 1 << 20), tmp_path / "a")
    asyncsave.save(state(1), tmp_path / "b")

    async def main():
        copying = asyncio.ensure_future(aio.copy(tmp_path / "a", tmp_path / "b"))
        await arrival(gate)
        copying.cancel()
        await ticks(10)
        gate.release()
        with contextlib.suppress(asyncio.CancelledError):
            await copying

    asyncio.run(main())
    assert asyncsave.load(tmp_path / "b")["number"] in {1, 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_cancelled_copy_that_fails_says_nothing_more(tmp_path, monkeypatch, caplog):
    """Of a copy that is cancelled in a step which then fails, the cancellation is what is heard."""

    class Both(Gated):
        def _call(self, name, *args, **kwargs):
            result = super()._call(name, *args, **kwargs)
            if name == "allocate":
                raise OSError(errno.EIO, "late")
            return result

    gate = Both("allocate")
    monkeypatch.setattr(aio, "System", lambda: gate)
    asyncsave.save(state(2), tmp_path / "a")

    async def main():
        copying = asyncio.ensure_future(aio.copy(tmp_path / "a", tmp_path / "b"))
        await arrival(gate)
        copying.cancel()
        await ticks(10)
        gate.release()
        with pytest.raises(asyncio.CancelledError):
            await copying

    asyncio.run(main())
    gc.collect()
    assert not caplog.records
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_cancelled_between_any_two_turns(tmp_path):
    """A copy that is cancelled after n turns of the loop, for every n, leaves the old file or the new."""
    asyncsave.save(state(2, 3 << 20), tmp_path / "a")

    async def main(turns):
        copying = asyncio.ensure_future(aio.copy(tmp_path / "a", tmp_path / "b"))
        for _ in range(turns):
            await asyncio.sleep(0.001)
            if copying.done():
                return False
        copying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await copying
        return True

    turns = 0
    while asyncio.run(main(turns)):
        turns += 2
        names = {path.name for path in pathlib.Path(tmp_path).iterdir()}
        assert names <= {"a", "b"}
        if "b" in names:
            assert asyncsave.verify(tmp_path / "b").ok
            (tmp_path / "b").unlink()
