"""Where a checkpoint is to go: resolved and checked at the call, before anything is staged."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from asyncsave.errors import SaveError

__all__ = ["Target", "resolve", "umask"]


class Target(NamedTuple):
    """A file to be made or replaced.

    Attributes:
        path: As the caller named it, made absolute at the call.
        folder: The folder it really lies in, symbolic links followed.
        name: Its name in that folder.
    """

    path: str
    folder: str
    name: str

    @property
    def real(self) -> str:
        """The path with symbolic links followed: the same for every name of one target."""
        return os.path.join(self.folder, self.name)


def resolve(path: str) -> Target:
    """Check that a file can be made at ``path``, and say where that really is.

    A symbolic link is followed, so that the link stays and the file behind it is replaced.

    Raises:
        SaveError: With phase ``"target"``: the folder is missing or read-only, the target is a
            folder, a FIFO, a socket or a device, or its name is too long.
    """
    if not path or "\0" in path:
        raise _refused(path, errno.EINVAL, "a path is neither empty nor does it hold a null byte")
    absolute = os.path.abspath(path)
    if path.endswith(os.sep):
        raise _refused(absolute, errno.EISDIR, "the target is a folder; name a file in it")
    try:
        real = os.path.realpath(absolute)
        folder, name = os.path.split(real)
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            mode = os.lstat(real).st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG
    except (OSError, UnicodeError) as error:
        raise _unusable(absolute, error) from error
    if stat.S_ISDIR(mode):
        raise _refused(absolute, errno.EISDIR, "the target is a folder; name a file in it")
    if stat.S_ISLNK(mode):
        raise _refused(absolute, errno.ELOOP, "the target is a loop of symbolic links")
    if not stat.S_ISREG(mode):
        raise _refused(absolute, errno.EINVAL, "the target is a FIFO, a socket or a device")
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        number = errno.EROFS if read_only else errno.EACCES
        raise _refused(absolute, number, f"the folder {folder!r} is not writable")
    return Target(absolute, folder, name)


def umask() -> int:
    """Return the mode bits that new files of this process do not get; -1 where it cannot be asked (not Linux).

    The system call that asks sets another one, for all threads.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return -1


def _unusable(path: str, error: OSError | UnicodeError) -> SaveError:
    if isinstance(error, OSError):
        return SaveError.of(error, path=path, phase="target")
    return _refused(path, errno.EINVAL, f"this system cannot have such a name ({error})")


def _refused(path: str, number: int, reason: str) -> SaveError:
    return SaveError.of(OSError(number, reason), path=path, phase="target")
