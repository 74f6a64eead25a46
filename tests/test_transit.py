"""What a save meets on its way: callbacks, log handlers, signals and Ctrl-C that come at a bad moment."""

from __future__ import annotations

import errno
import logging
import signal
import threading

import pytest
import torch
from gates import Failing

import asyncsave
from asyncsave import AsyncSaveError, SaveError

pytestmark = pytest.mark.usefixtures("backend")

PATIENCE = 30.0
STATE = {"number": 1, "x": torch.zeros(1000)}


def test_save_in_a_callback_is_an_error_not_a_deadlock(open_writer, tmp_path):
    """A done callback that waits for a save of the same writer is told so; the writer goes on."""
    writer = open_writer()
    told = []
    go = threading.Event()

    def wait_for_the_next(_):
        assert go.wait(PATIENCE)
        following = writer.save(STATE, tmp_path / "2")
        with pytest.raises(AsyncSaveError, match="callback") as error:
            following.result()
        told.append(error.value)

    first = writer.save(STATE, tmp_path / "1")
    first.add_done_callback(wait_for_the_next)
    go.set()
    writer.save(STATE, tmp_path / "3").result(PATIENCE)
    writer.flush(PATIENCE)
    assert len(told) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize("on_error", ["raise", "log"])
def test_log_handlers_that_raise_do_no_harm(open_writer, tmp_path, on_error):
    """Whatever is hung into logging, handles resolve, slots are free, and the next save works."""

    class Broken(logging.Filter):
        def filter(self, record):
            raise ZeroDivisionError

    log = logging.getLogger("asyncsave")
    broken, level = Broken(), log.level
    log.addFilter(broken)
    log.setLevel(logging.DEBUG)
    try:
        writer = open_writer(on_error=on_error, system=Failing("allocate", errno.EIO))
        with pytest.raises(SaveError):
            writer.save(STATE, tmp_path / "1").result(PATIENCE)
        done = writer.save(STATE, tmp_path / "2")
        assert done.result(PATIENCE).nbytes
        assert done.status == "durable"
        assert writer.save(STATE, tmp_path / "3").result(PATIENCE)
    finally:
        log.removeFilter(broken)
        log.setLevel(level)


def test_interrupted_hand_over_leaves_nothing(open_writer, tmp_path, monkeypatch, backend):
    """Ctrl-C between the copy and the queue: the slot is free, nobody waits for the save that never was."""
    writer = open_writer(max_pending=1)

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer._backend, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.save(STATE, tmp_path / "1")
    assert repr(writer) == f"<Writer {backend}, 0 writing, 0 queued, 1/1 free>"
    with pytest.raises(asyncsave.CheckpointNotFoundError):
        asyncsave.load(tmp_path / "1")
    writer.save(STATE, tmp_path / "1").result(PATIENCE)


def test_save_and_wait_in_a_signal_handler(open_writer, tmp_path):
    """A handler that interrupts the code which takes a slot, and waits for its own save, is not stuck."""
    writer = open_writer(max_pending=2)
    results = []

    def handler(*_):
        results.append(writer.save(STATE, tmp_path / "from-handler").result(PATIENCE))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with writer._slots.changed, writer._ledger.lock:  # whatever the interrupted code may hold
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(results) == 1


def test_reads_of_old_errors_make_room_for_new_ones(open_writer, tmp_path):
    """However many errors were read, one that nobody has read is raised by close."""
    writer = open_writer(on_error="log", system=Failing("allocate", errno.EIO, forever=True))
    for number in range(120):
        assert writer.save(STATE, tmp_path / str(number)).exception(PATIENCE) is not None
    unread = writer.save(STATE, tmp_path / "unread")
    assert not unread.durable.wait(PATIENCE)
    with pytest.raises(SaveError, match="unread"):
        writer.close(PATIENCE)
