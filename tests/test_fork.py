"""A fork while saves are in flight: the child gets a fresh writer, the parent goes on undisturbed."""

from __future__ import annotations

import pytest

import asyncsave

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.usefixtures("until_processes_end")]

PROGRAM = """
import os, sys, threading
import torch, asyncsave
from backends import make_writer, process_is_tested, writer_or_shared
from gates import Gated
from saves import begun
folder = sys.argv[1]
gate = Gated("fsync")
writer = make_writer(system=gate)
handle = begun(gate, writer.save({"who": "parent"}, f"{folder}/parent"))
queued = writer.save({"who": "parent"}, f"{folder}/queued")
free = writer_or_shared()

def save_async(state, path, writer=free):
    return asyncsave.save_async(state, path, writer=writer)

def fork(child):
    pid = os.fork()
    if not pid:
        child()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def done(rc):
    assert rc == 0, rc
    gate.release()
    assert handle.result(30).durable and queued.result(30).durable
    assert torch.load(f"{folder}/parent")["who"] == "parent"
    print("parent done", flush=True)
"""


def check(done, folder, *names):
    """Check that a program ended well, in the parent and in every child, and left these files."""
    assert done.rc == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("parent done") == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(["parent", "queued", *names])
    for name in names:
        assert asyncsave.verify(folder / name).ok


def test_a_child_saves(tmp_path, template):
    """``save_async`` works in the child, also when the parent's default writer is at work."""
    done = template.run(
        PROGRAM
        + """
save_async({"who": "before"}, f"{folder}/before")
def child():
    handle = save_async({"who": "child", "x": torch.ones(1 << 20)}, f"{folder}/child", writer_or_shared())
    assert handle.result(30).durable
done(fork(child))
""",
        tmp_path,
    )
    check(done, tmp_path, "before", "child")


def test_a_childs_saves_are_drained_at_its_exit(tmp_path, template):
    """A child that leaves with saves in flight writes them first."""
    done = template.run(
        PROGRAM
        + """
def child():
    writer = writer_or_shared()
    for number in range(3):
        save_async({"x": torch.ones(1 << 20)}, f"{folder}/child{number}", writer)
done(fork(child))
""",
        tmp_path,
    )
    check(done, tmp_path, "child0", "child1", "child2")


def test_an_inherited_writer_refuses(tmp_path, template):
    """A writer that was inherited raises at once, whatever is asked of it, and can be left."""
    done = template.run(
        PROGRAM
        + """
def child():
    for call in (lambda: writer.save({}, f"{folder}/child"), lambda: writer.warmup({})):
        try:
            call()
        except asyncsave.WriterClosedError as error:
            assert "fork" in str(error)
        else:
            raise AssertionError
    writer.flush(0)
    writer.check_errors()
    writer.close(0)
    name = "process" if process_is_tested() else "thread"
    assert repr(writer) == f"<Writer {name}, closed, 0 writing, 0 queued, 2/2 free>", repr(writer)
done(fork(child))
""",
        tmp_path,
    )
    check(done, tmp_path)


def test_inherited_handles_resolve(tmp_path, template):
    """A handle of a save in flight fails in the child, at once, and without the parent's callbacks."""
    done = template.run(
        PROGRAM
        + """
me = os.getpid()
handle.add_done_callback(lambda _: print("called", flush=True) if os.getpid() == me else os._exit(9))
ended = save_async({"n": 1}, f"{folder}/ended")
ended.result(30)
def child():
    for each in (handle, queued):
        assert isinstance(each.exception(0), asyncsave.WriterClosedError), each
        assert each.status == "failed"
        assert each.staged.is_set() and not each.durable.wait(0)
    assert ended.result(0).durable and ended.durable.is_set()
    asyncsave.flush(0)
    asyncsave.check_errors()
done(fork(child))
""",
        tmp_path,
    )
    check(done, tmp_path, "ended")
    assert done.stdout.count("called") == 1


def test_a_child_does_not_touch_the_parents_files(tmp_path, template):
    """A child that saves into the same folder sweeps it, and leaves the parent's temporary file alone."""
    done = template.run(
        PROGRAM
        + """
def child():
    before = set(name for name in os.listdir(folder) if name.startswith("."))
    assert len(before) == 1
    save_async({"n": 1}, f"{folder}/child", writer_or_shared()).result(30)
    assert before <= set(os.listdir(folder))
done(fork(child))
""",
        tmp_path,
    )
    check(done, tmp_path, "child")


def test_loading_what_the_parent_still_writes(tmp_path, template):
    """A child does not wait for a save that goes on in another process: it loads what is there."""
    done = template.run(
        PROGRAM
        + """
def child():
    try:
        asyncsave.load(f"{folder}/parent")
    except asyncsave.CheckpointNotFoundError:
        return
    raise AssertionError
done(fork(child))
""",
        tmp_path,
    )
    check(done, tmp_path)


def test_large_arenas_and_spares(tmp_path, template):
    """A child of a parent with large arenas, and a replaced file kept for the next save, ends well."""
    done = template.run(
        PROGRAM
        + """
state = {"x": torch.ones(10 << 20)}
for _ in range(3):
    save_async(state, f"{folder}/large").result(30)
def child():
    import gc
    writer = writer_or_shared()
    save_async(state, f"{folder}/child", writer).result(30)
    (writer.close if writer else asyncsave.shutdown)()
    gc.collect()
for _ in range(2):
    assert fork(child) == 0
assert save_async(state, f"{folder}/large").result(30).durable
done(0)
""",
        tmp_path,
    )
    check(done, tmp_path, "large", "child")


def test_many_forks_under_load(tmp_path, template):
    """Forks at arbitrary moments of a running save never hang, and never harm it."""
    done = template.run(
        PROGRAM
        + """
state = {"x": torch.ones(2 << 20)}
handles = []
for number in range(20):
    handles.append(save_async(state, f"{folder}/busy"))
    def child():
        if number % 5 == 0:
            save_async({"n": number}, f"{folder}/child", writer_or_shared()).result(30)
        os._exit(0)
    assert fork(child) == 0
assert all(each.result(30).durable for each in handles)
done(0)
""",
        tmp_path,
    )
    check(done, tmp_path, "busy", "child")


def test_a_data_loader_with_workers(tmp_path, template):
    """A DataLoader forks its workers while saves are in flight; both go on."""
    done = template.run(
        """
        import sys, warnings
        import torch, asyncsave
        from backends import writer_or_shared
        from torch.utils.data import DataLoader, TensorDataset
        folder, writer = sys.argv[1], writer_or_shared()
        model = torch.nn.Linear(256, 256)
        data = TensorDataset(torch.arange(64.0))
        total, handles = 0, []
        for epoch in range(2):
            for (batch,) in DataLoader(data, batch_size=8, num_workers=2):
                total += batch.sum().item()
                handles.append(asyncsave.save_async(model.state_dict(), f"{folder}/ckpt", writer=writer))
        assert total == 2 * sum(range(64))
        assert all(handle.result(30).durable for handle in handles)
        print("done")
        """,
        tmp_path,
    )
    assert (done.rc, done.stdout, done.stderr) == (0, "done\n", "")
    assert asyncsave.verify(tmp_path / "ckpt").ok


def test_multiprocessing(tmp_path, template):
    """Processes of ``multiprocessing`` save, forked or spawned, while the parent does, and finish that as they end."""
    done = template.run(
        """
        import multiprocessing, sys
        import torch, asyncsave
        from backends import save_and_leave, writer_or_shared
        folder = sys.argv[1]
        handle = asyncsave.save_async({"x": torch.ones(2 << 20)}, f"{folder}/parent", writer=writer_or_shared())
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            process = context.Process(target=save_and_leave, args=({"n": 1}, f"{folder}/{method}"))
            process.start()
            process.join(50)
            assert process.exitcode == 0, process.exitcode
            assert asyncsave.load(f"{folder}/{method}") == {"n": 1}
        assert handle.result(30).durable
        """,
        tmp_path,
    )
    assert (done.rc, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fork", "parent", "spawn"]
