"""Where the writer process runs: beside any kind of program, in any folder, at any terminal; with nothing of theirs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from processes import Trainer, Watched, arenas, descriptors, nobody_is_left, numbers_in, services, until

import asyncsave

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd_open")

PACKAGES = [str(pathlib.Path(module.__file__).parents[1]) for module in (torch, asyncsave)]
"""Where an interpreter finds torch and asyncsave that has neither."""

SCRIPT = """
import logging, os, sys
import torch, asyncsave
folder = os.environ["TMPDIR"] + "/saved"
logging.basicConfig(level=logging.INFO)
writer = asyncsave.Writer(backend="process")
handle = writer.save({"number": 1, "x": torch.ones(1000)}, folder + "/file")
print("durable:", handle.result(30).durable)
writer.close()
"""


SAVE = """
def save():
    with asyncsave.Writer(backend="process") as writer:
        handle = writer.save(state(1), folder / "file")
        assert handle.result(30).durable

"""


def interpret(*options: str, cwd: pathlib.Path, path: list[str], stdin: str = "") -> None:
    """Run ``SCRIPT`` in an interpreter outside any virtual environment; it must save, and end without a word."""
    command = [getattr(sys, "_base_executable", sys.executable), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "durable: True"), done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip(" >.")]
    assert len(said) == 1, said
    assert "is ready; left alone it logs to" in said[0]
    assert numbers_in(cwd / "saved") == {"file": 1}
    assert not services(cwd)


def test_a_script_on_standard_input(folder):
    """``python -`` has no file, and packages that only PYTHONPATH knows are found; no guard is needed."""
    interpret("-", cwd=folder.parent, path=PACKAGES, stdin=SCRIPT)


def test_an_interactive_interpreter(folder):
    """``python -i`` works line by line."""
    interpret("-i", "-q", cwd=folder.parent, path=PACKAGES, stdin=SCRIPT)


def test_a_zip_application(folder):
    """``python app.pyz`` works, the package being where only the program itself looks."""
    with zipfile.ZipFile(folder.parent / "app.pyz", "w") as file:
        file.writestr("__main__.py", f"import sys\nsys.path[:0] = {PACKAGES}\n" + SCRIPT)
    interpret("app.pyz", cwd=folder.parent, path=[])


def test_a_package_inside_a_zip_file(folder):
    """The package itself may lie in a zip file."""
    with zipfile.ZipFile(folder.parent / "app.pyz", "w") as file:
        for source in pathlib.Path(asyncsave.__file__).parent.rglob("*.py"):
            file.write(source, source.relative_to(pathlib.Path(asyncsave.__file__).parents[1]))
        file.writestr("__main__.py", SCRIPT)
    interpret("app.pyz", cwd=folder.parent, path=PACKAGES[:1])


def test_relative_paths_and_a_folder_that_is_left(folder):
    """Entries of ``sys.path`` may be relative to a folder that is another one by the time a process is started."""
    for name, path in zip(("torch", "asyncsave"), PACKAGES, strict=True):
        (folder.parent / f"with_{name}").symlink_to(path)
    names = ["with_torch", "with_asyncsave"]
    script = f"import os, sys\nsys.path[:0] = {names}\nimport torch, asyncsave\nos.chdir('/')\n" + SCRIPT
    (folder.parent / "program.py").write_text(script, encoding="utf-8")
    interpret("program.py", cwd=folder.parent, path=[])


@pytest.mark.parametrize(
    "program",
    [
        """
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
        """,
        """
        import asyncio
        async def main():
            exec("save()", {"save": save})
        asyncio.run(main())
        """,
        """
        (folder.parent / "left").mkdir()
        os.chdir(folder.parent / "left")
        (folder.parent / "left").rmdir()
        save()
        """,
        """
        for fd in range(3):
            os.close(fd)
        save()
        """,
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        save()
        """,
        """
        def reap(*_):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.signal(signal.SIGCHLD, reap)
        try:
            save()
        except ChildProcessError:
            pass
        """,
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        save()
        """,
        """
        os.environ["PYTHONINSPECT"] = "1"
        save()
        """,
    ],
    ids=["thread", "notebook", "no folder", "no streams", "no SIGCHLD", "reaper", "no signals", "PYTHONINSPECT"],
)
def test_programs_of_any_kind(folder, template, program):
    """A writer process works beside them, and ends with them."""
    with Trainer(template, SAVE + textwrap.dedent(program), folder) as trainer:
        done = trainer.wait()
    assert (done.rc, done.stderr) == (0, "")
    assert numbers_in(folder) == {"file": 1}
    assert not services(folder.parent)


def test_more_descriptors_than_select_takes(folder, template):
    """A trainer with more than a thousand open files can have a writer process, and lose it."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2000:
        pytest.skip("this system lets nobody open so many files")
    program = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    writer = asyncsave.Writer(backend="process", exit_timeout=5)
    assert writer.save(state(1), folder / "file").result(20).durable
    freeze(service_of(writer))
    handle = writer.save(state(2), folder / "file")
    os.kill(service_of(writer), signal.SIGKILL)
    assert handle.result(20).durable
    """
    with Trainer(template, program, folder) as trainer:
        done = trainer.wait()
    assert done.rc == 0, done.stderr
    assert numbers_in(folder) == {"file": 2}


def test_the_process_has_nothing_of_its_trainers(folder, template):
    """The root is its folder, its session is its own, it has no terminal, and no descriptor but its own."""
    program = """
    import socket
    os.chdir(folder.parent)
    open_file = open("inherited", "w")
    pair = socket.socketpair()
    for each in (open_file, *pair):
        os.set_inheritable(each.fileno(), True)
    writer = asyncsave.Writer(backend="process")
    writer.save(state(1), folder / "file").result()
    say("service", service_of(writer))
    pause()
    """
    expected = {os.devnull, "/memfd:asyncsave (deleted)", "anon_inode:[pidfd]", "socket"}

    def kinds(pid: int) -> set[str]:
        return {name.partition(":[")[0] if name.startswith("socket") else name for name in descriptors(pid)}

    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        process = pathlib.Path(f"/proc/{service.pid}")
        assert (process / "cwd").readlink() == pathlib.Path("/")
        _, session, terminal = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[2:5]
        assert (int(session), int(terminal)) == (service.pid, 0)
        assert os.getsid(service.pid) == service.pid
        until(lambda: kinds(service.pid) == expected, lambda: descriptors(service.pid))
        sockets = {name for name in descriptors(service.pid) if name.startswith("socket")}
        assert len(sockets) == 1
        assert not sockets & descriptors(trainer.pid)
        assert (process / "fd/0").readlink() == pathlib.Path(os.devnull)
        trainer.killed()
        assert service.has_ended()


def test_a_terminal_that_is_closed(folder, template):
    """The trainer dies of it, as programs do; what was staged lands."""
    master, slave = os.openpty()
    program = """
    os.setsid()
    terminal = os.open(sys.argv[2], os.O_RDWR)
    os.dup2(terminal, 0)
    writer = asyncsave.Writer(backend="process")
    say("service", service_of(writer))
    freeze(service_of(writer))
    writer.save(state(1), folder / "file")
    say("staged")
    pause()
    """
    with Trainer(template, program, folder, os.ttyname(slave)) as trainer, Watched(trainer) as service:
        trainer.heard("staged")
        os.close(slave)
        os.close(master)
        assert trainer.wait().rc == -signal.SIGHUP
        service.thaw()
        assert service.has_ended()
    assert numbers_in(folder) == {"file": 1}


FORKING = """
known = descriptors()
writer = asyncsave.Writer(backend="process")
service = service_of(writer)
say("service", service)
freeze(service)
handle = writer.save(state(1), folder / "file")
private = descriptors() - known
assert len(private) >= 4, private  # the memory, the socket, and a pipe each for the claim and the attendant

def child():
    maps = pathlib.Path("/proc/self/maps").read_text()
    assert not descriptors() & private, descriptors() & private
    assert "memfd:asyncsave" not in maps, maps
    assert len(os.listdir("/proc/self/task")) == 1
    for call in (lambda: writer.save(state(2), folder / "never"), lambda: writer.warmup(state(2))):
        try:
            call()
        except asyncsave.WriterClosedError as error:
            assert "fork" in str(error)
        else:
            raise AssertionError
    assert isinstance(handle.exception(0), asyncsave.WriterClosedError)
    writer.close(0)
    with asyncsave.Writer(backend="process") as own:
        assert service_of(own) != service
        assert own.save(state(3), folder / "own").result(30).durable
    say("lives", os.getpid())
    pause()
"""


@pytest.mark.parametrize(
    "fork",
    [
        """
        if not os.fork():
            child()
        """,
        """
        import multiprocessing
        multiprocessing.get_context("fork").Process(target=child).start()
        """,
        """
        from torch.utils.data import DataLoader
        iterator = iter(DataLoader(range(8), num_workers=1, worker_init_fn=lambda _: child()))
        """,
    ],
    ids=["os.fork", "multiprocessing", "DataLoader"],
)
def test_a_forked_child_that_lives_on(folder, template, fork):
    """It has nothing of the writer's, so when the trainer is killed the process ends, and its memory is free."""
    program = FORKING + textwrap.dedent(fork) + "pause()"
    with Trainer(template, program, folder) as trainer, Watched(trainer) as service:
        (child,) = trainer.heard("lives")
        with Watched(int(child)) as survivor:
            memory = arenas(trainer.pid)
            assert memory
            assert trainer.killed().rc == -9
            service.thaw()
            assert service.has_ended()
            assert not survivor.has_ended(0)
            processes = [entry.name for entry in pathlib.Path("/proc").iterdir() if entry.name.isdecimal()]
            assert not [pid for pid in processes if arenas(pid) & memory]
            survivor.send(signal.SIGKILL)
    assert numbers_in(folder) == {"file": 1, "own": 3}


def may_unshare(*what: str) -> pytest.MarkDecorator:
    """Return the mark of a test that needs namespaces of its own."""
    refused = True
    with contextlib.suppress(OSError):
        refused = bool(subprocess.run(["unshare", *what, "true"], capture_output=True, check=False).returncode)
    return pytest.mark.skipif(refused, reason=f"not allowed here: unshare {' '.join(what)}")


MOUNTS = """
import ctypes, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)

def mount(size, where):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], check=True)

"""


@may_unshare("-m")
def test_a_small_dev_shm(folder, template):
    """A state of 64 MiB is saved where ``/dev/shm`` has 1 MiB, as in a container."""
    program = """
mount("1m", "/dev/shm")
found = os.statvfs("/dev/shm")
assert found.f_blocks * found.f_frsize == 1 << 20
with asyncsave.Writer(backend="process") as writer:
    assert writer.save(state(1, 16 << 20), folder / "file").result(30).durable
"""
    with Trainer(template, MOUNTS + program, folder) as trainer:
        done = trainer.wait()
    assert (done.rc, done.stderr) == (0, "")
    assert numbers_in(folder) == {"file": 1}


@may_unshare("-m")
def test_the_trainers_folder_can_be_unmounted(folder, template):
    """The process keeps no file system busy: neither where it was started, nor where it has saved to."""
    program = """
for name in ("left", "target"):
    (folder.parent / name).mkdir()
    mount("9m", folder.parent / name)
os.chdir(folder.parent / "left")
writer = asyncsave.Writer(backend="process")
writer.save(state(1), folder.parent / "target" / "file").result(30)
assert writer.save(state(1), folder / "file").result(30).durable
os.chdir("/")
for name in ("left", "target"):
    subprocess.run(["umount", folder.parent / name], check=True)
assert writer.save(state(2), folder / "file").result(30).durable
"""
    with Trainer(template, MOUNTS + program, folder) as trainer:
        done = trainer.wait()
    assert (done.rc, done.stderr) == (0, "")
    assert numbers_in(folder) == {"file": 2}


@may_unshare("-pf", "--mount-proc")
def test_the_first_process_of_a_container_is_warned(folder):
    """When it ends the kernel ends all others: it is told so, and the process works."""
    command = ["unshare", "-pf", "--mount-proc", sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "durable: True"), done.stderr
    assert "WARNING:asyncsave:this process is number 1 of its container" in done.stderr
    assert numbers_in(folder) == {"file": 1}
    nobody_is_left(folder.parent)
