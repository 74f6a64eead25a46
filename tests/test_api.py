"""The functions that stand where ``torch.save`` stood, and the writer that they share, which is a thread."""

from __future__ import annotations

import concurrent.futures
import io
import threading

import pytest
from saves import PATIENCE, Refusing, number_in, state

import asyncsave
from asyncsave import SaveError


def test_save_async_after_shutdown_makes_a_new_writer(tmp_path):
    """``shutdown`` ends the shared writer; the next save makes another."""
    asyncsave.save_async(state(1), tmp_path / "1")
    asyncsave.shutdown()
    assert number_in(tmp_path / "1") == 1
    assert asyncsave.save_async(state(2), tmp_path / "2").result(PATIENCE).durable


def test_save_async_after_a_shutdown_that_ran_out_of_time(tmp_path):
    """A save after a timed-out shutdown is made by a new writer; the old one's saves go on."""
    go = threading.Event()

    class Slow(io.BytesIO):
        def write(self, data):
            assert go.wait(PATIENCE)
            return super().write(data)

    slow = asyncsave.save_async(state(1), Slow())
    old = asyncsave.api._default
    try:
        with pytest.raises(TimeoutError):
            asyncsave.shutdown(0)
        assert asyncsave.save_async(state(2), tmp_path / "2").result(PATIENCE).durable
    finally:
        go.set()
    assert slow.result(PATIENCE).nbytes
    old.close()


def test_module_functions_speak_for_the_default_writer(tmp_path):
    """``flush`` and ``check_errors`` do nothing without saves, and raise what nobody has read."""
    asyncsave.flush()
    asyncsave.check_errors()
    concurrent.futures.wait([asyncsave.save_async(state(), Refusing("no"))])
    with pytest.raises(SaveError, match="no"):
        asyncsave.check_errors()
    concurrent.futures.wait([asyncsave.save_async(state(), Refusing("no"))])
    with pytest.raises(SaveError, match="no"):
        asyncsave.flush(PATIENCE)
    concurrent.futures.wait([asyncsave.save_async(state(), Refusing("no"))])
    with pytest.raises(SaveError, match="no"):
        asyncsave.shutdown()
