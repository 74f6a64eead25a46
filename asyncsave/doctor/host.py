"""The machine, and what of it this process may use: memory, limits, processors, clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from asyncsave.cores import cores
from asyncsave.doctor.check import Check, fine, unknown, wrong
from asyncsave.doctor.containers import CGROUPS, PROC, cpu_quota, memory_limit
from asyncsave.staging.headroom import headroom

try:
    import resource
except ImportError:  # no POSIX
    resource = None  # type: ignore[assignment]

__all__ = ["limits", "memory", "processors", "shared_memory", "timer"]

StatVFS = Callable[[str], Any]
_STATVFS: StatVFS | None = getattr(os, "statvfs", None)
_LEAST_MEMORY, _LEAST_SHM, _LEAST_FILE, _LEAST_FILES = 1 << 30, 1 << 30, 1 << 40, 512
_COARSEST_TIMER_NS = 1_000_000
_FEWEST, _BUSY = 2, 2.0
"""Processors for a training and its writer; runnable programs per processor from which on it is busy."""

_LIMITS = {
    "memlock_bytes": ("RLIMIT_MEMLOCK", 0, "asyncsave locks no memory."),
    "file_size_bytes": (
        "RLIMIT_FSIZE",
        _LEAST_FILE,
        "Lift the limit (ulimit -f unlimited): no checkpoint may be larger.",
    ),
    "open_files": ("RLIMIT_NOFILE", _LEAST_FILES, "Raise the limit (ulimit -n 4096): a training opens many files."),
}


def memory(*, proc: str = PROC, mount: str = CGROUPS, sys: str = "/sys") -> list[Check]:
    """Return ``memory_bytes``, ``memory_limit_bytes``, ``available_bytes``, ``swap_bytes`` and ``huge_pages``.

    Args:
        proc: The kernel's figures.
        mount: The control groups.
        sys: The kernel's settings.
    """
    limit = memory_limit(proc=proc, mount=mount)
    left = headroom(proc=os.path.join(proc, "self", "cgroup"), mount=mount)
    checks = [fine("memory_bytes", psutil.virtual_memory().total), fine("memory_limit_bytes", limit)]
    if left < _LEAST_MEMORY:
        remedy = "Give the container or the machine more memory: a save stages a whole checkpoint in it."
        checks.append(wrong("available_bytes", left, remedy))
    else:
        checks.append(fine("available_bytes", left))
    return [*checks, _swap(psutil.swap_memory), _huge_pages(sys)]


def _swap(ask: Callable[[], Any]) -> Check:
    try:
        found = ask()
    except (OSError, RuntimeError) as error:
        return unknown("swap_bytes", f"The system does not say what is swapped out ({error}).")
    if found.used > found.total / 2:
        remedy = "Free some memory: half the swap is in use, and a staged checkpoint that is swapped out is slow."
        return wrong("swap_bytes", found.used, remedy)
    return fine("swap_bytes", found.used)


def _huge_pages(sys: str) -> Check:
    try:
        text = Path(sys, "kernel", "mm", "transparent_hugepage", "enabled").read_text(encoding="ascii")
        chosen = text.partition("[")[2].partition("]")[0]
    except (OSError, ValueError):
        chosen = ""
    if not chosen:
        return unknown("huge_pages", "This system does not say whether it has transparent huge pages.")
    if chosen == "never":
        remedy = "Write madvise to /sys/kernel/mm/transparent_hugepage/enabled: a first save is several times as slow."
        return wrong("huge_pages", chosen, remedy)
    return fine("huge_pages", chosen)


def shared_memory(*, path: str = "/dev/shm", statvfs: StatVFS | None = _STATVFS) -> Check:  # noqa: S108 - not a file
    """Return ``shm_bytes``: the size of the shared memory, by which the workers of a ``DataLoader`` hand over batches.

    Args:
        path: Where it is.
        statvfs: The system call; None where there is none.
    """
    try:
        found = statvfs(path) if statvfs else None
    except OSError:
        found = None
    if found is None:
        return unknown("shm_bytes", "This system has no /dev/shm; asyncsave needs none.")
    nbytes = found.f_blocks * found.f_frsize
    if nbytes < _LEAST_SHM:
        remedy = "Start the container with --shm-size=8g: DataLoader workers need it (asyncsave itself does not)."
        return wrong("shm_bytes", nbytes, remedy)
    return fine("shm_bytes", nbytes)


def limits(*, ask: Callable[[str], int | None] | None = None) -> list[Check]:
    """Return ``memlock_bytes``, ``file_size_bytes`` and ``open_files``: what ``ulimit`` has set; None is no limit.

    Args:
        ask: Returns a limit by its name in :mod:`resource`; None: the system does.
    """
    checks = []
    for name, (limit, least, remedy) in _LIMITS.items():
        try:
            found = (ask or _limit)(limit)
        except (OSError, ValueError, AttributeError):
            checks.append(unknown(name, "This system has no such limit, or does not tell it."))
        else:
            enough = found is None or found >= least
            checks.append(fine(name, found) if enough else wrong(name, found, remedy))
    return checks


def _limit(name: str) -> int | None:
    found = resource.getrlimit(getattr(resource, name))[0]
    return None if found == resource.RLIM_INFINITY else int(found)


def processors(*, proc: str = PROC, mount: str = CGROUPS, load: Callable[[], Any] | None = None) -> list[Check]:
    """Return ``cpus``, ``affinity``, ``cpu_quota`` and ``load``.

    Args:
        proc: The kernel's figures.
        mount: The control groups.
        load: Returns the load averages; None: the system does.
    """
    usable, quota = cores(), cpu_quota(proc=proc, mount=mount)
    checks = [fine("cpus", os.cpu_count())]
    few = "Give the training two processors or more: with one, what is written in the background stops it."
    checks.append(fine("affinity", usable) if usable >= _FEWEST else wrong("affinity", usable, few))
    checks.append(fine("cpu_quota", quota) if quota is None or quota >= _FEWEST else wrong("cpu_quota", quota, few))
    try:
        busy = round((load or os.getloadavg)()[0], 2)
    except (OSError, AttributeError):
        return [*checks, unknown("load", "This system does not say how busy it is.")]
    if busy > _BUSY * min(usable, quota or usable):
        remedy = "Wait until other programs have ended before you measure: they take the processors."
        return [*checks, wrong("load", busy, remedy)]
    return [*checks, fine("load", busy)]


def timer(*, resolution: float | None = None) -> Check:
    """Return ``timer_ns``: the resolution of the clock by which everything is measured.

    Args:
        resolution: Seconds; None: that of this system.
    """
    seconds = time.get_clock_info("perf_counter").resolution if resolution is None else resolution
    found = max(1, round(seconds * 1e9))
    if found > _COARSEST_TIMER_NS:
        return wrong("timer_ns", found, "Measure elsewhere: this system's clock does not see a stall of a millisecond.")
    return fine("timer_ns", found)
