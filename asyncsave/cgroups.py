"""The control groups around this process, which bound what a container may use of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["MOUNT", "TABLE", "control_groups"]

TABLE, MOUNT = "/proc/self/cgroup", "/sys/fs/cgroup"


def control_groups(controller: str, *, table: str = TABLE, mount: str = MOUNT) -> Iterator[tuple[int, Path]]:
    """Yield each group that this process is in, up to the root, with the version of its interface, 1 or 2.

    Inside a container the path may be one that only the host knows; the root there is the container's own group, so it
    counts whatever the path says. Nothing is yielded where there are no control groups.

    Args:
        controller: What they control: ``"memory"`` or ``"cpu"``.
        table: The process's groups, see cgroups(7).
        mount: Where they are mounted.
    """
    try:
        lines = Path(table).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = Path(mount) / controller if controllers else Path(mount)
        group = root / path.lstrip("/")
        groups = [group, *group.parents]
        for one in groups[: groups.index(root) + 1]:
            yield (1 if controllers else 2), one
