"""A whole measurement, tiny and real: its document, what it writes, and that nothing is left, whatever happens."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import sys
from dataclasses import replace

import pytest
import torch
from disks import mounted

import asyncsave
from asyncsave import AsyncSaveError, CheckpointNotFoundError, OptionError, SaveError
from asyncsave.bench import session as sessions
from asyncsave.bench import sweeps
from asyncsave.bench.plan import ALL_MODES, Plan
from asyncsave.bench.probes import RawDisk
from asyncsave.bench.savers import SAVERS
from asyncsave.bench.session import Session, measure
from asyncsave.bench.states import saved_bytes

SPREAD = {"median", "p95", "ci95", "n"}
KEYS = {
    "machine": {
        "cpu", "cores", "memory_bytes", "headroom_bytes", "kernel", "python", "torch", "asyncsave", "gpu", "folder",
        "file_system", "direct", "load",
    },
    "state": {"source", "nbytes", "tensors", "dtype"},
    "training": {"kind", "quiet_ms", "saves"},
    "disk": {"write_mb_s", "fsync_ms", "read_mb_s"},
    "verdict": {"helps", "mode", "baseline", "saved_ms", "text", "code"},
}  # fmt: skip
MODE = {
    "promise", "stall_ms", "cost_ms", "durable_s", "durable_mb_s", "share_of_disk", "inflation", "first_ms",
    "peak_bytes", "phases", "timeline",
}  # fmt: skip
PHASES = {"wait", "capture", "stage", "queue", "seal", "write", "sync"}
OWN = """
import time
calls = 0
stop = -1
def step():
    global calls
    calls += 1
    if calls == stop:
        raise KeyboardInterrupt
    time.sleep(0.0005)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder; ``own:step`` is a step of half a millisecond there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(os, "sync", lambda: None)  # the machine's other disks are none of a test's business
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    made = tmp_path / "disk"
    made.mkdir()
    gc.freeze()  # a collection goes over what the measurement makes, and not over pytest
    yield made
    gc.unfreeze()
    sys.modules.pop("own", None)


@pytest.fixture
def small_disk(folder):
    """Return the folder with a file system of 24 MB mounted on it."""
    with mounted(folder, "size=24m"):
        yield folder


def tiny(folder, **options):
    """Return a plan of a quarter of a megabyte."""
    return Plan(str(folder), **({"nbytes": 256_000, "tensors": 4, "step": "own:step", "saves": 1} | options))


def is_empty(folder):
    """Tell whether nothing is left."""
    return not list(folder.iterdir())


def test_the_document(folder):
    """Exactly the keys that are documented, numbers that JSON has, and figures that agree with one another."""
    done = []
    with Session(tiny(folder, saves=6)) as session:
        found = session.run(lambda: done.append(1))
        assert len(done) == session.units == (6 + 2) * 6
        assert is_empty(folder) is False
    assert is_empty(folder)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {*KEYS, "modes", "sweeps"}
    for part, keys in KEYS.items():
        assert set(found[part]) == keys, part
    assert found["machine"]["folder"] == str(folder)
    assert found["state"] == {"source": "synthetic", "nbytes": 256_000, "tensors": 4, "dtype": "float32"}
    assert (found["training"]["kind"], found["training"]["saves"]) == ("own:step", 6)
    assert set(found["training"]["quiet_ms"]) == SPREAD
    assert min(found["disk"].values()) > 0
    assert found["sweeps"] is None
    assert list(found["modes"]) == list(ALL_MODES)
    for name, mode in found["modes"].items():
        check_mode(found, name, mode)
    verdict = found["verdict"]
    assert verdict["mode"] in {"thread", "process"}
    assert verdict["baseline"] == "torch.save"
    assert set(verdict["saved_ms"]) == {"median", "ci95"}
    assert (verdict["helps"] is None) is (verdict["saved_ms"]["ci95"][0] <= 0 <= verdict["saved_ms"]["ci95"][1])


def check_mode(found, name, mode):
    """Hold one mode's part against the rest."""
    assert set(mode) == MODE
    for key in ("stall_ms", "cost_ms"):
        assert set(mode[key]) == SPREAD
        assert mode[key]["n"] == 6
        assert mode[key]["ci95"][0] <= mode[key]["median"] <= mode[key]["ci95"][1]
    assert mode["durable_s"] * 1e3 >= mode["stall_ms"]["ci95"][0]
    assert mode["durable_mb_s"] == pytest.approx(256_000 / mode["durable_s"] / 1e6)
    assert mode["share_of_disk"] == pytest.approx(mode["durable_mb_s"] / found["disk"]["write_mb_s"])
    assert mode["first_ms"] > 0
    assert mode["peak_bytes"] is None or mode["peak_bytes"] >= 0
    assert set(mode["phases"]) == (PHASES if name in {"thread", "process"} else {"save"})
    timeline = mode["timeline"]
    assert set(timeline) == {"quiet_ms", "steps", "saves"}
    moments = [moment for step in timeline["steps"] for moment in step]
    assert moments == sorted(moments)
    assert moments[0] == 0
    ((called, returned, complete),) = timeline["saves"]
    assert 0 < called < returned <= complete
    beside = [step for step in timeline["steps"] if step[0] < complete and returned < step[1]]
    assert len(timeline["steps"]) == 12 + len(beside)
    if name in {"torch.save", "torch.save+fsync"}:
        assert (beside, mode["inflation"]) == ([], None)
        assert mode["cost_ms"] == mode["stall_ms"]


def test_few_saves_are_no_interval(folder):
    """Nulls, and a verdict that says so; a single mode of ours has none."""
    found = measure(tiny(folder, saves=2, modes=("torch.save", "thread")))
    assert found["verdict"]["helps"] is None
    assert found["verdict"]["saved_ms"]["ci95"] == [None, None]
    assert found["modes"]["thread"]["cost_ms"]["ci95"] == [None, None]
    json.dumps(found, allow_nan=False)
    assert measure(tiny(folder, modes=("thread",)))["verdict"] is None
    assert is_empty(folder)


class Counting:
    """A way of saving that counts bytes."""

    def __init__(self, inner, written):
        self._inner, self._written = inner, written

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def save(self, state, path):
        """Count, and save."""
        self._written.append(saved_bytes(state))
        return self._inner.save(state, path)


@pytest.mark.parametrize("swept", [False, True])
def test_what_is_written_is_what_was_foretold(folder, monkeypatch, swept):
    """Preparation, saves that do not count, saves that do, and sweeps: to a hundredth."""
    written = []
    counting = {name: (lambda state, make=make: Counting(make(state), written)) for name, make in SAVERS.items()}
    monkeypatch.setattr(sessions, "SAVERS", counting)
    monkeypatch.setattr(sweeps, "SAVERS", counting)
    write = RawDisk.write

    def counted(self, name, nbytes):
        written.append(nbytes)
        return write(self, name, nbytes)

    monkeypatch.setattr(RawDisk, "write", counted)
    done = []
    with Session(tiny(folder, saves=2, modes=("torch.save", "aiofiles", "thread"), sweeps=swept)) as session:
        found = session.run(lambda: done.append(1))
        assert sum(written) == pytest.approx(session.estimate.written, rel=0.01)
        assert len(done) == session.units
    assert (found["sweeps"] is not None) is swept
    assert is_empty(folder)


def test_sweeps(folder):
    """A point for each mode and size, count of tensors, and pair of threads and block; the ceiling is the best."""
    found = measure(tiny(folder, modes=("torch.save", "process"), sweeps=True))["sweeps"]
    json.dumps(found, allow_nan=False)
    assert set(found) == {"size", "tensors", "threads", "ceiling_mb_s"}
    assert [(point["mode"], point["nbytes"]) for point in found["size"]] == [
        (mode, nbytes) for nbytes in (4000, 16_000, 64_000, 256_000) for mode in ("torch.save", "process")
    ]
    assert [(point["mode"], point["tensors"], point["nbytes"]) for point in found["tensors"]] == [
        (mode, count, 256_000) for count in (10, 100) for mode in ("torch.save", "process")
    ]
    assert all(set(point) == {"nbytes", "mode", "stall_ms", "durable_s"} for point in found["size"])
    assert all(set(point) == {"tensors", "nbytes", "mode", "stall_ms", "durable_s"} for point in found["tensors"])
    assert all(point["durable_s"] * 1e3 >= point["stall_ms"] > 0 for point in found["size"] + found["tensors"])
    assert [(point["threads"], point["block_bytes"]) for point in found["threads"]] == [
        (threads, block << 20) for block in (1, 4, 16, 64) for threads in (1, 2, 4, 8)
    ]
    assert found["ceiling_mb_s"] == max(point["mb_s"] for point in found["threads"])
    assert is_empty(folder)


@pytest.mark.filterwarnings("ignore:.*Sparse:UserWarning")
def test_the_state_of_a_real_checkpoint(folder, tmp_path):
    """With ties, NaNs, sparse and conjugated tensors, by all modes; its bytes are those of a file."""
    tied = torch.full((5000,), math.nan, dtype=torch.bfloat16)
    state = {
        "a": tied,
        "b": [tied, tied[:7]],
        "sparse": torch.eye(4).to_sparse(),
        "conj": torch.rand(3, dtype=torch.complex64).conj(),
        "empty": torch.empty(0),
        "step": 3,
    }
    path = tmp_path / "real.pt"
    torch.save(state, path)
    found = measure(tiny(folder, like=str(path)))
    nbytes = 10_000 + (4 * 2 * 8 + 4 * 4) + 3 * 8
    assert found["state"] == {"source": str(path), "nbytes": nbytes, "tensors": 6, "dtype": "mixed"}
    assert list(found["modes"]) == list(ALL_MODES)
    json.dumps(found, allow_nan=False)
    assert is_empty(folder)


def interrupted_at(number):
    """Return a function that is Ctrl-C at its n-th call."""
    calls = iter(range(1, 1000))

    def done():
        if next(calls) == number:
            raise KeyboardInterrupt

    return done


@pytest.mark.parametrize("number", range(1, 7))
def test_ctrl_c_after_any_save(folder, number):
    """Modes that write in the background are closed, whatever they are at; nothing is left."""
    with pytest.raises(KeyboardInterrupt):
        measure(tiny(folder, modes=("aiofiles", "thread")), interrupted_at(number))
    assert is_empty(folder)


@pytest.mark.parametrize("number", [6, 13, 26])
def test_ctrl_c_with_a_writer_process_and_in_a_sweep(folder, number):
    """The same for all modes: after the first saves, in the race, in the sweeps."""
    with pytest.raises(KeyboardInterrupt):
        measure(tiny(folder, sweeps=True), interrupted_at(number))
    assert is_empty(folder)


@pytest.mark.parametrize("mode", ["naive-thread", "aiofiles", "thread", "process"])
def test_ctrl_c_in_the_midst_of_a_save(folder, mode, monkeypatch):
    """Right when a step beside it runs: the save is finished, and its file is gone with the rest."""
    with Session(tiny(folder, nbytes=4_000_000, modes=(mode,))) as session:
        own = sys.modules["own"]
        own.stop = own.calls + 8  # six quiet steps, then two beside the first save
        with pytest.raises(KeyboardInterrupt):
            session.run()
    assert is_empty(folder)


@pytest.mark.parametrize("stop", [1, 4])
def test_ctrl_c_while_it_is_prepared(folder, monkeypatch, stop):
    """In the constructor: nobody could clean up but it itself."""
    (folder.parent / "own.py").write_text(OWN.replace("stop = -1", f"stop = {stop}"), encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        Session(tiny(folder))
    assert is_empty(folder)


@pytest.mark.parametrize("number", [1, 6, 20])
def test_a_disk_that_fills_up_meanwhile(small_disk, number):
    """Before a first save, before the race, in the sweeps: an error of ours, and nothing is left but what filled it."""
    calls = iter(range(1, 1000))

    def fill():
        if next(calls) == number:
            with (small_disk / "ballast").open("wb", buffering=0) as ballast:
                free = os.statvfs(small_disk)
                os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize)

    with pytest.raises(SaveError) as raised:
        measure(tiny(small_disk, sweeps=True, nbytes=1_000_000), fill)
    assert raised.value.errno in {errno.ENOSPC, None}
    assert str(small_disk) in raised.value.path
    del raised
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_without_room(small_disk):
    """It is told before a byte is written, with what is needed and what there is."""
    with pytest.raises(
        SaveError, match=r"that needs 100,000,000 bytes on the disk, there are 2\d,\d\d\d,\d\d\d\. Take"
    ):
        Session(tiny(small_disk, nbytes=10_000_000))
    assert is_empty(small_disk)


def test_too_little_memory(folder, monkeypatch):
    """It is told before the state is made."""

    def make(*_):
        pytest.fail("there is no room for a state")

    monkeypatch.setattr(sessions, "headroom", lambda: 1_000_000)
    monkeypatch.setattr(sessions, "synthetic", make)
    with pytest.raises(
        SaveError, match=r"that needs [\d,]+ bytes in memory, there are 1,000,000\. Take a smaller state"
    ):
        Session(tiny(folder))
    assert is_empty(folder)


def test_too_little_memory_for_a_checkpoint(folder, tmp_path, monkeypatch):
    """The file's size is what is known of it before it is loaded."""
    torch.save({"x": torch.zeros(250_000)}, tmp_path / "real.pt")
    monkeypatch.setattr(sessions, "headroom", lambda: 1_000_000)
    monkeypatch.setattr(sessions, "like", lambda _: pytest.fail("there is no room for a state"))
    with pytest.raises(SaveError, match="bytes in memory"):
        Session(tiny(folder, like=str(tmp_path / "real.pt")))
    assert is_empty(folder)


def test_limits_come_before_the_state(folder, monkeypatch):
    """What may not be written is not prepared either."""
    monkeypatch.setattr(sessions, "synthetic", lambda *_: pytest.fail("nothing is to be made"))
    with pytest.raises(OptionError, match="are allowed"):
        Session(tiny(folder, written=1_000_000))
    assert is_empty(folder)


def test_a_folder_that_is_missing_or_none(tmp_path, folder):
    """The system's own reason, with a remedy."""
    with pytest.raises(SaveError, match="Make the folder first") as raised:
        Session(tiny(tmp_path / "missing"))
    assert (raised.value.errno, raised.value.path) == (errno.ENOENT, str(tmp_path / "missing"))
    with pytest.raises(SaveError) as raised:
        Session(tiny(tmp_path / "own.py"))
    assert raised.value.errno == errno.ENOTDIR


def test_a_folder_that_is_read_only(folder):
    """The same."""
    with mounted(folder, "ro"), pytest.raises(SaveError, match="read-only") as raised:
        Session(tiny(folder))
    assert raised.value.errno == errno.EROFS


def test_a_relative_folder(folder):
    """Is told in full, and cleaned up even if the step goes elsewhere."""
    source = OWN.replace("time.sleep(0.0005)", "__import__('os').chdir('/')")
    (folder.parent / "own.py").write_text(source, encoding="utf-8")
    found = measure(replace(tiny(folder, modes=("torch.save", "thread")), folder="disk"))
    assert found["machine"]["folder"] == str(folder)
    assert is_empty(folder)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"step": "own:missing"}, OptionError),
        ({"step": "none"}, OptionError),
        ({"dtype": "float3"}, OptionError),
        ({"tensors": 100_000}, OptionError),
        ({"seconds": 1e-9}, OptionError),
        ({"like": "missing.pt"}, CheckpointNotFoundError),
        ({"like": "own.py"}, AsyncSaveError),
        ({"like": "."}, AsyncSaveError),
        ({"like": "none.pt"}, OptionError),
    ],
)
def test_what_makes_no_sense(folder, options, error):
    """An error of ours, and nothing is left."""
    asyncsave.save({"step": 3}, folder.parent / "none.pt")
    with pytest.raises(error):
        Session(tiny(folder, **options))
    assert is_empty(folder)


def test_a_step_that_fails_in_the_race(folder):
    """The user's own error, named; nothing is left."""
    source = OWN.replace("raise KeyboardInterrupt", "raise ValueError('NaN loss')").replace("stop = -1", "stop = 40")
    (folder.parent / "own.py").write_text(source, encoding="utf-8")
    with pytest.raises(OptionError, match="the step 'own:step' has failed: ValueError: NaN loss"):
        measure(tiny(folder, modes=("torch.save", "aiofiles", "thread"), saves=6))
    assert is_empty(folder)


def test_what_was_written_is_checked(folder, monkeypatch):
    """A mode that writes something else is no measurement."""
    monkeypatch.setattr("asyncsave.bench.savers.TorchSave.check", lambda *_: False)
    with pytest.raises(SaveError, match=r"what torch\.save wrote to .* is not what was saved"):
        measure(tiny(folder))
    assert is_empty(folder)
