"""Descriptors that no forked child may keep, whatever moment a fork comes at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from asyncsave import descriptors
from asyncsave.claim import Claim
from asyncsave.memory import SharedPages

PROGRAM = """
import os, socket, sys, threading
from asyncsave import descriptors
from asyncsave.channel import Channel
from asyncsave.claim import Claim
from asyncsave.memory import SharedPages

def everything():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the listing's own
    return found

def fork(child):
    pid = os.fork()
    if not pid:
        child()
        sys.stdout.flush()
        os._exit(0)
    rc = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert rc == 0, rc

def channel():
    with descriptors.held_back():
        one, other = socket.socketpair()
        return Channel(one.detach()), Channel(other.detach())
"""


def check(done):
    """Check that a program ended well."""
    assert done.rc == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "done"


def pipe():
    """Return both ends of a pipe that is entered."""
    with descriptors.held_back():
        return tuple(map(descriptors.keep, os.pipe()))


def test_a_child_has_none_of_them(template):
    """Sockets, pipes and memory are gone in a child; the parent keeps them, and the child keeps everything else."""
    done = template.run(
        PROGRAM
        + """
before = everything()
keep = [Claim(), *channel(), SharedPages(1 << 16)]
private = everything().keys() - before.keys()
assert len(private) == 5, private
other = os.pipe()

def child():
    found = everything()
    assert not private & found.keys(), found
    assert set(other) <= found.keys()
    assert found.items() >= before.items()

fork(child)
assert private <= everything().keys()
fork(child)
keep[1].send(__import__("asyncsave.wire").wire.Ready(1))
assert keep[2].receive() is not None and keep[0].take()
print("done")
"""
    )
    check(done)


def test_a_grandchild_has_none_either(template):
    """What a child enters is kept from its own children, and nothing else is closed there."""
    done = template.run(
        PROGRAM
        + """
outer = Claim()

def child():
    strangers = os.pipe()
    inner = Claim()
    own = {inner._reading, inner._writing}

    def grandchild():
        found = everything()
        assert not own & found.keys()
        assert set(strangers) <= found.keys()

    fork(grandchild)
    assert own <= everything().keys()

fork(child)
print("done")
"""
    )
    check(done)


def test_a_fork_waits(template):
    """A fork that comes while a descriptor is being made waits until it is entered."""
    done = template.run(
        PROGRAM
        + """
arrived, forked = threading.Event(), []
os.register_at_fork(before=arrived.set)  # hooks that were registered later run earlier

def in_child():
    found = everything()
    assert not forked_with & found.keys(), (forked_with, found)

forked_with = set()

with descriptors.held_back():
    ends = os.pipe()
    thread = threading.Thread(target=lambda: forked.append(fork(in_child)))
    thread.start()
    assert arrived.wait(30)
    thread.join(0.2)  # time to go wrong in
    assert not forked
    forked_with.update(map(descriptors.keep, ends))
thread.join(30)
assert forked == [None]
assert forked_with <= everything().keys()
print("done")
"""
    )
    check(done)


def test_forks_while_others_make_and_close(template):
    """Whatever moment a fork comes at, the child has no pipe, no socket and no memory."""
    done = template.run(
        PROGRAM
        + """
over, turns = threading.Event(), []
before = everything()

def work():
    while not over.is_set():
        claim, ends, pages = Claim(), channel(), SharedPages(4096)
        for fd in claim.duplicate():
            descriptors.drop(fd)
        claim.close()
        for end in ends:
            end.close()
        pages.close()
        turns.append(1)

def child():
    found = everything()
    assert found.items() == before.items(), found.items() - before.items()

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
try:
    for _ in range(40):
        fork(child)
finally:
    over.set()
for thread in threads:
    thread.join(30)
assert turns
assert everything().items() == before.items()
print("done")
"""
    )
    check(done)


def test_a_fork_inside_the_block(template):
    """Who forks while he holds forks back goes on in both processes, and can hold them back again."""
    done = template.run(
        PROGRAM
        + """
with descriptors.held_back():
    entered = set(map(descriptors.keep, os.pipe()))
    with descriptors.held_back():
        pid = os.fork()
    if not pid:
        assert not entered & everything().keys()
if not pid:
    claim = Claim()
    thread = threading.Thread(target=claim.close)  # somebody else can hold them back too
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and not claim.take()
    fork(lambda: None)
    os._exit(0)
rc = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert rc == 0, rc
claim = Claim()
thread = threading.Thread(target=claim.close)
thread.start()
thread.join(30)
assert not thread.is_alive() and not claim.take()
fork(lambda: None)
print("done")
"""
    )
    check(done)


def test_a_child_closes_no_strangers(template):
    """In a child the numbers belong to somebody else: dropping, closing and forgetting touch nothing."""
    done = template.run(
        PROGRAM
        + """
import gc
claim, (one, other), pages = Claim(), channel(), SharedPages(4096)
with descriptors.held_back():
    fd = descriptors.keep(os.dup(0))

def child():
    strangers = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    assert fd in strangers and one.fileno() in strangers
    found = everything()
    descriptors.drop(fd)
    claim.close()
    one.close()
    other.abandon()
    pages.abandon()
    gc.collect()
    assert everything() == found

fork(child)
assert claim.take() and one.fileno() >= 0
print("done")
"""
    )
    check(done)


def test_started_programs_have_none(tmp_path):
    """A program that is started, also without closing what is open, does not get them."""
    claim, pages = Claim(), SharedPages(4096)
    with descriptors.held_back():
        one, other = os.pipe()
        fds = {descriptors.keep(one), descriptors.keep(other), claim._reading, claim._writing, pages.descriptor}
    code = "import os; print(*os.listdir('/proc/self/fd'))"
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], close_fds=False, capture_output=True, check=True, text=True
    ).stdout
    assert not fds & set(map(int, found.split()))
    claim.close()
    pages.close()
    descriptors.drop(one)
    descriptors.drop(other)


def test_drop_closes_once():
    """A descriptor that was dropped is forgotten: what has its number later stays open."""
    reading, writing = pipe()
    descriptors.drop(reading)
    with open(os.devnull, "rb") as stranger:  # noqa: PTH123 - by its descriptor
        assert stranger.fileno() == reading
        descriptors.drop(reading)
        os.fstat(reading)
    descriptors.drop(writing)


def test_drop_of_what_was_not_entered():
    """Only what was entered is closed."""
    fds = os.pipe()
    for fd in (*fds, -1, 1 << 20):
        descriptors.drop(fd)
    for fd in fds:
        os.close(fd)


def test_drop_of_what_somebody_has_closed():
    """A descriptor that is closed already is dropped without an error."""
    fds = pipe()
    os.close(fds[0])
    for fd in fds:
        descriptors.drop(fd)


@pytest.mark.parametrize("inside", [False, True])
def test_a_signal_handler_may_make_and_close(inside):
    """A handler that interrupts whoever holds forks back is not stuck."""
    made = []
    before = signal.signal(signal.SIGUSR1, lambda *_: made.append(Claim()))
    try:
        if inside:
            with descriptors.held_back():
                signal.raise_signal(signal.SIGUSR1)
        else:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert made.pop().close() is None


def test_an_error_in_the_block_lets_forks_go_on():
    """Whatever is raised while a descriptor is made, the next who makes one is not held up."""
    with pytest.raises(ZeroDivisionError), descriptors.held_back():
        raise ZeroDivisionError
    done = threading.Event()

    def make():
        Claim().close()
        done.set()

    thread = threading.Thread(target=make)
    thread.start()
    assert done.wait(30)
    thread.join(30)
