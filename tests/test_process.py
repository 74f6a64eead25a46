"""The writer process at work: what is withdrawn, in which order saves land, what is logged, what does not grow."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import resource
import signal
import stat
import textwrap

import psutil
import pytest
from processes import (
    Trainer,
    Watched,
    current_service,
    frozen,
    nobody_is_left,
    number_at,
    numbers_in,
    service_of,
    services,
    state,
    until,
)

import asyncsave

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd_open")

HELD = """
writer = asyncsave.Writer(backend="process", max_pending=2)
say("service", service_of(writer))
first = writer.save(state(1, 32 << 20), folder / "first")
caught_writing(writer, first, set())
"""
"""A large save whose process is stopped in the midst of it."""


@pytest.mark.parametrize(
    ("withdrawing", "landed"),
    [
        (
            """
assert not first.cancel()
second = writer.save(state(2), folder / "second")
assert "0/2 free" in repr(writer), writer
assert second.cancel() and second.status == "cancelled" and second.cancel()
assert "1/2 free" in repr(writer), writer
writer.save(state(3), folder / "third", on_busy="raise")
""",
            {"first": 1, "third": 3},
        ),
        (
            """
second = writer.save(state(2), folder / "second")
third = writer.save(state(3), folder / "third", on_busy="replace")
assert (second.status, third.status) == ("replaced", "queued")
fourth = writer.save(state(4), folder / "fourth", on_busy="replace")
assert (third.status, fourth.status) == ("replaced", "queued")
assert not first.done()
""",
            {"first": 1, "fourth": 4},
        ),
        (
            """
second = writer.save(state(2), folder / "second")
assert writer.save(state(3), folder / "third", on_busy="skip").status == "skipped"
""",
            {"first": 1, "second": 2},
        ),
        (
            """
second = writer.save(state(2), folder / "second")
try:
    writer.save(state(3), folder / "third", on_busy="raise")
except asyncsave.QueueFullError:
    say("refused")
else:
    raise AssertionError
""",
            {"first": 1, "second": 2},
        ),
        (
            """
handles = [writer.save(state(number), folder / str(number), on_busy="replace") for number in range(50)]
assert all(handle.status == "replaced" for handle in handles[:-1])
assert handles[-1].cancel()
""",
            {"first": 1},
        ),
    ],
    ids=["cancel", "replace", "skip", "raise", "all"],
)
def test_what_is_withdrawn_never_lands(folder, template, withdrawing, landed):
    """Its slot is free at once; what is being written is not withdrawn; and then the trainer is killed."""
    program = HELD + withdrawing + "\nsay('staged')\npause()"
    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        trainer.heard("staged")
        assert trainer.killed().rc == -9
        service.thaw()
        assert service.has_ended()
    assert numbers_in(folder) == landed


def test_what_is_withdrawn_frees_what_it_holds_in_the_process(open_writer, folder, caplog):
    """However many saves are replaced while one hangs, the process does not run out of descriptors."""
    first, second = open_writer(backend="process"), open_writer(backend="process", on_busy="replace")
    assert second.save(state(1), folder / "other").result(30).durable
    with frozen(service_of(first)):
        before = first.save(state(1), folder / "one")
        hanging = second.save(state(2), folder / "one")
        until(lambda: hanging.status == "writing")
        resource.prlimit(service_of(second), resource.RLIMIT_NOFILE, (256, 256))
        many = [second.save(state(number), folder / "other") for number in range(200)]
    assert before.result(30).durable
    assert hanging.result(30).durable
    assert many[-1].result(30).durable
    assert number_at(folder / "one") == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kinds", ["thread process", "process process", "process thread", "process thread process"])
def test_of_two_writers_the_later_call_stays(folder, template, kinds):
    """Two writers save to one file, and the trainer is killed: no earlier version follows a later one."""
    program = """
writers = [asyncsave.Writer(backend=kind) for kind in sys.argv[2].split()]
for writer in writers:
    writer.save(state(0), folder / "other").result()
for number, writer in enumerate(writers, 1):
    writer.save(state(number, (8 << 20) // number), folder / "file")
say("staged")
pause()
"""
    calls = kinds.split()
    staged = max(number for number, kind in enumerate(calls, 1) if kind == "process")
    for _ in range(4):
        with Trainer(template, program, folder, kinds) as trainer:
            trainer.heard("staged")
            assert trainer.killed().rc == -9
        nobody_is_left(folder.parent)
        assert staged <= number_at(folder / "file") <= len(calls)
        for path in folder.iterdir():
            path.unlink()


def test_the_later_writer_waits_for_one_that_is_stopped(folder, template):
    """The trainer is dead, the first writer's process is stopped: the second one's waits, and writes last."""
    program = """
asyncsave.save(state(1), folder / "file")
first, second = (asyncsave.Writer(backend="process") for _ in range(2))
say("services", service_of(first), service_of(second))
freeze(service_of(first))
first.save(state(2, 1 << 20), folder / "file")
waiting = second.save(state(3), folder / "file")
while waiting.status != "writing":
    pass
say("staged")
pause()
"""
    with Trainer(template, program, folder) as trainer, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(Watched(int(pid))) for pid in trainer.heard("services"))
        trainer.heard("staged")
        assert trainer.killed().rc == -9
        assert not second.has_ended(0.3)  # long enough to write it a hundred times
        assert number_at(folder / "file") == 1
        first.thaw()
        assert first.has_ended()
        assert second.has_ended()
    assert numbers_in(folder) == {"file": 3}


@pytest.mark.parametrize("later", ["thread", "process"])
@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_the_later_writer_waits_for_one_whose_process_dies(open_writer, folder, later, deaths):
    """The first save is stopped in its process, which is killed, once or twice: the second one comes after it."""
    before = open_writer(backend="process")
    first, second = open_writer(backend="process"), open_writer(backend=later)
    with frozen(service_of(before)):
        hanging = before.save(state(1), folder / "file")
        earlier = first.save(state(2), folder / "file")
        handle = second.save(state(3), folder / "file")
        until(lambda: handle.status == "writing")
        until(lambda: earlier.status == "writing")
        for _ in range(deaths):
            pid = service_of(first)
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: current_service(first) != pid)
            if not earlier.done():
                first.warmup(state(0))  # one that is ready, so that it may have begun
        assert not handle.done()
    assert hanging.result(30).durable
    if deaths == 2:
        assert isinstance(earlier.exception(30), asyncsave.WriterDiedError)
    else:
        assert earlier.result(30).durable
    assert handle.result(30).durable
    assert number_at(folder / "file") == 3


@pytest.mark.parametrize(
    "hang",
    ["import ctypes; ctypes.PyDLL(None).sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"],
    ids=["keeps the GIL", "stopped"],
)
@pytest.mark.parametrize("saves", [1, 200])
def test_a_trainer_that_does_not_run_holds_nothing_up(folder, template, hang, saves):
    """Not one of its threads runs Python any more: what was staged lands, also more than it could be told of."""
    program = f"""
writer = asyncsave.Writer(backend="process", max_pending={saves}, durable=False)
for number in range({saves}):
    writer.save(state(number, 1000 if number else 32 << 20), folder / str(number))
say("staged")
{hang}
say("over")
pause()
"""
    with Trainer(template, program, folder) as trainer:
        trainer.heard("staged")
        until((folder / str(saves - 1)).exists, lambda: list(folder.iterdir()))
        assert numbers_in(folder) == {str(number): number for number in range(saves)}
        assert "over\n" not in trainer.said()
        assert trainer.killed().rc == -9
    nobody_is_left(folder.parent)


def test_what_the_process_logs_is_logged_here(open_writer, folder, caplog):
    """While its trainer lives it says everything there: that it is ready, and what it has swept."""
    caplog.set_level(logging.INFO, "asyncsave")
    (folder / ".asyncsave-0123456789abcdef.tmp").write_bytes(b"left by the dead")
    writer = open_writer(backend="process")
    writer.save(state(1), folder / "file").result(30)
    writer.close()
    said = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert ("asyncsave", "WARNING", f"removed 1 unfinished file(s) of a dead writer in {folder}") in said
    assert [level for _, level, text in said if "is ready; left alone it logs to" in text] == ["INFO"]
    assert not list(folder.parent.glob("*.log"))


def test_what_nobody_hears_is_written_to_a_file(folder, template):
    """After its trainer's death the process says what it saved, and what failed, in the file that it had named."""
    program = """
logging.basicConfig(level=logging.INFO)
(folder / "gone").mkdir()
writer = asyncsave.Writer(backend="process", max_pending=3)
writer.save(state(0), folder / "heard").result()
say("service", service_of(writer))
freeze(service_of(writer))
for number, name in enumerate(("one", "gone/two", "three"), 1):
    writer.save(state(number), folder / name)
(folder / "gone").rmdir()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        done = trainer.wait()
        assert done.rc == -9
        assert not list(folder.parent.glob("*.log"))
        service.thaw()
        assert service.has_ended()
    (log,) = folder.parent.glob("*.log")
    assert re.fullmatch(rf"asyncsave-{service.pid}-\w+\.log", log.name)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert f"INFO:asyncsave:the writer process {service.pid} is ready; left alone it logs to {log}\n" in done.stderr
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[20:].split(":")[0] for line in lines if "heard" not in line] == [
        f"saved {folder / 'one'}",
        f"cannot save '{folder / 'gone/two'}'",
        f"saved {folder / 'three'}",
    ]
    assert "ENOENT" in lines[-2]
    assert numbers_in(folder) == {"heard": 0, "one": 1, "three": 3}


def test_several_trainers_at_once(folder, template):
    """Four trainers with a process each save into one folder, and to one common file: all land, nothing is left."""
    program = """
pids = []
for trainer in range(1, 5):
    pid = os.fork()
    if not pid:
        with asyncsave.Writer(backend="process") as writer:
            for number in range(1, 11):
                own = writer.save(state(number, 1 << (8 + number)), folder / str(trainer))
                common = writer.save(state(trainer, 1 << 18), folder / "common")
                if number == 5:
                    assert own.result().durable and common.result().durable
        sys.exit(0)
    pids.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0, 0]
"""
    with Trainer(template, program, folder) as trainer:
        done = trainer.wait()
    assert (done.rc, done.stderr) == (0, "")
    found = numbers_in(folder)
    assert found.pop("common") in {1, 2, 3, 4}
    assert found == {"1": 10, "2": 10, "3": 10, "4": 10}
    nobody_is_left(folder.parent)


@pytest.mark.parametrize(
    ("end", "rc"), [("", 0), ("sys.exit(3)", 3), ("raise ZeroDivisionError", 1), ("asyncsave.shutdown()", 0)]
)
def test_an_exit_leaves_no_process(folder, template, end, rc):
    """A program that ends by itself has its saves finished, and is gone later than its writer process."""
    program = """
    writer = asyncsave.Writer(backend="process")
    for number in (1, 2, 3):
        writer.save(state(number, 1 << 20), folder / str(number))
    """
    with Trainer(template, textwrap.dedent(program) + end, folder) as trainer:
        assert trainer.wait().rc == rc
    assert not services(folder.parent)
    assert numbers_in(folder) == {"1": 1, "2": 2, "3": 3}


def held(pid: int) -> tuple[int, int]:
    """Return how many descriptors a process has, and how many mappings of shared memory."""
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir())), maps.count("memfd:asyncsave")


def check_growth(writer, folder, saves: int) -> None:
    """Save so often; neither process may have more descriptors, mappings or memory of its own after that."""
    service = service_of(writer)

    def save(times: int) -> None:
        for number in range(times):
            handle = writer.save(state(number, 2 << 20), folder / str(number % 3))
            if number % 5 == 0:
                handle.cancel()
        writer.flush(30)

    def measure() -> list[tuple[int, int]]:
        return [held(pid) for pid in (os.getpid(), service)]

    def memory() -> list[int]:
        maps = [psutil.Process(pid).memory_maps() for pid in (os.getpid(), service)]
        return [sum(one.rss for one in of_one if "memfd:asyncsave" not in one.path) for of_one in maps]

    save(15)
    before, memory_before = measure(), memory()
    save(saves)
    until(lambda: all(new <= old for new, old in zip(measure(), before, strict=True)), lambda: (before, measure()))
    growth = [new - old for new, old in zip(memory(), memory_before, strict=True)]
    print(f"{saves} saves: {before} descriptors and mappings, {growth} bytes more")  # noqa: T201 - pytest -s shows it
    assert max(growth) < 12 << 20  # one state of 8 MiB may be alive, or none


def test_nothing_grows(open_writer, folder):
    """Fifty saves of 8 MiB, some of them cancelled, leave both processes as they were."""
    check_growth(open_writer(backend="process"), folder, 50)


@pytest.mark.soak
def test_nothing_grows_over_many_saves(open_writer, folder):
    """Five hundred saves do not either."""
    check_growth(open_writer(backend="process"), folder, 500)


def test_nothing_grows_over_deaths(open_writer, folder):
    """Twenty processes that die one after the other leave no descriptor and no mapping in the trainer."""
    writer = open_writer(backend="process")

    def die(times: int) -> None:
        for number in range(times):
            handle = writer.save(state(number, 1 << 20), folder / "file")
            os.kill(service_of(writer), signal.SIGKILL)
            assert handle.result(30).durable

    die(3)
    writer.save(state(0), folder / "file").result(30)
    before = held(os.getpid())
    die(20)
    writer.save(state(0), folder / "file").result(30)
    until(lambda: held(os.getpid()) == before, lambda: (before, held(os.getpid())))
