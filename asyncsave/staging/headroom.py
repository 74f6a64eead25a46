"""How much host memory may still be taken: the machine's, and every container's around us.

``psutil`` sees the machine alone. In a container the limit is the control group's, and a process that
believes the machine is killed without a word.
"""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["headroom"]

_UNLIMITED = 1 << 60


def headroom(*, proc: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> int:
    """Return the bytes that can be allocated without pushing anything out of memory.

    The least of what the machine has available and what each memory control group above this
    process leaves (limit - usage + clean page cache), for version 1 and version 2 of the interface.

    Args:
        proc: The process's control groups, see cgroups(7).
        mount: Where the control groups are mounted.
    """
    limits = [psutil.virtual_memory().available]
    try:
        lines = Path(proc).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            limits += _ancestry(Path(mount), path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            limits += _ancestry(Path(mount) / "memory", path, names)
    return max(0, min(limits))


def _ancestry(root: Path, path: str, names: tuple[str, str, str]) -> list[int]:
    """Return what each group from ``path`` up to the root leaves.

    Inside a container the path may be one that only the host knows; the root there is the
    container's own group, so it counts whatever the path says.
    """
    group = root / path.lstrip("/")
    groups = [group, *group.parents]
    found = (_left(member, *names) for member in groups[: groups.index(root) + 1])
    return [left for left in found if left is not None]


def _left(group: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    try:
        limit = (group / limit_name).read_text(encoding="ascii").strip()
        if limit == "max" or int(limit) >= _UNLIMITED:
            return None
        usage = int((group / usage_name).read_text(encoding="ascii"))
        rows = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    cache = next((int(row.split()[1]) for row in rows if row.startswith(f"{cache_name} ")), 0)
    return int(limit) - usage + cache
