"""``asyncsave verify`` as a user runs it: on files and runs, sound, damaged and foreign."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import command, documents, on_terminal, run

import asyncsave

PATIENCE = 30.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a run of two steps and two files beside it, once."""
    root = tmp_path_factory.mktemp("made")
    with asyncsave.CheckpointManager(root / "runs", project="p", experiment="e") as manager:
        for step in (1, 2):
            manager.save(step, {"w": torch.full((5000,), float(step))}).result(PATIENCE)
    asyncsave.save([torch.ones(3)], root / "ours.pt")
    torch.save([torch.ones(3)], root / "theirs.pt")
    return root


@pytest.fixture
def place(made, tmp_path):
    """Return a copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def state_of(place, step):
    """Return the file of a step."""
    return place / "runs" / "p" / "e" / "1" / f"step-0000000{step}" / "state.pt"


def flip(path, at=None):
    """Change one bit, in the midst of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def sound(path):
    """Return the golden entry of a file that is right."""
    return {"path": str(path), "ok": True, "nbytes": path.stat().st_size, "problems": []}


def wrong(path, *problems):
    """Return the golden entry of a file that is not, its sums left out."""
    keys = ("record", "kind", "expected", "found")
    nbytes = path.stat().st_size if path.is_file() else 0
    said = [dict(zip(keys, problem, strict=True)) for problem in problems]
    return {"path": str(path), "ok": False, "nbytes": nbytes, "problems": said}


def without_sums(document):
    """Replace CRC-32s, which depend on the version of torch."""
    return json.loads(re.sub(r"\b[0-9a-f]{8}\b(?!\.|/)", "SUM", json.dumps(document)))


def test_what_is_right(place):
    """Files and runs, asyncsave's and torch's: one line, and an entry for each."""
    names = ["ours.pt", "theirs.pt", "runs"]
    files = [place / "ours.pt", place / "theirs.pt", state_of(place, 1), state_of(place, 2)]
    assert documents("verify", *names, cwd=place) == {"ok": True, "files": [sound(path) for path in files]}
    done = run("verify", *names, cwd=place)
    assert (done.rc, done.err) == (0, "")
    assert re.fullmatch(r"4 of 4 files right, [\d.]+ kB\n", done.out)


def test_what_is_wrong(quick, place):
    """A table of it, and of that only; the document says where, what was expected, and what was found."""
    flip(state_of(place, 1))
    state_of(place, 2).unlink()
    (place / "ours.pt").write_bytes((place / "ours.pt").read_bytes()[:-1])
    nbytes = (place / "ours.pt").stat().st_size
    manifest = json.loads((state_of(place, 2).parent / "manifest.json").read_bytes())["files"]["state.pt"]
    found = quick.documents("verify", "runs", "ours.pt", "theirs.pt", rc=3, cwd=place)
    assert without_sums(found) == {
        "ok": False,
        "files": [
            wrong(state_of(place, 1), ("data/0", "checksum", "SUM", "SUM"), (None, "digest", "crc32:SUM", "crc32:SUM")),
            wrong(state_of(place, 2), (None, "missing", f"{manifest['nbytes']} bytes", "no file")),
            wrong(place / "ours.pt", (None, "container", f"{nbytes + 1} bytes", f"{nbytes} bytes")),
            sound(place / "theirs.pt"),
        ],
    }
    done = quick.run("verify", "runs", "ours.pt", "theirs.pt", cwd=place)
    assert (done.rc, done.err) == (3, "")
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.out.splitlines()]
    assert ["file", "record", "problem", "expected", "found"] in lines
    assert ["ours.pt", "-", "container", f"{nbytes + 1} bytes", f"{nbytes} bytes"] in lines
    assert ["runs/p/e/1/step-00000002/state.pt", "-", "missing", f"{manifest['nbytes']} bytes", "no file"] in lines
    assert "theirs.pt" not in done.out
    assert "1 of 4 files right" in done.out


def encrypted(path):
    """Write a zip archive whose directory says that it is encrypted."""
    torch.save([1], path)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)


FOREIGN = {
    "text": (lambda path: path.write_text("hello"), "foreign"),
    "legacy": (lambda path: torch.save([1], path, _use_new_zipfile_serialization=False), "no checksums"),
    "encrypted": (encrypted, "foreign"),
    "a FIFO": (os.mkfifo, "unreadable"),
    "a folder": (os.mkdir, "not found"),
    "nothing": (lambda _: None, "not found"),
    "a loop": (lambda path: path.symlink_to(path), "unreadable"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint(quick, place, name):
    """Nothing was found damaged, but it cannot be said that all is right: that is a failure, and an error."""
    make, kind = FOREIGN[name]
    path = place / "it.pt"
    make(path)
    document = quick.documents("verify", "ours.pt", "it.pt", rc=1, cwd=place)
    assert document["ok"] is False
    assert document["files"][0] == sound(place / "ours.pt")
    assert [(one["ok"], [problem["kind"] for problem in one["problems"]]) for one in document["files"][1:]] == [
        (False, [kind])
    ]
    assert document["error"]["path"] == str(path)
    assert document["error"]["kind"] == ("CheckpointNotFoundError" if kind == "not found" else "LoadError")
    done = quick.run("verify", "it.pt", cwd=place)
    assert (done.rc, done.err.startswith(f"error: cannot check {str(path)!r}: {kind}")) == (1, True)


def test_damage_wins_over_what_is_missing(quick, place):
    """Exit code 3 where both are found; then the document has no error, but all the problems."""
    flip(place / "ours.pt")
    document = quick.documents("verify", "ours.pt", "nowhere.pt", rc=3, cwd=place)
    assert [one["problems"][0]["kind"] for one in document["files"]] == ["checksum", "not found"]
    assert "error" not in document


@pytest.mark.parametrize("length", [1, 3, 4, 30, 100, 1000, 20000])
def test_truncated_at_any_length(quick, place, length):
    """Damage where the file's beginning tells what it was; never a traceback."""
    path = place / "ours.pt"
    path.write_bytes(state_of(place, 1).read_bytes()[:length])
    assert quick.documents("verify", path, rc=3 if length >= 4 else 1)["files"][0]["nbytes"] == length


@pytest.mark.parametrize(
    "files",
    [
        {"../../../../../ours.pt": {"nbytes": 1, "digest": "crc32:00000000"}},
        {"/etc/passwd": {"nbytes": 1, "digest": "crc32:00000000"}},
        {"state.pt": {"nbytes": 1 << 70, "digest": "crc32:00000000"}},
    ],
)
def test_a_manifest_names_no_file_elsewhere(quick, place, files):
    """Such a one is damaged; nothing but the step's own files is opened for it."""
    path = state_of(place, 1).parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
    document = quick.documents("verify", "runs", rc=3, cwd=place)
    assert [(one["path"], one["ok"]) for one in document["files"]] == [
        (str(state_of(place, 2)), True),
        (str(path), False),
    ]


def test_absurd_sizes_and_digests_are_findings(quick, place):
    """A size that no disk has is held against the file's, and a digest of any text is only compared."""
    path = state_of(place, 1).parent / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {"state.pt": {"nbytes": (1 << 63) - 1, "digest": "\x1b[31m[bold]\ud800"}}
    path.write_text(json.dumps(manifest))
    assert quick.documents("verify", "runs", rc=3, cwd=place)["files"][0]["problems"][0]["kind"] == "size"
    manifest["files"]["state.pt"]["nbytes"] = state_of(place, 1).stat().st_size
    path.write_text(json.dumps(manifest))
    done = quick.run("verify", "runs", cwd=place)
    assert (done.rc, "\\x1b[31m[bold]\\ud800" in done.out, "\x1b" in done.out) == (3, True, False)


def test_a_narrow_terminal(place):
    """Every file, record and problem can be read in 60 columns; the bar is gone when it is done."""
    flip(state_of(place, 1))
    rc, seen = on_terminal("verify", place / "runs", columns=60)
    assert rc == 3
    table = seen[seen.index("file") :].splitlines()
    assert [line for line in table if len(line.rstrip()) > 60] == []
    for word in ("state.pt", "data/0", "checksum", "1 of 2 files right"):
        assert word in seen


def test_pipes(quick, place):
    """No bar, no colour; and a reader that leaves early is no error."""
    flip(state_of(place, 1))
    done = run("verify", place / "runs", COLUMNS="20")
    assert (done.rc, done.err, "\x1b" in done.out) == (3, "", False)
    assert done.out.startswith(f"in {state_of(place, 1).parent}:\n")
    assert re.search(r"^ *state\.pt +data/0 +checksum +[0-9a-f]{8} +[0-9a-f]{8} *$", done.out, re.MULTILINE)
    reading, writing = os.pipe()
    os.close(reading)
    done = run("verify", place / "ours.pt", stdout=writing)
    os.close(writing)
    assert (done.rc, done.err) == (0, "")


def test_ctrl_c_stops_at_once(tmp_path):
    """In the midst of a file that takes many minutes."""
    large = tmp_path / "large.pt"
    with large.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(4 << 40)
    process = subprocess.Popen(command("verify", large), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    opened = Path(f"/proc/{process.pid}/fd")
    try:
        deadline = time.monotonic() + PATIENCE
        while not any(os.path.realpath(fd) == str(large) for fd in opened.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, b"", b"")


def test_an_empty_file_is_damaged(quick, place):
    """It is what a crash leaves of a save that was not atomic: the same for inspect."""
    (place / "empty.pt").touch()
    document = quick.documents("verify", "empty.pt", rc=3, cwd=place)
    assert document["files"][0]["problems"] == [
        {"record": None, "kind": "container", "expected": "a checkpoint", "found": "an empty file"}
    ]
    assert quick.documents("inspect", "empty.pt", rc=3, cwd=place)["error"]["kind"] == "CorruptCheckpointError"
