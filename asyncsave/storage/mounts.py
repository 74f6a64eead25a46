"""Whether a folder's file system can keep the promise of durability at all."""

from __future__ import annotations

import functools
import os
import re

__all__ = ["is_durable", "is_durable_on"]

_VOLATILE_TYPES = {"tmpfs", "ramfs", "devtmpfs", "rootfs"}


def is_durable(folder: str, *, mountinfo: str = "/proc/self/mountinfo") -> bool:
    """Tell whether a synced file in ``folder`` survives a power cut.

    False for file systems in memory, for an overlay mounted ``volatile`` (its syncs do nothing), and
    for file systems in user space (the kernel reports success where the daemon has no sync). True
    where the system does not say (no ``mountinfo``: macOS), and for everything else: a disk that
    lies about its cache cannot be told from one that does not.

    Args:
        folder: Absolute, symbolic links resolved.
        mountinfo: The kernel's table of mounts, see proc(5).
    """
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as table:
            lines = table.read().splitlines()
    except OSError:
        return True
    longest, kind, options = -1, "", ""
    for line in lines:
        mount, _, details = line.partition(" - ")
        point = _unescape(mount.split(" ")[4])
        if len(point) >= longest and _lies_in(folder, point):
            longest = len(point)
            kind, _, options = details.split(" ", 2)
    if kind == "overlay":
        return "volatile" not in options.split(",")
    return kind not in _VOLATILE_TYPES and not kind.startswith("fuse")


@functools.lru_cache(maxsize=256)
def is_durable_on(folder: str, device: int) -> bool:  # noqa: ARG001 - the device makes the answer stale
    """Answer :func:`is_durable` from memory, for as long as the folder lies on the same device."""
    return is_durable(folder)


def _lies_in(folder: str, point: str) -> bool:
    return folder == point or folder.startswith(point.rstrip(os.sep) + os.sep)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
