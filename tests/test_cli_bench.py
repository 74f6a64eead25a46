"""``asyncsave bench`` as a user runs it: a process, on a real folder, with a small state and a quick step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import Commands

import asyncsave

STEP = "import time\n\ndef step():\n    time.sleep(0.002)\n\ndef slow():\n    time.sleep(0.2)\n\n"
STEP += "def deaf():\n    try:\n        time.sleep(0.2)\n    except BaseException:\n        pass\n"
SMALL = ("--size", "256kB", "--tensors", "4", "--step", "quick:step")
SPREAD = {"median": 0.0, "p95": 0.0, "ci95": [0.0, 0.0], "n": 6}


@pytest.fixture
def place(tmp_path):
    """Return a folder with the module of the step, in which commands run."""
    (tmp_path / "quick.py").write_text(STEP)
    (tmp_path / "disk").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def forked():
    """Run commands in processes that have all that a measurement imports, which takes seconds (AdamW: the last)."""
    made = Commands("asyncsave.bench.session", "torch._dynamo")
    yield made
    made.close()


def run(place, *arguments, env=None):
    """Run the command; return the finished process."""
    command = [sys.executable, "-m", "asyncsave", "bench", *arguments]
    return subprocess.run(
        command, check=False, cwd=place, capture_output=True, text=True, timeout=100, env={**os.environ, **(env or {})}
    )


def shape(value):
    """Return a document with its measured numbers replaced, and its lists of steps cut."""
    if isinstance(value, dict):
        return {key: shape(of) for key, of in value.items()}
    if isinstance(value, list):
        return [shape(of) for of in value[:2]]
    return 0.0 if isinstance(value, float) else value


def mode(promise, phases, spread):
    """Return the golden shape of one mode."""
    return {
        "promise": promise, "stall_ms": spread, "cost_ms": spread, "durable_s": 0.0, "durable_mb_s": 0.0,
        "share_of_disk": 0.0, "first_ms": 0.0, "phases": dict.fromkeys(phases, 0.0),
        "timeline": {"quiet_ms": 0.0, "steps": [[0.0, 0.0]] * 2, "saves": [[0.0, 0.0]]},
    }  # fmt: skip


def test_the_document_is_as_documented(place):
    """Every key, its type and its unit; stdout holds nothing else, and the folder is empty again."""
    done = run(place, "disk", *SMALL, "--saves", "6", "--mode", "torch.save", "--mode", "thread", "--json")
    found = json.loads(done.stdout)
    verdict = found.pop("verdict")
    assert done.returncode == (0 if verdict["helps"] else 3)
    assert shape(verdict) == {
        "helps": verdict["helps"], "mode": "thread", "baseline": "torch.save",
        "saved_ms": {"median": 0.0, "ci95": [0.0, 0.0]}, "text": verdict["text"], "code": verdict["code"],
    }  # fmt: skip
    machine = found.pop("machine")
    assert machine["folder"] == str(place / "disk")
    assert machine["torch"].startswith(torch.__version__.partition("+")[0])
    assert set(machine) == {
        "cpu", "cores", "memory_bytes", "headroom_bytes", "kernel", "python", "torch", "asyncsave", "gpu", "folder",
        "file_system", "direct", "load",
    }  # fmt: skip
    for name in found["modes"]:
        assert found["modes"][name].pop("inflation") is None or name == "thread"
        assert isinstance(found["modes"][name].pop("peak_bytes"), int | None)
    assert shape(found) == {
        "state": {"source": "synthetic", "nbytes": 256_000, "tensors": 4, "dtype": "float32"},
        "training": {"kind": "quick:step", "quiet_ms": SPREAD | {"n": 12}, "saves": 6},
        "disk": {"write_mb_s": 0.0, "fsync_ms": 0.0, "read_mb_s": 0.0},
        "modes": {
            "torch.save": mode("page cache", ["save"], SPREAD),
            "thread": mode(
                "file + folder", ["wait", "capture", "stage", "queue", "seal", "write", "sync"], SPREAD
            ),
        },
        "sweeps": None,
    }  # fmt: skip
    assert found["modes"]["torch.save"]["durable_s"] >= found["modes"]["torch.save"]["stall_ms"]["median"] / 1e3 * 0.5
    assert not list((place / "disk").iterdir())


def test_the_verdict_comes_first_and_the_tables_are_narrow(place):
    """All modes, for people: nothing but the verdict is wider than 60 columns; too few saves is said to be so."""
    done = run(place, "disk", *SMALL, "--saves", "2", env={"COLUMNS": "60"})
    assert done.returncode == 3, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("too few saves to tell (2, six are needed): ")
    assert max(map(len, rest)) <= 60
    for name in ("torch.save", "torch.save+fsync", "naive-thread", "aiofiles", "thread", "process"):
        assert sum(line.split()[:1] == [name] for line in rest) >= 3, name
    assert done.stdout.rstrip().splitlines()[-1].strip().startswith("writer = asyncsave.Writer(")
    assert "nothing is left behind" in done.stderr
    assert not list((place / "disk").iterdir())


def test_a_dry_run_only_tells(place):
    """What it would take, before anything but a probe has been written."""
    done = run(place, "disk", *SMALL, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert shape(json.loads(done.stdout)) == {
        "estimate": {
            "seconds": 0.0, "written_bytes": 256_000 * (4 + 6 * 13), "disk_bytes": 256_000 * 10,
            "memory_bytes": 256_000 * 8, "saves": 10,
        }
    }  # fmt: skip
    assert not list((place / "disk").iterdir())


def test_the_state_of_a_real_checkpoint(place):
    """``--like`` takes tensors, ties and types from a file, and says so."""
    tied = torch.arange(5000, dtype=torch.bfloat16)
    asyncsave.save({"a": tied, "b": tied, "c": [torch.full((7,), float("nan"))], "step": 3}, place / "real.pt")
    done = run(
        place, "disk", "--like", "real.pt", "--step", "quick:step", "--saves", "1", "--mode", "process", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["state"] == {"source": "real.pt", "nbytes": 10_028, "tensors": 3, "dtype": "mixed"}
    assert found["verdict"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing"], 1, "missing"),
        (["disk", "--size", "many"], 2, "'many' is no size"),
        (["disk", "--mode", "carrier-pigeon"], 2, "modes must be some of torch.save"),
        (["disk", "--mode", "thread", "--mode", "thread"], 2, "each once"),
        (["disk", "--step", "quick:missing"], 2, "there is no step 'quick:missing'"),
        (["disk", "--step", "gpu"], 2, "no CUDA device"),
        (["disk", "--like", "missing.pt"], 1, "missing.pt"),
        (["disk", "--like", "torn.pt"], 3, "torn.pt"),
        (["disk", "--dtype", "float3"], 2, "dtype must be one of"),
        (["disk", "--tensors", "0"], 2, "tensors must be"),
        (["disk", "--saves", "0"], 2, "saves must be"),
        (["disk", "--size", "1MB", "--time", "1ms"], 2, "take a smaller state"),
        (["disk", "--html", "missing/report.html"], 1, "missing"),
        (["disk", "--size", "100TB"], 1, "1,000,000,000,000,000"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_in_both_ways(place, forked, arguments, code, said):
    """An exit code, an error document, words on stderr, and nothing on the disk."""
    if "--step" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    (place / "torn.pt").write_bytes(b"PK\x03\x04 and no more")
    done = forked.run("bench", *arguments, "--json", cwd=place)
    assert done.rc == code, done.err
    error = json.loads(done.out)["error"]
    assert set(error) == {"kind", "message", "path"}
    assert said in error["message"]
    assert f"error: {error['message']}" in done.err
    assert "Traceback" not in done.err
    assert not list((place / "disk").iterdir())


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [(signal.SIGINT, 130, "slow"), (signal.SIGTERM, 143, "slow"), (signal.SIGINT, 130, "deaf")],
)
def test_it_cleans_up_after_itself_when_it_is_stopped(place, number, code, step):
    """Ctrl-C or a kill in the midst of it: no file, no process, no traceback; also if the exception gets lost."""
    command = [
        sys.executable, "-m", "asyncsave", "bench", "disk", "--size", "1MB", "--tensors", "4",
        "--step", f"quick:{step}", "--saves", "500", "--time", "1h", "--mode", "torch.save", "--mode", "process",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            for line in running.stderr:
                if "at once" in line:
                    break
            deadline = time.monotonic() + 60
            while not list((place / "disk").glob("*/process.pt")) and time.monotonic() < deadline:
                time.sleep(0.05)
            running.send_signal(number)
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == code, said
    assert "Traceback" not in said
    assert not list((place / "disk").iterdir())


def test_a_report_and_plots_are_written(place):
    """One page, and for each plot a PNG, an SVG and a CSV."""
    done = run(
        place, "disk", *SMALL, "--saves", "1", "--mode", "torch.save", "--mode", "thread", "--html", "report.html",
        "--plots", "plots", "--json",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)["sweeps"]
    assert {point["mode"] for point in found["size"]} == {"torch.save", "thread"}
    assert {point["threads"] for point in found["threads"]} == {1, 2, 4, 8}
    assert found["ceiling_mb_s"] == max(point["mb_s"] for point in found["threads"])
    assert "<svg" in (place / "report.html").read_text(encoding="utf-8")
    kinds = [path.suffix for path in (place / "plots").iterdir()]
    assert kinds.count(".png") == kinds.count(".svg") == kinds.count(".csv") >= 5
    assert not list((place / "disk").iterdir())
