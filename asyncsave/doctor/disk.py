"""The file system of a folder: what it is, whether it keeps what is flushed, and how much fits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from asyncsave.doctor.check import Check, fine, unknown, wrong
from asyncsave.storage.mounts import IN_MEMORY, file_system, is_durable

__all__ = ["kind_of", "mount", "room"]

StatVFS = Callable[[str], Any]
_STATVFS: StatVFS | None = getattr(os, "statvfs", None)
_LEAST_BYTES, _LEAST_INODES = 1 << 30, 1000
_HOST = {"9p", "virtiofs", "vboxsf"}
_NETWORK = {"afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs"}
_NETWORK |= {"panfs", "pvfs2", "smb3", "smbfs", "wekafs"}
_CLUSTER = {"gfs2", "ocfs2"}


def kind_of(name: str) -> str:
    """Say where a file system of this type has its bytes.

    Returns:
        ``"memory"``, ``"overlay"`` (a container's own layer), ``"user space"`` (FUSE), ``"network"``, ``"host"`` (that
        of a virtual machine) or ``"disk"``.
    """
    if name.startswith("fuse"):
        return "user space"
    if name in IN_MEMORY:
        return "memory"
    if name in _NETWORK | _CLUSTER:
        return "network"
    if name in _HOST:
        return "host"
    return "overlay" if name == "overlay" else "disk"


def mount(folder: str, *, mountinfo: str = "/proc/self/mountinfo") -> list[Check]:
    """Return ``file_system``, ``location`` and ``durable``.

    Args:
        folder: Absolute, symbolic links resolved.
        mountinfo: The kernel's table of mounts.
    """
    name, _ = file_system(folder, mountinfo=mountinfo)
    if not name:
        why = "This system has no table of mounts: look the file system up by hand."
        return [unknown(one, why) for one in ("file_system", "location", "durable")]
    checks = [fine("file_system", name)]
    kind = kind_of(name)
    if kind == "overlay":
        remedy = "Mount a volume and save there: what is in a container's own layer goes when the container goes."
        checks.append(wrong("location", kind, remedy))
    else:
        checks.append(fine("location", kind))
    if is_durable(folder, mountinfo=mountinfo):
        checks.append(fine("durable", value=True))
    else:
        where = {"memory": "this one is memory", "overlay": "this overlay is mounted as volatile"}
        why = where.get(kind, "what a flush does here is up to a program in user space")
        checks.append(wrong("durable", value=False, remedy=f"Save to a file system on a disk, as ext4 or xfs: {why}."))
    return checks


def room(folder: str, *, statvfs: StatVFS | None = _STATVFS) -> list[Check]:
    """Return ``free_bytes`` and ``free_inodes``: what a user without privileges still gets.

    Args:
        folder: The folder.
        statvfs: The system call; None where there is none.
    """
    why = "this system has no such call"
    if statvfs is not None:
        try:
            found = statvfs(folder)
            return [_free_bytes(found.f_bavail * found.f_frsize), _free_inodes(found.f_files, found.f_favail)]
        except OSError as error:
            why = error.strerror or str(error)
    names = ("free_bytes", "free_inodes")
    return [unknown(name, f"The file system does not say how much is free ({why}).") for name in names]


def _free_bytes(free: int) -> Check:
    if free < _LEAST_BYTES:
        remedy = "Free some space, or save to a larger disk: each save needs room for a whole checkpoint more."
        return wrong("free_bytes", free, remedy)
    return fine("free_bytes", free)


def _free_inodes(total: int, free: int) -> Check:
    if not total:  # as on btrfs: they are made when they are needed
        return fine("free_inodes", None)
    if free < _LEAST_INODES:
        return wrong("free_inodes", free, "Remove small files: the file system has hardly a name left for a new one.")
    return fine("free_inodes", free)
