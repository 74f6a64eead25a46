"""Page-aligned memory, on huge pages where it is large enough: a process's own, or shared with another.

The first touch of fresh memory costs ten times as much as a later one, and on small pages ten times
as much as on huge ones (measured, docs/benchmarks.md). So what is about to be filled is touched
first, by whoever fills it, without the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import sys
import tempfile
import weakref
from typing import Any

from asyncsave import descriptors

__all__ = ["Pages", "SharedPages", "map_shared", "nameless_file"]

_HUGE = 2 << 20
_MADV_REMOVE, _MADV_DONTFORK, _MADV_HUGEPAGE, _MADV_POPULATE_WRITE, _MADV_COLLAPSE = 9, 10, 14, 23, 25
_UNKNOWN = {errno.EINVAL, errno.ENOSYS}
_NO_MEMFD = {errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL}

_libc: Any = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap = _libc.mmap, _libc.munmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_NOTHING, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value


def _madvise(address: int, nbytes: int, advice: int) -> int:
    """Give the kernel a hint, without the GIL; return its error number, 0 if it took it."""
    if not sys.platform.startswith("linux"):
        return errno.ENOSYS
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), advice):
        return ctypes.get_errno()
    return 0


class Pages:
    """A private anonymous mapping.

    Args:
        nbytes: Its size, a multiple of the page size.

    Attributes:
        address: Where it begins: on a huge page's boundary if it is as large as one.
        view: The same as a writable memoryview, which keeps the memory by itself.
        descriptor: By which it can be shared; -1: it cannot.

    Raises:
        OSError: The mapping was refused (address-space limit, overcommit).
    """

    descriptor = -1

    def __init__(self, nbytes: int) -> None:
        huge = nbytes >= _HUGE
        slack = _HUGE if huge else 0
        self._mapping = _Mapping(nbytes + slack, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        offset = -self._mapping.address % _HUGE if huge else 0
        self.address = self._mapping.address + offset
        self.view = self._mapping.view[offset : offset + nbytes]
        if huge:
            _madvise(self.address, nbytes, _MADV_HUGEPAGE)

    def touch(self, offset: int, nbytes: int) -> None:
        """Make some of it present, in one system call."""
        _madvise(self.address + offset, nbytes, _MADV_POPULATE_WRITE)

    def keep_from_children(self) -> None:
        """Leave it out of forked children.

        They would pay for its page tables, and this process for copies of its pages. In a child its
        addresses hold nothing, or by now something else: call :meth:`abandon` there.
        """
        _madvise(self._mapping.address, len(self._mapping.view), _MADV_DONTFORK)

    def abandon(self) -> None:
        """Never unmap it, in a forked child: that could take away another object's memory."""
        self._mapping.abandon()

    def close(self) -> None:
        """Give the memory back; who still has a part of the view keeps it all until then."""
        self.view.release()
        self._mapping.close()


class SharedPages(Pages):
    """A mapping that another process can have too: hand it :attr:`descriptor`.

    It lies in a memfd, which has no name, is not bounded by the size of ``/dev/shm``, and is freed by
    the kernel when the last process that holds it is gone, whatever ended it. Where there is none
    (macOS), it lies in a temporary file without a name. The file cannot be made smaller, so nobody who
    maps it can be killed by touching what is not there any more.

    Args:
        nbytes: Its size, a multiple of the page size.

    Raises:
        OSError: The mapping was refused, or there is not enough memory.
    """

    def __init__(self, nbytes: int) -> None:
        size = nbytes if nbytes < _HUGE else (nbytes + _HUGE - 1) & -_HUGE
        self.descriptor, self._in_memory = nameless_file()
        try:
            os.ftruncate(self.descriptor, size)
            if self._in_memory:
                fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._mapping = _Mapping(size, mmap.MAP_SHARED, self.descriptor)
        except BaseException:
            descriptors.drop(self.descriptor)
            raise
        self.address = self._mapping.address
        self.view = self._mapping.view[:nbytes]

    def touch(self, offset: int, nbytes: int) -> None:
        """Make some of it present, on huge pages if the kernel can (Linux 6.1).

        A memfd gets huge pages by the administrator's leave only, or by being *collapsed* onto them,
        which needs no leave but one page that is there (measured: five times as quick as small pages).

        Raises:
            OSError: There is not enough memory. A plain write would be answered by SIGBUS.
        """
        start = self.address + offset
        if self._in_memory and nbytes >= _HUGE:
            for page in range(start, start + nbytes, _HUGE):
                _madvise(page, mmap.PAGESIZE, _MADV_POPULATE_WRITE)
            _madvise(start, nbytes & -_HUGE, _MADV_COLLAPSE)
        number = _madvise(start, nbytes, _MADV_POPULATE_WRITE)
        if number in _UNKNOWN:  # before Linux 5.14, and elsewhere
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, offset, nbytes)
        elif number:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def abandon(self) -> None:
        """Never unmap it, in a forked child, where the descriptor is closed already."""
        super().abandon()
        self.descriptor = -1

    def close(self) -> None:
        """Give the memory back at once, even where another process still has the descriptor."""
        if self.descriptor < 0:
            return
        if self._in_memory:
            _madvise(self.address, len(self._mapping.view), _MADV_REMOVE)
        super().close()
        descriptors.drop(self.descriptor)
        self.descriptor = -1


class _Mapping:
    """What mmap(2) gives. Python's own mapping would keep a descriptor of its own, in forked children too.

    Args:
        nbytes: Its size.
        flags: As for mmap(2).
        fd: A file; -1: none.

    Attributes:
        address: Where it begins.
        view: The same as a writable memoryview; when it and its parts are gone, so is the mapping.
    """

    def __init__(self, nbytes: int, flags: int, fd: int = -1) -> None:
        huge = fd >= 0 and nbytes >= _HUGE and sys.platform.startswith("linux")
        address = _map_aligned(nbytes, flags, fd) if huge else _map(None, nbytes, flags, fd)
        self.address = address
        memory = (ctypes.c_char * nbytes).from_address(address)
        self._unmap = weakref.finalize(memory, _munmap, address, nbytes)
        self._unmap.atexit = False
        self.view = memoryview(memory).cast("B")

    def abandon(self) -> None:
        self._unmap.detach()

    def close(self) -> None:
        self.view.release()


def _map(address: int | None, nbytes: int, flags: int, fd: int, rights: int = _READ_WRITE) -> int:
    found: int | None = _mmap(address, nbytes, rights, flags, fd, 0)
    if found is None or found == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def _map_aligned(nbytes: int, flags: int, fd: int) -> int:
    """Map a file where a huge page can begin: the kernel does not look for such a place by itself.

    Elsewhere the memory has small pages for good (measured: written a third slower, closed a hundred
    times as slowly). So room for one huge page more is reserved, and what is not needed given back.
    """
    room = nbytes + _HUGE
    start = _map(None, room, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, _NOTHING)
    address = (start + _HUGE - 1) & -_HUGE
    try:
        _map(address, nbytes, flags | _MAP_FIXED, fd)
    except OSError:
        _munmap(start, room)
        raise
    end = address + ((nbytes + mmap.PAGESIZE - 1) & -mmap.PAGESIZE)
    for left, right in ((start, address), (end, start + room)):
        if left < right:
            _munmap(left, right - left)
    return address


def nameless_file() -> tuple[int, bool]:
    """Make an empty file without a name, which no forked child keeps; return it, and whether it lies in memory.

    Whoever makes it closes it with :func:`asyncsave.descriptors.drop`.
    """
    with descriptors.held_back():
        fd = _memfd()
        if fd is not None:
            return descriptors.keep(fd), True
        with tempfile.TemporaryFile(prefix="asyncsave-") as file:
            return descriptors.keep(os.dup(file.fileno())), False


def _memfd() -> int | None:
    """Make a file in memory; None where the system has none."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        return os.memfd_create("asyncsave", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno in _NO_MEMFD:
            return None
        raise


def map_shared(fd: int) -> memoryview:
    """Map all of the file behind a descriptor, for reading and writing; the descriptor may be closed then.

    Raises:
        OSError: It is no file that can be mapped, or it is empty.
    """
    return _Mapping(os.fstat(fd).st_size, mmap.MAP_SHARED, fd).view
