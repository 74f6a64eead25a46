"""``asyncsave inspect`` as a user runs it: a process, on real files, on broken ones and on hostile ones."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import archive_of, hollow, image_of

import asyncsave
from asyncsave.errors import AsyncSaveError
from asyncsave.inspection.contents import look
from asyncsave.storage.source import MemorySource

MEMORY, SECONDS = 700 << 20, 20


def run(*arguments, env=None, command="inspect"):
    """Run the command as a process that may take 700 MB of address space and 20 seconds."""
    return subprocess.run(
        [sys.executable, "-m", "asyncsave", command, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **(env or {})},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )


def error(done):
    """Return the error of a document."""
    return json.loads(done.stdout)["error"]


TENSOR = {
    "kind": "torch.Tensor",
    "layout": "strided",
    "offset": 0,
    "device": "cpu",
    "requires_grad": False,
    "parts": [],
}


@pytest.mark.parametrize("save", [torch.save, asyncsave.save], ids=["torch", "asyncsave"])
def test_the_document_is_as_documented(save, tmp_path):
    """Every key of it; stdout holds nothing else."""
    base = torch.arange(6.0)
    save(
        {"model": {"w": base.reshape(2, 3), "v": base[:2]}, "epoch": 3, "s": torch.eye(2).to_sparse()},
        tmp_path / "f.pt",
    )
    done = run(tmp_path / "f.pt", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    data = (tmp_path / "f.pt").read_bytes()
    for record in found["records"]:
        part = data[record["offset"] :][: record["nbytes"]]
        assert record["crc32"] == f"{zlib.crc32(part):08x}" == f"{infos[record['name']].CRC:08x}"
        assert set(record) == {"name", "offset", "nbytes", "crc32"}
    assert {record["name"] for record in found.pop("records")} == set(infos)
    part = TENSOR | {"shape": [2], "stride": [1], "dtype": "float32", "nbytes": 8, "storage": "2", "name": "values"}
    indices = part | {
        "shape": [2, 2],
        "stride": [2, 1],
        "dtype": "int64",
        "nbytes": 32,
        "storage": "1",
        "name": "indices",
    }
    assert found == {
        "path": str(tmp_path / "f.pt"),
        "format": "torch" if save is torch.save else "asyncsave",
        "versions": {"asyncsave": None if save is torch.save else 1, "torch": "3", "byteorder": "little", "pickle": 2},
        "nbytes": len(data),
        "tensors": [
            TENSOR
            | {"name": "model.w", "shape": [2, 3], "stride": [3, 1], "dtype": "float32", "nbytes": 24, "storage": "0"},
            TENSOR | {"name": "model.v", "shape": [2], "stride": [1], "dtype": "float32", "nbytes": 8, "storage": "0"},
            TENSOR
            | {
                "name": "s", "layout": "sparse_coo", "shape": [2, 2], "stride": None, "dtype": "float32", "nbytes": 40,
                "storage": None, "parts": [indices, part],
            },
        ],
        "values": [{"name": "epoch", "kind": "int", "text": "3"}],
        "ties": [["model.w", "model.v"]],
        "storage_nbytes": 24 + 32 + 8,
        "unreferenced_bytes": 0,
        "weights_only": {"ok": True, "refused": []},
    }  # fmt: skip


def test_it_says_why_weights_only_refuses(tmp_path):
    """The names, in the document and for people."""
    torch.save({"a": frozenset([1])}, tmp_path / "f.pt")
    found = json.loads(run(tmp_path / "f.pt", "--json").stdout)
    assert found["weights_only"] == {"ok": False, "refused": ["builtins.frozenset"]}
    assert "refuses it, because of\n  builtins.frozenset" in run(tmp_path / "f.pt").stdout


def test_for_people(tmp_path):
    """A table, a summary, the waste, ties; records on request; everything with --all."""
    base = torch.zeros(1000)
    torch.save({"a": base[:10], "b": base[:10], **{f"n{n}": n for n in range(60)}}, tmp_path / "f.pt")
    done = run(tmp_path / "f.pt", "--records")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.split() == ["a", "10", "float32", "40", "B", "0"] for line in lines)
    assert any(line.split()[:1] == ["data/0"] for line in lines)
    assert "no tensor shows 3.96 kB of that (99.0%): saving with compact=True" in done.stdout
    assert "tied: a, b" in lines
    assert "... and 20 values more: --all shows them" in lines
    assert "torch.load(weights_only=True) loads it" in lines
    whole = run(tmp_path / "f.pt", "--all").stdout
    assert "--all" not in whole
    assert "n59" in whole
    assert "data/0" not in whole


def test_torch_is_not_imported(tmp_path):
    """It would take seconds."""
    torch.save({"a": torch.ones(1)}, tmp_path / "f.pt")
    program = (
        "import sys; sys.argv = ['asyncsave', 'inspect', sys.argv[1]]\n"
        "from asyncsave.cli.entry import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'pickle', 'zipfile'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "f.pt")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert "torch" not in done.stderr
    assert "numpy" not in done.stderr


def test_the_folder_of_a_step(tmp_path):
    """Each of its files; another folder is told as such."""
    model = torch.nn.Linear(2, 2)
    with asyncsave.CheckpointManager(tmp_path, project="p", experiment="e") as manager:
        manager.save(3, asyncsave.TrainingState(model=model, rng=False), parts={"ema": model.state_dict()})
        manager.wait()
        (info,) = manager.list()
    found = json.loads(run(info.path, "--json").stdout)
    assert found["path"] == info.path
    assert [Path(one["path"]).name for one in found["files"]] == sorted(info.files)
    assert all(one["format"] == "asyncsave" for one in found["files"])
    assert run(info.path).stdout.count("pickle protocol 2") == len(info.files)
    done = run(tmp_path, "--json")
    assert done.returncode == 1
    assert error(done)["kind"] == "CheckpointNotFoundError"
    assert "not that of a step" in error(done)["message"]


NASTY = "\x1b[31m[bold]x[/bold]\r\n\x00\u202e\udcff"


def test_names_from_the_file_are_harmless(tmp_path):
    """Escape sequences, markup, surrogates: shown, and not obeyed; the document has them as they are."""
    torch.save({NASTY: torch.ones(1), "v": NASTY}, tmp_path / "f.pt")
    done = run(tmp_path / "f.pt", env={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "[bold]x[/bold]" in done.stdout
    assert json.loads(run(tmp_path / "f.pt", "--json").stdout)["tensors"][0]["name"] == NASTY


def test_a_terminal_of_60_columns(tmp_path):
    """Nothing runs over, and what names a tensor is whole."""
    name = "model.encoder.layers.0.self_attention.query.weight"
    torch.save({name: torch.ones(2, 3, 4), "step": 1}, tmp_path / "f.pt")
    leader, follower = pty.openpty()
    try:
        command = [sys.executable, "-m", "asyncsave", "inspect", "--records", "f.pt"]
        env = {**os.environ, "COLUMNS": "60", "NO_COLOR": "1", "TERM": "xterm"}
        with subprocess.Popen(command, stdout=follower, stderr=follower, cwd=tmp_path, env=env) as process:
            os.close(follower)
            said = b""
            while True:
                try:
                    said += (more := os.read(leader, 65536))
                except OSError:  # the other end is closed
                    break
                if not more:
                    break
    finally:
        os.close(leader)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 60
    assert name in "".join(line.split(" ")[1] for line in lines if line.startswith(" ") and len(line.split(" ")) > 1)


def test_a_missing_file_is_exit_code_1(tmp_path):
    """With the path, as a document too."""
    done = run(tmp_path / "absent.pt", "--json")
    assert done.returncode == 1
    assert error(done) == {
        "kind": "CheckpointNotFoundError",
        "message": f"there is no checkpoint at {str(tmp_path / 'absent.pt')!r}",
        "path": str(tmp_path / "absent.pt"),
    }
    assert done.stderr == f"error: {error(done)['message']}\n"


def _written(pack):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        pack(archive)
    return buffer.getvalue()


def _bomb():
    return _written(lambda archive: archive.writestr("archive/data.pkl", bytes(50 << 20)))


def _encrypted():
    data = bytearray(archive_of(b"\x80\x02N."))
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        where = -1
        while (where := data.find(magic, where + 1)) >= 0:
            data[where + at] |= 1
    return bytes(data)


def _split():
    data = bytearray(archive_of(b"\x80\x02N."))
    data[data.rfind(b"PK\x05\x06") + 4] = 1
    return bytes(data)


def _saved(**options):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(100), "n": 1}, buffer, **options)
    return buffer.getvalue()


def _newer():
    return image_of([("archive/data.pkl", b"N.")])[0].replace(b"asyncsave 1 ", b"asyncsave 9 ")


def _absurd_directory():
    data = bytearray(archive_of(b"\x80\x02N."))
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<2I", data, end + 12, 0xFFFFFFF0, 0)
    return bytes(data)


def _overlapping():
    data = bytearray(archive_of(b"\x80\x02N."))
    entry = data.find(b"PK\x01\x02")
    struct.pack_into("<2I", data, entry + 20, 1 << 30, 1 << 30)
    return bytes(data)


P = b"\x80\x02"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX%c\x00\x00\x00%bX\x03\x00\x00\x00cpu%btQ"
TENSOR_OF = P + b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x01\x85K\x01\x85\x89NtR."
WITHOUT = {
    "a zip bomb": (_bomb, 1, "compressed or encrypted"),
    "encrypted": (_encrypted, 1, "compressed or encrypted"),
    "split": (_split, 1, "split zip archive"),
    "no checkpoint": (lambda: archive_of(P + b"N.").replace(b"data.pkl", b"data.pkr"), 1, "no data.pkl"),
    "TorchScript": (lambda: archive_of(P + b"N.", {"constants.pkl": b""}), 1, "TorchScript"),
    "text": (lambda: b"hello", 1, "not a checkpoint"),
    "empty": (lambda: b"", 3, "empty file"),
    "a plain pickle": (lambda: P + b"K\x05.", 1, "magic number"),
    "a tar": (lambda: bytes(257) + b"ustar" + bytes(1000), 1, "tar format"),
    "a broken pickle": (lambda: P + b"garbage", 3, "damaged"),
    "no beginning": (lambda: b"\xff\xff\xff\xff" + _saved()[4:], 3, "first bytes are overwritten"),
    "an absurd directory": (_absurd_directory, 3, "damaged"),
    "overlapping records": (_overlapping, 3, "extent"),
    "no such record": (lambda: archive_of(TENSOR_OF % (1, b"7", b"K\x01")), 3, "data/7"),
    "a name with dots": (lambda: archive_of(TENSOR_OF % (12, b"../../passwd", b"K\x01")), 3, "passwd"),
    "a storage too short": (lambda: archive_of(TENSOR_OF % (1, b"0", b"M\xff\xff"), {"data/0": b"abcd"}), 3, "data/0"),
    "a storage of 2^62": (
        lambda: archive_of(TENSOR_OF % (1, b"0", b"\x8a\x08" + bytes(7) + b"\x40"), {"data/0": b"abcd"}), 3, "data/0",
    ),
    "a broken version": (lambda: archive_of(P + b"N.", {"byteorder": b"middle"}), 3, "byteorder"),
    "a newer seal": (_newer, 1, "version 9"),
    "unknown opcode": (lambda: archive_of(P + b"\xff."), 3, "opcode"),
    "a bomb of objects": (lambda: archive_of(P + b"}\x94" * 8_000_000), 1, "more objects"),
    "a bomb of depth": (lambda: archive_of(P + b"]" * 200_000 + b"a" * 199_999 + b"."), 1, "deep"),
    "a legacy file cut in its tensors": (lambda: _saved(_use_new_zipfile_serialization=False)[:-5], 3, "damaged"),
    "a legacy file cut in its pickles": (lambda: _saved(_use_new_zipfile_serialization=False)[:150], 3, "damaged"),
}  # fmt: skip


FORKS = """
import json, os, resource, sys
import asyncsave.cli.app, asyncsave.cli.inspect
from asyncsave.cli.entry import main
memory, seconds, *paths = sys.argv[1:]
for path in paths:
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        for fd, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{path}.{kind}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv = ["asyncsave", "inspect", path, "--json"]
        main()
    _, status, usage = os.wait4(pid, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10]), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Run the command on each of those files, in a process of its own; return exit codes, peaks and what was said."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [folder / f"{number}.pt" for number, _ in enumerate(WITHOUT)]
    for path, (make, _, _) in zip(paths, WITHOUT.values(), strict=True):
        path.write_bytes(make())
    command = [sys.executable, "-c", FORKS, str(MEMORY), str(SECONDS), *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    results = {}
    for name, path, line in zip(WITHOUT, paths, done.stdout.splitlines(), strict=True):
        said = [path.with_name(f"{path.name}.{kind}").read_text() for kind in ("out", "err")]
        results[name] = (path, *json.loads(line), *said)
    return results


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_broken_foreign_or_hostile_is_told(name, told):
    """Exit code 1 or 3 and a message, in 20 seconds of a processor and 700 MB; no traceback."""
    _, code, message = WITHOUT[name]
    path, found, peak, out, err = told[name]
    assert found == code, err
    assert "Traceback" not in err
    assert message in json.loads(out)["error"]["message"]
    assert json.loads(out)["error"]["path"] == str(path)
    assert len(err) < 1000
    assert peak < MEMORY


def test_absurd_sizes(tmp_path):
    """A pickle, and a directory, of 100 GB: holes in a sparse file, which nobody reads."""
    hollow(tmp_path / "f.pt", [("archive/data.pkl", 100 << 30)], {})
    done = run(tmp_path / "f.pt", "--json")
    assert done.returncode == 1
    assert "not looked into" in error(done)["message"]
    with (tmp_path / "g.pt").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(100 << 30)
        end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, (100 << 30) - 100, 100)
        file.write(end + struct.pack("<4sIQI", b"PK\x06\x07", 0, 100 << 30, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    done = run(tmp_path / "g.pt", "--json")
    assert done.returncode == 1
    assert "zip directory" in error(done)["message"]


EVIL = (
    b"cos\nsystem\n(X%c\x00\x00\x00%btR.",
    b"cbuiltins\nexec\n(X%c\x00\x00\x00%btR.",
    b"(X%c\x00\x00\x00%bios\nsystem\n.",
    b"(cbuiltins\neval\nX%c\x00\x00\x00%bo.",
)
AUDITED = """
import sys
path, log = sys.argv[1:]
import asyncsave.cli.entry, asyncsave.cli.app, asyncsave.cli.inspect
seen = []
sys.addaudithook(lambda event, args: seen.append(event))
from asyncsave.inspection.contents import inspect
inspect(path)
bad = {"os.system", "exec", "compile", "subprocess.Popen", "pickle.find_class", "import", "os.exec", "socket.connect"}
print(sorted(bad & set(seen)))
"""


@pytest.mark.parametrize("body", EVIL)
def test_nothing_in_a_pickle_runs(body, tmp_path):
    """No command, no import, no class is looked up: by the marks they would leave, and by Python's own audit."""
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r},'w')" if b"exec" in body or b"eval" in body else f"touch {marker}"
    evil = P + body % (len(code), code.encode())
    (tmp_path / "f.pt").write_bytes(archive_of(evil))
    done = run(tmp_path / "f.pt", "--json")
    assert done.returncode == 0
    assert not json.loads(done.stdout)["weights_only"]["ok"]
    assert not marker.exists()
    command = [sys.executable, "-c", AUDITED, str(tmp_path / "f.pt"), "-"]
    audited = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert audited.stdout == "[]\n"
    assert not marker.exists()


def outcome(data):
    """Look into bytes; return the class of our error, or that there is none."""
    begun = time.perf_counter()
    kind = "fine"
    try:
        look(MemorySource("f.pt", data))
    except AsyncSaveError as error:
        kind = type(error).__name__
    assert time.perf_counter() - begun < SECONDS
    return kind


WHOLE = {
    "torch": _saved(),
    "legacy": _saved(_use_new_zipfile_serialization=False),
    "protocol 4": _saved(pickle_protocol=4),
    "unchecked": archive_of(P + b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bG\x00\x00\x00\x00\x00\x00\x00\x00u."),
}


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_at_any_length(name):
    """Every cut is told; none is taken for a whole file."""
    data = WHOLE[name]
    assert outcome(data) == "fine"
    for length in range(0, len(data), max(1, len(data) // 300)):
        assert outcome(data[:length]) in {"CorruptCheckpointError", "TruncatedPickleError", "LoadError"}


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=5))
def test_whatever_is_flipped_there_is_an_answer(name, flips):
    """Random damage gives an error of ours, or is where it does not matter."""
    data = bytearray(WHOLE[name])
    for where, what in flips:
        data[int(where * len(data))] ^= what
    outcome(bytes(data))
