"""Check a checkpoint without loading it: every byte is read, nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Callable

from asyncsave import pending
from asyncsave.cores import cores
from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.image.index import Index, is_zip, read_index
from asyncsave.options import file_path
from asyncsave.reading import BLOCK, Scan, scan
from asyncsave.result import Problem, VerifyReport
from asyncsave.storage.source import Source, open_source
from asyncsave.workers import Workers

__all__ = ["check", "verify"]


def verify(f: str | os.PathLike[str]) -> VerifyReport:
    """Read a whole checkpoint from the disk and compare every record with its CRC-32.

    Runs at the disk's speed, past the page cache where the file system allows, in a few megabytes of
    memory. Works on files of asyncsave, where headers and padding are covered as well, and on those
    of ``torch.save``. Nothing is unpickled, so nothing in the file can run. A file that this process
    is still writing is waited for.

    Args:
        f: The file.

    Returns:
        What is wrong, if anything: a report, never an error, for whatever the file holds.

    Raises:
        CheckpointNotFoundError: There is no such file.
        OptionError: ``f`` is no path.
        LoadError: It cannot be read at all (a folder, no permission, a failing disk).
    """
    path = file_path(f)
    pending.wait_for(path)
    with open_source(path) as source:
        return check(source)[0]


def check(source: Source, told: Callable[[int], object] | None = None) -> tuple[VerifyReport, int]:
    """Verify a source that is open already; return the report, and the CRC-32 of all its bytes.

    Args:
        source: The file.
        told: Called with a number of bytes whenever so many more have been read, on the thread that has read them.
            What it raises ends the check, and comes out.
    """
    index = Index([], None, source.nbytes, checksums=False)
    trouble: Problem | None = None
    try:
        if is_zip(source.read(0, min(4, source.nbytes))):
            index = read_index(source)
        else:
            trouble = _not_a_zip(source)
    except CorruptCheckpointError as error:
        trouble = Problem(error.record, "container", error.expected, error.found)
    except LoadError as error:
        trouble = Problem(None, "foreign", "a checkpoint's records", str(error))
    workers = Workers(min(4, cores(), 1 + source.nbytes // BLOCK), "asyncsave-verify")
    try:
        found = scan(source, index, workers, told)
    finally:
        workers.close()
    if trouble is None and "data.pkl" not in found.records:
        trouble = Problem(None, "foreign", "a record data.pkl", "none")
    problems = [trouble] if trouble else _problems(index, found)
    nbytes, records = source.nbytes, len(index.entries)
    report = VerifyReport(source.path, not problems, nbytes, records, tuple(problems))
    return report, found.whole


def _problems(index: Index, found: Scan) -> list[Problem]:
    if not index.checksums:
        return [Problem(None, "no checksums", "a CRC-32 for each record", "zeros")]
    problems = [
        Problem(entry.name, "checksum", f"{entry.crc:08x}", f"{found.records[entry.name]:08x}")
        for entry in index.entries
        if found.records[entry.name] != entry.crc
    ]
    if index.image_crc not in (None, found.image) and not problems:
        # Every record is as it was: the damage is in a header or in the padding.
        expected = f"{index.image_crc:08x}"
        problems.append(Problem(None, "container", expected, f"{found.image:08x}"))
    return problems


def _not_a_zip(source: Source) -> Problem:
    if not source.nbytes:
        return Problem(None, "container", "a checkpoint", "an empty file")
    head = source.read(0, min(4, source.nbytes))
    if head[:1] == b"\x80":
        return Problem(None, "no checksums", "a CRC-32 for each record", "torch.save's legacy format")
    return Problem(None, "foreign", repr(b"PK\x03\x04"), repr(head))
