"""What a folder's file system can do, tried there: nothing that it says of itself is believed."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable

from asyncsave import descriptors
from asyncsave.doctor.check import Check, fine, unknown, wrong
from asyncsave.doctor.scratch import Scratch
from asyncsave.memory import Pages, nameless_file
from asyncsave.storage.system import System

__all__ = ["ABILITIES", "IS_THERE", "abilities", "memfd"]

_PAGE = 4096
_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK}
_RESERVED = 1 << 20
_SKEW = 2.0
"""Seconds; less is the coarseness of time stamps, and of clocks that are held together over a network."""

_linux = sys.platform.startswith("linux")
IS_THERE = {
    "direct_io": hasattr(os, "O_DIRECT"),
    "fallocate": _linux,
    "rename_exchange": _linux,
    "lease": hasattr(fcntl, "F_SETLEASE"),
    "flock": True,
}
"""Whether this system has it at all, on whatever file system."""

_REMEDIES = {
    "direct_io": "Save to ext4 or xfs on a local disk: here saves go through the page cache and cost CPU time.",
    "fallocate": "Save to ext4, xfs or btrfs: here a full disk is found in the midst of a save, not before it.",
    "rename_exchange": "Save to ext4, xfs, btrfs or tmpfs: here a step that is replaced is away for a moment.",
    "lease": "Save to ext4 or xfs: here the blocks of a replaced file cannot be written over, at twice the speed.",
    "flock": "Mount the file system with locks: here nothing keeps two programs from one run's folder.",
}


def abilities(scratch: Scratch, system: System) -> list[Check]:
    """Try everything in :data:`ABILITIES`, in a scratch folder that is there; return a check for each.

    What the system has not at all is None, with a false value; what the file system refuses is False; what could not
    be tried (the disk is full, or broken) is None without a value.
    """
    return [_tried(name, trial, scratch, system) for name, trial in _TRIALS.items()] + [_clock(scratch, system)]


def memfd(*, make: Callable[[], tuple[int, bool]] = nameless_file) -> Check:
    """Try whether memory can be shared by a descriptor, without ``/dev/shm``.

    Args:
        make: Makes a file without a name, and tells whether it lies in memory.
    """
    try:
        fd, in_memory = make()
    except OSError as error:
        return wrong(
            "memfd", value=False, remedy=f"Free some descriptors or memory: none could be made ({error.strerror})."
        )
    descriptors.drop(fd)
    if in_memory:
        return fine("memfd", value=True)
    if not hasattr(os, "memfd_create"):
        return unknown("memfd", 'This system has none: backend="process" shares a temporary file instead.', value=False)
    remedy = 'Allow memfd_create in the container\'s seccomp profile: without it backend="process" writes a file.'
    return wrong("memfd", value=False, remedy=remedy)


def _tried(name: str, trial: Callable[[Scratch, System, int], bool], scratch: Scratch, system: System) -> Check:
    if not IS_THERE[name]:
        return unknown(name, "This system has no such call; saves do without.", value=False)
    try:
        fd = scratch.file(name)
        try:
            works = trial(scratch, system, fd)
        finally:
            system.close(fd)
    except OSError as error:
        return unknown(name, f"Look at this first, it could not be tried: {error.strerror or error}.")
    return fine(name, value=True) if works else wrong(name, value=False, remedy=_REMEDIES[name])


def _direct_io(_: Scratch, system: System, fd: int) -> bool:
    if not system.set_direct(fd, direct=True):
        return False
    pages = Pages(2 * _PAGE)
    try:
        written, read = pages.view[:_PAGE], pages.view[_PAGE:]
        written[:] = b"\xa5" * _PAGE
        try:  # some take the flag, and refuse the write
            if system.pwrite(fd, written, 0) != _PAGE or system.pread_into(fd, read, 0) != _PAGE:
                return False
        except OSError as error:
            if _is_refusal(error):
                return False
            raise
        return bytes(read) == bytes(written)
    finally:
        pages.close()


def _fallocate(_: Scratch, system: System, fd: int) -> bool:
    system.allocate(fd, _RESERVED)  # says nothing where the file system cannot
    found = system.fstat(fd)
    return found.st_size == _RESERVED and found.st_blocks * 512 >= _RESERVED


def _rename_exchange(scratch: Scratch, system: System, fd: int) -> bool:
    other_fd = scratch.file("other")
    try:
        if not system.exchange("rename_exchange", "other", dir_fd=scratch.fd):
            return False
        return os.path.samestat(system.stat("other", dir_fd=scratch.fd), system.fstat(fd))
    finally:
        system.close(other_fd)


def _lease(_: Scratch, system: System, fd: int) -> bool:
    return system.is_unshared(fd)


def _flock(scratch: Scratch, system: System, fd: int) -> bool:
    """Tell whether a lock is given, and keeps another opener out."""
    other_fd = system.open("flock", os.O_RDWR | os.O_CLOEXEC, dir_fd=scratch.fd)
    try:
        return system.lock(fd) and not system.lock(other_fd)
    except OSError as error:
        if _is_refusal(error):
            return False
        raise
    finally:
        system.close(other_fd)


_TRIALS = {
    "direct_io": _direct_io,
    "fallocate": _fallocate,
    "rename_exchange": _rename_exchange,
    "lease": _lease,
    "flock": _flock,
}
ABILITIES = (*_TRIALS, "clock_skew_s")


def _is_refusal(error: OSError) -> bool:
    """Tell "I cannot do such a thing" from "I have no room" and "I am broken"."""
    return error.errno in _REFUSALS


def _clock(scratch: Scratch, system: System) -> Check:
    """Hold the time stamps of the file system, another machine's perhaps, against this machine's clock."""
    try:
        fd = scratch.file("clock")
        try:
            skew = system.fstat(fd).st_mtime - time.time()
        finally:
            system.close(fd)
    except OSError as error:
        return unknown("clock_skew_s", f"Look at this first, it could not be tried: {error.strerror or error}.")
    if abs(skew) > _SKEW:
        remedy = "Synchronise the clocks (NTP): the file system's is another one than this machine's."
        return wrong("clock_skew_s", round(skew, 1), remedy)
    return fine("clock_skew_s", abs(round(skew, 1)))
