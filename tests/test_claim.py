"""Who may begin a save, and whether it has ended: one byte, two ends, any number of processes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import threading

import pytest

from asyncsave import claim as claim_module
from asyncsave import descriptors
from asyncsave.claim import Claim, claim_of, wait_for_end

PATIENCE = 30.0


def second_view(claim):
    """Return the claim as another process would have it."""
    return Claim(tuple(claim.duplicate()))


@contextlib.contextmanager
def end_of(claim):
    """Give the reading end that somebody waits on, as it is sent to another process."""
    (reading,) = claim.duplicate(writing=False)
    yield reading
    descriptors.drop(reading)


def has_ended(reading):
    """Tell whether waiting for a save's end would return at once."""
    poll = select.poll()
    poll.register(reading, 0)
    return bool(poll.poll(0))


@pytest.fixture
def claim():
    """Return a new claim."""
    made = Claim()
    yield made
    made.close()


def test_the_first_takes_it(claim):
    """One view gets the save, and keeps it; the others are told that somebody has it."""
    other = second_view(claim)
    assert other.take()
    assert not claim.take()
    assert not claim.take()
    other.close()
    assert not claim.take(), "also when who took it has gone"


def test_who_has_taken_it_has_it(claim):
    """Whoever asks twice (Ctrl-C came between the first answer and what it was asked for) gets the same answer."""
    assert claim.take()
    assert claim.take()


def test_threads_take_it_once():
    """Of four views that take it at the same moment, one gets it, in every round."""
    views, rounds = 4, 100
    claims = [Claim() for _ in range(rounds)]
    others = [[second_view(claim) for _ in range(views)] for claim in claims]
    won = [[False] * views for _ in range(rounds)]
    together = threading.Barrier(views)

    def take(number):
        for turn in range(rounds):
            together.wait(PATIENCE)
            won[turn][number] = others[turn][number].take()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(views)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [sum(turn) for turn in won] == [1] * rounds
    assert not any(claim.take() for claim in claims)
    for one, views_of_it in zip(claims, others, strict=True):
        for each in (one, *views_of_it):
            each.close()


def test_processes_take_it_once(template):
    """Of three processes that take the same saves at the same time, each save goes to one."""
    done = template.run("""
        import os
        from asyncsave.claim import Claim
        from asyncsave import descriptors

        claims = [Claim() for _ in range(300)]
        # Duplicates that are not entered: a child keeps them.
        shared = [(os.dup(claim._reading), os.dup(claim._writing)) for claim in claims]
        ready, go = os.pipe()
        children = []
        for _ in range(3):
            reading, writing = os.pipe()
            pid = os.fork()
            if not pid:
                mine = [Claim(fds) for fds in shared]
                os.close(go)
                os.read(ready, 1)  # everybody's starts at once: the writing end is closed
                won = bytes(one.take() for one in mine)
                os.write(writing, won)
                os._exit(0)
            children.append((pid, reading))
        os.close(go)
        won = []
        for pid, reading in children:
            answer = os.read(reading, 300)
            assert len(answer) == 300 and os.waitpid(pid, 0)[1] == 0
            won.append(answer)
        assert [sum(one) for one in zip(*won)] == [1] * 300
        assert not any(claim.take() for claim in claims)
        print([sum(answer) for answer in won])
    """)
    assert done.rc == 0, done.stderr
    assert sum(map(int, done.stdout.strip("[]\n").split(","))) == 300


def test_renewed_after_a_death(template):
    """The byte that a dead process took is put back; then it can be taken once more, by one."""
    done = template.run("""
        import os
        from asyncsave.claim import Claim

        claim = Claim()
        for _ in range(3):
            shared = (os.dup(claim._reading), os.dup(claim._writing))
            pid = os.fork()
            if not pid:
                mine = Claim(shared)
                assert mine.take()
                os.kill(os.getpid(), 9)
            assert os.waitpid(pid, 0)[1] == 9
            for fd in shared:
                os.close(fd)
            claim.renew()
        assert claim.take()
        claim.renew()
        other = Claim(tuple(claim.duplicate()))
        assert not other.take()
    """)
    assert done.rc == 0, done.stderr


def test_nothing_is_renewed_that_nobody_took(claim):
    """However often it is renewed, there is one byte."""
    for _ in range(3):
        claim.renew()
    other = second_view(claim)
    assert other.take()
    assert not claim.take()
    other.close()


def test_nothing_is_renewed_that_was_taken_here(claim):
    """Who has withdrawn a save does not put it up again when a process dies."""
    assert claim.take()
    claim.renew()
    other = second_view(claim)
    assert not other.take()
    other.close()


def test_nothing_is_renewed_that_has_ended(claim):
    """After its end there is nothing to put back, and nothing to take."""
    claim.close()
    claim.renew()
    assert not claim.take()
    assert claim.duplicate() == []
    assert claim.duplicate(writing=False) == []


def test_it_has_ended_when_everybody_says_so(claim):
    """The hang-up comes with the last writing end, whether the save was begun or not."""
    process = second_view(claim)
    with end_of(claim) as reading:
        assert not has_ended(reading)
        assert process.take()
        assert not has_ended(reading), "begun is not ended"
        process.close()
        assert not has_ended(reading), "this process has not heard of it"
        claim.close()
        assert has_ended(reading)
        wait_for_end(reading)


def test_it_has_ended_when_nobody_has_begun_it(claim):
    """A withdrawn save has ended; the byte that lies there does not matter."""
    with end_of(claim) as reading:
        claim.close()
        assert has_ended(reading)
        late = Claim((os.dup(reading), os.open(os.devnull, os.O_WRONLY)))
        assert late.take(), "who gets it late may still take it: the byte is there"
        late.close()


def test_a_taken_save_that_has_ended_cannot_be_taken(claim):
    """Where nobody is left who could put the byte back, there is none."""
    with end_of(claim) as reading:
        assert claim.take()
        claim.close()
        late = Claim((os.dup(reading), os.open(os.devnull, os.O_WRONLY)))
        assert not late.take()
        late.close()


def test_waiting_lasts_until_the_end(claim):
    """Who waits sleeps through the beginning, and wakes at the end."""
    process = second_view(claim)
    woken = threading.Event()
    with end_of(claim) as reading:

        def wait():
            wait_for_end(reading)
            woken.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert process.take()
        claim.close()
        assert not woken.wait(0.05)
        process.close()
        assert woken.wait(PATIENCE)
        waiting.join(PATIENCE)


def test_a_death_is_an_end(template):
    """The kernel hangs up for a process that was killed."""
    done = template.run("""
        import os, time
        from asyncsave.claim import Claim, wait_for_end

        claim = Claim()
        reading, writing = os.dup(claim._reading), os.dup(claim._writing)
        pid = os.fork()
        if not pid:
            time.sleep(60)  # it holds the writing end
        os.close(writing)
        claim.close()
        os.kill(pid, 9)
        wait_for_end(reading)
        os.waitpid(pid, 0)
    """)
    assert done.rc == 0, done.stderr


# Saves that this process carries out: they have a claim only when somebody has to wait for them.


def test_a_save_of_this_process():
    """Its claim ends with it, and is one, however often it is asked for."""
    save = concurrent.futures.Future()
    claim = claim_of(save)
    assert claim_of(save) is claim
    with end_of(claim) as one, end_of(claim_of(save)) as other:
        assert not has_ended(one)
        save.set_result(None)
        assert has_ended(one)
        assert has_ended(other)
    assert claim.duplicate() == []


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_save_of_this_process_that_came_to_nothing(how):
    """An error and a withdrawal are ends too."""
    save = concurrent.futures.Future()
    with end_of(claim_of(save)) as reading:
        if how == "failed":
            save.set_exception(OSError("full"))
        else:
            assert save.cancel()
        assert has_ended(reading)


def test_a_save_of_this_process_that_has_ended():
    """Nobody has to wait for it: there is nothing to send."""
    save = concurrent.futures.Future()
    save.set_result(None)
    assert claim_of(save).duplicate(writing=False) == []


def test_many_ask_at_once():
    """Threads that ask for the claim of one save at the same moment get the same one."""
    for _ in range(30):
        save = concurrent.futures.Future()
        together = threading.Barrier(4)
        found = []

        def ask(save=save, together=together, found=found):
            together.wait(PATIENCE)
            found.append(claim_of(save))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(found) == 4
        assert len(set(found)) == 1
        save.set_result(None)


def test_a_claim_goes_with_its_save():
    """Nothing is kept of saves that have ended and that nobody holds."""
    save = concurrent.futures.Future()
    claim_of(save)
    before = len(claim_module._claims)
    save.set_result(None)
    del save
    gc.collect()
    assert len(claim_module._claims) < before


# Descriptors.


def test_duplicates(claim):
    """Both ends, or the reading one; each can be closed without the others."""
    both, (reading,) = claim.duplicate(), claim.duplicate(writing=False)
    assert not any(os.get_inheritable(fd) for fd in (*both, reading))
    with pytest.raises(OSError, match="descriptor"):
        os.write(reading, b"!")
    for fd in (*both, reading):
        descriptors.drop(fd)
    assert claim.take()


def test_close_is_idempotent():
    """The descriptors are closed once; what has their numbers later is not touched."""
    claim = Claim()
    claim.close()
    strangers = os.pipe()
    claim.close()
    assert os.write(strangers[1], b"x") == 1
    for fd in strangers:
        os.close(fd)


def test_a_signal_handler_may_close_it(claim):
    """A handler that interrupts whoever takes the claim, and ends the save, is not stuck."""
    before = signal.signal(signal.SIGUSR1, lambda *_: claim.close())
    try:
        with claim._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not claim.take()


def test_closed_while_it_is_being_taken(claim, monkeypatch):
    """A save that ends while somebody withdraws it: the byte of a save that began just then is not taken for its own.

    Thread A has looked up the descriptor and is about to read it. Thread B closes the claim, and a new one
    gets the same descriptors. What A reads must not be the new one's byte.
    """
    read = os.read
    interposed = []

    def read_late(fd, count):
        if not interposed:
            closing = threading.Thread(target=claim.close)
            interposed.append(closing)
            closing.start()
            closing.join(0.2)  # it may have to wait until nobody reads
            interposed.append(Claim())
        return read(fd, count)

    monkeypatch.setattr(claim_module.os, "read", read_late)
    claim.take()
    closing, new = interposed
    closing.join(PATIENCE)
    try:
        assert new.take(), "its byte was taken by somebody who meant another save"
    finally:
        new.close()


def test_in_a_program_with_many_open_files(claim):
    """Trainings have thousands of files open; a claim works whatever number its descriptors have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 4096:
        pytest.skip(f"this system allows {limits[1]} open files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(4096, limits[0]), limits[1]))
    try:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 2000) for fd in (claim._reading, claim._writing)]
        other = Claim(tuple(high))
        assert claim.take()
        other.renew()
        assert other.take()
        with end_of(other) as reading:
            other.close()
            claim.close()
            wait_for_end(reading)
    finally:
        for fd in high:
            descriptors.drop(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_forgotten_in_a_child(claim):
    """A child that has forgotten the pipe closes nothing that is not its own."""
    fds = (claim._reading, claim._writing)
    other = second_view(claim)
    claim.abandon()
    claim.close()
    claim.renew()
    assert claim.duplicate() == []
    assert other.take()
    other.close()
    for fd in fds:
        descriptors.drop(fd)
