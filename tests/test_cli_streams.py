"""What a command says through streams that are closed, full or in another encoding, and to readers that leave."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import commands
import pytest
from attempts import TABLE, attempt
from commands import PATIENCE, ROOT, Done

pytestmark = pytest.mark.usefixtures("plain_surroundings")

LONG = '''
def attempt(json: Json = False):
    """Say much."""
    with answering(json=json) as terminal:
        if json:
            terminal.document({"lines": ["x" * 100] * 5000})
        else:
            terminal.show(*(f"line {number}" for number in range(50_000)))
'''


def in_shell(line, *arguments, **environment):
    """Run a line of bash in which ``"$@"`` is the command; return how it ended."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, *["bash", *commands.command(*arguments)]],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("locale", [{"LANG": "C", "LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}])
def test_other_locales(locale):
    """Whatever the system's language is, there is an answer."""
    done = attempt(TABLE, **locale)
    assert done.rc == 0
    assert r"\udcff" in done.out


READERS = ["| true", "| head -n 1", "| head -c 1"]


@pytest.mark.parametrize(
    ("reader", "arguments", "unbuffered"),
    [(reader, (), "") for reader in READERS]
    + [("| true", ("--json",), ""), ("| head -n 1", ("--json",), "1"), ("| head -n 1", (), "1")],
)
def test_a_reader_that_leaves(reader, arguments, unbuffered):
    """At whatever moment: exit code 0, and not a word."""
    line = f'set -o pipefail; "$0" "$@" {reader}'
    done = attempt(LONG, *arguments, line=line, PYTHONUNBUFFERED=unbuffered)
    assert (done.rc, done.err) == (0, "")


@pytest.mark.parametrize("reader", ["| true", ">&-", "| cat >&-"])
def test_a_reader_of_the_help_that_leaves(reader):
    """The help is typer's to print: the same."""
    done = in_shell(f'"$@" 2>&1 {reader} || exit $(("${{PIPESTATUS[0]}}"))', "--help")
    assert done.rc == 0
    assert "Traceback" not in done.out + done.err


def test_help_that_is_longer_than_a_pipe():
    """Typer makes of a reader that left an exit code of its own, which is not the command's."""
    body = 'def attempt():\n    """Long."""\n\nattempt.__doc__ = "word " * 100_000\n'
    done = attempt(body, "--help", line='set -o pipefail; "$0" "$@" | true')
    assert (done.rc, done.err) == (0, "")


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [
        ("<&-", ()),
        (">&-", ()),
        (">&-", ("--json",)),
        ("2>&-", ()),
        ("<&- >&-", ()),
        (">&- 2>&-", ("--json",)),
        ("<&- >&- 2>&-", ()),
    ],
)
def test_streams_that_are_closed_from_the_start(closed, arguments, tmp_path):
    """Nothing that is opened takes their place; what can be said is said; the exit code is the command's."""
    body = f'''
def attempt(json: Json = False):
    """Open a file, and speak."""
    file = os.open({str(tmp_path / "file")!r}, os.O_CREAT | os.O_WRONLY)
    with answering(json=json) as terminal:
        terminal.show("result")
        terminal.document({{"result": True}})
        terminal.note("note")
        terminal.confirm("sure?", yes=True)
        print(file, file=open({str(tmp_path / "number")!r}, "w"))
        terminal.leave(3)
'''
    done = attempt(body, *arguments, line=f'"$0" "$@" {closed}')
    assert done.rc == 3
    assert int((tmp_path / "number").read_text()) > 2
    assert (tmp_path / "file").read_bytes() == b""
    assert bool(done.out) is (">&-" not in closed.replace("2>&-", ""))
    assert done.err == ("" if "2>&-" in closed else "note\n")


def test_notes_that_nobody_reads():
    """Stderr has lost its reader, or its disk is full: the result comes all the same."""
    body = '''
def attempt(json: Json = False):
    """Say much beside the result."""
    with answering(json=json) as terminal:
        time.sleep(0.3)
        for number in range(100):
            terminal.note("note " * 1000)
        terminal.show("result")
'''
    assert attempt(body, line='exec 3>&1; "$0" "$@" 2>&1 >&3 | true; exit ${PIPESTATUS[0]}') == Done(0, "result\n", "")
    assert attempt(body, line='"$0" "$@" 2>/dev/full') == Done(0, "result\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [(), ("--json",), ("--help",)])
def test_a_result_that_cannot_be_written(arguments):
    """A full disk behind stdout is a failure that is told: the result is not there."""
    done = attempt(LONG, *arguments, line='"$0" "$@" >/dev/full')
    assert done.rc == 1
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err
    done = attempt(TABLE, *arguments, line='"$0" "$@" >/dev/full')
    assert done.rc == 1
    assert "No space left on device" in done.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_findings_are_not_lost_with_their_reader(unbuffered):
    """A command that came to its end keeps its exit code, whoever has read it."""
    body = '''
def attempt(json: Json = False):
    """Find something."""
    with answering(json=json) as terminal:
        time.sleep(0.3)
        terminal.document({"ok": False})
        terminal.leave(3)
'''
    line = 'set -o pipefail; "$0" "$@" | true'
    assert attempt(body, "--json", line=line, PYTHONUNBUFFERED=unbuffered) == Done(3, "", "")
