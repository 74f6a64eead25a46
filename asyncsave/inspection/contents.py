"""Look into a checkpoint: its directory and its pickle are read, its tensors are not, and nothing is executed."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from typing import NamedTuple

from asyncsave import pending
from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.image.crc import crc32
from asyncsave.image.index import Entry, Index, Readable, checkpoint_index, is_zip, refuse_torn
from asyncsave.image.torchzip import VERSION
from asyncsave.inspection.coverage import shown_nbytes
from asyncsave.inspection.legacy import read_legacy
from asyncsave.inspection.machine import Pickled, read_pickle
from asyncsave.inspection.safe import weights_only
from asyncsave.inspection.saved import Contents, SavedRecord, Versions
from asyncsave.inspection.tensors import MalformedTensorError, Storage, Tensors
from asyncsave.inspection.walk import TooMuchError, Walked, walk
from asyncsave.options import file_path
from asyncsave.storage.source import Source, open_source

__all__ = ["Look", "inspect", "look"]

_LARGEST = 192 << 20
"""Bytes; a longer pickle is not looked into."""
_LARGEST_DIRECTORY = 48 << 20
"""Bytes; a longer directory, of 700,000 records or more, is not looked into."""
_SMALL = 64


class Look(NamedTuple):
    """What is in a checkpoint, and where its tensors' bytes are.

    Attributes:
        contents: What is in it.
        places: For each storage by key, where its bytes begin in the file.
    """

    contents: Contents
    places: dict[str, int]


def inspect(f: str | os.PathLike[str]) -> Contents:
    """Tell what is in a checkpoint without loading it.

    Reads the zip's directory and the pickle, so a large file takes no longer than a small one. The pickle's
    opcodes are followed, never executed: nothing is imported, called or set, whatever the file says. Neither
    torch is imported. Works on files of asyncsave and of ``torch.save``, legacy ones too. A file that this
    process is still writing is waited for.

    Does not read the tensors, so it does not see whether they are damaged: :func:`asyncsave.verify` does.

    Args:
        f: The file.

    Returns:
        Names, shapes and sizes, as plain values.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CorruptCheckpointError: It is truncated or damaged, or its pickle does not fit its records.
        FormatVersionError: A newer asyncsave wrote it.
        OptionError: ``f`` is no path.
        LoadError: It is no checkpoint, cannot be read, or describes more objects than can be looked at.
    """
    path = file_path(f)
    pending.wait_for(path)
    with open_source(path) as source:
        return look(source).contents


def look(source: Source) -> Look:
    """Look into a checkpoint that is open already; see :func:`inspect`."""
    # A tree is made of small objects, none of which goes before its end: Python's collector would
    # walk them again and again for nothing.
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _look(source)
    except MemoryError:
        message = f"there is not enough memory to look into {source.path!r}"
        raise LoadError(message, path=source.path) from None
    finally:
        if enabled:
            gc.enable()


def _look(source: Source) -> Look:
    head = source.read(0, min(512, source.nbytes))
    if is_zip(head):
        return _look_into_zip(source)
    _refuse_others(source, head)
    legacy = read_legacy(source, _LARGEST)
    tensors = Tensors()
    walked = _walked(source.path, None, legacy.state, tensors)
    places = legacy.places(source, tensors.storages)
    versions = Versions(None, None, legacy.byteorder, legacy.state.protocol)
    contents = _contents(
        source, "torch-legacy", versions, (*legacy.pickles, legacy.state), (), walked, tensors.storages
    )
    return Look(contents, places)


def _look_into_zip(source: Source) -> Look:
    index = checkpoint_index(_Bounded(source))
    entries = {entry.name: entry for entry in index.entries}
    pickled = read_pickle(_record(source, index, entries["data.pkl"]), path=source.path, record="data.pkl")
    tensors = Tensors()
    walked = _walked(source.path, "data.pkl", pickled, tensors)
    for storage in tensors.storages.values():
        _check_record(source.path, storage, entries.get(f"data/{storage.key}"))
    texts = {
        name: str(_record(source, index, entries[name]), "utf-8", "replace").strip()
        for name in ("version", "byteorder")
        if name in entries and entries[name].nbytes <= _SMALL
    }
    sealed = index.image_crc is not None
    byteorder = texts.get("byteorder", "little")
    if byteorder not in {"little", "big"}:
        raise CorruptCheckpointError.of(source.path, "little or big", repr(byteorder), record="byteorder")
    versions = Versions(VERSION if sealed else None, texts.get("version"), byteorder, pickled.protocol)
    stored = {key: Storage(key, "uint8", entry.nbytes, "") for key, entry in _data(entries)}
    contents = _contents(
        source, "asyncsave" if sealed else "torch", versions, (pickled,), index.entries, walked, stored
    )
    return Look(contents, {key: entry.offset for key, entry in _data(entries)})


def _contents(
    source: Source,
    kind: str,
    versions: Versions,
    pickles: Iterable[Pickled],
    entries: Iterable[Entry],
    walked: Walked,
    storages: dict[str, Storage],
) -> Contents:
    held = sum(storage.nbytes for storage in storages.values())
    return Contents(
        path=source.path,
        format=kind,
        versions=versions,
        nbytes=source.nbytes,
        tensors=tuple(walked.tensors),
        values=tuple(walked.values),
        records=tuple(SavedRecord(entry.name, entry.offset, entry.nbytes, entry.crc) for entry in entries),
        ties=tuple(walked.ties),
        storage_nbytes=held,
        unreferenced_bytes=held - shown_nbytes(walked.tensors),
        weights_only=weights_only(pickles),
    )


class _Bounded:
    """A file whose directory is not believed to be larger than any that there is."""

    def __init__(self, source: Readable) -> None:
        self.path, self.nbytes, self._source = source.path, source.nbytes, source

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return some bytes, or refuse to."""
        if nbytes > _LARGEST_DIRECTORY:
            message = (
                f"{self.path!r} has a zip directory of {nbytes:,} bytes; one of more than "
                f"{_LARGEST_DIRECTORY:,} is not looked into"
            )
            raise LoadError(message, path=self.path)
        return self._source.read(offset, nbytes)


def _record(source: Source, index: Index, entry: Entry) -> bytes:
    if entry.nbytes > _LARGEST:
        message = (
            f"{source.path!r}: its record {entry.name!r} has {entry.nbytes:,} bytes; one of more than {_LARGEST:,} is "
            "not looked into. Arrays of numpy lie in the pickle itself: as tensors they would not"
        )
        raise LoadError(message, path=source.path)
    data = source.read(entry.offset, entry.nbytes)
    if index.checksums and (found := crc32(data)) != entry.crc:
        raise CorruptCheckpointError.of(source.path, f"CRC-32 {entry.crc:08x}", f"{found:08x}", record=entry.name)
    return data


def _walked(path: str, record: str | None, pickled: Pickled, tensors: Tensors) -> Walked:
    try:
        for persistent in pickled.persistent:
            tensors.storage(persistent)
        return walk(pickled.root, tensors)
    except MalformedTensorError as error:
        raise CorruptCheckpointError.of(path, "tensors as torch saves them", str(error), record=record) from None
    except TooMuchError as error:
        message = f"{path!r}: what its pickle describes cannot be looked at without loading it: {error}"
        raise LoadError(message, path=path) from None


def _check_record(path: str, storage: Storage, entry: Entry | None) -> None:
    if entry is None or entry.nbytes != storage.nbytes:
        found = "none" if entry is None else f"{entry.nbytes} bytes"
        needed = f"{storage.nbytes} bytes, which its tensors need"
        raise CorruptCheckpointError.of(path, needed, found, record=f"data/{storage.key}")


def _data(entries: dict[str, Entry]) -> list[tuple[str, Entry]]:
    return [(name.removeprefix("data/"), entry) for name, entry in entries.items() if name.startswith("data/")]


def _refuse_others(source: Source, head: bytes) -> None:
    """Refuse what is neither a zip nor of torch's legacy format."""
    path = source.path
    refuse_torn(source, head)
    if head[257:262] == b"ustar":
        message = f"{path!r} has the tar format that torch wrote in 2016: only torch.load(weights_only=False) reads it"
        raise LoadError(message, path=path)
    if head[:1] != b"\x80":
        message = f"{path!r} is not a checkpoint: it begins with {head[:4]!r}"
        raise LoadError(message, path=path)
