"""Threads that share a list of small jobs."""

from __future__ import annotations

import signal
import threading

import pytest

from asyncsave.workers import Workers

PATIENCE = 30.0


@pytest.fixture(params=[1, 2, 4])
def workers(request):
    """Return some workers, the caller included."""
    made = Workers(request.param, "test")
    yield made
    made.close()


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_item_is_done_once(workers, count):
    """Each item is handed out once, and all are done on return."""
    done = []
    workers.each(done.append, range(count))
    assert sorted(done) == list(range(count))


def test_the_work_is_shared():
    """Two threads are at work at the same time."""
    workers = Workers(2, "test")
    together = threading.Barrier(2)
    workers.each(lambda _: together.wait(PATIENCE), range(2))
    workers.close()


def test_helpers_have_a_name():
    """A helper can be told from other threads."""
    workers = Workers(3, "some")
    names = {thread.name for thread in threading.enumerate()}
    assert {"some-1", "some-2"} <= names
    workers.close()


def test_the_first_error_is_raised(workers):
    """An error comes out; nobody is at work any more then, and the workers can be used again."""

    def fail(number):
        if number == 3:
            raise ZeroDivisionError
        done.append(number)

    done: list[int] = []
    with pytest.raises(ZeroDivisionError):
        workers.each(fail, range(1000))
    count = len(done)
    assert count < 1000
    workers.each(done.append, range(10))
    assert len(done) == count + 10


def test_an_error_of_a_helper_is_the_callers():
    """What a helper's item raises is raised by the call."""
    workers = Workers(2, "test")
    together = threading.Barrier(2)

    def work(_):
        together.wait(PATIENCE)
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("helper")

    with pytest.raises(KeyError, match="helper"):
        workers.each(work, range(2))
    workers.close()


def test_close_is_idempotent_and_the_caller_goes_on_alone(workers):
    """After closing, the calling thread does the work by itself."""
    workers.close()
    workers.close()
    done = []
    workers.each(lambda _: done.append(threading.current_thread()), range(5))
    assert done == [threading.current_thread()] * 5


def test_closed_in_the_middle():
    """A call that is under way while somebody closes the workers ends well."""
    workers = Workers(2, "test")
    done = []

    def work(number):
        if number == 0:
            closing = threading.Thread(target=workers.close)
            closing.start()
            closing.join(0.01)  # it cannot end before a helper that is at work here
        done.append(number)

    workers.each(work, range(50))
    workers.close()
    assert sorted(done) == list(range(50))


def test_a_signal_handler_may_use_them():
    """A handler that interrupts a call, with a helper at work for it, makes one of its own."""
    workers = Workers(2, "test")
    helping, go, inner = threading.Event(), threading.Event(), []

    def work(_):
        if threading.current_thread() is threading.main_thread():
            assert helping.wait(PATIENCE)
            signal.raise_signal(signal.SIGUSR1)
            go.set()
        else:
            helping.set()
            assert go.wait(PATIENCE)

    before = signal.signal(signal.SIGUSR1, lambda *_: workers.each(inner.append, range(20)))
    try:
        workers.each(work, range(2))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(inner) == list(range(20))
    workers.close()


def test_ctrl_c_waits_for_the_helpers():
    """An interrupted call returns only when no helper touches its memory any more."""
    workers = Workers(2, "test")
    helping, go, ended = threading.Event(), threading.Event(), []

    def work(_):
        if threading.current_thread() is threading.main_thread():
            assert helping.wait(PATIENCE)
            threading.Timer(0.05, go.set).start()
            raise KeyboardInterrupt
        helping.set()
        assert go.wait(PATIENCE)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        workers.each(work, range(2))
    assert ended == [True]
    workers.close()


def test_where_no_thread_can_be_started(monkeypatch):
    """In an interpreter that shuts down, or at a limit of threads, the caller works alone."""
    started = []

    def start(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    begin = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    workers = Workers(4, "test")
    done = []
    workers.each(done.append, range(10))
    assert sorted(done) == list(range(10))
    workers.close()
