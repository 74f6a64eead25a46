"""Saves from signal handlers, whatever they interrupt."""

from __future__ import annotations

import signal

import pytest
import torch
from saves import PATIENCE, number_in, state

import asyncsave
from asyncsave import (
    QueueFullError,
    intake,
)

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def on_signal():
    """Install a handler of SIGUSR1 for the test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


def interrupt_once(monkeypatch, name=intake):
    """Let the next copy of a state be interrupted by SIGUSR1, in its middle."""
    fill = name.fill
    pending = [signal.SIGUSR1]

    def interrupted(*args):
        if pending:
            signal.raise_signal(pending.pop())
        return fill(*args)

    monkeypatch.setattr(name, "fill", interrupted)


def test_a_signal_handler_may_save(open_writer, tmp_path, monkeypatch, on_signal):
    """A handler that interrupts the staging of one save makes another; both are whole."""
    writer = open_writer(max_pending=2)
    inner: list[asyncsave.SaveHandle] = []
    on_signal(lambda *_: inner.append(writer.save(state(2), tmp_path / "2")))
    interrupt_once(monkeypatch)
    outer = writer.save(state(1), tmp_path / "1")
    assert outer.result(PATIENCE).durable
    assert inner[0].result(PATIENCE).durable
    assert number_in(tmp_path / "1") == 1
    assert number_in(tmp_path / "2") == 2


@pytest.mark.parametrize("policy", ["wait", "replace", "raise"])
def test_a_signal_handler_never_waits_for_what_it_interrupted(open_writer, tmp_path, monkeypatch, on_signal, policy):
    """With one slot, held by the interrupted call, the handler's save raises."""
    writer = open_writer(max_pending=1)
    errors: list[QueueFullError] = []

    def handler(*_):
        try:
            writer.save(state(2), tmp_path / "2", on_busy=policy)
        except QueueFullError as error:
            errors.append(error)

    on_signal(handler)
    interrupt_once(monkeypatch)
    assert writer.save(state(1), tmp_path / "1").result(PATIENCE).durable
    assert len(errors) == 1
    assert not (tmp_path / "2").exists()


def test_a_signal_handler_may_flush(open_writer, tmp_path, monkeypatch, on_signal):
    """A handler that interrupts staging can wait for the saves before; the interrupted one goes on."""
    writer = open_writer(max_pending=2)
    first = writer.save(state(1), tmp_path / "1")
    seen: list[bool] = []

    def handler(*_):
        writer.flush(PATIENCE)
        seen.append(first.done())

    on_signal(handler)
    interrupt_once(monkeypatch)
    assert writer.save(state(2), tmp_path / "2").result(PATIENCE).durable
    assert seen == [True]


def test_a_signal_handler_may_flush_at_the_last_moment(open_writer, tmp_path, monkeypatch, on_signal):
    """A handler that interrupts a save just before it is handed over does not wait for that very save."""
    writer = open_writer(max_pending=2)
    submit, flushed, pending = writer._backend.submit, [], [signal.SIGUSR1]

    def interrupted(order):
        if pending:
            signal.raise_signal(pending.pop())
        submit(order)

    def handler(*_):
        writer.flush(timeout=5)
        flushed.append(True)

    monkeypatch.setattr(writer._backend, "submit", interrupted)
    on_signal(handler)
    assert writer.save(state(1), tmp_path / "1").result(PATIENCE).durable
    assert flushed


def test_a_storm_of_signals(open_writer, tmp_path, on_signal):
    """System calls that signals interrupt, thousands of times, are gone on with."""
    count = []
    before = signal.signal(signal.SIGALRM, lambda *_: count.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with open_writer() as writer:
            for number in range(20):
                writer.save({**state(number), "large": torch.ones(1 << 20)}, tmp_path / "1")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count
    assert number_in(tmp_path / "1") == 19


def test_keyboard_interrupt_while_staging(open_writer, tmp_path, monkeypatch, on_signal, backend):
    """Ctrl-C in the middle of staging leaves no slot taken, no file, and a writer that works."""

    def handler(*_):
        raise KeyboardInterrupt

    on_signal(handler)
    interrupt_once(monkeypatch)
    writer = open_writer(max_pending=1)
    with pytest.raises(KeyboardInterrupt):
        writer.save(state(1), tmp_path / "1")
    assert repr(writer) == f"<Writer {backend}, 0 writing, 0 queued, 1/1 free>"
    assert not list(tmp_path.iterdir())
    assert writer.save(state(2), tmp_path / "2", on_busy="raise").result(PATIENCE).durable
