"""torch.save's format from before torch 1.6: five pickles, and behind them the storages, each with its size.

The pickles are a magic number, a version, what is said of the machine, the state, and the storages' keys.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.inspection.dtypes import ITEMSIZES
from asyncsave.inspection.machine import Pickled, TruncatedPickleError, read_pickle
from asyncsave.inspection.tensors import Storage
from asyncsave.inspection.tree import Dict
from asyncsave.storage.source import Source

__all__ = ["Legacy", "read_legacy"]

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_WINDOW = 1 << 20
_COUNT = struct.Struct("<q")


class Legacy(NamedTuple):
    """A legacy file's pickles.

    Attributes:
        state: That of the state.
        pickles: The other four.
        keys: The storages' keys, as they lie in the file.
        byteorder: ``"little"`` or ``"big"``.
        nbytes: Where the storages begin.
    """

    state: Pickled
    pickles: tuple[Pickled, ...]
    keys: list[str]
    byteorder: str
    nbytes: int

    def places(self, source: Source, storages: dict[str, Storage]) -> dict[str, int]:
        """Return where each storage's bytes begin, all sizes checked.

        Raises:
            CorruptCheckpointError: The file ends too early, or sizes differ from those in the pickle.
        """
        if len(storages) != len(self.keys) or set(storages) != set(self.keys):
            raise CorruptCheckpointError.of(
                source.path, f"{len(storages)} storages", f"{len(self.keys)} keys of others"
            )
        places, at = {}, self.nbytes
        for key in self.keys:
            storage = storages[key]
            if at + _COUNT.size + storage.nbytes > source.nbytes:
                needed = f"{at + _COUNT.size + storage.nbytes} bytes and more"
                raise CorruptCheckpointError.of(source.path, needed, f"{source.nbytes} bytes")
            (count,) = _COUNT.unpack(source.read(at, _COUNT.size))
            if count * ITEMSIZES[storage.dtype] != storage.nbytes:
                found = f"{count} elements of {storage.dtype}"
                raise CorruptCheckpointError.of(source.path, f"{storage.nbytes} bytes in storage {key!r}", found)
            places[key] = at + _COUNT.size
            at += _COUNT.size + storage.nbytes
        return places


def read_legacy(source: Source, largest: int) -> Legacy:
    """Read the pickles of a legacy file, however long they are.

    Args:
        source: The file.
        largest: Bytes; what is longer is not looked into.

    Raises:
        CorruptCheckpointError: It is truncated or damaged.
        LoadError: It is a pickle, but none of torch's; or its pickles are too long.
    """
    window = _WINDOW
    while True:
        data = source.read(0, min(window, source.nbytes))
        try:
            return _read(data, source.path)
        except TruncatedPickleError:
            if len(data) == source.nbytes:
                raise
        if window >= largest:
            message = f"{source.path!r}: its pickles take more than {largest:,} bytes and are not looked into"
            raise LoadError(message, path=source.path)
        window *= 4


def _read(data: bytes, path: str) -> Legacy:
    at = 0

    def following() -> Pickled:
        nonlocal at
        found = read_pickle(data, path=path, record=None, start=at)
        at += found.nbytes
        return found

    pickles = [following()]
    if type(magic := pickles[0].root) is not int or magic != _MAGIC:
        message = f"{path!r} is a pickle, but not a checkpoint: it does not begin with torch's magic number"
        raise LoadError(message, path=path)
    pickles += [following() for _ in range(4)]
    _, version, system, _, keys = (one.root for one in pickles)
    if type(version) is not int or version != _VERSION:
        raise CorruptCheckpointError.of(path, f"version {_VERSION}", f"another one ({type(version).__name__})")
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise CorruptCheckpointError.of(path, "the keys of its storages", f"a {type(keys).__name__}")
    others = (*pickles[:3], pickles[4])
    return Legacy(pickles[3], others, keys, _byteorder(system), at)


def _byteorder(system: Any) -> str:
    said = system if type(system) is Dict else Dict()
    for at in range(0, len(said), 2):
        if type(said[at]) is str and said[at] == "little_endian":
            return "little" if said[at + 1] is True else "big"
    return "little"
