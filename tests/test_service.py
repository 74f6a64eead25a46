"""The writer process: what it does with a good message, and that it does nothing with a bad one."""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import image_of
from processes import until

from asyncsave import descriptors
from asyncsave.channel import Channel
from asyncsave.claim import Claim
from asyncsave.image.layout import PAGE, plan
from asyncsave.image.table import nbytes_with_table, write_table
from asyncsave.memory import SharedPages
from asyncsave.reporter import Reporter
from asyncsave.service import serve
from asyncsave.storage.system import System
from asyncsave.wire import HEADER, LONGEST, Begun, Done, Failed, Log, Progress, Ready, Save, Start, encode

PATIENCE = 30.0


class Trainer:
    """A trainer of the tests' own, which says whatever it likes: to a service on a thread, or to a real process.

    Args:
        log: What the service is told to write to when nobody hears it.
        start: Whether it is told to start.
        real: Whether it is a process.
        options: Further arguments of the interpreter.
    """

    def __init__(self, log="", *, start=True, real=False, options=()):
        self.process = self.thread = None
        self.errors = []
        self._after = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        with descriptors.held_back():
            ours, theirs = socket.socketpair()
            self.channel = Channel(ours.detach())
            if not real:
                channel = Channel(theirs.detach())
        if real:
            command = [sys.executable, *options, "-m", "asyncsave.service"]
            self.stderr = self._after.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is one
            self.process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=self.stderr)
            theirs.close()
        else:
            self.thread = threading.Thread(target=self._serve, args=(channel,), name="service", daemon=True)
            self.thread.start()
        if start:
            self.channel.send(Start(os.getpid(), 2, str(log)))
            assert isinstance(self.hear(), Ready)

    def _serve(self, channel):
        try:
            serve(channel, Reporter(channel, System()), System())
        except BaseException as error:  # noqa: BLE001 - told by `end`
            self.errors.append(error)

    def push(self, data, fds=()):
        """Send bytes and descriptors as any program could; it is no error that nobody listens any more."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            self.channel._end.sendmsg([data], ancillary)

    def order(self, target, content=b"content", *, earlier=(), claim=None, memory=None, **fields):
        """Send a save that is right but for what is said otherwise; return its claim."""
        layout = plan([("archive/data.pkl", len(content))])
        pages = SharedPages(-(-nbytes_with_table(layout) // PAGE) * PAGE)
        record = layout.records[0]
        pages.view[record.offset : record.offset + record.nbytes] = content
        write_table(pages.view, layout, [None])
        self._after.callback(pages.close)
        if claim is None:
            claim = Claim()
            self._after.callback(claim.close)
        now = time.perf_counter()
        path = os.fspath(target)
        save = Save(
            next(self._numbers),
            layout.nbytes,
            path,
            *os.path.split(path),
            sync=True,
            umask=-1,
            started=now,
            queued=now,
            after=0,
        )
        fds = [pages.descriptor if memory is None else memory, claim._reading, claim._writing, *earlier]
        self.push(encode(save._replace(**{"after": len(earlier), **fields})), fds)
        return claim

    def hear(self):
        """Return the next message; None at the end."""
        received = self.channel.receive()
        return received and received[0]

    def hear_of_end(self):
        """Return the next message that says that a save has ended."""
        while not isinstance(message := self.hear(), Done | Failed):
            assert message is not None, "the service has ended"
        return message

    def rest(self):
        """Say that nothing more comes, and return all that is still heard."""
        self.channel.hang_up()
        found = []
        while (message := self.hear()) is not None:
            found.append(message)
        self.end()
        return found

    def end(self):
        """Leave, and wait for the service to end well. Idempotent."""
        self.channel.close()
        if self.process is not None:
            try:
                self.process.wait(PATIENCE)
            finally:
                self.process.kill()
                self.process.wait()
            self.stderr.seek(0)
            words = self.stderr.read().decode()
            assert (self.process.returncode, "Traceback" in words) == (0, False), words
        else:
            self.thread.join(PATIENCE)
            assert not self.thread.is_alive(), "the service does not end"
            assert not self.errors, self.errors

    def close(self):
        """Let go of everything, and see to it that the service has ended well."""
        try:
            self.end()
        finally:
            self._after.close()


@pytest.fixture
def trainer(tmp_path):
    """Return a trainer whose service runs on a thread."""
    made = Trainer(tmp_path / "service.log")
    yield made
    made.close()


@pytest.fixture
def real(tmp_path):
    """Return a trainer with a real process."""
    made = Trainer(tmp_path / "service.log", real=True)
    yield made
    made.close()


@pytest.fixture(params=["thread", "process"])
def both(request, tmp_path):
    """Run a test over a service on a thread, and over a real process."""
    made = Trainer(tmp_path / "service.log", real=request.param == "process")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a checkpoint, a subfolder and a link in it."""
    made = tmp_path / "folder"
    (made / "inner").mkdir(parents=True)
    (made / "old").write_bytes(b"an old checkpoint")
    (made / "inner" / "old").write_bytes(b"another")
    (made / "link").symlink_to("old")
    return made


def whole(content):
    """Return the file that a save of this content makes."""
    return image_of([("archive/data.pkl", content)])[0]


def seen(folder):
    """Return all that can be seen of a folder: names, files, times and bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns, data)
    return found


def kinds(messages):
    """Return what kinds of messages these are, without the lines for the log."""
    return [type(message) for message in messages if not isinstance(message, Log)]


# A process.


@pytest.mark.parametrize("what", ["nothing", "a file", "a pipe", "closed"])
def test_started_by_hand(what, tmp_path):
    """Who starts it without a socket is told what it is; the exit status is 2."""
    (tmp_path / "file").write_bytes(b"AS")
    words = {"nothing": "</dev/null", "a file": f"<{tmp_path / 'file'}", "a pipe": "", "closed": "<&-"}[what]
    command = f'exec "$0" -m asyncsave.service {words}'
    done = subprocess.run(["sh", "-c", command, sys.executable], input=b"", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert b'Writer(backend="process") starts it' in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_it_imports_little(folder):
    """From its start through a save to its end: no torch, no numpy, nothing that is slow or large."""
    trainer = Trainer(real=True, options=["-X", "importtime"])
    trainer.order(folder / "new")
    assert isinstance(trainer.hear_of_end(), Done)
    trainer.rest()
    trainer.stderr.seek(0)
    lines = trainer.stderr.read().decode().splitlines()
    trainer.close()
    found = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "asyncsave.storage.replacement" in found
    assert not {name for name in found if name.partition(".")[0] in {"torch", "numpy", "asyncio", "aiofiles"}}
    assert not found & {"asyncsave.writer", "asyncsave.handle", "asyncsave.staging.capture", "asyncsave.loading"}


def test_it_is_small(real, folder):
    """A process that waits for the next save weighs less than 60 MB."""
    real.order(folder / "new", b"x" * (1 << 20))
    assert isinstance(real.hear_of_end(), Done)
    assert psutil.Process(real.process.pid).memory_full_info().uss < 60 << 20


def test_a_save(both, folder):
    """It is begun, written and reported, in order; the file is the one that a thread would have written."""
    content = b"content" * 50_000
    both.order(folder / "old", content)
    messages = both.rest()
    begun, *progress, done = [message for message in messages if not isinstance(message, Log)]
    assert isinstance(begun, Begun)
    assert 0 <= begun.queue < PATIENCE
    assert isinstance(done, Done)
    assert {message.number for message in (begun, *progress, done)} == {1}
    assert all(isinstance(message, Progress) for message in progress)
    assert sum(message.nbytes for message in progress) == len(whole(content))
    assert (folder / "old").read_bytes() == whole(content)
    assert done.digest == image_of([("archive/data.pkl", content)])[1]
    assert min(done.seal, done.write, done.sync) >= 0
    assert done.total >= done.seal + done.write + done.sync


def test_saves_are_written_in_order(trainer, folder):
    """First in, first out; each is a save of its own."""
    for number in range(20):
        trainer.order(folder / str(number % 2), str(number).encode())
    done = [message.number for message in trainer.rest() if isinstance(message, Done)]
    assert done == list(range(1, 21))
    assert [(folder / name).read_bytes() for name in "01"] == [whole(b"18"), whole(b"19")]


def test_a_path_of_any_bytes(both, tmp_path):
    """A folder and a name that are no UTF-8."""
    folder = tmp_path / os.fsdecode(b"folder-\xff\n")
    folder.mkdir()
    both.order(folder / os.fsdecode(b"\x80name"))
    assert isinstance(both.hear_of_end(), Done)
    assert [path.read_bytes() for path in folder.iterdir()] == [whole(b"content")]


def test_it_comes_after(trainer, folder):
    """A save that comes after one of another writer is begun, and waits for the end of that one."""
    first = Claim()
    (earlier,) = first.duplicate(writing=False)
    trainer.order(folder / "old", earlier=[earlier])
    assert isinstance(trainer.hear(), Begun)
    before = seen(folder)
    assert first.take()
    assert seen(folder) == before, "it was begun, not ended"
    first.close()
    assert isinstance(trainer.hear_of_end(), Done)
    assert (folder / "old").read_bytes() == whole(b"content")
    descriptors.drop(earlier)


def test_two_orders_for_one_claim(both, folder):
    """A save that was handed over twice (to a process that lived after all) is written once."""
    claim = both.order(folder / "one")
    both.order(folder / "two", claim=claim)
    assert kinds(both.rest()) == [Begun, Progress, Done]
    assert (folder / "one").read_bytes() == whole(b"content")
    assert not (folder / "two").exists()


def test_a_withdrawn_save_is_not_looked_at(both, folder):
    """Its memory may serve another save by now: it is not even mapped, and nothing is said of it."""
    before = seen(folder)
    claim = Claim()
    assert claim.take()
    reading, writing = os.pipe()  # what is mapped would be an error
    both.order(folder / "old", claim=claim, memory=reading)
    assert kinds(both.rest()) == []
    assert seen(folder) == before
    claim.close()
    for fd in (reading, writing):
        os.close(fd)


def test_its_claim_ends_with_it(trainer, folder):
    """Whoever waits for a save learns of its end from the service, and from the trainer: from both."""
    claim = trainer.order(folder / "new")
    (reading,) = claim.duplicate(writing=False)
    assert isinstance(trainer.hear_of_end(), Done)
    claim.close()
    # The service has closed its end before it reported; a read finds neither byte nor writer.
    assert os.read(reading, 1) == b""
    descriptors.drop(reading)


def test_nothing_is_kept_of_what_has_ended(real, folder):
    """Descriptors and memory of a save are let go, whether it was written, failed or withdrawn."""
    pid, withdrawn = real.process.pid, Claim()
    withdrawn.take()
    real.order(folder / "first")
    assert isinstance(real.hear_of_end(), Done)

    def held():
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").count("memfd:asyncsave")
        return sorted(str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()), maps

    until(lambda: held()[1] == 0)
    before = held()
    for number in range(10):
        real.order(folder / str(number))
        real.order(folder / "missing" / str(number))
        real.order(folder / "withdrawn", claim=withdrawn)
    for _ in range(20):
        real.hear_of_end()
    until(lambda: held() == before)
    withdrawn.close()


def test_warnings_are_relayed(real, folder):
    """What the package logs in the process reaches the trainer, who has the handlers."""
    dead = folder / ".asyncsave-0123456789abcdef.tmp"
    dead.touch()
    real.order(folder / "new")
    messages = real.rest()
    assert not dead.exists()
    assert kinds(messages) == [Begun, Progress, Done]
    (line,) = [message for message in messages if isinstance(message, Log)]
    assert line == Log(30, f"removed 1 unfinished file(s) of a dead writer in {folder}")


# Its end.


def test_it_ends_when_nobody_has_spoken(tmp_path):
    """A trainer that dies before its first word leaves nothing."""
    for real in (False, True):
        trainer = Trainer(start=False, real=real)
        assert trainer.rest() == []
        trainer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["hung up", "closed"])
def test_it_ends_with_the_talk(both, how):
    """No more can come: it ends, without an error, and without a log."""
    if how == "hung up":
        assert both.rest() == []
    both.end()


def test_what_was_staged_is_finished(both, folder, tmp_path):
    """The trainer has gone with saves in the socket and in the queue: they are written, each leaves a line."""
    first = Claim()
    (earlier,) = first.duplicate(writing=False)
    both.order(folder / "0", earlier=[earlier])
    for number in range(1, 5):
        both.order(folder / str(number))
    both.order(folder / "missing" / "5")
    assert isinstance(both.hear(), Begun)
    both.channel.close()
    first.close()
    both.end()
    assert [(folder / str(number)).read_bytes() for number in range(5)] == [whole(b"content")] * 5
    lines = (tmp_path / "service.log").read_text(encoding="utf-8").splitlines()
    assert [line.split()[2] for line in lines] == ["saved"] * 5 + ["cannot"]
    assert all(str(folder) in line for line in lines)
    descriptors.drop(earlier)


def test_signals_do_not_end_it(real, folder):
    """What ends a trainer (Ctrl-C, a batch system, a closed terminal) does not end this process, nor its work."""
    first = Claim()
    (earlier,) = first.duplicate(writing=False)
    real.order(folder / "old", earlier=[earlier])
    assert isinstance(real.hear(), Begun)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        real.process.send_signal(number)
    real.channel.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        real.process.send_signal(number)
    assert real.process.poll() is None
    assert (folder / "old").read_bytes() == b"an old checkpoint"
    first.close()
    real.end()
    assert (folder / "old").read_bytes() == whole(b"content")
    descriptors.drop(earlier)


ORPHANED = """
import ctypes, os, signal, sys, time
from pathlib import Path
from test_service import Trainer
folder, count = Path(sys.argv[1]), int(sys.argv[2])
trainer = Trainer(folder / "service.log", real=True)
orphan = ctypes.CDLL(None).fork()  # behind Python's back: it keeps the trainer's end of the socket
if not orphan:
    time.sleep(60)
    os._exit(0)
for number in range(count):
    trainer.order(folder / str(number))
print(trainer.process.pid, orphan, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("count", [3, 300], ids=["few", "more than the socket holds"])
def test_it_ends_though_somebody_holds_the_socket(template, tmp_path, count):
    """A child that was forked behind Python's back may keep the talk open: the end of the trainer is the end.

    However much there is still to be said: nobody will ever listen.
    """
    done = template.run(ORPHANED, tmp_path, count)
    assert done.rc == -signal.SIGKILL, done.stderr
    service, orphan = map(int, done.stdout.split())
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(service).wait(10)
    except psutil.TimeoutExpired:
        os.kill(service, signal.SIGKILL)
        pytest.fail("the process has not ended, though its trainer has, and its work is done")
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert [(tmp_path / str(number)).read_bytes() for number in range(count)] == [whole(b"content")] * count


# What makes no sense. All of it is sent behind a good save, which is finished.


def bare(message, number=0):
    """Return what sends a message with so many descriptors."""

    def send(trainer, folder):
        with tempfile.TemporaryFile() as file:
            trainer.push(encode(message), [file.fileno()] * number)

    return send


def raw(data):
    """Return what sends bytes."""
    return lambda trainer, folder: trainer.push(data)


def wrong(**fields):
    """Return what sends a save that is right but for some fields."""

    def send(trainer, folder):
        made = {key: value(folder) if callable(value) else value for key, value in fields.items()}
        trainer.order(folder / "old", b"new", **made)

    return send


NO_MESSAGE = {
    "noise": raw(os.urandom(1000)),
    "another protocol": raw(b"GET / HTTP/1.1\r\n\r\n"),
    "zeros": raw(bytes(100)),
    "another version": raw(HEADER.pack(b"AS", 2, 1, 8) + bytes(8)),
    "an unknown kind": raw(HEADER.pack(b"AS", 1, 200, 8) + bytes(8)),
    "an oversized message": raw(HEADER.pack(b"AS", 1, 1, LONGEST + 1) + bytes(LONGEST + 1)),
    "the largest size": raw(HEADER.pack(b"AS", 1, 1, 0xFFFFFFFF)),
    "an empty save": raw(HEADER.pack(b"AS", 1, 1, 0)),
    "a save of zeros": raw(HEADER.pack(b"AS", 1, 1, 64) + bytes(64)),
    "a second start": bare(Start(1, 2, "")),
    "words of its own": bare(Done(1, "", durable=True, seal=0, write=0, sync=0, total=0)),
    "a line for the log": bare(Log(50, "x")),
    "no descriptors": bare(Save(9, 1, "/x", "/", "x", sync=True, umask=-1, started=0, queued=0, after=0)),
    "a descriptor too few": bare(Save(9, 1, "/x", "/", "x", sync=True, umask=-1, started=0, queued=0, after=0), 2),
    "a descriptor too many": bare(Save(9, 1, "/x", "/", "x", sync=True, umask=-1, started=0, queued=0, after=0), 4),
    "more descriptors than there is room for": bare(Progress(1, 1), 200),
    "descriptors of nobody": bare(Start(1, 2, ""), 3),
    "more earlier saves than there are": wrong(after=1),
    "a negative number of earlier saves": wrong(after=-1),
    "a relative folder": wrong(folder="old"),
    "an empty folder": wrong(folder=""),
    "a folder with a null byte": wrong(folder=lambda folder: f"{folder}\0"),
    "an empty name": wrong(name=""),
    "the folder itself": wrong(name="."),
    "the folder above": wrong(name=".."),
    "a name in another folder": wrong(name="inner/old"),
    "a name outside": wrong(name="../escaped"),
    "an absolute name": wrong(name="/tmp/escaped"),  # noqa: S108 - it is not written
    "a name with a null byte": wrong(name="old\0"),
}


REALLY = ["noise", "an oversized message", "a second start", "no descriptors", "a name outside"]
REALLY += ["more descriptors than there is room for", "a name with a null byte"]


@pytest.mark.parametrize(
    ("what", "both"),
    [(what, "thread") for what in NO_MESSAGE] + [(what, "process") for what in REALLY],
    indirect=["both"],
)
def test_what_is_no_message_ends_the_talk(both, folder, tmp_path, what):
    """It is logged, changes nothing on disk, and costs only what was not staged before."""
    good = tmp_path / "good"
    before = seen(folder)
    both.order(good)
    NO_MESSAGE[what](both, folder)
    both.order(tmp_path / "late")
    messages = both.rest()
    assert kinds(messages) == [Begun, Progress, Done]
    (line,) = [message for message in messages if isinstance(message, Log)]
    assert line.level == 40
    assert re.search("no message, and listens no more", line.text)
    assert good.read_bytes() == whole(b"content")
    assert seen(folder) == before
    assert not (tmp_path / "late").exists()
    assert not (tmp_path / "escaped").exists()


FIRST = {
    "noise": raw(os.urandom(1000)),
    "half of a start": raw(encode(Start(1, 2, "/tmp/log"))[:-3]),  # noqa: S108
    "a save": wrong(),
    "an answer": bare(Ready(1)),
    "a start with descriptors": bare(Start(1, 2, ""), 1),
}


@pytest.mark.parametrize("real", [False, True], ids=["thread", "process"])
@pytest.mark.parametrize("what", FIRST)
def test_a_first_message_that_is_none(folder, what, real):
    """A process that is not told to start says why it ends, if it can, and has done nothing."""
    before = seen(folder)
    trainer = Trainer(start=False, real=real)
    FIRST[what](trainer, folder)
    messages = trainer.rest()
    assert all(isinstance(message, Log) for message in messages)
    assert len(messages) == (what != "half of a start")
    assert seen(folder) == before
    trainer.close()


@pytest.mark.parametrize("threads", [-(1 << 63), 0, 3000])
def test_a_start_with_any_number_of_threads(folder, threads):
    """A number of threads that makes no sense is made one that does."""
    trainer = Trainer(start=False)
    trainer.channel.send(Start(-1, threads, ""))
    trainer.order(folder / "new")
    assert kinds(trainer.rest()) == [Ready, Begun, Progress, Done]
    trainer.close()


@contextlib.contextmanager
def something(what, tmp_path):
    """Give a descriptor of something that is no memory of an image."""
    with contextlib.ExitStack() as after:

        def opened(path, flags):
            fd = os.open(path, flags)
            after.callback(os.close, fd)
            return fd

        def memory(data):
            pages = SharedPages(-(-len(data) // PAGE) * PAGE)
            after.callback(pages.close)
            pages.view[: len(data)] = data
            return pages.descriptor

        (tmp_path / "empty").touch()
        (tmp_path / "file").write_bytes(b"x" * 3 * PAGE)
        if what in {"a pipe's reading end", "a pipe's writing end"}:
            ends = os.pipe()
            for fd in ends:
                after.callback(os.close, fd)
            yield ends["writing" in what]
        elif what == "a socket":
            ends = [after.enter_context(end) for end in socket.socketpair()]
            yield ends[0].fileno()
        elif what == "an image that can only be read":
            yield opened(f"/proc/self/fd/{memory(_image())}", os.O_RDONLY)
        elif what == "an image that can only be named":
            yield opened(f"/proc/self/fd/{memory(_image())}", os.O_PATH)
        elif what in MEMORIES:
            yield memory(MEMORIES[what]())
        else:
            path, flags = {
                "an empty file": (tmp_path / "empty", os.O_RDWR),
                "another file": (tmp_path / "file", os.O_RDWR),
                "a folder": (tmp_path, os.O_RDONLY),
                "a device": (os.devnull, os.O_RDWR),
                "a name only": (tmp_path / "empty", os.O_PATH),
            }[what]
            yield opened(path, flags)


def _image(change=lambda data, at: None):
    layout = plan([("archive/data.pkl", 3)])
    data = bytearray(nbytes_with_table(layout))
    write_table(memoryview(data), layout, [None])
    change(data, PAGE)
    return data


def _put(offset, word):
    def change(data, at):
        data[at + offset : at + offset + 8] = word.to_bytes(8, "little")

    return lambda: _image(change)


MEMORIES = {
    "memory without a table": lambda: bytes(5 * PAGE),
    "memory of noise": lambda: os.urandom(5 * PAGE),
    "too little memory": lambda: _image()[:PAGE],
    "a table of another mark": _put(0, 7),
    "a table of many records": _put(8, 1 << 40),
    "a table of as many records as there are": _put(8, (1 << 64) - 1),
    "a table of long names": _put(16, 1 << 40),
    "a table of a larger record": _put(24, 100),
    "a table of a negative record": _put(24, (1 << 64) - 5),
    "a table of a wrong checksum": _put(32, 1 << 40),
    "a table of names that are none": _put(40, 0xFFFF),
}
OTHERS = ["a pipe's reading end", "a pipe's writing end", "a socket", "an empty file", "another file", "a folder"]
OTHERS += ["a device", "a name only", "an image that can only be read", "an image that can only be named"]


def test_memory_that_holds_no_image(both, folder, tmp_path):
    """Whatever is sent in place of the memory: that save fails, nothing on disk is changed, the next one works."""
    before = seen(folder)
    for what in [*MEMORIES, *OTHERS]:
        with something(what, tmp_path) as fd:
            both.order(folder / "old", b"new", memory=fd)
            failed = both.hear_of_end()
        assert isinstance(failed, Failed), what
        assert str(folder / "old") in failed.message
        assert failed.outcome == "not_committed"
        assert "cannot save" in failed.message
        assert seen(folder) == before, what
    assert (tmp_path / "file").read_bytes() == b"x" * 3 * PAGE
    both.order(folder / "old", b"new")
    assert isinstance(both.hear_of_end(), Done)


@pytest.mark.parametrize("nbytes", [0, -1, -(1 << 63), 1, PAGE, 1 << 40, (1 << 63) - 1])
def test_an_image_of_another_size(trainer, folder, nbytes):
    """A size that is not the image's fails the save."""
    before = seen(folder)
    trainer.order(folder / "old", b"new", nbytes=nbytes)
    assert isinstance(trainer.hear_of_end(), Failed)
    assert seen(folder) == before


def test_targets_that_cannot_be_written(both, folder):
    """Folders that are gone, or none, and names that are too long fail their saves, with what the system says."""
    before = seen(folder)
    for path, number in {
        folder / "missing" / "new": 2,
        folder / "old" / "new": 20,
        folder / ("x" * 300): 36,
        folder / "inner": 21,
    }.items():
        both.order(path)
        failed = both.hear_of_end()
        assert isinstance(failed, Failed)
        assert failed.errno in {number, 39}, failed
        assert str(path) in failed.message
        assert seen(folder) == before
    both.order(folder / "new")
    assert isinstance(both.hear_of_end(), Done)


def test_a_path_as_long_as_a_message(both, folder):
    """A failure that is too long to be told in full is told all the same, and so is what comes after it."""
    both.order(folder / "missing" / "new", path="/" + "p" * (LONGEST - 1000))
    both.order(folder / "new")
    messages = kinds(both.rest())
    assert messages[-1] is Done
    assert Failed in messages


@pytest.mark.parametrize("what", ["a folder", "a device", "an empty file", "a name only", "a socket"])
def test_a_claim_that_is_none(both, folder, tmp_path, what):
    """What gives no byte gives no leave: nothing is written, and the next save is."""
    before = seen(folder)
    with something(what, tmp_path) as fd:
        claim = Claim()
        false = Claim((os.dup(fd), os.dup(claim._writing)))
        both.order(folder / "old", b"new", claim=false)
        both.order(tmp_path / "good")
        messages = both.rest()
        false.close()
        claim.close()
    assert seen(folder) == before
    assert kinds(messages) in ([Begun, Progress, Done], []), "it is passed over, or it ends the talk"


# Fuzz.

WHOLE = bytes(_image())
NBYTES = plan([("archive/data.pkl", 3)]).nbytes
WORDS = [-(1 << 63), -1, 0, 1, NBYTES - 1, PAGE, 1 << 40, (1 << 63) - 1]
NAMES = ["old", "new", "link", "inner", "..", "", "inner/old", "old\0", "x" * 300]


@st.composite
def words(draw, folder):
    """Return bytes and a number of descriptors: anything between noise and a save that is right."""
    rare = st.integers(0, 9).map(lambda number: number == 0)
    if draw(rare):
        return draw(st.binary(max_size=100)), draw(st.sampled_from([0, 1, 3]))
    if draw(rare):
        return encode(draw(st.sampled_from([Start(1, 1, ""), Ready(1), Log(1, "x"), Progress(1, 1)]))), 0
    data = encode(
        Save(
            draw(st.sampled_from([0, 1, -1, (1 << 63) - 1])),
            draw(st.sampled_from(WORDS)) if draw(rare) else NBYTES,
            draw(st.text(st.characters(codec="utf-8"), max_size=10)),
            str(folder) + draw(st.sampled_from(["", "", "", "", "/inner", "/missing", "/old", "\0"])),
            draw(st.sampled_from(NAMES)) if draw(rare) else "old",
            draw(st.booleans()),
            -1,
            draw(st.floats()),
            draw(st.floats()),
            draw(st.sampled_from([1, -1])) if draw(rare) else 0,
        )
    )
    if draw(rare):
        at = draw(st.integers(0, 1 << 16)) % len(data)
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + 1 :]
    return data, draw(st.sampled_from([0, 2, 4])) if draw(rare) else 3


BITS = st.lists(st.tuples(st.integers(PAGE, len(WHOLE) - 1), st.integers(0, 7)), max_size=2)
"""Which bits of an image's table are wrong."""


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(data=st.data())
def test_whatever_is_said(data, tmp_path_factory):
    """A service that is sent anything ends well; what it does not report as done has changed nothing on disk."""
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    (folder / "inner").mkdir()
    for name in ("old", "inner/old"):
        (folder / name).write_bytes(b"an old checkpoint")
    (folder / "link").symlink_to("old")
    before = seen(folder)
    told = data.draw(st.integers(0, 9)) > 0
    script = data.draw(st.lists(st.tuples(words(folder), BITS), min_size=1, max_size=6))
    earlier, writing = os.pipe()
    os.close(writing)  # that save has ended
    trainer = Trainer(start=told)
    with contextlib.ExitStack() as after:
        after.callback(os.close, earlier)
        for (said, count), bits in script:
            claim, pages = Claim(), SharedPages(2 * PAGE)
            after.callback(claim.close)
            after.callback(pages.close)
            pages.view[: len(WHOLE)] = WHOLE
            for at, bit in bits:
                pages.view[at] ^= 1 << bit
            trainer.push(said, [pages.descriptor, claim._reading, claim._writing, earlier][:count])
        messages = trainer.rest()
    trainer.close()
    assert all(isinstance(one, Ready | Begun | Progress | Done | Failed | Log) for one in messages)
    done, now = kinds(messages).count(Done), seen(folder)
    assert done or now == before
    changed = [path for path in map(Path, now) if before.get(str(path)) != now[str(path)]]
    assert sum(path.is_file() and not path.is_symlink() for path in changed) <= done
    assert not list(folder.rglob(".asyncsave-*"))
