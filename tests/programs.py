"""Small programs in processes of their own: how they exit, fork and die is what is tested.

:func:`run` starts a fresh interpreter. :class:`Template` starts one interpreter that has imported
torch (not asyncsave) and has no threads, and forks a program from it in milliseconds; such a program
returns, raises and exits like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import NamedTuple

__all__ = ["Child", "Result", "Template", "run", "serve"]

_HERE = Path(__file__).parent
_PATIENCE = 60.0


class Result(NamedTuple):
    """How a program ended. ``rc`` is negative for a signal, as in :mod:`subprocess`."""

    rc: int
    stdout: str
    stderr: str


def _environment() -> dict[str, str]:
    """Return this process's environment (coverage starts by it), with these tests on the path."""
    path = os.pathsep.join([str(_HERE.parent), str(_HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def run(source: str, *args: object, options: tuple[str, ...] = (), timeout: float = _PATIENCE) -> Result:
    """Run a program in a fresh interpreter; ``args`` are its ``sys.argv[1:]``."""
    command = [sys.executable, *options, "-c", textwrap.dedent(source), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=_environment())
    return Result(done.returncode, done.stdout, done.stderr)


class Child:
    """A program that was forked from a template.

    Attributes:
        pid: Its process.
    """

    def __init__(self, template: Template, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self._template = template
        self._out = out
        self._err = err

    def stdout(self) -> str:
        """Return what it has written so far."""
        return self._out.read_text(encoding="utf-8")

    def kill(self) -> None:
        """Kill it, now."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = _PATIENCE) -> Result:
        """Wait for its end; one that takes too long is killed, and that fails the test."""
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            with contextlib.suppress(ProcessLookupError):
                self.kill()

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            rc = int(self._template.answer())
        finally:
            timer.cancel()
            timer.join()
        result = Result(rc, self.stdout(), self._err.read_text(encoding="utf-8"))
        self._out.unlink()
        self._err.unlink()
        assert not overdue.is_set(), f"the program hung: {result}"
        return result


class Template:
    """An interpreter with torch imported, from which programs are forked, one at a time.

    Args:
        imports: What else it imports, without a word of warning.
    """

    def __init__(self, *imports: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="programs-")
        self._number = 0
        quiet = ("-W", "ignore") if imports else ()
        self._process = subprocess.Popen(
            [sys.executable, *quiet, "-c", f"import {', '.join([*imports, 'programs'])}; programs.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )

    def start(self, source: str, *args: object) -> Child:
        """Fork a program; ``args`` are its ``sys.argv[1:]``."""
        self._number += 1
        out, err = (Path(self._folder.name) / f"{self._number}.{kind}" for kind in ("out", "err"))
        request = [textwrap.dedent(source), list(map(str, args)), str(out), str(err), dict(os.environ)]
        assert self._process.stdin is not None
        out.touch()
        err.touch()
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Child(self, int(self.answer()), out, err)

    def run(self, source: str, *args: object, timeout: float = _PATIENCE) -> Result:
        """Run a program to its end."""
        return self.start(source, *args).wait(timeout)

    def answer(self) -> str:
        """Read a line: the process of a program that was started, or its exit code."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the template died"
        return line

    def close(self) -> None:
        """End the template."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_PATIENCE)
        self._process.stdout.close()
        self._folder.cleanup()


def serve() -> None:
    """Be a template: fork a program for every line of standard input, and say how it ended."""
    import aiofiles  # noqa: F401, PLC0415 - what asyncsave imports, made ready
    import psutil  # noqa: F401, PLC0415
    import torch  # noqa: F401, PLC0415
    from isal import isal_zlib  # noqa: F401, PLC0415

    for line in sys.stdin:
        source, args, out, err, environment = json.loads(line)
        pid = os.fork()
        if not pid:
            for path, fd in ((os.devnull, 0), (out, 1), (err, 2)):
                new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                os.dup2(new, fd)
                os.close(new)
            os.environ.update(environment)
            tempfile.tempdir = None  # it may be another one now
            sys.argv = ["program", *args]
            exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 - the test's own
            return
        print(pid, flush=True)  # noqa: T201 - the protocol
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201
