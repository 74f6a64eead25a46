"""The system calls of this package, in one object that is passed in.

Fault sweeps, recorded traces and planted bugs are subclasses of :class:`System` in the tests; the
code that runs in production has no hooks of its own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import signal
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["System"]

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}


def _libc_function(name: str, *argtypes: Any) -> Callable[..., int] | None:
    """Return a function of Linux's C library that Python does not offer, or None."""
    if not sys.platform.startswith("linux"):
        return None
    function: Any = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is not None:
        function.argtypes = argtypes
        function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


# Not posix_fallocate: where a file system has no allocation, glibc's writes zeros through the page
# cache instead, at the cost of a second save.
_fallocate = _libc_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _libc_function("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2
_renameat2 = _libc_function("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_RENAME_EXCHANGE = 2
_F_FULLFSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


class System:
    """The operating system, as far as this package uses it. Every method may raise ``OSError``.

    Python itself retries calls that a signal interrupted (PEP 475).
    """

    def open(self, path: str, flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
        """Open a file, close-on-exec."""
        return os.open(path, flags, mode, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def duplicate(self, fd: int) -> int:
        """Return a second descriptor of the same open file."""
        return os.dup(fd)

    def fstat(self, fd: int) -> os.stat_result:
        """Describe an open file."""
        return os.fstat(fd)

    def stat(self, path: str, *, dir_fd: int | None = None) -> os.stat_result:
        """Describe what a name stands for, without following a link."""
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    def listdir(self, fd: int) -> list[str]:
        """List an open folder."""
        return os.listdir(fd)

    def chmod(self, fd: int, mode: int) -> None:
        """Set the mode bits of an open file."""
        os.fchmod(fd, mode)

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        """Take the lock of an open file or folder, exclusive or shared; False if somebody else's lock forbids it."""
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def allocate(self, fd: int, nbytes: int) -> None:
        """Reserve the blocks of a file, where the file system can; do nothing where it cannot."""
        if _fallocate is None:
            return
        while _fallocate(fd, 0, 0, nbytes):
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                return
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    def set_direct(self, fd: int, *, direct: bool) -> bool:
        """Switch direct I/O of an open file on or off; tell whether it is as asked."""
        flag = getattr(os, "O_DIRECT", 0)
        if not flag:
            return not direct
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | flag if direct else flags & ~flag)
        except OSError:
            return False
        return True

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Write at an offset; return how many bytes were written, possibly fewer than given."""
        return os.pwrite(fd, data, offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Read from an offset; return how many bytes were read, possibly fewer than asked."""
        return os.preadv(fd, [buffer], offset)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Set a file's size."""
        os.ftruncate(fd, nbytes)

    def fsync(self, fd: int) -> None:
        """Flush a file or folder to the medium (on macOS, past the drive's own cache)."""
        if _F_FULLFSYNC is not None:
            fcntl.fcntl(fd, _F_FULLFSYNC)
        else:
            os.fsync(fd)

    def write_back(self, fd: int) -> None:
        """Let the kernel begin to write a file's pages, where it can be told to; the flush of many is quicker then."""
        if _sync_file_range is not None:
            _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)  # a hint: what fails is found by the flush

    def uncache(self, fd: int) -> None:
        """Ask that a file's clean pages leave the page cache, so that reads come from the disk."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, source: str, target: str, *, dir_fd: int, target_dir_fd: int | None = None) -> None:
        """Give a file or folder another name, there or in another folder, replacing what had that name."""
        os.rename(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd if target_dir_fd is None else target_dir_fd)

    def mkdir(self, name: str, *, dir_fd: int | None = None) -> None:
        """Make a folder."""
        os.mkdir(name, dir_fd=dir_fd)

    def rmdir(self, name: str, *, dir_fd: int | None = None) -> None:
        """Remove an empty folder."""
        os.rmdir(name, dir_fd=dir_fd)

    def exchange(self, first: str, second: str, *, dir_fd: int) -> bool:
        """Swap two names of one folder in one step; False where the system cannot."""
        if _renameat2 is None:
            return False
        if _renameat2(dir_fd, os.fsencode(first), dir_fd, os.fsencode(second), _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                return False
            raise OSError(number, os.strerror(number), first)
        return True

    def is_unshared(self, fd: int) -> bool:
        """Tell whether nobody else has the file open or mapped; False where that cannot be known.

        See fcntl(2): a write lease is granted exactly then. It is given back at once; should somebody
        open the file in between, the signal that says so is one that is ignored by default.
        """
        if not hasattr(fcntl, "F_SETLEASE"):
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return False
        return True

    def has_attributes(self, fd: int) -> bool:
        """Tell whether a file has extended attributes (an access list among them) of its own."""
        if not hasattr(os, "listxattr"):
            return False
        try:
            return any(name != "security.selinux" for name in os.listxattr(fd))
        except OSError:
            return False  # the file system knows none

    def unlink(self, name: str, *, dir_fd: int | None = None) -> None:
        """Remove a name from a folder."""
        os.unlink(name, dir_fd=dir_fd)

    def token(self) -> str:
        """Return 64 random bits, in hexadecimal; never the same in a forked child."""
        return secrets.token_hex(8)
