"""Load a checkpoint: read its records in parallel, check them, and let torch rebuild the objects."""

from __future__ import annotations

import io
import os
import pickle
from typing import Any, BinaryIO, NamedTuple

import torch

from asyncsave import pending
from asyncsave.cores import cores
from asyncsave.errors import INSTEAD, CorruptCheckpointError, LoadError
from asyncsave.image.index import Entry, Index, checkpoint_index, is_zip, refuse_torn
from asyncsave.reading import Records
from asyncsave.storage.blocks import DIRECT_FROM
from asyncsave.storage.source import MemorySource, Source, open_source
from asyncsave.verification import check
from asyncsave.workers import Workers

__all__ = ["Archive", "is_data", "load", "rebuild"]


def load(
    f: str | os.PathLike[str] | BinaryIO,
    map_location: Any = None,
    *,
    weights_only: bool = True,
    mmap: bool = False,
    verify: bool | None = None,
) -> Any:
    """Load a checkpoint of asyncsave or of ``torch.save``, checked as its bytes arrive.

    A file that this process is still writing is waited for. Blocks are read in parallel, past the
    page cache where the file system allows.

    Args:
        f: A path, or a readable binary file object, which is read from where it stands to its end.
        map_location: As for ``torch.load``.
        weights_only: As for ``torch.load``: unpickle tensors and plain Python values only. False
            runs whatever code the file holds: only for files that you made yourself.
        mmap: Map the file instead of reading it; pages come in as they are used. Needs a path.
        verify: None: compare every record with its checksum as it is read (with ``mmap``: do not).
            True: check the whole file first, headers and padding included. False: never check.

    Returns:
        The saved object. Storages of 1 MiB and more have memory of their own, which goes when the
        last tensor on it goes; smaller ones share mappings of up to 1 MiB. None can be resized.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CorruptCheckpointError: It is truncated, overwritten or damaged; names the record, what was
            expected and what was found.
        FormatVersionError: A newer asyncsave wrote it.
        LoadError: It is no checkpoint, cannot be read, or holds what ``weights_only`` forbids.
    """
    if isinstance(f, (str, os.PathLike)):
        path = os.fspath(f)
        pending.wait_for(path)
        with open_source(path) as source:
            return _load(source, _How(map_location, weights_only, mmap), verify=verify)
    name = str(getattr(f, "name", type(f).__name__))
    if mmap:
        message = f"mmap=True needs a path, not the file object {name!r}"
        raise LoadError(message, path=name)
    try:
        data: object = f.read()
    except (OSError, ValueError, AttributeError) as error:
        message = f"cannot read the file object {name!r}: {error}"
        raise LoadError(message, path=name) from error
    if not isinstance(data, (bytes, bytearray)):
        message = f"the file object {name!r} is open for text: open it in binary mode"
        raise LoadError(message, path=name)
    return _load(MemorySource(name, bytes(data)), _How(map_location, weights_only, mmap), verify=verify)


class _How(NamedTuple):
    """What ``torch.load`` takes too."""

    map_location: Any
    weights_only: bool
    mmap: bool


def _load(source: Source, how: _How, *, verify: bool | None) -> Any:
    if not is_zip(source.read(0, min(4, source.nbytes))):
        return _load_other(source, how, verify=verify)
    index = checkpoint_index(source)
    if verify:
        _check_whole(source)
    if how.mmap:
        return _through_torch(source, source.path, how)
    wanted = [entry for entry in index.entries if not _is_meta(how.map_location) or not is_data(entry)]
    threads = min(4, cores()) if source.nbytes >= DIRECT_FROM else 1
    workers = Workers(threads, "asyncsave-load")
    try:
        records = Records(source, wanted, workers, check=verify is not False and index.checksums)
        records.read()
    finally:
        workers.close()
    return rebuild(Archive(source.path, index, records), how.map_location, weights_only=how.weights_only)


def is_data(entry: Entry) -> bool:
    """Tell whether a record is a storage."""
    return entry.name.startswith("data/")


def _check_whole(source: Source) -> None:
    report, _ = check(source)
    if not report.ok:
        problem = report.problems[0]
        if problem.kind == "no checksums":
            message = f"{source.path!r} holds no checksums ({problem.found}): load it without verify=True"
            raise LoadError(message, path=source.path)
        where = f"record {problem.record!r}" if problem.record else "the file"
        message = (
            f"{source.path!r} is damaged: {where} ({problem.kind}): expected {problem.expected}, "
            f"found {problem.found}. {INSTEAD}"
        )
        raise CorruptCheckpointError(
            message,
            path=source.path,
            record=problem.record,
            expected=problem.expected,
            found=problem.found,
        )


class Archive:
    """A checked checkpoint, with the methods that torch's unpickling asks of its zip reader.

    Args:
        path: What errors call it.
        index: Its directory.
        records: Its records, those without tensors read already.

    Attributes:
        addresses: Which record lies at an address, for every storage that was asked for.
    """

    def __init__(self, path: str, index: Index, records: Records) -> None:
        self.path = path
        self.addresses: dict[int, str] = {}
        self._entries = {entry.name: entry for entry in index.entries}
        self._views = records.views

    def has_record(self, name: str) -> bool:
        """Tell whether there is such a record; ``.format_version`` would invite guessed offsets."""
        return name in self._entries and name != ".format_version"

    def get_record(self, name: str) -> bytes:
        """Return a record's bytes."""
        self._entry(name)
        return bytes(self._views.get(name, b""))

    def get_record_offset(self, name: str) -> int:
        """Return where a record's bytes lie in the file."""
        return self._entry(name).offset

    def get_storage_from_record(self, name: str, nbytes: int, _: object) -> torch.Tensor:
        """Return a record as a tensor of bytes on the memory it was read into."""
        found = self._entry(name).nbytes
        if found != nbytes:
            message = f"{self.path!r}: record {name!r} has {found} bytes, its tensors need {nbytes}"
            raise CorruptCheckpointError(
                message,
                path=self.path,
                record=name,
                expected=f"{nbytes} bytes",
                found=f"{found} bytes",
            )
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8)
        storage = torch.frombuffer(self._views[name], dtype=torch.uint8)
        self.addresses[storage.data_ptr()] = name
        return storage

    def serialization_id(self) -> str:
        """Return nothing: torch logs it, and does no more with it."""
        return ""

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            message = f"{self.path!r} has no record {name!r}, which its pickle refers to"
            raise CorruptCheckpointError(
                message, path=self.path, record=name, expected="a record", found="none"
            ) from None


def rebuild(archive: Archive, map_location: Any, *, weights_only: bool) -> Any:
    """Rebuild the object. torch's own function does it, so that every type it knows comes out.

    Raises:
        LoadError: That cannot be done.
    """
    load_archive: Any = torch.serialization._load  # noqa: SLF001 - torch.load, behind its zip reader
    unpickler = torch._weights_only_unpickler if weights_only else pickle  # noqa: SLF001
    try:
        return load_archive(archive, map_location, unpickler, encoding="utf-8")
    except LoadError:
        raise
    except Exception as error:
        raise _refused(archive.path, error, weights_only=weights_only) from error


def _refused(path: str, error: Exception, *, weights_only: bool) -> LoadError:
    remedy = ""
    if weights_only and isinstance(error, pickle.UnpicklingError):
        remedy = (
            " If you made this file yourself, load it with weights_only=False, or allow the types it "
            "names with torch.serialization.add_safe_globals."
        )
        if "Unsupported operand" in str(error):
            remedy = " It was written in another pickle protocol than 2: weights_only=False reads it, if you trust it."
    # torch.load wraps its reason in advice of its own, with a terminal's escape codes.
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n\n")[0]
    return LoadError(f"cannot rebuild the object in {path!r}: {type(error).__name__}: {reason}.{remedy}", path=path)


def _load_other(source: Source, how: _How, *, verify: bool | None) -> Any:
    """Load what is not a zip archive: a legacy file of ``torch.save``, or nothing that we know."""
    head = source.read(0, min(4, source.nbytes))
    refuse_torn(source, head)
    legacy = head[:1] == b"\x80" or source.read(0, min(512, source.nbytes))[257:262] == b"ustar"
    if not legacy:
        message = f"{source.path!r} is not a checkpoint: it begins with {head!r}"
        raise LoadError(message, path=source.path)
    if how.mmap:
        message = f"{source.path!r} has torch.save's legacy format, which cannot be mapped"
        raise LoadError(message, path=source.path)
    if verify:
        message = f"{source.path!r} has torch.save's legacy format, with no checksums: load it without verify=True"
        raise LoadError(message, path=source.path)
    data = io.BytesIO(source.read(0, source.nbytes))
    return _through_torch(source, data, how)


def _through_torch(source: Source, f: Any, how: _How) -> Any:
    try:
        return torch.load(f, how.map_location, weights_only=how.weights_only, mmap=how.mmap)
    except Exception as error:
        raise _refused(source.path, error, weights_only=how.weights_only) from error


def _is_meta(map_location: Any) -> bool:
    return isinstance(map_location, (str, torch.device)) and str(map_location).partition(":")[0] == "meta"
