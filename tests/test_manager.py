"""Steps on their way to the disk: where they go, that they appear whole or not at all, and what errors become."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import subprocess
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from backends import make_writer
from gates import Failing, Gated, Wrapped
from managed import PATIENCE, managed, manifest, number_in, others, state, step_folder, steps

import asyncsave

pytestmark = pytest.mark.usefixtures("backend")


def test_layout(tmp_path):
    """A step is root/project/experiment/version/step-NNNNNNNN, with ``state.pt`` and a manifest, and nothing else."""
    with managed(tmp_path / "a" / "runs", project="charlm", experiment="baseline") as manager:
        result = manager.save(1200, state(1200)).result(PATIENCE)
        step = tmp_path / "a" / "runs" / "charlm" / "baseline" / "1" / "step-00001200"
        assert result.path == str(step)
        assert (manager.path, manager.version) == (str(step.parent), "1")
        assert {path.name for path in step.iterdir()} == {"state.pt", "manifest.json"}
        visible = {path.name for path in step.parent.iterdir() if not path.name.startswith(".")}
        assert visible == {"step-00001200", "version.json"}
        assert number_in(torch.load(step / "state.pt")) == 1200
        assert not manager.list(all=True)[1:]


def test_a_relative_root_through_a_link(tmp_path, monkeypatch):
    """The path is absolute and real, and stays right where the working directory changes."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    monkeypatch.chdir(tmp_path)
    with managed(Path("runs")) as manager:
        monkeypatch.chdir("/")
        manager.save(1, state(1)).result(PATIENCE)
        assert manager.path == str(tmp_path / "disk" / "default" / "default" / "1")
        assert steps(manager) == [1]


def test_new_files_have_the_mode_of_new_files(tmp_path):
    """Files get what ``open`` would give them, by the caller's umask."""
    before = os.umask(0o027)
    try:
        with managed(tmp_path) as manager:
            manager.save(1, state(1)).result(PATIENCE)
            for path in step_folder(manager, 1).iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o640
            assert stat.S_IMODE(step_folder(manager, 1).stat().st_mode) & 0o027 == 0
    finally:
        os.umask(before)


def test_the_manifest(tmp_path):
    """It is JSON and says what was saved: step, epoch, metrics, files, tensors, versions, time, host, metadata."""
    model, began = torch.nn.Linear(3, 2), time.time()
    training = asyncsave.TrainingState(model=model, epoch=7, rng=False)
    said = {"note": "später", "nested": {"list": [1, None, True, 0.5]}}
    with managed(tmp_path) as manager:
        parts = {"ema": {"w": torch.ones(5)}}
        handle = manager.save(12, training, parts=parts, metrics={"loss": 0.25, "none": None}, metadata=said)
        result = handle.result(PATIENCE)
        folder = step_folder(manager, 12)
        found = manifest(folder)
        (info,) = manager.list()
    files = {path.name: path for path in folder.iterdir() if path.name != "manifest.json"}
    assert set(files) == {"state.pt", "ema.pt"}
    for name, path in files.items():
        assert found["files"].pop(name) == {
            "nbytes": path.stat().st_size,
            "digest": f"crc32:{zlib.crc32(path.read_bytes()):08x}",
        }
    assert result.digest == f"crc32:{zlib.crc32((folder / 'manifest.json').read_bytes()):08x}"
    assert result.nbytes == sum(path.stat().st_size for path in files.values())
    assert began <= found.pop("time") <= time.time()
    commit = found.pop("commit")
    assert commit is None or len(commit) >= 40
    assert found == {
        "format": 1,
        "step": 12,
        "complete": True,
        "epoch": 7,
        "metrics": {"loss": 0.25, "none": None},
        "metadata": said,
        "tensors": 3,
        "asyncsave": asyncsave.__version__,
        "torch": torch.__version__,
        "host": socket.gethostname(),
        "files": {},
    }
    assert (info.step, info.path, info.epoch, info.metadata) == (12, str(folder), 7, said)
    assert info.metrics == {"loss": 0.25, "none": None}
    assert info.nbytes == result.nbytes
    assert {name: file.nbytes for name, file in info.files.items()} == {n: p.stat().st_size for n, p in files.items()}
    assert (info.pinned, info.complete, info.kind) == (False, True, "step")


def test_the_commit_is_that_of_the_program(tmp_path, template):
    """In a working tree of git the manifest has its commit; elsewhere it has none."""
    program = """
    import os, sys, asyncsave
    os.chdir(sys.argv[1])
    with asyncsave.CheckpointManager(sys.argv[2], version="a") as manager:
        manager.save(0, 1)
    """
    repository, sub = tmp_path / "code", tmp_path / "code" / "sub"
    sub.mkdir(parents=True)
    git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for where, expected in ((sub, head), (tmp_path, None)):
        assert template.run(program, where, tmp_path / where.name).rc == 0
        assert manifest(tmp_path / where.name / "default" / "default" / "a" / "step-00000000")["commit"] == expected


def test_several_parts(tmp_path):
    """Each part has a file of its name; an object beside them is ``state``; hundreds are as good as one."""
    with managed(tmp_path) as manager:
        manager.save(1, parts={"ema": state(10), "gan_d": state(11)}).result(PATIENCE)
        manager.save(2, state(20), parts={"ema": state(21)}).result(PATIENCE)
        manager.save(3, parts={f"model-{number}": state(number, 10) for number in range(300)}).result(PATIENCE)
        assert {path.name for path in step_folder(manager, 1).iterdir()} == {"ema.pt", "gan_d.pt", "manifest.json"}
        assert number_in(manager.load(1, part="gan_d")) == 11
        assert number_in(manager.load(2)) == 20
        assert number_in(manager.load(2, part="ema")) == 21
        assert [number_in(manager.load(3, part=f"model-{number}")) for number in (0, 150, 299)] == [0, 150, 299]


@pytest.mark.parametrize(
    ("method", "only", "at"),
    [
        ("mkdir", lambda *_, **__: True, 1),
        ("open", lambda name, *_, **__: name == "c.pt", 1),
        ("open", lambda name, *_, **__: name == "manifest.json", 1),
        ("pwrite", lambda *_, **__: True, 3),
        ("allocate", lambda *_, **__: True, 2),
        ("fsync", lambda *_, **__: True, 2),
        ("fsync", lambda fd, *_, **__: stat.S_ISDIR(os.fstat(fd).st_mode), 1),
        ("rename", lambda _, name, **__: name == "step-00000002", 1),
    ],
)
def test_parts_commit_together(tmp_path, method, only, at):
    """Whatever fails on the way, and at which of the parts: none of the step is there, the step before is untouched."""
    system = Failing(method, errno.EIO, at=1 << 30, only=only)
    with managed(tmp_path, system=system) as manager:
        parts = {name: state(number, 300_000) for number, name in enumerate("abc")}
        manager.save(1, parts=parts).result(PATIENCE)
        before = {path: path.read_bytes() for path in step_folder(manager, 1).iterdir()}
        system._at = system._calls + at
        error = manager.save(2, parts=parts).exception(PATIENCE)
        assert system.fired == 1
        assert isinstance(error, asyncsave.SaveError)
        assert (error.errno, error.outcome, error.path) == (errno.EIO, "not_committed", str(step_folder(manager, 2)))
        assert not step_folder(manager, 2).exists()
        assert not others(manager)
        assert {path: path.read_bytes() for path in step_folder(manager, 1).iterdir()} == before
        manager.save(2, parts=parts).result(PATIENCE)
        assert number_in(manager.load(2, part="c")) == 2


def test_a_copied_step_is_a_checkpoint(tmp_path):
    """``cp -r`` of a step's folder, to another run or another disk, is that checkpoint there."""
    with managed(tmp_path / "a") as manager:
        manager.save(7, state(7), parts={"ema": state(8)}, metrics={"loss": 2.0}).result(PATIENCE)
        with managed(tmp_path / "b") as other:
            subprocess.run(["cp", "-r", step_folder(manager, 7), other.path], check=True)
            (info,) = other.list()
            assert (info.step, info.path, info.metrics) == (7, str(step_folder(other, 7)), {"loss": 2.0})
            assert number_in(other.load("latest")) == 7
            assert number_in(other.load(7, part="ema")) == 8
    assert asyncsave.verify(step_folder(other, 7) / "state.pt").ok


class Looking(Wrapped):
    """Looks at a step before every system call, as another program would; notes which state it is."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.seen = []

    def _call(self, name, *args, **kwargs):
        if self.folder is not None:
            self.look()
        return super()._call(name, *args, **kwargs)

    def look(self):
        """Note what is there."""
        try:
            said = json.loads((self.folder / "manifest.json").read_bytes())["metadata"]["number"]
            loaded = torch.load(self.folder / "state.pt")
            self.seen.append((said, number_in(loaded)))
        except BaseException as error:  # noqa: BLE001 - all that can go wrong is what is sought
            self.seen.append(error)


def test_a_step_saved_twice_is_replaced_at_once(tmp_path):
    """At every system call of the second save a whole step is there: the old one, and from one call on the new one."""
    system = Looking(None)
    with managed(tmp_path, system=system) as manager:
        manager.save(3, state(1), parts={"gone": 1}, metadata={"number": 1}).result(PATIENCE)
        system.folder = step_folder(manager, 3)
        manager.save(3, state(2), metadata={"number": 2}).result(PATIENCE)
        system.look()
        assert {path.name for path in step_folder(manager, 3).iterdir()} == {"state.pt", "manifest.json"}
        assert steps(manager) == [3]
    seen = system.seen
    assert set(map(str, seen)) == {"(1, 1)", "(2, 2)"}
    assert seen == sorted(seen)
    assert len(seen) > 10


def test_what_is_the_users_survives_the_replacing_of_its_step(tmp_path):
    """A file and a folder of the user's own stay in the step's folder, and so does the pin."""
    with managed(tmp_path) as manager:
        manager.save(3, state(1)).result(PATIENCE)
        (step_folder(manager, 3) / "notes.txt").write_text("mine")
        (step_folder(manager, 3) / "plots").mkdir()
        (step_folder(manager, 3) / "plots" / "a.png").write_text("mine too")
        manager.pin(3)
        manager.save(3, state(2)).result(PATIENCE)
        assert number_in(manager.load(3)) == 2
        assert (step_folder(manager, 3) / "notes.txt").read_text() == "mine"
        assert (step_folder(manager, 3) / "plots" / "a.png").read_text() == "mine too"
        assert [info.pinned for info in manager.list()] == [True]
        assert not others(manager)


@pytest.mark.parametrize("taken", ["no manifest", "garbage", "newer format"])
def test_what_is_the_users_survives_in_a_folder_that_is_no_checkpoint(tmp_path, taken):
    """A file of the user's stays too where a step is saved to a folder that had no sound manifest."""
    with managed(tmp_path) as manager:
        manager.save(3, state(1)).result(PATIENCE)
        folder = step_folder(manager, 3)
        (folder / "notes.txt").write_text("mine")
        if taken == "no manifest":
            (folder / "manifest.json").unlink()
        elif taken == "garbage":
            (folder / "manifest.json").write_text("{")
        else:
            (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {"format": 2}))
        manager.save(3, state(2), parts={"ema": 1}).result(PATIENCE)
        assert number_in(manager.load(3)) == 2
        assert (folder / "notes.txt").read_text() == "mine"
        assert not others(manager)
    with managed(tmp_path, version="1") as manager:
        manager.clean()
        assert (folder / "notes.txt").read_text() == "mine"


def test_the_state_is_the_callers_again(tmp_path):
    """What is changed after the call is not in the checkpoint."""
    gate = Gated("mkdir")
    with managed(tmp_path, system=gate) as manager:
        live = state(1)
        handle = manager.save(1, live, metadata=(said := {"list": [1]}), metrics=(measured := {"loss": 1.0}))
        live["x"].fill_(9)
        live["number"] = 9
        said["list"].append(2)
        measured["loss"] = 9.0
        gate.release()
        handle.result(PATIENCE)
        (info,) = manager.list()
        assert number_in(manager.load(1)) == 1
        assert (info.metadata, info.metrics) == ({"list": [1]}, {"loss": 1.0})


def test_a_full_queue(tmp_path):
    """``on_busy`` is that of the writer's saves: what is skipped, refused or replaced leaves nothing on disk."""
    gate = Gated("mkdir")
    with managed(tmp_path, system=gate, writing={"max_pending": 2}) as manager:
        first = manager.save(1, state(1))
        gate.arrival()
        second = manager.save(2, state(2))
        assert manager.save(3, state(3), on_busy="skip").status == "skipped"
        with pytest.raises(asyncsave.QueueFullError):
            manager.save(4, state(4), on_busy="raise")
        fifth = manager.save(5, state(5), on_busy="replace")
        assert second.status == "replaced"
        gate.release()
        assert [first.result(PATIENCE).path, fifth.result(PATIENCE).path] == [
            str(step_folder(manager, 1)),
            str(step_folder(manager, 5)),
        ]
        assert steps(manager) == [1, 5]
        assert not others(manager)


def test_a_save_that_is_cancelled(tmp_path):
    """Nothing of it appears, and nobody waits for it."""
    gate = Gated("mkdir")
    with managed(tmp_path, system=gate) as manager:
        manager.save(1, state(1))
        gate.arrival()
        assert manager.save(2, state(2)).cancel()
        gate.release()
        manager.wait(PATIENCE)
        assert steps(manager) == [1]


def test_the_error_of_an_earlier_save(tmp_path):
    """It is raised once, by the next save, which is not begun; the one after that works."""
    with managed(tmp_path, system=Failing("mkdir", errno.EACCES)) as manager:
        assert manager.save(1, state(1)).durable.wait(PATIENCE) is False
        with pytest.raises(asyncsave.SaveError, match="step-00000001"):
            manager.save(2, state(2))
        manager.save(3, state(3)).result(PATIENCE)
        assert steps(manager) == [3]


@pytest.mark.parametrize("ending", ["wait", "close"])
def test_an_error_that_nobody_has_read(tmp_path, ending):
    """``wait`` raises it, and so does the closing of the manager's own writer."""
    with asyncsave.CheckpointManager(tmp_path) as manager:
        handle = manager.save(1, state(1))
        handle.result(PATIENCE)
        Path(manager.path, "step-00000002").write_text("in the way")
        assert manager.save(2, state(2)).durable.wait(PATIENCE) is False
        with pytest.raises(asyncsave.SaveError, match="step-00000002"):
            manager.wait(PATIENCE) if ending == "wait" else manager.close()


def test_errors_that_are_only_logged(tmp_path, caplog):
    """With ``on_error="log"`` saves go on, whatever has failed."""
    with make_writer(system=Failing("mkdir", errno.EACCES), on_error="log") as writer:
        with asyncsave.CheckpointManager(tmp_path, writer=writer) as manager:
            manager.save(1, state(1)).durable.wait(PATIENCE)
            manager.save(2, state(2)).result(PATIENCE)
            assert steps(manager) == [2]
        with pytest.raises(asyncsave.SaveError, match="step-00000001"):
            writer.close()
    assert "step-00000001" in caplog.text


def test_many_threads(tmp_path):
    """Steps saved by several threads at once are all there, each whole."""
    with managed(tmp_path, retain=asyncsave.Retention(every=1)) as manager:
        errors = []

        def save(first):
            try:
                for step in range(first, 40, 4):
                    manager.save(step, state(step), metrics={"loss": step})
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                errors.append(error)

        threads = [threading.Thread(target=save, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        manager.wait(PATIENCE)
        assert not errors
        assert [number_in(manager.load(step)) for step in steps(manager)] == list(range(40))


def test_one_writer_for_two_managers_and_files(tmp_path, caplog):
    """A writer that is given may serve others too; it stays open when a manager is closed."""
    with make_writer(max_pending=4) as writer:
        first = asyncsave.CheckpointManager(tmp_path, experiment="a", writer=writer)
        second = asyncsave.CheckpointManager(tmp_path, experiment="b", writer=writer)
        for number in range(3):
            first.save(number, state(number))
            second.save(number, state(number + 10))
            writer.save(state(number + 20), tmp_path / "file")
        first.close()
        assert not writer.closed
        second.save(3, state(13)).result(PATIENCE)
        assert [number_in(second.load(step)) for step in steps(second)] == [10, 11, 12, 13]
        assert [number_in(first.load(step)) for step in steps(first)] == [0, 1, 2]
        assert number_in(asyncsave.load(tmp_path / "file")) == 22
        second.close()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
