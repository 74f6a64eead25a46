"""Whether a folder's file system can keep the promise of durability at all."""

from __future__ import annotations

import functools
import os
import re

__all__ = ["IN_MEMORY", "file_system", "is_durable"]

_MOUNTINFO = "/proc/self/mountinfo"
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs", "rootfs"}
"""Types of file systems that a power cut empties."""


def is_durable(folder: str, *, mountinfo: str = _MOUNTINFO) -> bool:
    """Tell whether a synced file in ``folder`` survives a power cut.

    False for file systems in memory, for an overlay mounted ``volatile`` (its syncs do nothing), and
    for file systems in user space (the kernel reports success where the daemon has no sync). True
    where the system does not say (no ``mountinfo``: macOS), and for everything else: a disk that
    lies about its cache cannot be told from one that does not.

    Args:
        folder: Absolute, symbolic links resolved.
        mountinfo: The kernel's table of mounts, see proc(5).
    """
    kind, options = file_system(folder, mountinfo=mountinfo)
    if kind == "overlay":
        return "volatile" not in options.split(",")
    return kind not in IN_MEMORY and not kind.startswith("fuse")


def file_system(folder: str, *, mountinfo: str = _MOUNTINFO) -> tuple[str, str]:
    """Return the type of the file system that a folder lies on, and its options; ``""`` if unknown."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as table:
            return _look_up(table.read(), folder)
    except OSError:
        return "", ""


@functools.lru_cache(maxsize=64)
def _look_up(table: str, folder: str) -> tuple[str, str]:
    """Find the innermost mount that a folder lies in; remembered for as long as the table is the same."""
    longest, kind, options = -1, "", ""
    for line in table.splitlines():
        mount, _, details = line.partition(" - ")
        point = _unescape(mount.split(" ")[4])
        if len(point) >= longest and _lies_in(folder, point):
            longest = len(point)
            kind, _, options = details.split(" ", 2)
    return kind, options


def _lies_in(folder: str, point: str) -> bool:
    return folder == point or folder.startswith(point.rstrip(os.sep) + os.sep)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
