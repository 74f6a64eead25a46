"""``asyncsave advise`` as a process: its document, its words, and what it makes of files that are no measurements."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
import time

import pytest
from bench_document import document, hostile

from asyncsave import LoadError, OptionError
from asyncsave.bench.measured import measured, parsed

MTBF = ("--mtbf", "12h")


def advise(*args, stdin=None, columns=None, timeout=60):
    """Run the command."""
    environment = {**os.environ} | ({"COLUMNS": str(columns)} if columns else {})
    command = [sys.executable, "-m", "asyncsave", "advise", *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False, env=environment)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def bench(tmp_path):
    """Write a measurement, changed at some places; return its path."""

    def write(**changed):
        made = document() | changed
        (tmp_path / "bench.json").write_text(json.dumps(made), encoding="utf-8")
        return tmp_path / "bench.json"

    return write


def test_the_document(bench):
    """All of it: 71 ms and 610 ms in steps of 350 ms, once in 12 h."""
    code, out, err = advise(bench(), *MTBF, "--step-time", "350ms", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    sensitivity = found.pop("sensitivity")
    assert found == {
        "mode": "process",
        "promise": "file + folder",
        "helps": True,
        "inputs": {
            "cost_s": 0.071,
            "cost_ci95_s": pytest.approx([0.06603, 0.07668]),
            "durable_s": 0.61,
            "step_s": pytest.approx(0.35),
            "mtbf_s": 43200.0,
            "budget": 0.035,
            "queue": 1,
            "restart_s": 0.0,
        },
        "advice": {
            "steps": 224,
            "interval_s": pytest.approx(78.4),
            "overhead": pytest.approx(0.071 / 78.4),
            "lost_per_failure_s": pytest.approx(39.2 + 0.61),
            "lost_share": pytest.approx(0.001824, rel=1e-3),
            "in_budget": True,
            "writable": True,
            "bound": "mtbf",
            "reason": "limited by the MTBF",
            "sound": True,
        },
        "bounds": {
            "mtbf_s": pytest.approx(78.275, abs=1e-3),
            "young_s": pytest.approx(math.sqrt(2 * 0.071 * 43200)),
            "budget_s": pytest.approx(0.071 / 0.035),
            "disk_s": 0.61,
        },
        "notes": [],
    }
    assert set(sensitivity) == {"mtbf", "cost", "interval"}
    assert [one["factor"] for one in sensitivity["mtbf"]] == [0.25, 0.5, 1, 2, 4]
    assert [one["factor"] for one in sensitivity["cost"]] == [0.5, 1, 2]
    assert [one["factor"] for one in sensitivity["interval"]] == [0.25, 0.5, 1, 2, 4]
    advised = {key: found["advice"][key] for key in found["advice"] if key not in {"reason", "sound"}}
    assert sensitivity["mtbf"][2] == advised | {"factor": 1.0, "mtbf_s": 43200.0}
    assert sensitivity["cost"][1] == advised | {"factor": 1.0, "cost_s": 0.071}
    del advised["bound"]
    assert sensitivity["interval"][2] == advised | {"factor": 1.0}


def test_the_words(bench):
    """The answer first, then what it rests on; notes on stderr."""
    code, out, err = advise(bench(), *MTBF)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Save every 1,864 steps, which is every 78.3 s: limited by the MTBF."
    assert lines[2] == "process: a save costs 71 ms, and is durable after 610 ms"
    assert "overhead within 3.5 %    2.03 s" in lines
    assert "no --step-time" in err
    assert "note" not in out


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        (("--mtbf", "1min", "--budget", "0.1%"), "budget"),
        (("--mtbf", "1min", "--mode", "torch.save", "--budget", "90%", "--queue", "1"), "mtbf"),
        (("--mtbf", "1min", "--step-time", "1h"), "step"),
    ],
)
def test_what_binds_is_told(bench, options, bound):
    """By its name."""
    _, out, _ = advise(bench(), *options, "--json")
    assert json.loads(out)["advice"]["bound"] == bound


def test_a_slow_disk_binds_and_a_queue_helps(bench):
    """By as much as the queue is deep; that asyncsave has no such queue is noted."""
    modes = document()["modes"]
    modes["process"]["durable_s"] = 600.0
    path = bench(modes=modes)
    slow = json.loads(advise(path, *MTBF, "--json")[1])
    assert slow["advice"]["bound"] == "disk"
    assert slow["advice"]["interval_s"] == pytest.approx(600, abs=0.05)
    deep = json.loads(advise(path, *MTBF, "--queue", "3", "--json")[1])
    assert deep["advice"]["interval_s"] == pytest.approx(200, abs=0.05)
    assert any("one save after another" in note for note in deep["notes"])


def test_a_mode_can_be_named(bench):
    """Else it is the one of the verdict; the baseline, where background saving does not help."""
    path = bench()
    assert json.loads(advise(path, *MTBF, "--json", "--mode", "thread")[1])["inputs"]["cost_s"] == 0.121
    code, out, _ = advise(path, *MTBF, "--json", "--mode", "nonsense")
    assert code == 2
    assert "torch.save+fsync" in json.loads(out)["error"]["message"]
    verdict = document()["verdict"] | {"helps": False, "baseline": "torch.save"}
    code, out, _ = advise(bench(verdict=verdict), *MTBF, "--json")
    found = json.loads(out)
    assert (code, found["mode"], found["helps"]) == (0, "torch.save", False)
    assert len([note for note in found["notes"] if "does not help" in note or "page cache" in note]) == 2


def test_runs_that_cannot_get_on_are_a_finding(bench):
    """Exit code 3, with the usual document."""
    code, out, err = advise(bench(), "--mtbf", "500ms", "--json")
    assert code == 3
    assert json.loads(out)["advice"]["sound"] is False
    assert "would be lost" in err


def test_a_restart_loses_time_and_moves_nothing(bench):
    """The interval is the same."""
    plain = json.loads(advise(bench(), *MTBF, "--json")[1])["advice"]
    late = json.loads(advise(bench(), *MTBF, "--restart", "1h", "--json")[1])["advice"]
    assert late["steps"] == plain["steps"]
    assert late["lost_share"] > plain["lost_share"] + 0.05


def test_a_cost_below_the_stall_is_not_believed(bench):
    """Noise may make it so, even below zero: the stall counts, and that is noted."""
    modes = document()["modes"]
    modes["process"]["cost_ms"] |= {"median": -5.0, "ci95": [None, None]}
    found = json.loads(advise(bench(modes=modes), *MTBF, "--json")[1])
    assert found["inputs"]["cost_s"] == 0.044
    assert len([note for note in found["notes"] if "uneven" in note or "too few saves" in note]) == 2


def test_a_measurement_comes_from_stdin(bench):
    """As from a pipe of bench --json."""
    code, out, _ = advise("-", *MTBF, "--json", stdin=bench().read_bytes())
    assert code == 0
    assert json.loads(out)["mode"] == "process"
    code, out, _ = advise("-", *MTBF, "--json", stdin=b"")
    assert code == 1
    assert json.loads(out)["error"]["path"] == "stdin"


def test_a_terminal_of_60_columns(bench):
    """Is wide enough for every line."""
    command = f"{sys.executable} -m asyncsave advise {bench()} --mtbf 12h --step-time 42ms --budget 0.1%"
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm", "NO_COLOR": "1"}
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    lines = re.sub(r"\x1b\[\d*m|\r", "", done.stdout).split("If you save more or less often:")[1].splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.rstrip().endswith("over budget") for line in lines)


BAD = {
    "--mtbf": ["0", "inf", "99999999999d"],
    "--step-time": ["1h30"],
    "--budget": ["100%", "nan%", "1e-30"],
    "--queue": ["0", "1.5"],
    "--restart": ["x"],
}


@pytest.mark.parametrize("option", BAD)
def test_options_that_make_no_sense_are_usage_errors(bench, option):
    """Exit code 2, with the value."""
    path = bench()
    for value in BAD[option]:
        others = () if option == "--mtbf" else MTBF
        code, out, err = advise(path, *others, f"{option}={value}", "--json")
        assert code == 2, value
        assert value.removesuffix("%")[:6] in err or option in err
        assert json.loads(out)["error"]["kind"] in {"OptionError", "UsageError"}


def test_an_mtbf_is_needed(bench):
    """Nothing else can be assumed of a run."""
    code, out, _ = advise(bench(), "--json")
    assert code == 2
    assert "--mtbf" in json.loads(out)["error"]["message"]


def test_a_missing_file_is_named(tmp_path):
    """With how to make one; a folder is none."""
    code, out, err = advise(tmp_path / "none.json", *MTBF, "--json")
    assert code == 1
    error = json.loads(out)["error"]
    assert error["path"] == str(tmp_path / "none.json")
    assert "asyncsave bench --json" in error["message"]
    assert "error: " in err
    assert advise(tmp_path, *MTBF)[0] == 1


def test_it_answers_without_torch(bench):
    """At once."""
    source = f"""
import sys
sys.argv = ["asyncsave", "advise", {str(bench())!r}, "--mtbf", "12h", "--json"]
from asyncsave.cli.entry import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
assert not {{"torch", "matplotlib", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def _without(*way):
    made = document()
    inner = made
    for name in way[:-1]:
        inner = inner[name]
    del inner[way[-1]]
    return made


def _with(value, *way):
    made = document()
    inner = made
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = value
    return made


NO_MEASUREMENTS = {
    "a number": 5,
    "a list": [document()],
    "nothing": {},
    "no modes": _without("modes"),
    "modes that are a list": _with(["process"], "modes"),
    "a mode that is a number": _with(3, "modes", "process"),
    "no cost": _without("modes", "process", "cost_ms"),
    "no stall": _without("modes", "process", "stall_ms", "median"),
    "no promise": _with(None, "modes", "process", "promise"),
    "a text for a time": _with("71", "modes", "process", "cost_ms", "median"),
    "a truth for a time": _with(bool(1), "modes", "process", "durable_s"),
    "never durable": _with(0, "modes", "process", "durable_s"),
    "durable before the call": _with(-1.0, "modes", "process", "durable_s"),
    "an absurd time": _with(1e300, "modes", "process", "durable_s"),
    "a number of many digits": _with(10**400, "modes", "process", "stall_ms", "median"),
    "one bound": _with([1.0], "modes", "process", "cost_ms", "ci95"),
    "bounds in no order": _with([2.0, 1.0], "modes", "process", "cost_ms", "ci95"),
    "bounds of text": _with(["a", "b"], "modes", "process", "cost_ms", "ci95"),
    "no training": _without("training"),
    "steps that take no time": _with(0.0, "training", "quiet_ms", "median"),
    "a verdict that is a text": _with("helps", "verdict"),
    "a verdict that is a number": _with(1, "verdict", "helps"),
    "a verdict that is a list": _with([], "verdict", "helps"),
    "what a benchmark of something else says": {"machine_info": {}, "benchmarks": [{"stats": {"min": 1}}]},
}


@pytest.mark.parametrize("name", NO_MEASUREMENTS)
def test_what_is_no_measurement_is_refused(name):
    """With where it is wrong, and how to get a right one."""
    with pytest.raises(LoadError, match=r"'/b\.json' is no measurement: .*asyncsave bench --json") as caught:
        measured(NO_MEASUREMENTS[name], None, "/b.json")
    assert caught.value.path == "/b.json"
    assert len(str(caught.value)) < 300


def _good() -> bytes:
    return json.dumps(document()).encode()


NO_JSON = {
    "empty": b"",
    "truncated": _good()[: len(_good()) // 2],
    "binary": bytes(range(256)),
    "not a number": _good().replace(b"0.61", b"NaN"),
    "infinite": _good().replace(b"0.61", b"-Infinity"),
    "too deep": b"[" * 200_000,
    "too many digits": b"1" * 100_000,
    "a pickle": b"\x80\x04K\x01.",
    "two documents": _good() * 2,
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_refused(name):
    """As an error of ours."""
    with pytest.raises(LoadError, match="is no JSON document"):
        parsed(NO_JSON[name], "/b.json")


def test_a_number_that_is_too_great_for_json_is_refused():
    """It is read as infinite."""
    with pytest.raises(LoadError, match=r"modes\.process\.durable_s"):
        measured(parsed(_good().replace(b"0.61", b"1e999"), "/b.json"), None, "/b.json")


@pytest.mark.parametrize("name", ["truncated", "not a number", "too deep", "binary"])
def test_a_broken_file_is_exit_code_1(tmp_path, name):
    """With a document."""
    (tmp_path / "b.json").write_bytes(NO_JSON[name])
    code, out, _ = advise(tmp_path / "b.json", *MTBF, "--json")
    assert code == 1
    assert json.loads(out)["error"] == {
        "kind": "LoadError",
        "message": json.loads(out)["error"]["message"],
        "path": str(tmp_path / "b.json"),
    }


def test_a_huge_file_is_not_read(tmp_path):
    """It is refused by its size, quickly and in little memory."""
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(100 << 30)
    began = time.monotonic()
    code, _, err = advise(tmp_path / "b.json", *MTBF)
    assert code == 1
    assert "more than 67,108,864 bytes" in err
    assert time.monotonic() - began < 20


def test_hostile_texts_are_only_text(tmp_path):
    """Names with markup and control characters reach no terminal as they are."""
    made = hostile()
    made["verdict"] = None
    (tmp_path / "b.json").write_text(json.dumps(made), encoding="utf-8")
    code, out, err = advise(tmp_path / "b.json", *MTBF)
    assert code == 2
    assert "--mode" in err
    assert "\x1b" not in out + err
    only = copy.deepcopy(made)
    only["modes"] = {name: mode for name, mode in made["modes"].items() if "script" in name}
    (tmp_path / "b.json").write_text(json.dumps(only), encoding="utf-8")
    for options in ((), ("--json",)):
        code, out, err = advise(tmp_path / "b.json", *MTBF, *options)
        assert code == 0
        assert "\x1b" not in out + err
        assert "</script>" in out


def test_without_a_verdict_one_mode_is_the_mode():
    """With several, one has to be named."""
    made = document() | {"verdict": None}
    with pytest.raises(OptionError, match="--mode"):
        measured(made, None, "/b.json")
    assert measured(made, "thread", "/b.json").cost_s == 0.121
    made["modes"] = {"thread": made["modes"]["thread"]}
    assert measured(made, None, "/b.json").mode == "thread"


def test_without_a_file_it_measures(tmp_path, monkeypatch):
    """In the folder that is named, which is empty again afterwards, with the step that is named."""
    (tmp_path / "training.py").write_text("import time\n\ndef step():\n    time.sleep(0.002)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "disk").mkdir()
    measured_with = ("--dir", tmp_path / "disk", "--size", "1MB", "--step", "training:step")
    code, out, err = advise(*MTBF, *measured_with, "--mode", "thread", "--json", timeout=110)
    assert code == 0, err
    found = json.loads(out)
    assert found["mode"] == "thread"
    assert found["inputs"]["step_s"] >= 0.002
    assert found["inputs"]["durable_s"] > 0
    assert found["advice"]["steps"] >= 1
    assert list((tmp_path / "disk").iterdir()) == []
