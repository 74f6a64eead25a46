"""How programs end: what was saved is on the disk, what was not is said, and the exit code is honest."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from programs import run

import asyncsave

SAVING = """
import sys
import torch, asyncsave
from backends import writer_or_shared
folder = sys.argv[1]
writer = writer_or_shared()
flush, shutdown = (writer.flush, writer.close) if writer else (asyncsave.flush, asyncsave.shutdown)
state = {"x": torch.ones(3 << 20)}
for number in range(4):
    asyncsave.save_async({**state, "number": number}, f"{folder}/{number}", writer=writer)
"""

FAILING = """
import errno, sys
import asyncsave
from backends import make_writer
from gates import Failing, Gated
folder = sys.argv[1]
writer = make_writer(system=Failing("fsync", errno.EIO))
handle = writer.save({"n": 1}, f"{folder}/ckpt")
"""

STUCK = {
    "thread": """
import sys
from backends import make_writer
from gates import Gated
gate = Gated("fsync")
writer = make_writer(system=gate, exit_timeout=float(sys.argv[2]))
writer.save({"n": 1}, f"{sys.argv[1]}/ckpt")
gate.arrival()
""",
    "process": """
import sys
from backends import make_writer
from processes import freeze, service_of
writer = make_writer(exit_timeout=float(sys.argv[2]))
print(service_of(writer))
freeze(service_of(writer))
writer.save({"n": 1}, f"{sys.argv[1]}/ckpt")
""",
}
"""A save that does not come to its end while the program lives: a thread at a gate, or a process that stands still."""


@pytest.fixture(autouse=True)
def _processes_end(until_processes_end):
    """Let no writer process survive its program for long."""


def let_go_on(done):
    """Let the writer process of a program that was stuck go on, if there is one."""
    for pid in done.stdout.split():
        os.kill(int(pid), signal.SIGCONT)


def check_fate(folder, backend, until_processes_end):
    """Look whether the save of a program that was stuck is lost, or has landed where a writer process had it."""
    until_processes_end()
    assert (folder / "ckpt").exists() is (backend == "process")
    for path in folder.iterdir():
        assert path.name.startswith(".asyncsave-") is (backend == "thread")
        assert backend == "thread" or asyncsave.verify(path).ok
        path.unlink()


def saved(folder):
    """Return what lies in a folder; every file of it must be whole."""
    for path in folder.iterdir():
        assert asyncsave.verify(path).ok
        assert torch.equal(torch.load(path)["x"], torch.ones(3 << 20))
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("end", "rc"),
    [
        ("", 0),
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("raise ZeroDivisionError", 1),
        ("flush(); sys.exit(4)", 4),
        ("shutdown()", 0),
        ("import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); signal.raise_signal(15)", 143),
    ],
    ids=["return", "exit 0", "exit 3", "raise", "flush", "shutdown", "sigterm handler"],
)
def test_saves_in_flight_are_finished(tmp_path, template, end, rc):
    """However a program ends by itself, what was saved is there, whole; the exit code is its own."""
    done = template.run(SAVING + end, tmp_path)
    assert done.rc == rc, done.stderr
    assert saved(tmp_path) == ["0", "1", "2", "3"]
    assert ("ZeroDivisionError" in done.stderr) == ("Zero" in end)


@pytest.mark.usefixtures("backend")
def test_a_fresh_interpreter_with_warnings_as_errors(tmp_path):
    """The same in an interpreter of its own, under ``-W error``, without a word."""
    done = run(SAVING, tmp_path, options=("-W", "error"))
    assert (done.rc, done.stderr) == (0, "")
    assert saved(tmp_path) == ["0", "1", "2", "3"]


@pytest.mark.usefixtures("backend")
def test_a_writer_that_is_never_closed(tmp_path, template):
    """A writer of one's own is drained like the shared one."""
    done = template.run(
        """
        import sys, torch, asyncsave
        from backends import make_writer
        writers = [make_writer() for _ in range(3)]
        for number, writer in enumerate(writers):
            writer.save({"x": torch.ones(3 << 20)}, f"{sys.argv[1]}/{number}")
        """,
        tmp_path,
    )
    assert (done.rc, done.stderr) == (0, "")
    assert saved(tmp_path) == ["0", "1", "2"]


def test_os_exit_leaves_old_or_new(tmp_path, template, backend, until_processes_end):
    """``os._exit`` waits for nobody: what is there is whole, the rest is missing; leftovers are swept.

    A writer process has all that was staged: it goes on, and nothing is missing in the end.
    """
    done = template.run(SAVING + "import os; os._exit(7)", tmp_path)
    assert done.rc == 7
    until_processes_end()
    if backend == "process":
        assert saved(tmp_path) == ["0", "1", "2", "3"]
    for path in tmp_path.iterdir():
        assert path.name.startswith(".asyncsave-") or asyncsave.verify(path).ok
    asyncsave.save({"x": torch.ones(3 << 20)}, tmp_path / "0")
    asyncsave.shutdown()
    assert "0" in saved(tmp_path)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("end", ["", "sys.exit(0)", "sys.stdout.close()", "sys.stderr.close(); sys.stderr = None"])
def test_an_unread_failure_is_not_exit_code_0(tmp_path, template, end):
    """A failed save that nobody looked at is said on standard error, and the exit code is 1."""
    done = template.run(FAILING + end, tmp_path)
    assert done.rc == 1
    if "stderr" not in end:
        assert "a save failed, and nobody has read that: cannot save" in done.stderr
        assert "EIO" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("read", ["handle.exception()", "\ntry: handle.result()\nexcept OSError: print('seen')"])
def test_a_read_failure_is_the_programs_own_business(tmp_path, template, read):
    """A failure that the program has seen does not change its exit code."""
    done = template.run(FAILING + read, tmp_path)
    assert (done.rc, done.stderr) == (0, "")


@pytest.mark.usefixtures("backend")
def test_an_unread_failure_keeps_output_and_handlers(tmp_path, template):
    """Other exit handlers still run, before and after ours, and what was printed arrives."""
    done = template.run(
        "import atexit; atexit.register(print, 'registered first')\n"
        + FAILING
        + "atexit.register(print, 'registered last'); print('main')",
        tmp_path,
    )
    assert done.rc == 1
    assert done.stdout.splitlines() == ["main", "registered last", "registered first"]


@pytest.mark.usefixtures("backend")
def test_an_unread_failure_beside_another_exception(tmp_path, template):
    """The program's own traceback is there, and ours does not hide it."""
    done = template.run(FAILING + "raise ZeroDivisionError", tmp_path)
    assert done.rc == 1
    assert "ZeroDivisionError" in done.stderr
    assert "nobody has read that" in done.stderr


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("when", ["before", "after"])
def test_save_from_an_exit_handler(tmp_path, template, when):
    """An exit handler may save, whether it was registered before our import or after it."""
    register = """
import atexit, sys
def last():
    import torch, asyncsave
    handle = asyncsave.save_async({"x": torch.ones(3 << 20)}, f"{sys.argv[1]}/last", writer=writer)
    print(handle.status if "before" in sys.argv else "called")
atexit.register(last)
"""
    parts = [register, SAVING] if when == "before" else [SAVING, register]
    done = template.run("".join(parts), tmp_path, when)
    assert (done.rc, done.stderr) == (0, "")
    assert done.stdout.strip() == ("durable" if when == "before" else "called")
    assert saved(tmp_path) == ["0", "1", "2", "3", "last"]


@pytest.mark.usefixtures("backend")
def test_the_first_save_of_all_in_an_exit_handler(tmp_path, template):
    """A program that saves only while it exits is served too."""
    done = template.run(
        """
        import atexit, sys
        @atexit.register
        def last():
            handle = asyncsave.save_async({"x": torch.ones(3 << 20)}, f"{sys.argv[1]}/last", writer=writer_or_shared())
            assert handle.done()
        import torch, asyncsave
        from backends import writer_or_shared
        """,
        tmp_path,
    )
    assert (done.rc, done.stderr) == (0, "")
    assert saved(tmp_path) == ["last"]


@pytest.mark.usefixtures("backend")
def test_a_failure_in_a_late_exit_handler(tmp_path, template):
    """A save that fails after our own exit handler has run still makes the exit code 1."""
    register = """
import atexit, resource
@atexit.register
def last():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    asyncsave.save_async(state, f"{folder}/last", writer=writer)
"""
    done = template.run(register + SAVING, tmp_path)
    assert done.rc == 1
    assert "EFBIG" in done.stderr
    assert saved(tmp_path) == ["0", "1", "2", "3"]


@pytest.mark.usefixtures("backend")
def test_a_thread_that_saves_while_the_program_ends(tmp_path, template):
    """A save from another thread, made after the main thread has ended, is finished."""
    done = template.run(
        """
        import sys, threading, torch, asyncsave
        from backends import writer_or_shared
        def work():
            threading.main_thread().join()
            writer = writer_or_shared()
            for number in range(3):
                asyncsave.save_async({"x": torch.ones(3 << 20)}, f"{sys.argv[1]}/{number}", writer=writer)
        threading.Thread(target=work).start()
        """,
        tmp_path,
    )
    assert (done.rc, done.stderr) == (0, "")
    assert saved(tmp_path) == ["0", "1", "2"]


@pytest.mark.parametrize("end", ["", "sys.exit(0)"])
def test_the_exit_does_not_wait_for_ever(tmp_path, template, end, backend, until_processes_end):
    """When ``exit_timeout`` is over the save that is lost is named, and the exit code is 1.

    A writer process does not lose it: it lands later, but whether it does nobody here will know.
    """
    done = template.run(STUCK[backend] + end, tmp_path, 0.2)
    let_go_on(done)
    assert done.rc == 1
    fate, status = ("lost", "writing") if backend == "thread" else ("left to the writer process", "queued")
    assert f"{fate} at exit after 0.2 s: <SaveHandle" in done.stderr
    assert f"/ckpt' {status}" in done.stderr
    check_fate(tmp_path, backend, until_processes_end)


STUCK_FILE_OBJECT = """
import io, sys, threading
import asyncsave
class Stuck(io.BytesIO):
    def write(self, _):
        threading.Event().wait()
asyncsave.Writer(exit_timeout=0.2, backend=sys.argv[1]).save({"n": 1}, Stuck())
"""


def test_a_file_object_that_is_stuck_at_exit(template, backend):
    """Of a file object nothing is left to a writer process: a thread of the program writes to it, so it is lost."""
    done = template.run(STUCK_FILE_OBJECT, backend)
    assert done.rc == 1
    assert "lost at exit after 0.2 s: <SaveHandle 'Stuck' writing" in done.stderr


def test_a_lost_save_in_a_fresh_interpreter(backend):
    """The exit code is 1 also where torch is imported no sooner than something is saved."""
    done = run(STUCK_FILE_OBJECT, backend)
    assert "at exit after 0.2 s: <SaveHandle 'Stuck' writing" in done.stderr
    assert done.rc == 1


def test_ctrl_c_while_the_exit_waits(tmp_path, template, backend, until_processes_end):
    """Who interrupts the waiting is told that the last saves may be lost, by message and exit code.

    Those of a writer process are not lost.
    """
    interrupt = """
import signal
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
"""
    done = template.run(STUCK[backend] + interrupt, tmp_path, 20)
    let_go_on(done)
    assert done.rc == 1
    assert "interrupted while waiting for the last saves" in done.stderr
    check_fate(tmp_path, backend, until_processes_end)


def test_a_program_that_never_saves(template):
    """Importing costs no thread, and the exit code is the program's own."""
    done = template.run(
        """
        import threading, asyncsave
        print(threading.active_count())
        asyncsave.flush(); asyncsave.check_errors(); asyncsave.shutdown()
        raise SystemExit(5)
        """
    )
    assert (done.rc, done.stdout.strip(), done.stderr) == (5, "1", "")


@pytest.mark.usefixtures("backend")
def test_the_exit_says_what_it_waits_for(tmp_path, template):
    """While the exit waits it says so, again and again, with the saves that are in flight."""
    done = template.run(
        """
        import sys, threading, asyncsave
        from asyncsave import ledger as module
        from backends import make_writer
        from gates import Gated
        module._SAY_EVERY = 0.05
        gate = Gated("fsync")
        writer = make_writer(system=gate)
        writer.save({"n": 1}, f"{sys.argv[1]}/ckpt")
        gate.arrival()
        threading.Timer(0.5, gate.release).start()
        threading._shutdown = lambda: None  # the timer's thread would be waited for before the exit handlers
        """,
        tmp_path,
    )
    assert done.rc == 0, done.stderr
    assert done.stderr.count("exit waits for 1 save(s): [<SaveHandle") >= 2
    assert asyncsave.verify(tmp_path / "ckpt").ok
