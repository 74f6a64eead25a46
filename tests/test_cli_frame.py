"""The frame of the command line: help, version, what is not understood, exit codes, missing extras, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PATIENCE, Done, run

import asyncsave
from asyncsave.cli import app as app_module

pytestmark = pytest.mark.usefixtures("plain_surroundings")

COMMANDS = sorted(app_module.COMMANDS)
SCRIPT = Path(sys.executable).with_name("asyncsave")

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
