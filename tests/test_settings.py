"""What a writer is told of its process: nonsense is refused, what the system refuses is said, the rest is so."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.spawn
import os
import re
import resource
import socket
import sys
from pathlib import Path

import psutil
import pytest
import torch

import asyncsave
from asyncsave import OptionError, Writer, WriterDiedError, WriterProcess

PATIENCE = 30.0
STATE = {"x": torch.arange(1000)}


def tasks(writer):
    """Return the threads of a writer's process, once it is ready and has all of them."""
    writer._backend.warmup()
    found = sorted(int(task.name) for task in Path(f"/proc/{writer._backend._child.pid}/task").iterdir())
    assert len(found) >= 3
    return found


def saves(writer, path):
    """Tell whether a writer works."""
    return writer.save(STATE, path).result(PATIENCE).nbytes > 0 and asyncsave.verify(path).ok


# What makes no sense.


@pytest.mark.parametrize("nice", [-21, 20, 1.0, "10", None, True, 1 << 70])
def test_nice_that_is_none(nice):
    """A CPU priority is a whole number from -20 to 19."""
    with pytest.raises(OptionError, match="nice must be a whole number from -20 to 19"):
        WriterProcess(nice=nice)


@pytest.mark.parametrize("ionice", ["high", "", 7, True, ["low"]])
def test_ionice_that_is_none(ionice):
    """A priority at the disk is low or idle."""
    with pytest.raises(OptionError, match="ionice must be one of 'low', 'idle'"):
        WriterProcess(ionice=ionice)


@pytest.mark.parametrize("cores", [[], (), "0", "01", 0, [-1], [0.0], ["0"], [None], [True]])
def test_cores_that_are_none(cores):
    """Cores are a list of numbers, at least one."""
    with pytest.raises(OptionError, match="cpu_affinity must be numbers of processors"):
        WriterProcess(cpu_affinity=cores)


def test_options_have_names():
    """Nothing is said by position but in the order that is documented, and nothing else is known."""
    with pytest.raises(TypeError, match="priority"):
        WriterProcess(priority=3)
    settings = WriterProcess(nice=3, ionice="low", cpu_affinity=[0])
    assert repr(settings) == "WriterProcess(nice=3, ionice='low', cpu_affinity=[0])"
    with pytest.raises(AttributeError):
        settings.nice = 5


@pytest.mark.parametrize("backend", ["fork", "Process", "", None, 3, True, object(), [], WriterProcess, Writer])
def test_backends_that_are_none(backend):
    """The name of a backend, or settings: anything else is refused, a class in place of its object too."""
    with pytest.raises(OptionError, match="backend"):
        Writer(backend=backend)


# What is asked for is so: in every thread, those that write the blocks too.


def test_the_defaults(tmp_path):
    """Without settings the process runs like the training."""
    here = psutil.Process()
    with Writer(backend=WriterProcess()) as writer:
        for task in tasks(writer):
            assert os.getpriority(os.PRIO_PROCESS, task) == here.nice()
            assert os.sched_getaffinity(task) == os.sched_getaffinity(0)
            assert psutil.Process(task).ionice() == here.ionice()
        assert saves(writer, tmp_path / "x")


@pytest.mark.parametrize("nice", [5, 19])
def test_nice(tmp_path, nice):
    """The CPU priority of every thread."""
    with Writer(backend=WriterProcess(nice=nice), threads=4) as writer:
        assert {os.getpriority(os.PRIO_PROCESS, task) for task in tasks(writer)} == {nice}
        assert saves(writer, tmp_path / "x")
    assert psutil.Process().nice() == 0


@pytest.mark.parametrize(("ionice", "expected"), [("low", (2, 7)), ("idle", (3, 0))])
def test_ionice(tmp_path, ionice, expected):
    """The priority of every thread at the disk."""
    before = psutil.Process().ionice()
    with Writer(backend=WriterProcess(ionice=ionice), threads=4) as writer:
        assert {tuple(map(int, psutil.Process(task).ionice())) for task in tasks(writer)} == {expected}
        assert saves(writer, tmp_path / "x")
    assert psutil.Process().ionice() == before


@pytest.mark.parametrize("kind", [list, tuple, set, iter])
def test_cores(tmp_path, kind):
    """The cores of every thread, in whatever they are listed."""
    core = max(os.sched_getaffinity(0))
    with Writer(backend=WriterProcess(cpu_affinity=kind([core])), threads=4) as writer:
        assert {frozenset(os.sched_getaffinity(task)) for task in tasks(writer)} == {frozenset({core})}
        assert saves(writer, tmp_path / "x")


def test_the_next_process_has_them_too(tmp_path):
    """A process that takes a dead one's place runs at the same priority."""
    with Writer(backend=WriterProcess(nice=7, ionice="low"), threads=2) as writer:
        first = tasks(writer)[0]
        os.kill(first, 9)
        assert saves(writer, tmp_path / "x")
        second = tasks(writer)
        assert first not in second
        assert {os.getpriority(os.PRIO_PROCESS, task) for task in second} == {7}
        assert {int(psutil.Process(task).ionice().value) for task in second} == {7}


def test_one_setting_for_many_writers(tmp_path):
    """Settings are values: two writers made of the same have a process each."""
    settings = WriterProcess(nice=3)
    with Writer(backend=settings) as one, Writer(backend=settings) as other:
        assert tasks(one)[0] != tasks(other)[0]
        assert saves(one, tmp_path / "1")
        assert saves(other, tmp_path / "2")


# What the system refuses, or cannot do. No process is left, and no thread: the fixture looks.


@pytest.mark.parametrize("core", [4000, 60000])
def test_a_core_that_does_not_exist(core):
    """It is an error of the writer, which names the setting."""
    with pytest.raises(OptionError, match=r"does not let the writer process have .*cpu_affinity"):
        Writer(backend=WriterProcess(cpu_affinity=[core]))


def test_a_priority_that_only_the_administrator_may_have():
    """The system's refusal is an error of the writer, for who is nobody special."""
    if os.geteuid() == 0:
        pytest.skip("the administrator may have any priority")
    with pytest.raises(OptionError, match=r"nice=-5.*[Pp]ermi|access"):
        Writer(backend=WriterProcess(nice=-5))


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), OSError(errno.EPERM, "no"), AttributeError("ionice")])
def test_whatever_the_system_says(monkeypatch, error):
    """A setting that this system refuses, or does not know (macOS), is an error that names it."""

    def refuse(*_):
        raise error

    monkeypatch.setattr(psutil.Process, "ionice", refuse)
    with pytest.raises(OptionError, match="does not let the writer process have") as raised:
        Writer(backend=WriterProcess(ionice="idle"))
    assert raised.value.__cause__ is error


@pytest.fixture
def executable():
    """Restore the interpreter that multiprocessing uses."""
    before = multiprocessing.spawn.get_executable()
    yield
    multiprocessing.set_executable(before)


def test_a_frozen_program(monkeypatch):
    """A program that has no interpreter cannot have a process, and is told what to use instead."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(OptionError, match='backend="thread"'):
        Writer(backend="process")


def test_a_program_without_an_interpreter(executable):
    """The same where Python is embedded and knows no executable."""
    multiprocessing.set_executable("")
    with pytest.raises(OptionError, match="set_executable"):
        Writer(backend="process")


@pytest.mark.parametrize("frozen", [False, True])
def test_an_interpreter_that_was_named(monkeypatch, executable, tmp_path, frozen):
    """What multiprocessing was told is used, in a frozen program too."""
    if frozen:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    program = tmp_path / "an interpreter"
    program.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/used"\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    multiprocessing.set_executable(str(program))
    with Writer(backend="process") as writer:
        assert saves(writer, tmp_path / "x")
    assert (tmp_path / "used").read_text(encoding="utf-8") == "-m asyncsave.service\n"


@pytest.mark.parametrize("what", ["missing", "a folder", "no program"])
def test_an_interpreter_that_cannot_be_run(executable, tmp_path, what):
    """It is said at once, with what to use instead."""
    program = tmp_path / "interpreter"
    if what == "a folder":
        program.mkdir()
    elif what == "no program":
        program.write_bytes(b"\x7fELF")
        program.chmod(0o755)
    multiprocessing.set_executable(str(program))
    with pytest.raises(WriterDiedError, match=r'cannot be started: .*backend="thread" needs none'):
        Writer(backend="process")


# What the program does around it.


def test_a_program_with_a_default_timeout(tmp_path):
    """A training that gives its downloads a timeout (socket.setdefaulttimeout) gives none to the talk.

    An end that does not block loses what it has to say as soon as the socket is full.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10.0)
    try:
        with Writer(backend="process") as writer:
            assert saves(writer, tmp_path / "x")
            assert os.get_blocking(writer._backend._child.fileno())
            assert _sockets_block(writer._backend._child.pid)
    finally:
        socket.setdefaulttimeout(before)


def _sockets_block(pid):
    """Tell whether all sockets of a process block."""
    flags = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if str(fd.readlink()).startswith("socket:"):
            info = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text(encoding="ascii")
            flags.append(int(re.search(r"flags:\s+(\d+)", info)[1], 8))
    assert flags
    return not any(flag & os.O_NONBLOCK for flag in flags)


def test_a_program_with_many_open_files(tmp_path):
    """A training that has thousands of files open saves like any other."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 4096:
        pytest.skip(f"this system allows {limits[1]} open files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(4096, limits[0]), limits[1]))
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with Writer(backend="process") as writer:
            assert saves(writer, tmp_path / "1")
            os.kill(writer._backend._child.pid, 9)
            assert saves(writer, tmp_path / "2")
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
