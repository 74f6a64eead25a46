"""What is said on a terminal, and off it: colours, widths, bars, questions; what comes from files is only text."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import commands
import pytest
from attempts import TABLE, attempt, words_of
from commands import Done, on_terminal, run

pytestmark = pytest.mark.usefixtures("plain_surroundings")

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
    monkeypatch.setattr(commands, "command", lambda: words_of(COLOURED))
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
    monkeypatch.setattr(commands, "command", lambda: words_of(TABLE))
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
    monkeypatch.setattr(commands, "command", lambda: words_of(SURE))
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
