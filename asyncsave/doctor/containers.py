"""The limits of the control groups around this process: what a container may use of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from asyncsave.cgroups import MOUNT, control_groups

__all__ = ["CGROUPS", "PROC", "cpu_quota", "memory_limit"]

PROC, CGROUPS = "/proc", MOUNT
_UNLIMITED = 1 << 60


def memory_limit(*, proc: str = PROC, mount: str = CGROUPS) -> int | None:
    """Return the bytes of the tightest group; None without a limit.

    Args:
        proc: Where the kernel says which groups this process is in.
        mount: Where the groups are.
    """

    def second(group: Path) -> float:
        return _whole((group / "memory.max").read_text(encoding="ascii"))

    def first(group: Path) -> float:
        return _whole((group / "memory.limit_in_bytes").read_text(encoding="ascii"))

    found = _tightest("memory", first, second, proc, mount)
    return None if found is None or found >= _UNLIMITED else int(found)


def cpu_quota(*, proc: str = PROC, mount: str = CGROUPS) -> float | None:
    """Return how many processors' time the tightest group allows, as 1.5; None without a quota.

    Args:
        proc: Where the kernel says which groups this process is in.
        mount: Where the groups are.
    """

    def second(group: Path) -> float:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return _whole(quota) / _whole(period)

    def first(group: Path) -> float:
        quota = _whole((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        if quota < 0:
            return float("inf")
        return quota / _whole((group / "cpu.cfs_period_us").read_text(encoding="ascii"))

    found = _tightest("cpu", first, second, proc, mount)
    return None if found is None or found == float("inf") else round(found, 2)


def _whole(text: str) -> float:
    return float("inf") if text.strip() == "max" else float(int(text))


def _tightest(
    controller: str, first: Callable[[Path], float], second: Callable[[Path], float], proc: str, mount: str
) -> float | None:
    """Return the least of what each group says, by version 1 or 2 of the interface; None if none says anything."""
    found = []
    for version, group in control_groups(controller, table=os.path.join(proc, "self", "cgroup"), mount=mount):
        try:
            found.append((first if version == 1 else second)(group))
        except (OSError, ValueError, ZeroDivisionError):
            continue  # the root of version 2 says nothing, and a group may be gone by now
    return min(found, default=None)
