"""The frame of the command line: exit codes, streams that are closed or foreign, signals, help, completion."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from commands import Done, on_terminal, run

import asyncsave
from asyncsave.cli import app as app_module

PATIENCE = 60.0
ROOT = Path(asyncsave.__file__).parent.parent
COMMANDS = sorted(app_module.COMMANDS)
SCRIPT = Path(sys.executable).with_name("asyncsave")

PROGRAM = """
import os, sys, time, types
from asyncsave.cli import app
from asyncsave.cli.entry import main
from asyncsave.cli.terminal import Json, answering
from rich.table import Table

{body}

app.COMMANDS["try"] = "attempt"
sys.modules["asyncsave.cli.try"] = types.SimpleNamespace(attempt=attempt)
main()
"""
"""The command line with one command more, which does what a test is about."""


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch):
    """Let no setting of whoever runs the tests decide on colours."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def attempt(body, *arguments, line=None, **environment):
    """Run a command of the test's own; return how it ended."""
    program = PROGRAM.format(body=body)
    words = [sys.executable, "-c", program, "try", *arguments]
    if line:
        words = ["bash", "-c", line, *words]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def inside(monkeypatch, capfd):
    """Return a function that does what :func:`attempt` does, in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(app_module, "COMMANDS", dict(app_module.COMMANDS))
    monkeypatch.setitem(sys.modules, "asyncsave.cli.try", None)

    def run_inside(body, *arguments):
        monkeypatch.setattr(sys, "argv", ["asyncsave", "try", *arguments])
        with pytest.raises(SystemExit) as ended:
            exec(compile(PROGRAM.format(body=body), "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 - ours
        return Done(ended.value.code, *capfd.readouterr())

    yield run_inside
    for number, handler in handlers.items():
        signal.signal(number, handler)


def in_shell(line, *arguments, **environment):
    """Run a line of bash in which ``"$@"`` is the command; return how it ended."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, *["bash", *commands.command(*arguments)]],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


LONG = '''
def attempt(json: Json = False):
    """Say much."""
    with answering(json=json) as terminal:
        if json:
            terminal.document({"lines": ["x" * 100] * 5000})
        else:
            terminal.show(*(f"line {number}" for number in range(50_000)))
'''

TABLE = '''
def attempt(json: Json = False):
    """Show what comes from a file."""
    name = "a\\\\x1b[31m[red]\\\\x07\\\\udcff\\\\u20ac" + "n" * 200
    with answering(json=json) as terminal:
        table = Table("name", "\\\\N{SNOWMAN}")
        table.add_row(name, "[bold]b[/bold]")
        terminal.show(name, table)
        terminal.document({"name": name})
        terminal.note(name)
'''.replace("\\\\", "\\")


WITHOUT_TORCH = """
import sys
from asyncsave.cli.entry import main

try:
    main()
finally:
    print(sorted({"torch", "numpy", "matplotlib", "aiofiles", "asyncio"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is_for(name):
    """Its help has its options, and is there at once: nothing is imported for it that is slow to import."""
    words = [sys.executable, "-c", WITHOUT_TORCH, name, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.startswith(f"Usage: asyncsave {name} ")
    assert "--json" in done.stdout


def test_all_commands_are_listed():
    """Each with a line of its own, and without anything that is slow to import."""
    words = [sys.executable, "-c", WITHOUT_TORCH, "-h"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    listed = re.findall(r"^  (\w+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert sorted(listed) == COMMANDS
    assert len(listed) > 5


def test_nothing_at_all_is_a_question():
    """Without a word, what there is is shown."""
    assert run() == run("--help")


def test_the_version():
    """That of the package."""
    assert run("--version") == Done(0, f"asyncsave {asyncsave.__version__}\n", "")


@pytest.mark.skipif(not SCRIPT.exists(), reason="the package is not installed with its script")
@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--nope"]])
def test_the_script_is_the_module(arguments):
    """``asyncsave`` and ``python -m asyncsave`` say the same."""
    script = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert Done(script.returncode, script.stdout, script.stderr) == run(*arguments)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nope",), "nope"),
        (("--nope",), "--nope"),
        (("doctor", "--nope"), "--nope"),
        (("doctor", "a", "b"), "b"),
        (("doctor", "--size"), "--size"),
    ],
)
def test_usage_errors(arguments, word):
    """Exit code 2, what was not understood, and with ``--json`` the document of an error."""
    done = run(*arguments[:1], "--json", *arguments[1:]) if arguments[0] == "doctor" else run(*arguments, "--json")
    assert done.err.startswith("error: ")
    assert word in done.err
    assert done.rc == 2
    error = json.loads(done.out)["error"]
    assert (error["kind"], error["path"]) == ("UsageError", None)
    assert error["message"] in done.err


def test_a_usage_error_for_people():
    """It is on stderr, and stdout is empty."""
    done = run("doctor", "a", "b")
    assert (done.rc, done.out) == (2, "")
    assert done.err.startswith("error: ")


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r} or name.startswith({missing!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from asyncsave.cli.entry import main
main()
"""


@pytest.mark.parametrize(
    ("missing", "arguments"), [("typer", ("ls", "--json")), ("rich", ("ls", "--json")), ("typer", ("--help",))]
)
def test_without_typer_or_rich(missing, arguments):
    """The message names the extra that brings them."""
    program = BLOCKED.format(missing=missing)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    message = "the command line needs typer and rich, which are missing: pip install 'asyncsave[cli]'"
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")
    if "--json" in arguments:
        assert json.loads(done.stdout) == {"error": {"kind": "ModuleNotFoundError", "message": message, "path": None}}
    else:
        assert done.stdout == ""


def test_another_module_that_is_missing():
    """It is not typer that is missing then, and the traceback says what is."""
    program = BLOCKED.format(missing="asyncsave.cli.app")
    done = subprocess.run([sys.executable, "-c", program, "ls"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No module named 'asyncsave.cli.app'" in done.stderr
    assert "asyncsave[cli]" not in done.stderr


SEEN = {"TERM": "xterm-256color"}
COLOURED = '''
def attempt(json: Json = False):
    """Say something in red, beside a bar."""
    with answering(json=json) as terminal:
        with terminal.bar("reading [red]\\x1b[31m", 10) as advance:
            advance(5)
            time.sleep(0.2)
            advance(5)
        terminal.note("careful", style="red")
        terminal.show("w" * 100)
'''


def test_colours_and_bars_are_for_terminals(monkeypatch):
    """On a terminal there are both; NO_COLOR has no colours, TERM=dumb neither; a name in a bar is only text."""
    monkeypatch.setattr(commands, "_ESCAPES", re.compile("(?!)"))
    monkeypatch.setattr(commands, "command", lambda: [sys.executable, "-c", PROGRAM.format(body=COLOURED), "try"])
    _, full = on_terminal(**SEEN)
    assert "\x1b[31mcareful" in full
    assert "reading [red]\\x1b[31m" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", full)
    _, grey = on_terminal(**{**SEEN, "NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", grey)
    assert "careful" in grey
    _, dumb = on_terminal(**{**SEEN, "TERM": "dumb"})
    assert "\x1b" not in dumb
    assert "reading" not in dumb


def test_pipes_have_neither():
    """And lines of any length are whole."""
    done = attempt(COLOURED, **SEEN)
    assert done == Done(0, "w" * 100 + "\n", "careful\n")


def test_colours_that_are_forced():
    """FORCE_COLOR brings colours into a pipe, but no bars, and it cuts no lines."""
    done = attempt(COLOURED, **{**SEEN, "FORCE_COLOR": "1"})
    assert done.out == "w" * 100 + "\n"
    assert "\x1b[31mcareful" in done.err
    assert "reading" not in done.err


def test_a_table_on_sixty_columns(monkeypatch):
    """Nothing is wider than the terminal, and every character of a long cell is there."""
    monkeypatch.setattr(commands, "command", lambda: [sys.executable, "-c", PROGRAM.format(body=TABLE), "try"])
    rc, seen = on_terminal(columns=60, NO_COLOR="1")
    assert rc == 0
    rows = [line for line in seen.splitlines() if line.startswith("\N{BOX DRAWINGS LIGHT VERTICAL}")]
    assert rows
    assert all(len(row) <= 60 for row in rows)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_from_files_are_only_text(encoding):
    """Escape sequences, bells, markup and bytes that are no text: shown, not interpreted, in any encoding."""
    done = attempt(TABLE, PYTHONIOENCODING=encoding)
    assert done.rc == 0
    for said in (done.out, done.err):
        assert "\x1b" not in said
        assert "\x07" not in said
        assert r"a\x1b[31m[red]\x07\udcff" in said
    assert "[bold]b[/bold]" in done.out
    assert ("\N{EURO SIGN}" in done.out) is (encoding == "utf-8")
    document = attempt(TABLE, "--json", PYTHONIOENCODING=encoding).out
    assert json.loads(document)["name"].startswith("a\x1b[31m[red]\x07\udcff\N{EURO SIGN}")


@pytest.mark.parametrize("locale", [{"LANG": "C", "LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}])
def test_other_locales(locale):
    """Whatever the system's language is, there is an answer."""
    done = attempt(TABLE, **locale)
    assert done.rc == 0
    assert r"\udcff" in done.out


def test_a_path_of_any_bytes(tmp_path):
    """It is found, named, and in the document as Python has it."""
    path = os.fsencode(tmp_path) + b"/\xff\x1b[31m \xe2\x82\xac"
    done = run("doctor", path, "--no-torch", "--no-probe", "--json")
    assert json.loads(done.out)["error"]["path"] == os.fsdecode(path)
    assert done.rc == 1
    assert "\x1b" not in done.err
    Path(os.fsdecode(path)).mkdir()
    done = run("doctor", path, "--no-torch", "--no-probe", "--json")
    assert json.loads(done.out)["path"] == os.fsdecode(path)


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
        [sys.executable, "-c", PROGRAM.format(body=WAITING), "try", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
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


@pytest.mark.parametrize(
    ("statement", "rc", "kind"),
    [
        ("raise AsyncSaveError('no luck')", 1, "AsyncSaveError"),
        ("raise OptionError('no luck')", 2, "OptionError"),
        ("raise CorruptCheckpointError('no luck', path='x')", 3, "CorruptCheckpointError"),
        ("raise SaveError('no luck', path='x', phase='write')", 1, "SaveError"),
        ("raise PermissionError(13, 'no luck', 'x')", 1, "PermissionError"),
        ("terminal.leave(3)", 3, None),
        ("terminal.leave(0)", 0, None),
        ("pass", 0, None),
    ],
)
def test_exit_codes(inside, statement, rc, kind):
    """What went wrong decides: 1 failed, 2 usage, 3 findings. The document has kind, message and path."""
    body = f'''
from asyncsave.errors import AsyncSaveError, CorruptCheckpointError, OptionError, SaveError

def attempt(json: Json = False):
    """Fail, perhaps."""
    with answering(json=json) as terminal:
        {statement}
'''
    done = inside(body, "--json")
    assert done.rc == rc
    assert "Traceback" not in done.err
    if kind is None:
        assert (done.out, done.err) == ("", "")
    else:
        error = json.loads(done.out)["error"]
        assert (error["kind"], error["path"]) == (kind, "x" if "'x'" in statement else None)
        assert "no luck" in error["message"]
        assert done.err == f"error: {error['message']}\n"


@pytest.mark.parametrize("statement", ["1 / 0", "raise MemoryError", "raise RuntimeError('\\x1b[31m')", "assert False"])
def test_a_bug_is_told_as_one(inside, statement):
    """The lines that a report needs, the request to send one, and a document all the same."""
    body = f'def attempt(json: Json = False):\n    """Break."""\n    with answering(json=json):\n        {statement}\n'
    done = inside(body, "--json")
    assert done.rc == 1
    assert "Traceback" in done.err
    assert "this is a bug of asyncsave, please report it" in done.err
    error = json.loads(done.out)["error"]
    assert error["kind"] in {"ZeroDivisionError", "MemoryError", "RuntimeError", "AssertionError"}
    assert inside(body).out == ""


@pytest.mark.parametrize(("code", "rc", "err"), [("5", 5, ""), ("None", 0, ""), ("'enough'", 1, "enough\n")])
def test_code_of_the_users_that_exits(inside, code, rc, err):
    """A step of a benchmark may call ``sys.exit``: it ends as a program does."""
    body = f'def attempt():\n    """Leave."""\n    with answering(json=False):\n        sys.exit({code})\n'
    assert inside(body) == Done(rc, "", err)


SURE = '''
def attempt(yes: bool = False, json: Json = False):
    """Ask."""
    with answering(json=json) as terminal:
        terminal.confirm("Remove \\x1b[31mit?", yes=yes)
        terminal.show("removed")
'''


@pytest.mark.parametrize(
    ("typed", "rc", "said"),
    [("y\n", 0, "removed"), ("n\n", 1, "nothing was done"), ("\n", 1, "nothing was done"), ("\x04", 1, "")],
)
def test_a_question(monkeypatch, typed, rc, said):
    """Only a yes is one."""
    monkeypatch.setattr(commands, "_ESCAPES", re.compile("(?!)"))
    monkeypatch.setattr(commands, "command", lambda: [sys.executable, "-c", PROGRAM.format(body=SURE), "try"])
    found, seen = on_terminal(typed=typed, NO_COLOR="1")
    assert found == rc
    assert said in seen
    assert r"Remove \x1b[31mit?" in seen
    assert ("removed" in seen) is (rc == 0)


def test_nobody_to_ask(inside):
    """Without a terminal the answer is no, with the option that says yes."""
    done = inside(SURE)
    assert (done.rc, done.out) == (2, "")
    assert "say --yes" in done.err
    done = inside(SURE, "--json")
    assert json.loads(done.out)["error"]["kind"] == "UsageError"
    assert inside(SURE, "--yes") == Done(0, "removed\n", "")


@pytest.mark.parametrize(
    ("shell", "mark"),
    [("bash", "complete -o default -F"), ("zsh", "#compdef asyncsave"), ("fish", "complete --command asyncsave")],
)
def test_completion_scripts(shell, mark):
    """For the shell that is named, whichever this one is."""
    done = run("--show-completion", shell)
    assert (done.rc, done.err) == (0, "")
    assert mark in done.out
    assert "_ASYNCSAVE_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", {"COMP_WORDS": "asyncsave d", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "asyncsave d"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "asyncsave d", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_a_command_is_completed(shell, words):
    """Its name, from the first letter."""
    done = run(_ASYNCSAVE_COMPLETE=f"complete_{shell}", **words)
    assert (done.rc, done.err) == (0, "")
    found = set(re.findall(r"\w+", done.out))
    assert {name for name in COMMANDS if name.startswith("d")} <= found
    assert "bench" not in found


def test_an_option_is_completed():
    """Of the command that is typed."""
    words = {"COMP_WORDS": "asyncsave doctor --no-", "COMP_CWORD": "2"}
    done = run(_ASYNCSAVE_COMPLETE="complete_bash", **words)
    assert set(done.out.split()) == {"--no-probe", "--no-torch"}


def test_completion_works_in_bash(tmp_path):
    """The script is one that bash takes, and it fills in the word."""
    if not SCRIPT.exists():
        pytest.skip("the package is not installed with its script")
    (tmp_path / "script").write_text(run("--show-completion", "bash").out)
    line = (
        f"source {tmp_path}/script; COMP_WORDS=(asyncsave doc); COMP_CWORD=1; "
        "_asyncsave_completion asyncsave; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", line], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{SCRIPT.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("doctor\n", "")


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
