"""The order of the calls that put a folder into its place: what must be on the disk before what.

The planted bugs at the end show that the check of the order can fail.
"""

from __future__ import annotations

import pytest
from gates import Recording
from steps import assemble, clear, put_step, target_of, whole

from asyncsave.catalogue.names import step_name
from asyncsave.storage import assembly
from asyncsave.storage.mounts import file_system
from asyncsave.storage.system import System

OLD = {"state.pt": b"old" * 3000, "gone.pt": b"old too"}
NEW = {"state.pt": b"new" * 4000, "ema.pt": b"new as well" * 100, "empty.pt": b""}


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch):
    """Let the blocks of files of a page be reserved."""
    monkeypatch.setattr(assembly, "DIRECT_FROM", 4096)


def trace_of(system, version, **options):
    """Return the calls of a commit, as far as they change anything."""
    assemble(system, target_of(version, 1), NEW, **options)
    clear(version)
    return [name for name in system.names() if name not in {"mkdir", "write_back"}]


def order(names, move="rename"):
    """Check the order of the calls: all files written, and flushed, the manifest, the folder, the move, the parent."""
    assert names.count("fsync") == len(NEW) + 1, "every file and the manifest are flushed, once each"
    assert names.count("fsync folder") == 2, "the folder and the one above are flushed"
    syncs = [at for at, name in enumerate(names) if name == "fsync"]
    writes = [at for at, name in enumerate(names) if name == "pwrite"]
    first_folder, last_folder = (at for at, name in enumerate(names) if name == "fsync folder")
    manifest = writes[-1]
    assert max(writes[:-1]) < syncs[0], "a file is written after the flush began"
    assert syncs[-2] < manifest < syncs[-1], "the manifest is written before the files are flushed"
    moves = [at for at, name in enumerate(names) if name.startswith(move)]
    assert moves, "it never took its place"
    assert syncs[-1] < first_folder < moves[0], "it is put in place before it is flushed"
    assert moves[-1] < last_folder == len(names) - 1, "the folder above is not flushed at the end"


@pytest.mark.parametrize("way", ["rename", "exchange"])
def test_the_order_of_the_calls(tmp_path, way):
    """Files are flushed, then the manifest and the folder; then comes the move, and the flush of the folder above."""
    if way == "exchange":
        put_step(tmp_path, 1, OLD)
    order(trace_of(Recording(), tmp_path), move=way)


def test_files_are_handed_over_before_the_first_flush(tmp_path):
    """Many files share their flushes: the disk is told of them before anybody waits for one."""
    system = Recording()
    assemble(system, target_of(tmp_path, 1), NEW)
    names = [call.name for call in system.trace]
    begun = [at for at, name in enumerate(names) if name == "write_back"]
    assert len(begun) == len(NEW)
    assert max(begun) < names.index("fsync")


def test_blocks_are_reserved_before_a_byte_is_written(tmp_path):
    """The blocks of a large file are asked for before it is written to; a small one gets them as it goes."""
    names = trace_of(Recording(), tmp_path)
    assert names.count("allocate") == sum(len(data) >= 4096 for data in NEW.values()) == 1
    assert names[:2] == ["allocate", "pwrite"]


def test_not_durable_flushes_nothing(tmp_path):
    """Without sync nothing is flushed; the step is still put in place whole, and not called durable."""
    system = Recording()
    new = assemble(system, target_of(tmp_path, 1), NEW, sync=False)
    assert not {"fsync", "write_back"} & {call.name for call in system.trace}
    assert whole(tmp_path / step_name(1)) == NEW
    assert not new.durable


def test_durable(tmp_path):
    """What was flushed on a disk that keeps it is called durable."""
    new = assemble(System(), target_of(tmp_path, 1), NEW)
    kind = file_system(str(tmp_path))[0]
    assert new.durable == (kind not in {"tmpfs", "ramfs"} and not kind.startswith("fuse"))
    assert new.replaced is None


# Planted bugs: what the check above is worth.


class Dropping(Recording):
    """A program that leaves out one kind of call."""

    def __init__(self, dropped, kind, at=0):
        super().__init__()
        self._dropped, self._left = (dropped, kind), at

    def _call(self, name, *args, **kwargs):
        if self._dropped == (name, self._kind(*args)):
            self._left -= 1
            if self._left <= 0:
                return None
        return super()._call(name, *args, **kwargs)


@pytest.mark.parametrize(
    "planted",
    [
        lambda: Dropping("fsync", "file"),
        lambda: Dropping("fsync", "file", len(NEW) + 1),
        lambda: Dropping("fsync", "folder"),
        lambda: Dropping("fsync", "folder", 2),
    ],
    ids=["no fsync", "no fsync of the manifest", "no folder fsync", "no fsync of the folder above"],
)
def test_the_trace_catches(tmp_path, planted):
    """A commit that leaves out a flush fails the check of the trace."""
    names = trace_of(planted(), tmp_path)
    with pytest.raises((AssertionError, ValueError)):
        order(names)
