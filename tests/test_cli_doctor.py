"""``asyncsave doctor`` as a user runs it: a process, on a real folder, which is as it was after it."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import commands
import pytest

import asyncsave

PATIENCE = 60.0
QUICK = ("--no-torch", "--no-probe")
ANYTHING = "what the machine says"
NOT_MEASURED = "Leave --no-probe out: nothing was measured."
NOT_ASKED = "Leave --no-torch out: torch was not asked."
SHM = Path("/dev/shm")  # noqa: S108 - a file system in memory, on every Linux
NAMES = [
    "file_system", "location", "durable", "free_bytes", "free_inodes", "writable", "direct_io", "fallocate",
    "rename_exchange", "lease", "flock", "clock_skew_s", "write_mb_s", "read_mb_s", "flush_ms", "memfd",
    "memory_bytes", "memory_limit_bytes", "available_bytes", "swap_bytes", "huge_pages", "memlock_bytes",
    "file_size_bytes", "open_files", "shm_bytes", "cpus", "affinity", "cpu_quota", "load", "timer_ns", "asyncsave",
    "python", "torch", "isal", "torch_import", "cuda", "gpu", "crc_mb_s", "extra_cli", "extra_plots",
]  # fmt: skip


def run(*arguments, **options):
    """Run the command; return how it ended."""
    return commands.run("doctor", *arguments, **options)


def known(name, value, remedy=None, *, ok=True):
    """Return one entry of the document that is the same on every machine."""
    return {"name": name, "ok": ok, "value": value, "remedy": remedy}


@pytest.mark.skipif(not SHM.is_dir(), reason="this system has no /dev/shm")
def test_the_document(tmp_path):
    """Every check by its name, in its order; memory is not durable, which is a finding. Nothing is left."""
    before = set(SHM.iterdir())
    done = run(str(SHM), *QUICK, "--json", cwd=tmp_path)
    assert {path for path in set(SHM.iterdir()) - before if ".asyncsave-" in path.name} == set()
    document = json.loads(done.out)
    assert done.rc == 3
    assert done.out == json.dumps(document, indent=2, sort_keys=True) + "\n"
    golden = {
        "file_system": known("file_system", "tmpfs"),
        "location": known("location", "memory"),
        "durable": known(
            "durable",
            value=False,
            remedy="Save to a file system on a disk, as ext4 or xfs: this one is memory.",
            ok=False,
        ),
        "writable": known("writable", value=True),
        "flock": known("flock", value=True),
        **{name: known(name, None, NOT_MEASURED, ok=None) for name in ("write_mb_s", "read_mb_s", "flush_ms")},
        "cpus": known("cpus", os.cpu_count()),
        "asyncsave": known("asyncsave", asyncsave.__version__),
        "python": known("python", platform.python_version()),
        "torch": known("torch", version("torch")),
        "isal": known("isal", version("isal")),
        **{name: known(name, None, NOT_ASKED, ok=None) for name in ("torch_import", "cuda", "gpu")},
        "extra_cli": known("extra_cli", f"rich {version('rich')}, typer {version('typer')}"),
    }
    found = [
        check if check["name"] in golden else {**check, "ok": ANYTHING, "value": ANYTHING, "remedy": ANYTHING}
        for check in document["checks"]
    ]
    assert {**document, "checks": found} == {
        "checks": [golden.get(name, known(name, ANYTHING, ANYTHING, ok=ANYTHING)) for name in NAMES],
        "ok": False,
        "path": str(SHM),
    }


def test_the_current_folder_and_all_that_takes_time(tmp_path):
    """Without a folder it is this one; the rates are there, and torch was asked."""
    done = run("--size", "1MiB", "--json", cwd=tmp_path)
    document = json.loads(done.out)
    checks = {check["name"]: check for check in document["checks"]}
    assert document["path"] == str(tmp_path)
    assert checks["writable"]["ok"] is True
    assert all(checks[name]["value"] > 0 for name in ("write_mb_s", "read_mb_s", "flush_ms"))
    assert checks["torch_import"] == known("torch_import", value=True)
    assert document["ok"] is all(check["ok"] is not False for check in document["checks"])
    assert done.rc == (0 if document["ok"] else 3)
    assert list(tmp_path.iterdir()) == []


def test_for_people(tmp_path):
    """First how it stands, then every check, then what to do; the same findings as in the document."""
    done = run(*QUICK, cwd=tmp_path)
    document = json.loads(run(*QUICK, "--json", cwd=tmp_path).out)
    wrong = [check["name"] for check in document["checks"] if check["ok"] is False]
    lines = done.out.splitlines()
    assert done.err == ""
    assert lines[0] == (f"{len(wrong)} of {len(NAMES)} checks found something to do" if wrong else "nothing is wrong")
    rows = [line.split()[1] for line in lines if line.split()[:1] in (["ok"], ["NO"], ["?"])]
    assert rows == NAMES
    assert f"  write_mb_s   {NOT_MEASURED}" in [line.rstrip() for line in lines]
    assert ("what to do:" in lines) is bool(wrong)


def test_sixty_columns(tmp_path):
    """No line is longer, no row of the table is cut, and every name is whole."""
    _, seen = commands.on_terminal("doctor", *QUICK, tmp_path, columns=60)
    lines = seen.splitlines()
    assert max(map(len, lines)) <= 60
    rows = [line.split()[1] for line in lines if line.split()[:1] in (["ok"], ["NO"], ["?"])]
    assert rows == NAMES
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)


@pytest.mark.parametrize("json_too", [False, True])
def test_a_folder_that_is_missing(tmp_path, json_too):
    """Exit code 1, with path and remedy; the document is the error."""
    done = run("absent", *QUICK, *(["--json"] if json_too else []), cwd=tmp_path)
    assert done.rc == 1
    assert "No such file or directory" in done.err
    assert "Make the folder first" in done.err
    if json_too:
        error = json.loads(done.out)["error"]
        assert (error["kind"], error["path"]) == ("SaveError", str(tmp_path / "absent"))
    else:
        assert done.out == ""


def test_a_file_in_the_place_of_the_folder(tmp_path):
    """Exit code 1, too."""
    (tmp_path / "file").touch()
    done = run("file", *QUICK, cwd=tmp_path)
    assert (done.rc, done.out) == (1, "")
    assert "Not a directory" in done.err


def test_a_folder_that_is_read_only(tmp_path):
    """Exit code 1: also for root, on a file system that nobody may write to."""
    (tmp_path / "folder").mkdir(mode=0o555)
    folder = str(tmp_path / "folder")
    if os.geteuid() == 0:
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True, check=False)
        if mount.returncode:
            pytest.skip(f"mount is not possible here: {mount.stderr.decode().strip()}")
    try:
        done = run(folder, *QUICK, "--json")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", folder], check=True)
    assert done.rc == 1
    assert json.loads(done.out)["error"]["path"] == folder


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 4 MB and 8 names."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=8", "none", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not possible here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_full(small_disk):
    """Not one byte, then not one name: a finding each time, with the rest of the checks, and no crash."""
    with (small_disk / "ballast").open("wb") as ballast:
        free = os.statvfs(small_disk)
        os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize)
    done = run(str(small_disk), "--no-torch", "--json")
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert done.rc == 3
    assert (checks["free_bytes"]["ok"], checks["free_bytes"]["value"]) == (False, 0)
    assert checks["write_mb_s"]["ok"] is None
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    for number in range(6):
        (small_disk / str(number)).touch()
    done = run(str(small_disk), "--no-torch", "--json")
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert done.rc == 3
    assert (checks["writable"]["ok"], checks["free_inodes"]["ok"]) == (False, False)
    assert checks["direct_io"]["ok"] is None


@pytest.mark.parametrize("size", ["many", "0", "1kB", "-4MB"])
def test_a_probe_of_no_size(tmp_path, size):
    """Exit code 2, before anything is made."""
    done = run("--size", size, cwd=tmp_path)
    assert done.rc == 2


def test_a_folder_without_a_name(tmp_path):
    """An empty variable in a script is no current folder."""
    done = run("", *QUICK, "--json", cwd=tmp_path)
    assert done.rc == 2
    assert json.loads(done.out)["error"]["kind"] == "OptionError"


def test_a_folder_with_any_name(tmp_path):
    """What a terminal would take for an order is shown as text, and JSON has the name as it is."""
    folder = tmp_path / "a\x1b[31m [red]\udcff"
    folder.mkdir()
    document = json.loads(run(str(folder), *QUICK, "--json").out)
    assert document["path"] == str(folder)
    done = run(f"{folder}-absent", *QUICK)
    assert "\x1b" not in done.out + done.err
    assert "[red]" in done.err


FOREVER = """
import sys
from asyncsave.cli.entry import main
from asyncsave.doctor import rates

rates._FLUSHES = 1 << 60  # the last of the trials takes for ever
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing(tmp_path, number, code):
    """Ctrl-C, a termination and a lost terminal in the midst of the trials: the folder is as it was."""
    process = subprocess.Popen(
        [sys.executable, "-c", FOREVER, "doctor", "--no-torch", "--size", "2MiB", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob(".asyncsave-*/flush")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


WATCHED = """
import sys
from asyncsave.cli.entry import main

try:
    main()
finally:
    print("torch" in sys.modules)
"""


def test_it_imports_no_torch(tmp_path):
    """Torch is asked in a process of its own, so that this one can tell whatever becomes of it."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "doctor", "--no-probe", "--json", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"
    assert '"torch_import"' in done.stdout
