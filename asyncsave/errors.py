"""The errors of asyncsave: one root, and each also the built-in that fits.

A caller who wants to survive everything catches :class:`AsyncSaveError`; one who already
catches ``OSError`` around ``torch.save`` keeps catching disk errors. Every error survives
pickling, so that it can cross a process boundary unharmed.
"""

from __future__ import annotations

import errno as _errno
import queue
from typing import Any, TypeVar

__all__ = [
    "AsyncSaveError",
    "CheckpointNotFoundError",
    "CorruptCheckpointError",
    "FormatVersionError",
    "LoadError",
    "OptionError",
    "QueueFullError",
    "RestoreError",
    "SaveError",
    "StagingError",
    "VersionInUseError",
    "WriterClosedError",
    "WriterDiedError",
]


class AsyncSaveError(Exception):
    """The root of every error that asyncsave raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by attributes: subclasses take other arguments than ``args``."""
        state = dict(self.__dict__)
        if isinstance(self, OSError):  # which keeps these two elsewhere
            state |= {"errno": self.errno, "filename": self.filename}
        return (_rebuild, (type(self), self.args, state))


def _rebuild(cls: type[AsyncSaveError], args: tuple[Any, ...], state: dict[str, Any]) -> AsyncSaveError:
    error = cls.__new__(cls)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class OptionError(AsyncSaveError, ValueError):
    """An argument has a value that asyncsave cannot work with."""


class StagingError(AsyncSaveError):
    """The state could not be captured or copied; raised by the call itself.

    Nothing on disk has been touched, and the slot is free again.
    """


class QueueFullError(AsyncSaveError, queue.Full):
    """``on_busy="raise"`` and every slot is taken, or waiting for one would be waiting for oneself."""


class WriterClosedError(AsyncSaveError, RuntimeError):
    """The writer was closed, or was inherited over a fork."""


class WriterDiedError(AsyncSaveError, RuntimeError):
    """The writer process died while it had to do with this save, twice; or it could not be started.

    What is at the target is a whole version, nearly always the old one: the process may have died
    between the last step and its word of it.

    Attributes:
        path: The target, absolute; ``""`` if no save was concerned.
        returncode: How the process ended, as in :mod:`subprocess`: an exit status, or the negative number of
            a signal; None if that is not known, or if it could not be started.
    """

    path: str
    returncode: int | None

    def __init__(self, message: str, *, path: str = "", returncode: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.returncode = returncode


class VersionInUseError(AsyncSaveError, RuntimeError):
    """Another process, or another manager of this one, holds the version of a run.

    Attributes:
        path: The version's folder.
    """

    path: str

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class SaveError(AsyncSaveError, OSError):
    """A checkpoint could not be written.

    Attributes:
        path: The target, absolute.
        phase: What failed: ``"target"``, ``"open"``, ``"allocate"``, ``"write"``,
            ``"sync"``, ``"close"``, ``"rename"``, ``"sync folder"``, or ``"hand over"`` (to the
            writer process).
        errno: The operating system's number, or None where it has none.
        outcome: ``"not_committed"``: what was at ``path`` before is there untouched.
            ``"incomplete"``: a file object of the caller's has taken a part of the checkpoint.
            ``"durability_unknown"``: the new version is in place, but the sync of its
            folder failed, so a power cut may bring the old one back.
    """

    path: str
    phase: str
    outcome: str

    def __init__(
        self,
        message: str,
        *,
        path: str,
        phase: str,
        errno: int | None = None,
        outcome: str = "not_committed",
    ) -> None:
        super().__init__(message)
        self.path = self.filename = path
        self.phase = phase
        self.errno = errno
        self.outcome = outcome

    def __str__(self) -> str:
        """Return the message as it was given, without OSError's own layout."""
        return str(self.args[0])

    @classmethod
    def of(cls, error: OSError, *, path: str, phase: str, outcome: str = "not_committed") -> SaveError:
        """Describe an operating-system error for a user: path, phase, number and remedy."""
        number = error.errno
        name = _errno.errorcode.get(number, str(number)) if number is not None else ""
        reason = f"{error.strerror or error}" + (f" [{name}]" if name else "")
        hint = _REMEDIES.get(number or 0, "")
        message = f"cannot save {path!r}: {phase} failed: {reason}. {_CONSEQUENCES[outcome]}{hint}"
        return cls(message, path=path, phase=phase, errno=number, outcome=outcome)

    @classmethod
    def describing(cls, error: BaseException, *, path: str) -> SaveError:
        """Make an error of any kind one of ours; the cause stays chained."""
        if isinstance(error, SaveError):
            return error
        cause = error if isinstance(error, OSError) else OSError(None, f"{type(error).__name__}: {error}")
        described = cls.of(cause, path=path, phase="write")
        described.__cause__ = error
        return described


_CONSEQUENCES = {
    "not_committed": "What was there before is untouched.",
    "incomplete": "What the file object holds is not a checkpoint.",
    "durability_unknown": "The new version is in place, but a power cut may still bring the old one back.",
}
_REMEDIES = {
    _errno.ENOSPC: " Free some space (blocks or inodes), then save again.",
    _errno.EDQUOT: " Your quota is used up: remove old checkpoints, then save again.",
    _errno.EFBIG: " Raise the file-size limit (ulimit -f), or save to another file system.",
    _errno.EROFS: " The file system is read-only: check it for errors, or save elsewhere.",
    _errno.EACCES: " Check the permissions of the folder.",
    _errno.ENOENT: " Make the folder first: asyncsave never makes folders by itself.",
    _errno.ENAMETOOLONG: " Choose a shorter name.",
    _errno.EBUSY: " The target is a mount point (a file mounted into a container?): save beside it.",
    _errno.EIO: " The disk reported an error: check its health before trusting it.",
}


class LoadError(AsyncSaveError):
    """A checkpoint could not be loaded.

    Attributes:
        path: What was being loaded.
    """

    path: str

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class CheckpointNotFoundError(LoadError, FileNotFoundError):
    """There is no such file."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message, path=path)
        self.errno, self.filename = _errno.ENOENT, path

    def __str__(self) -> str:
        """Return the message as it was given, without OSError's own layout."""
        return str(self.args[0])


Corrupt = TypeVar("Corrupt", bound="CorruptCheckpointError")
INSTEAD = "Load an older checkpoint, or restore this one from a copy"
"""What to do about a damaged checkpoint."""


class CorruptCheckpointError(LoadError):
    """The file is truncated, overwritten or damaged.

    Attributes:
        path: What was being loaded.
        record: The damaged record's name, or None if the container itself is damaged.
        expected: What should be there.
        found: What is there.
    """

    record: str | None
    expected: str
    found: str

    def __init__(
        self,
        message: str,
        *,
        path: str,
        record: str | None = None,
        expected: str = "",
        found: str = "",
    ) -> None:
        super().__init__(message, path=path)
        self.record = record
        self.expected = expected
        self.found = found

    @classmethod
    def of(  # noqa: PYI019 - Python 3.10 has no typing.Self
        cls: type[Corrupt], path: str, expected: str, found: str, *, record: str | None = None, what: str = ""
    ) -> Corrupt:
        """Describe damage for a user.

        Args:
            path: The file.
            expected: What should be there.
            found: What is there.
            record: The damaged record; None: the container is.
            what: What of it is damaged; empty: the whole.
        """
        where = "".join(f"{part}: " for part in (f"record {record!r}" if record else "", what) if part)
        message = f"{path!r} is damaged: {where}expected {expected}, found {found}. {INSTEAD}"
        return cls(message, path=path, record=record, expected=expected, found=found)


class FormatVersionError(LoadError):
    """The file was written by a version of asyncsave that this one does not know."""


class RestoreError(LoadError):
    """A checkpoint and the state that it is to be put back into do not fit.

    Attributes:
        path: The checkpoint's folder.
        missing: Names of parts that have no saved value.
        unexpected: Names of saved parts that nobody takes.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __init__(
        self, message: str, *, path: str, missing: tuple[str, ...] = (), unexpected: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, path=path)
        self.missing = missing
        self.unexpected = unexpected
