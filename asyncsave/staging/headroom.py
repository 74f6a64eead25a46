"""How much host memory may still be taken: the machine's, and every container's around us.

``psutil`` sees the machine alone. In a container the limit is the control group's, and a process that
believes the machine is killed without a word.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from asyncsave.cgroups import MOUNT, TABLE, control_groups

__all__ = ["headroom"]

_UNLIMITED = 1 << 60
_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Limit, usage, and the clean page cache in the statistics, by the version of the interface."""


def headroom(*, proc: str = TABLE, mount: str = MOUNT) -> int:
    """Return the bytes that can be allocated without pushing anything out of memory.

    The least of what the machine has available and what each memory control group above this
    process leaves (limit - usage + clean page cache), for version 1 and version 2 of the interface.

    Args:
        proc: The process's control groups, see cgroups(7).
        mount: Where the control groups are mounted.
    """
    groups = control_groups("memory", table=proc, mount=mount)
    found = (_left(group, *_NAMES[version]) for version, group in groups)
    return max(0, min([psutil.virtual_memory().available, *(left for left in found if left is not None)]))


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
