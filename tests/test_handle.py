"""The handle: a future, its moments, its figures, and its place in asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import threading

import pytest
import torch
from gates import Failing, Gated
from processes import until
from saves import begun

import asyncsave
from asyncsave import SaveError
from asyncsave.handle import Moment, SaveHandle
from asyncsave.storage.blocks import BLOCK

pytestmark = pytest.mark.usefixtures("backend")

PATIENCE = 30.0
STATE = {"x": torch.arange(1000.0)}
PHASES = {"wait", "capture", "stage", "queue", "seal", "write", "sync", "total"}


@pytest.fixture
def gated(open_writer):
    """Return a gate and a writer whose saves wait at it, once they are being written."""
    gate = Gated("allocate")
    return gate, open_writer(max_pending=4, system=gate)


def test_status_and_moments_on_the_way(gated, tmp_path):
    """A save is queued, writing, durable; staged from the call on, durable at the end."""
    gate, writer = gated
    first = begun(gate, writer.save(STATE, tmp_path / "1"))
    second = writer.save(STATE, tmp_path / "2")
    assert (first.status, second.status) == ("writing", "queued")
    for handle in (first, second):
        assert handle.staged.is_set()
        assert handle.staged.wait(0)
        assert not handle.durable.is_set()
        assert not handle.durable.wait(0)
        assert not handle.done()
    assert first.running()
    assert not second.running()
    gate.release()
    assert second.durable.wait(PATIENCE)
    assert second.durable.is_set()
    assert second.result(PATIENCE).durable
    assert (first.status, second.status) == ("durable", "durable")


def test_path_is_absolute_as_it_was_at_the_call(gated, tmp_path, monkeypatch):
    """A relative path means the folder that was current at the call."""
    gate, writer = gated
    monkeypatch.chdir(tmp_path)
    handle = writer.save(STATE, "here")
    monkeypatch.chdir("/")
    gate.release()
    assert handle.path == handle.result(PATIENCE).path == str(tmp_path / "here")
    assert (tmp_path / "here").exists()


def test_progress_and_repr(gated, tmp_path):
    """Progress counts bytes, from none to all, and the repr shows it."""
    gate, writer = gated
    handle = begun(gate, writer.save(STATE, tmp_path / "1"))
    done, total = handle.progress
    assert done == 0
    assert total > 4000
    assert repr(handle) == f"<SaveHandle '{tmp_path}/1' writing, 0/{total} bytes>"
    gate.release()
    result = handle.result(PATIENCE)
    assert handle.progress == (result.nbytes, result.nbytes)
    assert result.nbytes == total == (tmp_path / "1").stat().st_size
    assert repr(handle) == f"<SaveHandle '{tmp_path}/1' durable, {total}/{total} bytes>"


@pytest.mark.parametrize("numel", [1, 1 << 20, (5 << 20) + 3])
def test_progress_of_large_files_ends_at_the_size(open_writer, tmp_path, numel):
    """Padding of direct writes is not counted."""
    handle = open_writer().save({"x": torch.zeros(numel)}, tmp_path / "1")
    nbytes = handle.result(PATIENCE).nbytes
    assert handle.progress == (nbytes, nbytes)


def test_progress_advances_by_blocks(open_writer, tmp_path):
    """While a large file is written, its progress lies between none and all."""
    gate = Gated("pwrite")
    writer = open_writer(threads=1, system=gate)
    handle = writer.save({"x": torch.zeros(20 << 20)}, tmp_path / "1")
    gate.arrival()
    gate.pass_one()
    gate.arrival()
    until(lambda: handle.progress[0], "the word of the first block")
    done, total = handle.progress
    assert done == BLOCK < total
    gate.release()
    handle.result(PATIENCE)


def test_timings(gated, tmp_path, backend):
    """Phases that have ended are there while the save goes on; all of them in the end, as seconds.

    Those of a writer process come together, with its last word.
    """
    gate, writer = gated
    handle = begun(gate, writer.save(STATE, tmp_path / "1"))
    ended = {"wait", "capture", "stage", "queue"} | ({"seal"} if backend == "thread" else set())
    until(lambda: ended <= handle.timings.keys(), lambda: f"{ended}, there is {handle.timings}")
    assert handle.timings.keys() < PHASES
    gate.release()
    result = handle.result(PATIENCE)
    assert result.timings.keys() == handle.timings.keys() == PHASES
    assert all(seconds >= 0 for seconds in result.timings.values())
    assert sum(result.timings.values()) <= 2 * result.timings["total"] + 1e-6


def test_digest_is_the_files_own(open_writer, tmp_path):
    """The digest is the CRC-32 of the file, as anybody can compute it."""
    import zlib  # noqa: PLC0415 - not the implementation under test

    result = open_writer().save(STATE, tmp_path / "1").result(PATIENCE)
    assert result.digest == f"crc32:{zlib.crc32((tmp_path / '1').read_bytes()):08x}"


def test_cancel_while_queued(gated, tmp_path, backend):
    """A queued save can be cancelled: nothing is written, its slot is free at once."""
    gate, writer = gated
    begun(gate, writer.save(STATE, tmp_path / "1"))
    queued = writer.save(STATE, tmp_path / "2")
    assert repr(writer).endswith("2/4 free>")
    assert queued.cancel()
    assert repr(writer) == f"<Writer {backend}, 1 writing, 0 queued, 3/4 free>"
    assert queued.cancelled()
    assert queued.done()
    assert queued.status == "cancelled"
    assert queued.staged.is_set(), "the state was copied"
    assert not queued.durable.wait(PATIENCE)
    with pytest.raises(concurrent.futures.CancelledError):
        queued.result()
    gate.release()
    writer.flush(PATIENCE)
    assert not (tmp_path / "2").exists()
    assert writer.stats.cancelled == 1


def test_cancel_is_refused_once_it_is_written(gated, tmp_path):
    """A save that is being written, or has ended, cannot be cancelled."""
    gate, writer = gated
    handle = writer.save(STATE, tmp_path / "1")
    gate.arrival()
    assert not handle.cancel()
    gate.release()
    assert handle.result(PATIENCE).durable
    assert not handle.cancel()
    assert handle.status == "durable"


def test_cancelled_memory_is_used_again(open_writer, tmp_path):
    """The arena of a cancelled save is filled by the next one, and only that one is written."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=2, system=gate)
    writer.save(STATE, tmp_path / "1")
    gate.arrival()
    assert writer.save({"x": torch.zeros(1000)}, tmp_path / "2").cancel()
    ours = writer.save({"x": torch.ones(1000)}, tmp_path / "3")
    gate.release()
    ours.result(PATIENCE)
    assert torch.equal(torch.load(tmp_path / "3")["x"], torch.ones(1000))
    assert not (tmp_path / "2").exists()


def test_result_times_out(gated, tmp_path):
    """``result`` and ``exception`` give up after their time; the save goes on."""
    gate, writer = gated
    handle = writer.save(STATE, tmp_path / "1")
    for method in (handle.result, handle.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            method(timeout=0)
    gate.release()
    assert handle.result(PATIENCE).durable
    assert handle.exception() is None


def test_a_failed_save_settles_everything(open_writer, tmp_path):
    """After a failure the status says so, and nobody waits for the durable moment in vain."""
    handle = open_writer(system=Failing("rename", errno.EIO)).save(STATE, tmp_path / "1")
    assert not handle.durable.wait(PATIENCE)
    error = handle.exception(PATIENCE)
    assert isinstance(error, SaveError)
    assert (error.phase, error.outcome, error.errno) == ("rename", "not_committed", errno.EIO)
    assert handle.status == "failed"
    assert handle.staged.is_set()


def test_futures_of_the_standard_library(gated, tmp_path):
    """``wait`` and ``as_completed`` take handles, finished, failed and cancelled ones."""
    gate, writer = gated
    handles = [writer.save(STATE, tmp_path / str(number)) for number in range(3)]
    assert handles[2].cancel()
    done, late = concurrent.futures.wait(handles, timeout=0)
    assert done == {handles[2]}
    assert late == set(handles[:2])
    gate.release()
    assert set(concurrent.futures.as_completed(handles, PATIENCE)) == set(handles)


def test_callbacks(gated, tmp_path, backend):
    """A callback gets the handle when the save has ended, also if that is long ago.

    It runs on the thread that writes, or on the one that listens to the process which does.
    """
    gate, writer = gated
    handle = writer.save(STATE, tmp_path / "1")
    called, late = threading.Event(), []
    threads: list[str] = []

    def note(done: SaveHandle) -> None:
        assert done is handle
        assert done.result().durable
        threads.append(threading.current_thread().name)
        called.set()

    handle.add_done_callback(note)
    gate.release()
    assert called.wait(PATIENCE)
    assert threads == ["asyncsave-writer" if backend == "thread" else "asyncsave-attendant"]
    handle.add_done_callback(late.append)
    assert late == [handle]


def test_await(gated, tmp_path):
    """A handle can be awaited, more than once, and by several tasks."""
    gate, writer = gated

    async def main() -> list[asyncsave.SaveResult]:
        handle = writer.save(STATE, tmp_path / "1")
        waiting = [asyncio.ensure_future(handle) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        gate.release()
        return [*await asyncio.gather(*waiting), await handle]

    results = asyncio.run(main())
    assert all(result is results[0] for result in results)
    assert results[0].durable


def test_await_delivers_the_error(open_writer, tmp_path):
    """Awaiting a failed save raises its error, which counts as read."""
    writer = open_writer(system=Failing("allocate", errno.ENOSPC))

    async def main() -> None:
        with pytest.raises(SaveError, match="ENOSPC"):
            await writer.save(STATE, tmp_path / "1")

    asyncio.run(main())
    writer.check_errors()


def test_await_of_a_cancelled_save(gated, tmp_path):
    """Awaiting a save that is cancelled raises; the awaiting task is not cancelled by that."""
    gate, writer = gated

    async def main() -> None:
        writer.save(STATE, tmp_path / "1")
        handle = writer.save(STATE, tmp_path / "2")
        gate.arrival()
        asyncio.get_running_loop().call_soon(handle.cancel)
        with pytest.raises(concurrent.futures.CancelledError):
            await handle
        gate.release()

    asyncio.run(main())


def test_wait_for_does_not_cancel_the_save(gated, tmp_path):
    """When ``asyncio.wait_for`` gives up, the save goes on; it can be awaited again."""
    gate, writer = gated

    async def main() -> asyncsave.SaveResult:
        handle = writer.save(STATE, tmp_path / "1")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.01)
        assert not handle.cancelled()
        gate.release()
        return await handle

    assert asyncio.run(main()).durable


def test_a_loop_that_is_gone_is_no_harm(gated, tmp_path, caplog):
    """A save that ends after its awaiter's loop was closed ends well, without a word."""
    gate, writer = gated
    handles = []

    async def main() -> None:
        handles.append(writer.save(STATE, tmp_path / "1"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handles[0], 0.01)

    asyncio.run(main())
    gate.release()
    assert handles[0].result(PATIENCE).durable
    writer.flush(PATIENCE)
    assert not caplog.records


def test_moment():
    """A moment is open, then set or missed for good; waiters learn it either way."""
    for happened, name in ((True, "set"), (False, "missed")):
        moment = Moment()
        assert repr(moment) == "<Moment open>"
        assert not moment.is_set()
        assert not moment.wait(0)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(moment.wait, PATIENCE)
            moment.settle(happened=happened)
            assert waiting.result(PATIENCE) is happened
        moment.settle(happened=not happened)
        assert moment.is_set() is happened
        assert repr(moment) == f"<Moment {name}>"
