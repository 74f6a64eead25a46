"""A command that is sent a signal ends in order, says so by its exit code, and loses none."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from attempts import attempt, words_of
from commands import PATIENCE, Done

pytestmark = pytest.mark.usefixtures("plain_surroundings")

WAITING = '''
def attempt(json: Json = False):
    """Wait."""
    with answering(json=json) as terminal:
        try:
            os.write(2, b"ready\\n")
            time.sleep(600)
        finally:
            terminal.note("cleared")
'''


@pytest.mark.parametrize(
    ("number", "code", "arguments"),
    [(signal.SIGINT, 130, []), (signal.SIGINT, 130, ["--json"]), (signal.SIGTERM, 143, []), (signal.SIGHUP, 129, [])],
)
def test_signals_end_it_in_order(number, code, arguments):
    """Ctrl-C and its like: what has to be cleared is, without a traceback; the exit code says which it was."""
    with subprocess.Popen(
        words_of(WAITING, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, "", "cleared\n")


def test_a_signal_that_is_ignored_stays_so():
    """Under nohup a lost terminal is no reason to end."""
    body = '''
import signal

def attempt(json: Json = False):
    """Be hung up on."""
    with answering(json=json) as terminal:
        os.kill(os.getpid(), signal.SIGHUP)
        terminal.show("still here")
'''
    done = attempt(body, line='trap \'\' HUP; "$0" "$@"')
    assert done == Done(0, "still here\n", "")


def test_ctrl_c_before_the_command_begins():
    """While modules are being imported, too."""
    program = (
        "import sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'asyncsave.cli.app':\n"
        "            raise KeyboardInterrupt\n"
        "from asyncsave.cli.entry import main\n"
        "sys.meta_path.insert(0, Slow())\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "ls"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


LOST = """
def attempt(json: Json = False):
    \"\"\"Be in a finalizer when the signal comes.\"\"\"
    import gc, os, signal, weakref

    class Cycle:
        pass

    one = Cycle()
    one.self = one
    weakref.finalize(one, os.kill, os.getpid(), signal.SIGINT)
    del one
    gc.collect()
    time.sleep(30)
"""


def test_a_signal_that_python_loses_is_not_lost():
    """An exception in a finalizer is dropped by Python; the signal comes again, and says nothing twice."""
    done = attempt(LOST)
    assert (done.rc, done.out) == (130, "")
    assert "Exception ignored" not in done.err
