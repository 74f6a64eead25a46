"""The writer: its queue, its policies, its errors, its end."""

from __future__ import annotations

import concurrent.futures
import errno
import logging
import threading
from collections import OrderedDict

import psutil
import pytest
import torch
from backends import make_writer
from gates import Failing, Gated
from processes import until
from saves import PATIENCE, Refusing, busy, number_in, state

import asyncsave
from asyncsave import (
    AsyncSaveError,
    OptionError,
    QueueFullError,
    SaveError,
    StagingError,
    WriterClosedError,
    intake,
)
from asyncsave.storage.system import System

pytestmark = pytest.mark.usefixtures("backend")


def test_wait_blocks_until_a_slot_is_free(open_writer, tmp_path):
    """With ``"wait"`` a third save returns only after the first has ended."""
    gate, writer, writing, queued = busy(open_writer, tmp_path)
    entered, handles = threading.Event(), []

    class Noisy:
        def __reduce__(self):
            entered.set()
            return (OrderedDict, ())

    waiting = threading.Thread(target=lambda: handles.append(writer.save({"n": Noisy()}, tmp_path / "3")))
    waiting.start()
    assert not entered.is_set(), "captured although no slot was free"
    assert writing.status == "writing"
    gate.pass_one()
    waiting.join(PATIENCE)
    assert writing.result(PATIENCE).durable
    assert entered.is_set()
    assert not queued.done()
    gate.release()
    assert handles[0].result(PATIENCE).durable


def test_skip_returns_a_cancelled_handle(open_writer, tmp_path):
    """With ``"skip"`` the save is not made; its handle says so, and nothing was captured."""
    gate, writer, _, _ = busy(open_writer, tmp_path, on_busy="skip")
    skipped = writer.save({"x": lambda: "not picklable"}, tmp_path / "3")
    assert skipped.status == "skipped"
    assert skipped.cancelled()
    assert not skipped.staged.wait(PATIENCE)
    assert not skipped.durable.wait(PATIENCE)
    with pytest.raises(concurrent.futures.CancelledError):
        skipped.result()
    gate.release()
    writer.flush(PATIENCE)
    assert not (tmp_path / "3").exists()
    assert writer.stats == (2, 0, 1, 0, 0, writer.stats.nbytes)


def test_replace_takes_the_oldest_that_waits(open_writer, tmp_path):
    """With ``"replace"`` the queued save gives way; the one being written does not."""
    gate, writer, writing, queued = busy(open_writer, tmp_path)
    newest = writer.save(state(3), tmp_path / "3", on_busy="replace")
    assert queued.status == "replaced"
    assert queued.cancelled()
    assert not queued.durable.wait(PATIENCE)
    assert writing.status == "writing"
    gate.release()
    assert newest.result(PATIENCE).durable
    assert writing.result(PATIENCE).durable
    assert not (tmp_path / "2").exists()
    assert writer.stats[:5] == (2, 0, 0, 1, 0)


def test_replace_waits_where_there_is_none(open_writer, tmp_path):
    """With one slot, whose save is being written, ``"replace"`` waits for it."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=1, system=gate, on_busy="replace")
    first = writer.save(state(1), tmp_path / "1")
    gate.arrival()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        second = pool.submit(writer.save, state(2), tmp_path / "2")
        gate.release()
        assert second.result(PATIENCE).result(PATIENCE).durable
    assert first.status == "durable"


def test_raise_is_queue_full(open_writer, tmp_path):
    """With ``"raise"`` a full queue raises at once; the saves in it go on, and the next one works."""
    gate, writer, writing, queued = busy(open_writer, tmp_path)
    with pytest.raises(QueueFullError, match=r"2 save\(s\) are in flight.*max_pending"):
        writer.save(state(3), tmp_path / "3", on_busy="raise")
    gate.release()
    writer.flush(PATIENCE)
    assert writing.status == queued.status == "durable"
    assert writer.save(state(3), tmp_path / "3", on_busy="raise").result(PATIENCE).durable


def test_first_in_first_out(open_writer, tmp_path):
    """Saves are written in the order of the calls, and the last one stays."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=4, system=gate)
    order: list[int] = []
    handles = [writer.save(state(number), tmp_path / "one") for number in range(4)]
    for number, handle in enumerate(handles):
        handle.add_done_callback(lambda _, number=number: order.append(number))
    gate.release()
    writer.flush(PATIENCE)
    until(lambda: len(order) == 4, "the last callback: it runs when the save has ended")
    assert order == [0, 1, 2, 3]
    assert number_in(tmp_path / "one") == 3


@pytest.mark.parametrize("other", ["thread", "process"])
def test_two_writers_keep_the_order_of_one_target(open_writer, tmp_path, other):
    """An earlier save by a slow writer never replaces a later one by a quick writer, whoever writes them."""
    gate = Gated("rename")
    slow, quick = open_writer(system=gate), open_writer(backend=other)
    first = slow.save(state(1), tmp_path / "one")
    gate.arrival()
    second = quick.save(state(2), tmp_path / "one")
    elsewhere = open_writer().save(state(3), tmp_path / "other")
    assert elsewhere.result(PATIENCE).durable, "another target has nothing to wait for"
    assert not second.done()
    gate.release()
    assert second.result(PATIENCE).durable
    assert first.done()
    assert number_in(tmp_path / "one") == 2


def test_a_link_and_its_target_are_one_target(open_writer, tmp_path):
    """The order holds under whatever name a file is saved."""
    (tmp_path / "link").symlink_to("one")
    gate = Gated("rename")
    slow, quick = open_writer(system=gate), open_writer()
    slow.save(state(1), tmp_path / "link")
    gate.arrival()
    second = quick.save(state(2), tmp_path / "one")
    assert not second.done()
    gate.release()
    second.result(PATIENCE)
    assert number_in(tmp_path / "link") == 2


def test_repr_shows_what_is_under_way(open_writer, tmp_path, backend):
    """A writer's repr counts the saves that are written, those that wait, and the free slots."""
    gate, writer, _, _ = busy(open_writer, tmp_path)
    assert repr(writer) == f"<Writer {backend}, 1 writing, 1 queued, 0/2 free>"
    gate.release()
    writer.flush(PATIENCE)
    writer.close()
    assert repr(writer) == f"<Writer {backend}, closed, 0 writing, 0 queued, 2/2 free>"


def test_stats_count_every_outcome(open_writer, tmp_path):
    """Every save is counted once, with the bytes of those that are in place."""
    gate, writer, _, queued = busy(open_writer, tmp_path)
    assert queued.cancel()
    gate.release()
    writer.flush(PATIENCE)
    done = writer.save(state(), tmp_path / "3").result(PATIENCE)
    stats = writer.stats
    assert stats == asyncsave.WriterStats(saved=2, cancelled=1, nbytes=stats.nbytes)
    assert stats.nbytes == (tmp_path / "1").stat().st_size + done.nbytes


@pytest.mark.parametrize("reader", ["save", "check_errors", "flush", "close"])
def test_an_unread_error_is_raised_once_by_the_next_call(open_writer, tmp_path, reader):
    """A failed save that nobody looked at is raised by the next call, and by that one only."""
    writer = open_writer(system=Failing("allocate", errno.EIO))
    handle = writer.save(state(1), tmp_path / "1")
    assert not handle.durable.wait(PATIENCE)
    concurrent.futures.wait([handle])
    assert handle.status == "failed", "a look at the status does not count as read"
    call = (lambda: writer.save(state(2), tmp_path / "2")) if reader == "save" else getattr(writer, reader)
    with pytest.raises(SaveError) as raised:
        call()
    assert raised.value.errno == errno.EIO
    assert raised.value.phase == "allocate"
    assert isinstance(raised.value.__cause__, OSError)
    assert not (tmp_path / "2").exists(), "the save was to be raised instead of, not begun"
    if reader != "close":
        assert writer.save(state(2), tmp_path / "2").result(PATIENCE).durable
        writer.check_errors()


def test_errors_come_oldest_first(open_writer):
    """Of two unread errors the older one is raised first, then the other."""
    writer, go = open_writer(), threading.Event()

    class Slow(Refusing):
        def write(self, data):
            assert go.wait(PATIENCE)
            return super().write(data)

    handles = [writer.save(state(), Slow(name)) for name in ("first", "second")]
    go.set()
    concurrent.futures.wait(handles)
    with pytest.raises(SaveError, match="first"):
        writer.check_errors()
    with pytest.raises(SaveError, match="second"):
        writer.check_errors()
    writer.check_errors()


@pytest.mark.parametrize("read", ["result", "exception"])
def test_a_read_error_is_not_raised_again(open_writer, tmp_path, read):
    """What the handle has delivered is not raised by anything else."""
    writer = open_writer(system=Failing("fsync", errno.EIO))
    handle = writer.save(state(), tmp_path / "1")
    if read == "result":
        with pytest.raises(SaveError):
            handle.result(PATIENCE)
    else:
        assert isinstance(handle.exception(PATIENCE), SaveError)
    writer.check_errors()
    writer.flush()
    writer.save(state(), tmp_path / "1").result(PATIENCE)
    writer.close()


def test_on_error_log_goes_on(open_writer, tmp_path, caplog):
    """With ``"log"`` an error is logged and counted, later saves are made, and close raises it."""
    writer = make_writer(system=Failing("allocate", errno.ENOSPC), on_error="log")
    handle = writer.save(state(), tmp_path / "1")
    concurrent.futures.wait([handle])
    assert writer.save(state(), tmp_path / "2").result(PATIENCE).durable
    writer.flush()
    assert writer.stats.failed == 1
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "ENOSPC" in record.getMessage()
    with pytest.raises(SaveError, match="ENOSPC"):
        writer.close()


def test_close_raises_one_and_logs_the_others(tmp_path, caplog):
    """The first error is raised by close; those behind it are in the log."""
    writer = make_writer(system=Failing("allocate", errno.EIO, forever=True), on_error="log")
    concurrent.futures.wait([writer.save(state(), tmp_path / name) for name in "ab"])
    with pytest.raises(SaveError, match="/a'"):
        writer.close()
    assert "another save failed" in caplog.text
    assert "/b'" in caplog.text


def test_leaving_by_another_exception_lets_it_through(tmp_path, caplog):
    """If the ``with`` block raised, its error comes out, and ours is logged."""

    def leave():
        with make_writer(system=Failing("allocate", errno.EIO)) as writer:
            writer.save(state(), tmp_path / "1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert "while another error was on its way" in caplog.text
    assert "EIO" in caplog.text


def test_leaving_normally_raises_ours(tmp_path):
    """A ``with`` block that ends well raises the error of a failed save."""
    with pytest.raises(SaveError), make_writer(system=Failing("allocate", errno.EIO)) as writer:
        writer.save(state(), tmp_path / "1")


@pytest.mark.parametrize("method", ["flush", "close"])
def test_time_out_names_what_is_in_flight(open_writer, tmp_path, method):
    """``flush`` and ``close`` that run out of time name the saves, which go on."""
    gate, writer, writing, queued = busy(open_writer, tmp_path)
    with pytest.raises(TimeoutError, match=r"2 save\(s\) still in flight.*/1, .*/2\. They go on"):
        getattr(writer, method)(timeout=0)
    gate.release()
    assert writing.result(PATIENCE).durable
    assert queued.result(PATIENCE).durable
    getattr(writer, method)()


def test_a_closed_writer_refuses(open_writer, tmp_path):
    """A closed writer raises at once, whatever is asked of it, and closing again is nothing."""
    writer = open_writer()
    writer.close()
    writer.close()
    with pytest.raises(WriterClosedError, match="closed"):
        writer.save(state(), tmp_path / "1")
    with pytest.raises(WriterClosedError):
        writer.warmup(state())
    writer.flush()


def test_close_turns_those_away_that_wait_for_a_slot(open_writer, tmp_path):
    """A save that waits for a slot when the writer is closed raises; those before it are made."""
    gate, writer, _, queued = busy(open_writer, tmp_path)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(writer.save, state(3), tmp_path / "3")
        writer._closed = True
        gate.release()
        with pytest.raises(WriterClosedError):
            waiting.result(PATIENCE)
    assert queued.result(PATIENCE).durable


def test_close_while_a_save_is_being_staged(open_writer, tmp_path, monkeypatch):
    """A save that is staging while another thread closes the writer is made, or raises; it never hangs."""
    writer = open_writer()
    staged, closed = threading.Event(), threading.Event()
    fill = intake.fill

    def slow(*args):
        staged.set()
        assert closed.wait(PATIENCE)
        return fill(*args)

    monkeypatch.setattr(intake, "fill", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        save = pool.submit(writer.save, state(), tmp_path / "1")
        assert staged.wait(PATIENCE)
        writer._closed = True
        closing = pool.submit(writer.close)
        concurrent.futures.wait([closing], 0.2)
        closed.set()
        try:
            assert save.result(PATIENCE).result(PATIENCE).durable
        except WriterClosedError:
            assert not (tmp_path / "1").exists()
        closing.result(PATIENCE)


def test_save_from_a_done_callback_works(open_writer, tmp_path):
    """A callback may save, on the writer's own thread, while a slot is free."""
    writer = open_writer(max_pending=2)
    second: list[asyncsave.SaveHandle] = []
    made = threading.Event()

    def again(_):
        second.append(writer.save(state(2), tmp_path / "2"))
        made.set()

    writer.save(state(1), tmp_path / "1").add_done_callback(again)
    assert made.wait(PATIENCE)
    assert second[0].result(PATIENCE).durable


def test_save_from_a_done_callback_never_waits_for_itself(open_writer, tmp_path):
    """In a callback, a save for which there is no slot raises instead of waiting for ever."""
    gate, writer, writing, _ = busy(open_writer, tmp_path)
    outcome: list[object] = []
    done = threading.Event()

    def again(_):
        try:
            writer.save(state(4), tmp_path / "4")  # takes the slot that has become free
            writer.save(state(5), tmp_path / "5")
        except QueueFullError as error:
            outcome.append(error)
        done.set()

    writing.add_done_callback(again)
    gate.release()
    assert done.wait(PATIENCE)
    [error] = outcome
    assert "done callback" in str(error)


@pytest.mark.parametrize("method", ["flush", "close"])
def test_flush_and_close_refuse_in_a_callback(open_writer, tmp_path, method):
    """In a callback they would wait for the callback: they raise, and the writer goes on."""
    gate = Gated("allocate")
    writer = open_writer(system=gate)
    outcome: list[BaseException] = []
    done = threading.Event()

    def end(_):
        try:
            getattr(writer, method)()
        except AsyncSaveError as error:
            outcome.append(error)
        done.set()

    writer.save(state(), tmp_path / "1").add_done_callback(end)
    gate.release()
    assert done.wait(PATIENCE)
    assert "callback" in str(outcome[0])
    assert writer.save(state(2), tmp_path / "2").result(PATIENCE).durable


def test_a_callback_that_raises_harms_nobody(open_writer, tmp_path, caplog):
    """An error in a callback is logged by the standard library; the writer goes on."""
    gate = Gated("allocate")
    writer = open_writer(system=gate)
    writer.save(state(), tmp_path / "1").add_done_callback(lambda _: 1 / 0)
    gate.release()
    assert writer.save(state(), tmp_path / "2").result(PATIENCE).durable
    assert "ZeroDivisionError" in caplog.text


def test_cancel_in_a_full_queue_lets_a_callback_save(open_writer, tmp_path):
    """The slot of a cancelled save is free when its callbacks run."""
    gate, writer, _, queued = busy(open_writer, tmp_path)
    again: list[asyncsave.SaveHandle] = []
    queued.add_done_callback(lambda _: again.append(writer.save(state(3), tmp_path / "3", on_busy="raise")))
    assert queued.cancel()
    gate.release()
    assert again
    assert again[0].result(PATIENCE).durable


def test_the_callback_of_a_replaced_save_may_save(open_writer, tmp_path):
    """A callback that takes the slot which was to become free gives way in its turn."""
    gate, writer, writing, queued = busy(open_writer, tmp_path)
    between: list[asyncsave.SaveHandle] = []
    queued.add_done_callback(lambda _: between.append(writer.save(state(3), tmp_path / "3", on_busy="raise")))
    newest = writer.save(state(4), tmp_path / "4", on_busy="replace")
    gate.release()
    assert newest.result(PATIENCE).durable
    assert writing.result(PATIENCE).durable
    assert (queued.status, between[0].status) == ("replaced", "replaced")


def test_many_threads_save_at_once(open_writer, tmp_path):
    """Saves from several threads are all made, each whole."""
    writer = open_writer(max_pending=3)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        handles = list(pool.map(lambda number: writer.save(state(number), tmp_path / str(number)), range(30)))
    for number, handle in enumerate(handles):
        assert handle.result(PATIENCE).durable
        assert number_in(tmp_path / str(number)) == number
    assert writer.stats.saved == 30


def test_a_failure_in_staging_gives_the_slot_back(open_writer, tmp_path):
    """What cannot be captured raises at the call and costs no slot."""
    writer = open_writer(max_pending=1)
    for _ in range(3):
        with pytest.raises(StagingError, match="cannot capture"):
            writer.save({"f": lambda: None}, tmp_path / "1", on_busy="raise")
    assert repr(writer).endswith("1/1 free>")
    assert writer.save(state(), tmp_path / "1", on_busy="raise").result(PATIENCE).durable


def test_the_state_is_the_callers_again(open_writer, tmp_path):
    """What is written is the state at the call, whatever is done to it before a byte is written."""
    gate, writer, _, _ = busy(open_writer, tmp_path)
    gate.pass_one()
    mine = state(7)
    handle = writer.save(mine, tmp_path / "7")
    mine["x"].zero_()
    mine["number"] = 0
    gate.release()
    handle.result(PATIENCE)
    assert number_in(tmp_path / "7") == 7


def test_warmup_makes_the_arenas(open_writer, tmp_path):
    """After a warm-up for this state, saving it allocates nothing."""
    writer = open_writer(max_pending=2)
    writer.warmup(state())
    arenas = [slot.arena for slot in writer._slots._all]
    assert all(arenas)
    writer.save(state(1), tmp_path / "1").result(PATIENCE)
    assert [slot.arena for slot in writer._slots._all] == arenas
    assert not list(tmp_path.glob(".*"))


def test_warmup_makes_as_many_as_fit(open_writer):
    """Where memory suffices for one arena of two, one is made; for none, that is an error."""
    writer = open_writer(max_pending=2, memory_budget=6 << 20)
    writer.warmup({"x": torch.zeros(1 << 20)})
    assert [slot.arena is None for slot in writer._slots._all].count(False) == 1
    assert repr(writer).endswith("2/2 free>")
    with pytest.raises(StagingError):
        writer.warmup({"x": torch.zeros(2 << 20)})
    assert repr(writer).endswith("2/2 free>")


@pytest.mark.parametrize(
    "options",
    [
        {"max_pending": 0},
        {"max_pending": 1.5},
        {"max_pending": True},
        {"threads": 0},
        {"memory_budget": 0},
        {"memory_budget": "1G"},
        {"on_busy": "block"},
        {"on_error": "ignore"},
        {"exit_timeout": -1},
        {"exit_timeout": float("nan")},
    ],
    ids=str,
)
def test_bad_options(options):
    """An option that makes no sense is named, with what it may be."""
    with pytest.raises(OptionError, match=next(iter(options))):
        make_writer(**options)


def test_bad_on_busy_of_one_save(open_writer, tmp_path):
    """A policy that does not exist is refused by the call."""
    with pytest.raises(OptionError, match="on_busy must be one of 'wait', 'skip', 'replace', 'raise'"):
        open_writer().save(state(), tmp_path / "1", on_busy="never")


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(open_writer, tmp_path, threads):
    """Blocks are written by as many threads as asked for, with the same bytes."""
    large = torch.arange(9 << 20, dtype=torch.int32)
    open_writer(threads=threads).save({"x": large}, tmp_path / "1").result(PATIENCE)
    assert torch.equal(torch.load(tmp_path / "1")["x"], large)


def test_not_durable_says_so(open_writer, tmp_path):
    """With ``durable=False`` the save ends as written, and the durable moment never comes."""
    handle = open_writer(durable=False).save(state(), tmp_path / "1")
    assert not handle.result(PATIENCE).durable
    assert handle.status == "written"
    assert not handle.durable.wait(PATIENCE)
    assert handle.timings["sync"] >= 0
    assert number_in(tmp_path / "1") == 0


def test_save_async_with_a_writer_of_ones_own(open_writer, tmp_path):
    """``writer=`` decides who saves."""
    writer = open_writer()
    asyncsave.save_async(state(), tmp_path / "1", writer=writer).result(PATIENCE)
    assert writer.stats.saved == 1


# What nobody expects.


class Broken(System):
    """A system with a bug."""

    def allocate(self, fd, nbytes):
        """Raise what is no OSError."""
        raise MemoryError("no memory for that")


def test_an_unforeseen_error_is_a_save_error(open_writer, tmp_path, backend):
    """Whatever goes wrong while a save is written, the handle resolves, and the cause is named.

    In this process it is chained too. From another one only words and the system's numbers arrive: an object would
    have to be unpickled.
    """
    handle = open_writer(system=Broken()).save(state(), tmp_path / "1")
    error = handle.exception(PATIENCE)
    assert isinstance(error, SaveError)
    assert "MemoryError: no memory for that" in str(error)
    assert type(error.__cause__) is (MemoryError if backend == "thread" else type(None))
    assert not list(tmp_path.iterdir())


def test_where_no_thread_can_be_started(open_writer, tmp_path, monkeypatch, backend):
    """In an interpreter that starts no more threads, the caller writes: done when ``save`` returns."""

    def refuse(_):
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writer = open_writer()
    handle = writer.save(state(3), tmp_path / "1")
    assert handle.done()
    assert number_in(tmp_path / "1") == 3
    assert writer.stats.saved == 1
    assert repr(writer) == f"<Writer {backend}, 0 writing, 0 queued, 2/2 free>"


def test_a_failed_handle_keeps_no_memory(open_writer, tmp_path):
    """Who keeps the handle of a failed save does not keep the state's copy with it."""
    writer = open_writer(system=Failing("pwrite", errno.EIO), max_pending=1)
    handle = writer.save({"x": torch.ones(20 << 20)}, tmp_path / "1")
    assert isinstance(handle.exception(PATIENCE), SaveError)
    before = psutil.Process().memory_info().rss
    writer.close()
    assert before - psutil.Process().memory_info().rss > 60 << 20
    assert handle.status == "failed"
