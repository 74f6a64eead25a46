"""The folder of one version of an experiment: found or made, and held by one process.

Two lock files lie in it. ``.lock`` is held by the manager, and let go when its process dies.
``.writing`` is held by whoever writes a step, a writer process too, which may outlive its
trainer: the next manager waits until what was staged before it has come to its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Literal

from asyncsave import descriptors
from asyncsave.catalogue.versions import RECORD, versions
from asyncsave.errors import OptionError, SaveError, VersionInUseError
from asyncsave.options import folder_name
from asyncsave.storage.folders import make_folder, make_folders, put_file
from asyncsave.storage.system import System

__all__ = ["Version", "Versioning"]

Versioning = Literal["number", "timestamp"]

_LOCK = ".lock"
_WRITING = ".writing"
_NEW = "new"
_LOOK_AGAIN = 0.02
_SAY_AFTER = 1.0

_log = logging.getLogger("asyncsave")


class Version:
    """A version's folder, held until :meth:`close`.

    Args:
        experiment: The folder of all versions, absolute; made where it is missing.
        name: None: the newest version that has steps (or that there is), or a new one where there is none, or a
            living process holds it.
            ``"new"``: a new one. Anything else: the version of that name, made where it is missing.
        versioning: What new ones are called: 1, 2, 3, ..., or by the time.
        shared: Whether others may hold it too, who say the same.

    Attributes:
        name: Its name.
        folder: Its folder, absolute.
        writing: A descriptor that whoever writes a step is to hold until that is done; -1: there is none.

    Raises:
        VersionInUseError: Somebody else holds the version of that name.
        OptionError: ``name`` is no name, or there has to be one and is none.
        SaveError: The folders cannot be made.
    """

    def __init__(self, experiment: str, name: str | None, versioning: Versioning, *, shared: bool) -> None:
        if name is not None:
            folder_name("version", name)
        if shared and name in {None, _NEW}:
            raise OptionError('shared=True needs a version that all processes name alike, as in version="run-7"')
        self._system = System()
        self._shared = shared
        self._lock = self.writing = -1
        self.name = self.folder = ""
        make_folders(self._system, experiment)
        try:
            if name is not None and name != _NEW:
                self._hold_named(experiment, name)
            elif name == _NEW or not self._hold_newest(experiment):
                self._hold_new(experiment, versioning)
            self._await_writers()
        except OSError as error:
            self.close()
            if isinstance(error, SaveError):
                raise
            raise SaveError.of(error, path=self.folder or experiment, phase="target") from error
        except BaseException:
            self.close()
            raise

    def sisters(self) -> list[str]:
        """Return the names of other versions that have steps."""
        known = sorted(versions(os.path.dirname(self.folder)))
        return [version.name for version in known if version.has_steps and version.name != self.name]

    def close(self) -> None:
        """Let go of it. Idempotent."""
        for fd in (self._lock, self.writing):
            descriptors.drop(fd)
        self._lock = self.writing = -1

    def _hold_named(self, experiment: str, name: str) -> None:
        folder = os.path.join(experiment, name)
        make_folders(self._system, folder)
        if not self._hold(folder):
            with contextlib.suppress(OSError), open(os.path.join(folder, _LOCK), encoding="utf-8") as file:
                holder = file.read(200).strip()
            raise VersionInUseError(
                f"{folder!r} is in use{f' by {holder}' if holder else ''}. Name another version, or say "
                "shared=True in all processes that are to have it together",
                path=folder,
            )

    def _hold_newest(self, experiment: str) -> bool:
        """Take the newest version that has steps, else the newest; False if there is none, or somebody holds it."""
        newest = max(versions(experiment), default=None)
        if newest is None:
            return False
        folder = os.path.join(experiment, newest.name)
        if self._hold(folder):
            return True
        _log.warning("%s is in use: a new version is made", folder)
        return False

    def _hold_new(self, experiment: str, versioning: Versioning) -> None:
        """Make a version that nobody has. The folder's making decides whose it is."""
        for name in _new_names(experiment, versioning):
            folder = os.path.join(experiment, name)
            with contextlib.suppress(FileExistsError):
                make_folder(self._system, folder)
                if self._hold(folder):
                    return

    def _hold(self, folder: str) -> bool:
        """Lock a version, and write down when it was made; False if somebody holds it."""
        with descriptors.held_back():
            fd = descriptors.keep(self._system.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
        if not self._lock_file(fd, shared=self._shared):
            descriptors.drop(fd)
            return False
        self._lock, self.name, self.folder = fd, os.path.basename(folder), folder
        holder = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        with contextlib.suppress(OSError):  # only an error message needs it
            self._system.truncate(fd, 0)
            self._system.pwrite(fd, memoryview(holder), 0)
        record = os.path.join(folder, RECORD)
        if not os.path.exists(record):
            sequence = 1 + max((known.sequence for known in versions(os.path.dirname(folder))), default=0)
            said = {"format": 1, "sequence": sequence, "created": time.time()}
            put_file(self._system, record, json.dumps(said).encode() + b"\n")
        return True

    def _lock_file(self, fd: int, *, shared: bool) -> bool:
        try:
            return self._system.lock(fd, shared=shared)
        except OSError as error:
            _log.warning("%s has no locks (%s): nothing keeps two managers apart there", self.folder, error)
            return True

    def _await_writers(self) -> None:
        """Wait for the writer process of a manager that is dead: what it was given is still on its way."""
        path = os.path.join(self.folder, _WRITING)
        with descriptors.held_back():
            self.writing = descriptors.keep(self._system.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
        began, said = time.monotonic(), False
        while not self._shared and not self._lock_file(self.writing, shared=False):
            if not said and time.monotonic() - began > _SAY_AFTER:
                said = True
                _log.warning("waiting for the writer process of an earlier run to finish in %s", self.folder)
            time.sleep(_LOOK_AGAIN)
        self._lock_file(self.writing, shared=True)


def _new_names(experiment: str, versioning: Versioning) -> Iterator[str]:
    """Yield names that no version had a moment ago."""
    if versioning == "number":
        number = max((known.number for known in versions(experiment)), default=0)
        while True:
            number += 1
            yield str(number)
    turn = 1
    while True:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        yield stamp if turn == 1 else f"{stamp}-{turn}"
        turn += 1
