"""Read a version's folder: which checkpoints it has, and what else of ours takes up room there.

Nothing is cached but manifests that have not changed, and nothing points to the latest: it is computed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from asyncsave.catalogue.info import CheckpointInfo, Kind
from asyncsave.catalogue.manifest import LONGEST, Manifest
from asyncsave.catalogue.names import DROPPED, MANIFEST, PINNED, StepName, parse
from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.storage.temporary import is_temporary

__all__ = ["Listing", "Look", "read_manifest"]


class Look(NamedTuple):
    """What one look at a folder has found.

    Attributes:
        infos: The checkpoints, by step.
        problems: Why a step's manifest cannot be read, by the path of its folder.
    """

    infos: list[CheckpointInfo]
    problems: dict[str, LoadError]


class Listing:
    """The checkpoints of a version.

    Args:
        folder: The version's folder, absolute.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], Manifest]] = {}

    def look(self) -> Look:
        """Read the manifests, those that are new or have changed.

        Raises:
            FileNotFoundError: There is no such folder.
        """
        infos, problems, known = [], {}, {}
        for name, said in self._steps():
            path = os.path.join(self.folder, name)
            try:
                found = self._manifest(name)
            except (FileNotFoundError, NotADirectoryError):
                continue  # a step exists if its manifest does
            except LoadError as error:
                problems[path] = error
                continue
            except OSError as error:
                message = f"cannot read the manifest of {path!r}: {error.strerror or error}"
                problems[path] = LoadError(message, path=path)
                continue
            known[name] = found
            manifest = found[1]
            if (manifest.step, manifest.complete) != (said.step, said.complete):
                message = f"{path!r} holds the manifest of step {manifest.step}: was the folder renamed?"
                problems[path] = CorruptCheckpointError(
                    message, path=path, expected=f"step {said.step}", found=f"step {manifest.step}"
                )
                continue
            infos.append(_info(path, manifest))
        self._known = known
        infos.sort(key=lambda info: (info.step, info.complete))
        return Look(infos, problems)

    def info(self, name: str) -> CheckpointInfo:
        """Read one step, by the name of its folder.

        Raises:
            OSError: It is not there.
            LoadError: Its manifest cannot be read.
        """
        return _info(os.path.join(self.folder, name), read_manifest(os.path.join(self.folder, name, MANIFEST)))

    def dropped(self) -> list[str]:
        """Return the names of the steps whose removal is not finished: their manifest is gone, or everything is."""
        return [name for name, _ in self._steps() if self._is_dropped(name)]

    def _is_dropped(self, name: str) -> bool:
        path = os.path.join(self.folder, name)
        with contextlib.suppress(OSError):
            left = os.listdir(path) if not os.path.islink(path) else [MANIFEST]
            return MANIFEST not in left and (DROPPED in left or not left)
        return False

    def remnants(self) -> list[CheckpointInfo]:
        """Return what is ours and takes up room, and is no checkpoint."""
        found = []
        for name in sorted(os.listdir(self.folder)):
            path, said = os.path.join(self.folder, name), parse(name)
            kind: Kind | None = None
            with contextlib.suppress(OSError):
                if is_temporary(name):
                    kind = "unfinished" if stat.S_ISDIR(os.lstat(path).st_mode) else "spare"
                elif said is not None and said.aside is not None:
                    kind = said.aside
                elif said is not None and not os.path.lexists(os.path.join(path, MANIFEST)):
                    kind = "dropped" if self._is_dropped(name) else "unfinished"
                if kind is not None:
                    step, complete = (said.step, said.complete) if said else (-1, True)
                    found.append(CheckpointInfo(step, path, nbytes=_nbytes(path), complete=complete, kind=kind))
        return found

    def _steps(self) -> Iterator[tuple[str, StepName]]:
        for name in os.listdir(self.folder):
            said = parse(name)
            if said is not None and said.aside is None:
                yield name, said

    def _manifest(self, name: str) -> tuple[tuple[int, int, int], Manifest]:
        path = os.path.join(self.folder, name, MANIFEST)
        found = os.stat(path)
        key = (found.st_ino, found.st_mtime_ns, found.st_size)
        known = self._known.get(name)
        return known if known is not None and known[0] == key else (key, read_manifest(path))


def read_manifest(path: str) -> Manifest:
    """Read a manifest from the disk.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        CorruptCheckpointError: It is none.
        FormatVersionError: A newer asyncsave wrote it.
    """
    # Without O_NONBLOCK the open of a FIFO would hang.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            message = f"{path!r} is not a file"
            raise CorruptCheckpointError(message, path=path, expected="a manifest", found="no file")
        with open(fd, "rb", closefd=False) as file:
            return Manifest.from_json(file.read(LONGEST), path=path)
    finally:
        os.close(fd)


def _info(path: str, manifest: Manifest) -> CheckpointInfo:
    return CheckpointInfo(
        step=manifest.step,
        path=path,
        epoch=manifest.epoch,
        metrics=dict(manifest.metrics),
        metadata=copy.deepcopy(manifest.metadata),
        time=manifest.time,
        nbytes=sum(file.nbytes for file in manifest.files.values()),
        files=dict(manifest.files),
        pinned=os.path.lexists(os.path.join(path, PINNED)),
        complete=manifest.complete,
        kind="step" if manifest.complete else "emergency",
    )


def _nbytes(path: str) -> int:
    """Return the bytes of a file, or of the files in a folder, as far as they can be seen."""
    total = 0
    if os.path.islink(path) or not os.path.isdir(path):
        return os.lstat(path).st_size
    with os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total
