"""A checkpoint whose tensors are read when they are asked for: what is read when, checked, and how little is held."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from equality import assert_same
from torch import nn

import asyncsave
from asyncsave import CorruptCheckpointError, LoadError
from asyncsave.deferred import Deferred, check_identity
from asyncsave.image.index import read_index
from asyncsave.storage.source import MemorySource, open_source

STATE = {
    "model": {"a": torch.arange(1 << 18, dtype=torch.float64), "b": torch.ones(300_000)},
    "other": [torch.full((1 << 18,), 7), {"deep": torch.zeros(10).add(3)}],
    "step": 5,
}
"""Two records of 2 MiB and one of more than 1 MiB, each in memory of its own, and a small one."""


@pytest.fixture
def path(tmp_path):
    """Return a checkpoint."""
    asyncsave.save(STATE, tmp_path / "f.pt")
    return tmp_path / "f.pt"


@pytest.fixture
def deferred(path):
    """Return it, open, with nothing read."""
    with open_source(str(path)) as source, Deferred(source, weights_only=True) as opened:
        yield opened


def flip(path, record):
    """Flip a bit of a record."""
    with open_source(str(path)) as source:
        [entry] = [entry for entry in read_index(source).entries if entry.name == record]
    data = bytearray(path.read_bytes())
    data[entry.offset + entry.nbytes // 2] ^= 16
    path.write_bytes(data)


def is_unread(tensor):
    """Tell whether nothing of a tensor is there; none of the saved ones is zero everywhere."""
    return not tensor.any()


def test_nothing_is_read_before_it_is_asked_for(deferred):
    """The objects are there at once, with their shapes; the tensors are zero until their part is read."""
    assert deferred.obj["step"] == 5
    model, other = deferred.obj["model"], deferred.obj["other"]
    assert model["a"].shape == (1 << 18,)
    assert all(map(is_unread, [*model.values(), other[0], other[1]["deep"]]))
    deferred.read(model["a"])
    assert_same(model["a"], STATE["model"]["a"])
    assert is_unread(model["b"])
    deferred.read(other)
    assert_same(other, STATE["other"])
    assert is_unread(model["b"])
    deferred.read(model)
    assert_same(deferred.obj, STATE)


def test_a_part_is_read_once(deferred):
    """A second reading does not take back what has been changed since the first."""
    deferred.read(deferred.obj["model"])
    deferred.obj["model"]["a"].fill_(-1)
    deferred.read(deferred.obj)
    assert (deferred.obj["model"]["a"] == -1).all()
    assert_same(deferred.obj["other"], STATE["other"])


def test_what_holds_no_tensor(deferred):
    """Reading plain values, or tensors that are not the file's, reads nothing."""
    deferred.read([1, "text", None, {"a": 2.0}, torch.Size([1]), torch.ones(3), torch.empty(0)])
    assert is_unread(deferred.obj["model"]["a"])


def test_what_cannot_be_seen_through(deferred):
    """An object that may hold tensors out of sight makes everything be read."""
    deferred.read([nn.Linear(1, 1)])
    assert_same(deferred.obj, STATE)


@pytest.mark.parametrize(("record", "part"), [("data/0", "model"), ("data/1", "model"), ("data/2", "other")])
def test_a_flipped_bit_is_found_when_its_part_is_read(path, record, part):
    """The other parts can be read; the damaged one is an error that names the record."""
    flip(path, record)
    with open_source(str(path)) as source, Deferred(source, weights_only=True) as deferred:
        sound = "other" if part == "model" else "model"
        deferred.read(deferred.obj[sound])
        assert_same(deferred.obj[sound], STATE[sound])
        with pytest.raises(CorruptCheckpointError, match=record) as raised:
            deferred.read(deferred.obj[part])
        assert raised.value.record == record


@pytest.mark.parametrize("record", ["data.pkl", "byteorder"])
def test_damage_of_what_says_what_is_there(path, record):
    """The small records are checked when the file is opened."""
    flip(path, record)
    with open_source(str(path)) as source, pytest.raises(CorruptCheckpointError, match=record):
        Deferred(source, weights_only=True)


@pytest.mark.parametrize("data", [b"", b"PK", b"nothing at all", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint(data):
    """A file that begins otherwise is damaged, and no thread is left behind."""
    with pytest.raises(LoadError):
        Deferred(MemorySource("f", data), weights_only=True)


def test_views_and_ties():
    """Tensors that share a storage share it still, and reading one reads what the other sees."""
    base = torch.arange(1 << 18)
    saved = {"base": base, "view": base[5:10], "again": base, "turned": base.view(512, 512).t()}
    with _opened(saved) as deferred:
        deferred.read(deferred.obj["view"])
        assert_same(deferred.obj, saved)


class Looking:
    """An object that looks at the bytes of its tensor while it is rebuilt."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.total = int(tensor.sum())

    def __reduce__(self):
        """Rebuild it by its tensor alone."""
        return Looking, (self.tensor,)


class Subclass(torch.Tensor):
    """A tensor that is more than that."""


def _with_attribute():
    tensor = torch.ones(3)
    tensor.note = "kept"
    return tensor


OTHERS = {
    "sparse": lambda: torch.eye(4).mul(3).to_sparse(),
    "sparse csr": lambda: torch.eye(4).mul(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(6.0), 0.5, 1, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "subclass": lambda: torch.arange(5.0).as_subclass(Subclass),
    "attribute": _with_attribute,
    "conjugate": lambda: torch.tensor([1 + 2j, 3j]).conj(),
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "float8": lambda: torch.arange(5.0).to(torch.float8_e4m3fn),
    "uint16": lambda: torch.arange(5).to(torch.uint16),
    "bfloat16": lambda: torch.arange(5.0).bfloat16(),
    "storage": lambda: torch.arange(5.0).untyped_storage(),
    "meta": lambda: torch.ones(3, device="meta"),
    "empty": lambda: torch.empty(0, 3),
    "module": lambda: nn.Linear(3, 2),
    "looking": lambda: Looking(torch.arange(1 << 18)),
    "optimizer": lambda: torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1).state_dict(),
    "set, bytes, complex": lambda: ({1, 2}, b"bytes", 1j),
}


def _opened(saved):
    buffer = io.BytesIO()
    asyncsave.save(saved, buffer)
    return Deferred(MemorySource("f", buffer.getvalue()), weights_only=False)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, on its prototypes; ours, on weights_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_whatever_torch_saves(kind):
    """What is no plain tensor comes out right too, beside one that is, once it has been read."""
    saved = {"other": OTHERS[kind](), "plain": torch.arange(1 << 18)}
    with _opened(saved) as deferred:
        if kind == "storage":  # torch.load makes a typed one of it
            saved["other"] = torch.storage.TypedStorage(wrap_storage=saved["other"], dtype=torch.uint8, _internal=True)
        deferred.read(deferred.obj["other"])
        if kind == "looking":
            assert deferred.obj["other"].total == saved["other"].total
        assert_same(deferred.obj["other"], saved["other"])
        deferred.read(deferred.obj)
        assert_same(deferred.obj, saved)


@pytest.mark.filterwarnings("ignore:the checkpoint is written in pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_pickle_protocols(tmp_path, protocol):
    """A file in another protocol is read as a whole, where that is what it takes."""
    with asyncsave.Writer() as writer:
        writer.save(STATE, tmp_path / "f.pt", pickle, protocol).result()
    with open_source(str(tmp_path / "f.pt")) as source, Deferred(source, weights_only=False) as deferred:
        deferred.read(deferred.obj["other"])
        assert_same(deferred.obj["other"], STATE["other"])
        deferred.read(deferred.obj)
        assert_same(deferred.obj, STATE)


def test_files_of_torch_save(tmp_path):
    """What torch.save itself has written is read by parts, and a flipped bit in it is found."""
    path = tmp_path / "f.pt"
    torch.save(STATE, path)
    with open_source(str(path)) as source, Deferred(source, weights_only=True) as deferred:
        deferred.read(deferred.obj["model"])
        assert_same(deferred.obj["model"], STATE["model"])
        assert is_unread(deferred.obj["other"][0])
    flip(path, "data/2")
    with (
        open_source(str(path)) as source,
        Deferred(source, weights_only=True) as deferred,
        pytest.raises(CorruptCheckpointError, match="data/2"),
    ):
        deferred.read(deferred.obj["other"])


def test_weights_only(tmp_path):
    """What weights_only refuses is a LoadError, as in ``load``."""
    with pytest.warns(UserWarning, match="weights_only"):
        asyncsave.save({"x": Looking(torch.ones(1))}, tmp_path / "f.pt")
    with open_source(str(tmp_path / "f.pt")) as source, pytest.raises(LoadError, match="weights_only=False"):
        Deferred(source, weights_only=True)


def test_the_identity_of_a_file(path):
    """Size and digest are those of the result of the save; any other file is told, also of the same size."""
    result = asyncsave.save(STATE, path)
    with open_source(str(path)) as source:
        check_identity(source, result.nbytes, result.digest)
        with pytest.raises(CorruptCheckpointError, match="not the file that was saved"):
            check_identity(source, result.nbytes + 1, result.digest)
        with pytest.raises(CorruptCheckpointError, match="not the file that was saved"):
            check_identity(source, result.nbytes, "crc32:00000000")
    data = path.read_bytes()
    asyncsave.save({**STATE, "step": 6}, path)
    assert len(path.read_bytes()) == len(data)
    with open_source(str(path)) as source, pytest.raises(CorruptCheckpointError, match=str(result.digest)):
        check_identity(source, result.nbytes, result.digest)


MEMORY = """
import pathlib, sys, torch, asyncsave
from torch import nn
folder, how, optimized = sys.argv[1:]
def layer():
    made = nn.utils.skip_init(nn.Linear, 1024, 1024, bias=False)
    return made.requires_grad_(True)
def training(value):
    model = nn.Sequential(*[layer() for _ in range(40 if optimized else 75)])
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    parts = {"model": model}
    if optimized:
        parts["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return parts
def memory(what):
    [line] = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) // 1024
manager = asyncsave.CheckpointManager(folder, writer=asyncsave.Writer(durable=False))
if how == "save":
    parts = training(1.5)
    if optimized:
        for parameter in parts["model"].parameters():
            parameter.grad = torch.ones_like(parameter)
        parts["optimizer"].step()
    manager.save(0, asyncsave.TrainingState(rng=False, **parts)).result()
else:
    parts = training(0.0)
    if how == "wrapped":
        parts["model"] = nn.DataParallel(parts["model"])
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    manager.restore(asyncsave.TrainingState(rng=False, **parts))
    print(memory("VmHWM") - before, memory("VmRSS") - before)
    assert all(bool((value == (1.0 if optimized else 1.5)).all()) for value in parts["model"].parameters())
    if optimized:
        [state, *_] = parts["optimizer"].state_dict()["state"].values()
        assert bool((state["momentum_buffer"] == 1).all())
manager.close()
"""


def growth(template, *args):
    """Run a program; return how much memory it took at most while it restored, and how much it kept, in MiB."""
    done = template.run(MEMORY, *args)
    assert done.rc == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_no_second_copy_of_a_model(tmp_path, template):
    """Restoring 300 MiB of weights takes a chunk of 64 MiB beside them, also if wrappers' names have to be changed."""
    growth(template, tmp_path, "save", "")
    for how in ("bare", "wrapped"):
        peak, left = growth(template, tmp_path, how, "")
        assert peak < 150, how
        assert left < 50, how


def test_no_second_copy_of_an_optimizers_state(tmp_path, template):
    """A new optimizer takes up the 160 MiB of its state, and beside them nothing of that size."""
    growth(template, tmp_path, "save", "optimized")
    peak, left = growth(template, tmp_path, "bare", "optimized")
    assert peak < 160 + 90
    assert left < 160 + 50
