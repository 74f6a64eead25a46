"""Check files and whole runs: every file of every step is held against its manifest, and read to its last byte.

A run that is being trained can be checked. What retention drops meanwhile is no finding, and what is saved again is
checked again.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from asyncsave.catalogue.info import CheckpointFile
from asyncsave.catalogue.listing import Listing, read_manifest
from asyncsave.catalogue.manifest import FORMAT, Manifest
from asyncsave.catalogue.names import MANIFEST, parse
from asyncsave.catalogue.versions import versions_below
from asyncsave.cores import cores
from asyncsave.errors import CheckpointNotFoundError, CorruptCheckpointError, FormatVersionError, LoadError
from asyncsave.result import Problem
from asyncsave.storage.source import open_source
from asyncsave.verification import check

__all__ = ["Checked", "File", "check_all", "files_at"]

_DAMAGE = {"checksum", "container", "digest", "disk", "manifest", "missing", "size"}
"""Kinds of problems that say: this was a checkpoint once. The others say that it cannot be told."""
_AT_ONCE = 4
"""Files. One alone is read by several threads already: more of them helps where each has to be waited for."""


class File(NamedTuple):
    """A file that is to be checked.

    Attributes:
        path: Where it is, absolute.
        nbytes: Its size.
        expected: What the manifest of its step says of it; None: it belongs to no step.
    """

    path: str
    nbytes: int
    expected: CheckpointFile | None = None


class Checked(NamedTuple):
    """What was found.

    Attributes:
        path: The file, absolute; or whatever else was named and is none.
        nbytes: Its size; 0 if it cannot be told.
        problems: What is wrong with it: those of :func:`asyncsave.verify`, and ``"missing"``, ``"size"``, ``"digest"``
            (it is not what the manifest of its step says), ``"manifest"`` (that is damaged itself), ``"disk"`` (the
            disk reports an error), ``"unreadable"`` (no permission, no file), ``"not found"``.
    """

    path: str
    nbytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is what was written."""
        return not self.problems

    @property
    def damaged(self) -> bool:
        """Whether it was a checkpoint once, and is none now; else it never was one, or that cannot be told."""
        return any(problem.kind in _DAMAGE for problem in self.problems)


def files_at(path: str) -> Iterator[File | Checked]:
    """Yield the files that a path stands for: a file, those of a step, or of all versions at a folder or below it.

    Steps that were put aside, and what is no checkpoint, are passed over, unless the path is that of the step.

    Args:
        path: Absolute.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        if not is_folder:
            yield _file(path, _expected(path))
        elif parse(os.path.basename(path)) is not None:
            yield from _files_of(path, read_manifest(os.path.join(path, MANIFEST)))
        else:
            yield from _files_below(path)
    except LoadError as error:
        yield _unreadable(error, path)
    except FileNotFoundError:
        what = "a manifest.json: this is no checkpoint" if os.path.isdir(path) else "a checkpoint, or a folder of them"
        yield Checked(path, 0, (Problem(None, "not found", what, "nothing"),))
    except (OSError, ValueError) as error:
        yield _unreadable(error, path)


def _files_below(folder: str) -> Iterator[File | Checked]:
    refused: list[OSError] = []
    found = versions_below(folder, refused)
    for closed in refused:
        yield _unreadable(closed, str(closed.filename))
    empty = not refused
    for experiment, versions in found.items():
        for version in versions:
            look = Listing(os.path.join(experiment, version.name)).look()
            empty = empty and not look.infos and not look.problems
            for info in look.infos:
                for name, file in info.files.items():
                    yield _file(os.path.join(info.path, name), file)
            for path, error in sorted(look.problems.items()):
                yield _unreadable(error, os.path.join(path, MANIFEST))
    if empty:
        what = "the folder of a run; name other files one by one, as in folder/*.pt"
        yield Checked(folder, 0, (Problem(None, "not found", what, "no checkpoint of a run in it"),))


def _files_of(step: str, manifest: Manifest) -> Iterator[File]:
    for name, file in manifest.files.items():
        yield _file(os.path.join(step, name), file)


def _file(path: str, expected: CheckpointFile | None) -> File:
    try:
        return File(path, os.stat(path).st_size, expected)
    except OSError:
        return File(path, 0, expected)


def _expected(path: str) -> CheckpointFile | None:
    """Return what the manifest beside a file says of it; None if there is none that says anything."""
    folder, name = os.path.split(path)
    if parse(os.path.basename(folder)) is None:
        return None
    try:
        return read_manifest(os.path.join(folder, MANIFEST)).files.get(name)
    except (OSError, LoadError):
        return None


def _unreadable(error: Exception, path: str) -> Checked:
    """Say why there is nothing to check."""
    if isinstance(error, CheckpointNotFoundError):
        problem = Problem(None, "not found", "a checkpoint", "nothing")
    elif isinstance(error, CorruptCheckpointError):
        problem = Problem(None, "manifest", error.expected, error.found)
    elif isinstance(error, FormatVersionError):
        problem = Problem(None, "foreign", f"a manifest of format {FORMAT}", "one of a newer format: update asyncsave")
    else:
        problem = _problem_of(error.__cause__ or error)
    return Checked(path, 0, (problem,))


def _problem_of(error: BaseException) -> Problem:
    number = error.errno if isinstance(error, OSError) else None
    said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return Problem(None, "disk" if number == errno.EIO else "unreadable", "a file that can be read", said)


def check_file(file: File, told: Callable[[int], object]) -> Checked | None:
    """Check one file.

    Args:
        file: The file.
        told: As for :func:`asyncsave.verification.check`.

    Returns:
        What was found; None if its step was dropped meanwhile.
    """
    folder, name = os.path.split(file.path)
    while True:
        found = _check(file, told)
        if found.ok or file.expected is None:
            return found
        try:
            expected = read_manifest(os.path.join(folder, MANIFEST)).files.get(name)
        except FileNotFoundError:
            return None
        except (OSError, LoadError):
            return found
        if expected in {None, file.expected}:
            return None if expected is None else found
        file = file._replace(expected=expected)


def _check(file: File, told: Callable[[int], object]) -> Checked:
    path, expected = file.path, file.expected
    try:
        with open_source(path) as source:
            report, whole = check(source, told)
    except CheckpointNotFoundError:
        wanted = "a checkpoint" if expected is None else f"{expected.nbytes} bytes"
        kind = "not found" if expected is None else "missing"
        return Checked(path, 0, (Problem(None, kind, wanted, "no file"),))
    except CorruptCheckpointError as error:  # it became shorter while it was read
        return Checked(path, file.nbytes, (Problem(error.record, "container", error.expected, error.found),))
    except LoadError as error:
        if expected is not None and not isinstance(error.__cause__, OSError):
            problem = Problem(None, "missing", f"{expected.nbytes} bytes", "no file, but something of its name")
        else:
            problem = _problem_of(error.__cause__ or error)
        return Checked(path, 0, (problem,))
    problems = report.problems
    if expected is not None and report.nbytes != expected.nbytes:
        problems += (Problem(None, "size", f"{expected.nbytes} bytes", f"{report.nbytes} bytes"),)
    elif expected is not None and f"crc32:{whole:08x}" != expected.digest:
        problems += (Problem(None, "digest", expected.digest, f"crc32:{whole:08x}"),)
    return Checked(path, report.nbytes, problems)


class _StoppedError(Exception):
    """Nobody wants to know any more."""


class _Round:
    """Files that a few threads check together, the largest first.

    Attributes:
        done: The number of each file that is done with, and what was found, or the error that kept it from that.
        stopped: Set when nobody wants to know any more.
    """

    def __init__(self, files: Sequence[File], told: Callable[[int], object]) -> None:
        self.done: SimpleQueue[tuple[int, Checked | BaseException | None]] = SimpleQueue()
        self.stopped = threading.Event()
        self._files = files
        self._told = told
        self._waiting = iter(sorted(range(len(files)), key=lambda number: -files[number].nbytes))
        self._lock = threading.Lock()

    def work(self) -> None:
        """Check files until there are none left."""
        while not self.stopped.is_set():
            with self._lock:
                number = next(self._waiting, None)
            if number is None:
                return
            try:
                self.done.put((number, check_file(self._files[number], self._tell)))
            except _StoppedError:
                return
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for it
                self.done.put((number, error))

    def _tell(self, nbytes: int) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        self._told(nbytes)


def check_all(files: Sequence[File], told: Callable[[int], object]) -> Iterator[tuple[int, Checked | None]]:
    """Check files, several at once; yield the number of each, and what was found, as they are done.

    Blocks for the next one. Whoever leaves, by Ctrl-C too, stops the rest within a block of 8 MiB: nobody waits
    for the threads, as a disk that hangs would hold them.

    Args:
        files: The files.
        told: Called with a number of bytes that have been read, on any thread.
    """
    together = _Round(files, told)
    try:
        for number in range(min(_AT_ONCE, cores(), len(files))):
            threading.Thread(target=together.work, name=f"asyncsave-files-{number}", daemon=True).start()
        for _ in files:
            number, found = together.done.get()
            if isinstance(found, BaseException):
                raise found
            yield number, found
    finally:
        together.stopped.set()
