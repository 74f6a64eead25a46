"""Steps of a run on the disk: put there by hand, or by the package's own commit; and systems that are killed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gates import Wrapped

from asyncsave.catalogue.info import CheckpointFile
from asyncsave.catalogue.listing import read_manifest
from asyncsave.catalogue.manifest import Manifest
from asyncsave.catalogue.names import MANIFEST, parse, step_name
from asyncsave.image.crc import crc32
from asyncsave.storage.assembly import Assembly
from asyncsave.storage.blocks import write_all
from asyncsave.storage.spare import Spares
from asyncsave.storage.system import System
from asyncsave.storage.target import Target
from asyncsave.workers import Workers

__all__ = [
    "ALONE",
    "Killed",
    "Mortal",
    "assemble",
    "clear",
    "content",
    "manifest_of",
    "put_step",
    "stock",
    "target_of",
    "temporaries",
    "whole",
]

ALONE = Workers(1, "nobody")
"""No helper: calls come one after the other."""


def manifest_of(step: int, files: Mapping[str, bytes] | None = None, *, complete: bool = True, **said: Any) -> Manifest:
    """Return the manifest of a step with such files."""
    made = {name: CheckpointFile(len(data), f"crc32:{crc32(data):08x}") for name, data in (files or {}).items()}
    described: dict[str, Any] = {
        "epoch": None,
        "metrics": {},
        "metadata": {},
        "time": float(step),
        "tensors": 0,
        "asyncsave": "0.1.0",
        "torch": "2.6.0",
        "host": "here",
        "commit": None,
    }
    return Manifest(step=step, complete=complete, files=made, **(described | said))


def put_step(version: Path, step: int, files: Mapping[str, bytes], *, name: str | None = None, **said: Any) -> Path:
    """Put a step into a version's folder, by hand; return its folder."""
    manifest = manifest_of(step, files, **said)
    folder = version / (name or step_name(step, complete=manifest.complete))
    folder.mkdir()
    for file, data in files.items():
        (folder / file).write_bytes(data)
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return folder


def target_of(version: Path, step: int) -> Target:
    """Return where a step of a version belongs."""
    return Target(str(version / step_name(step)), str(version), step_name(step))


def assemble(
    system: System,
    target: Target,
    files: Mapping[str, bytes],
    *,
    sync: bool = True,
    spares: Spares | None = None,
    workers: Workers = ALONE,
    time: float | None = None,
) -> Assembly:
    """Put a step into its place, as a writer does: its files, their flush, its manifest, the commit."""
    said = parse(target.name)
    assert said is not None
    described = {} if time is None else {"time": time}
    manifest = manifest_of(said.step, files, complete=said.complete, **described).to_json()
    largest = max(files, key=lambda name: len(files[name]), default=None)
    with Assembly(system, target, workers, sync=sync, spares=spares) as new:
        for name, data in files.items():
            fd = new.add(name, len(data), recycle=name == largest)
            write_all(system, fd, memoryview(data), 0)
            new.hand_over(fd)
        new.flush()
        write_all(system, new.add(MANIFEST, len(manifest)), memoryview(manifest), 0)
        new.commit()
    return new


def content(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder, at any depth; an empty folder counts as one too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file():
            found[name] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[name + os.sep] = b""
    return found


def whole(step: Path) -> dict[str, bytes]:
    """Return the files of a step, each of which must be what its manifest says."""
    manifest = read_manifest(str(step / MANIFEST))
    files = {name: (step / name).read_bytes() for name in manifest.files}
    said = manifest_of(manifest.step, files).files
    assert said == manifest.files, f"{step.name} is torn"
    return files


def temporaries(version: Path) -> list[Path]:
    """Return what has a temporary name in a version's folder."""
    return sorted(version.glob(".asyncsave-*"))


def clear(version: Path) -> None:
    """Remove what has a temporary name."""
    for path in temporaries(version):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def stock(spares: Spares, version: Path, data: bytes = b"x" * 10_000) -> int:
    """Put the file of a dropped step on a shelf; return its inode."""
    folder = version / "dropped"
    folder.mkdir(exist_ok=True)
    (folder / "state.pt").write_bytes(data)
    inode = (folder / "state.pt").stat().st_ino
    fds = [os.open(path, os.O_RDONLY) for path in (version, folder)]
    assert spares.salvage(str(version), fds[0], "state.pt", dir_fd=fds[1])
    for fd in fds:
        os.close(fd)
    folder.rmdir()
    return inode


class Killed(BaseException):
    """The process is dead."""


class Mortal(Wrapped):
    """The system of a process that is killed just before one of its calls; nothing happens after that.

    Args:
        at: Before which call, counted from 1.
        exchanges: Whether it can swap two names.

    Attributes:
        is_dead: Whether it came to that call.
        last: The call before which it died.
    """

    def __init__(self, at: int, *, exchanges: bool = True) -> None:
        super().__init__()
        self.is_dead = False
        self.last = ""
        self._left = at
        self._exchanges = exchanges
        self._open: set[int] = set()

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if not self._left:
            self.is_dead, self.last = True, f"{name}{args[:2]}"
        if self.is_dead:
            raise Killed
        if name == "exchange" and not self._exchanges:
            return False
        result = super()._call(name, *args, **kwargs)
        if name in {"open", "duplicate"}:
            self._open.add(result)
        elif name == "close":
            self._open.discard(args[0])
        return result

    def bury(self) -> None:
        """Close what it had open, as the kernel does, and so give up its locks."""
        for fd in self._open:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._open = set()
