"""What a writer is told of its backend: a thread; or a process, its priority, and on which cores."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import psutil

from asyncsave.backends.child import Child
from asyncsave.backends.contract import BackendFactory
from asyncsave.backends.process import ProcessBackend
from asyncsave.backends.thread import ThreadBackend
from asyncsave.errors import OptionError
from asyncsave.options import core_numbers, one_of, whole_number
from asyncsave.storage.system import System

__all__ = ["BackendName", "IoPriority", "WriterProcess", "WriterThread", "backend_factory"]

BackendName = Literal["thread", "process"]
IoPriority = Literal["low", "idle"]

_LOWEST, _HIGHEST = 19, -20


@dataclass(frozen=True, slots=True)
class WriterProcess:
    """Settings of a writer process, for ``Writer(backend=WriterProcess(nice=10))``.

    ``Writer(backend="process")`` takes the defaults: the process runs like the training.

    Args:
        nice: Its CPU priority, from 19 (gives way to everybody) to -20; below 0 only the administrator may.
        ionice: Its priority at the disk: ``"low"``; ``"idle"``: only when nobody else wants the disk, so a
            save may take for ever on a busy one; None: as the training's. Linux only, and only some
            schedulers of the kernel look at it.
        cpu_affinity: Numbers of the cores that it may use; None: all that the training may use. Linux only.

    Raises:
        OptionError: An argument makes no sense. What this system refuses is raised by the writer.
    """

    nice: int = 0
    ionice: IoPriority | None = None
    cpu_affinity: Iterable[int] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        whole_number("nice", self.nice, _HIGHEST, _LOWEST)
        if self.ionice is not None:
            one_of("ionice", self.ionice, IoPriority)
        if self.cpu_affinity is not None:
            cores = core_numbers("cpu_affinity", self.cpu_affinity)
            object.__setattr__(self, "cpu_affinity", cores)  # an iterator can be read once

    def start(self, threads: int) -> ProcessBackend:
        """Start a process that writes so many blocks at once."""
        return ProcessBackend(threads, functools.partial(Child, threads, self._prepare))

    def _prepare(self, process: psutil.Process) -> None:
        try:
            if self.nice:
                process.nice(self.nice)
            if self.ionice == "low":
                process.ionice(psutil.IOPRIO_CLASS_BE, 7)
            elif self.ionice == "idle":
                process.ionice(psutil.IOPRIO_CLASS_IDLE)
            if self.cpu_affinity is not None:
                process.cpu_affinity(list(self.cpu_affinity))
        except psutil.NoSuchProcess:
            raise
        except (psutil.Error, OSError, ValueError, AttributeError) as error:
            raise OptionError(f"this system does not let the writer process have {self}: {error}") from error


@dataclass(frozen=True, slots=True)
class WriterThread:
    """Settings of a backend in this process.

    Args:
        system: The operating system.
    """

    system: System = field(default_factory=System)

    def start(self, threads: int) -> ThreadBackend:
        """Start a thread that has so many blocks written at once."""
        return ThreadBackend(self.system, threads)


def backend_factory(backend: BackendName | BackendFactory) -> BackendFactory:
    """Return the settings that a name stands for, or those that were given.

    Raises:
        OptionError: It is neither.
    """
    if isinstance(backend, str):
        one_of("backend", backend, BackendName)
        return WriterProcess() if backend == "process" else WriterThread()
    if isinstance(backend, type) or not callable(getattr(backend, "start", None)):
        raise OptionError(f'backend must be "thread", "process" or a WriterProcess, not {backend!r}')
    return backend
