"""A checkpoint that is loaded piece by piece: its objects are there at once, its tensors when asked for.

So a state can be put back into live objects without a second copy of all of it in memory. Every tensor
of the rebuilt object has its own address, where nothing is until :meth:`Deferred.read` has been given
the object that it is a part of.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch

from asyncsave.cores import cores
from asyncsave.errors import CorruptCheckpointError
from asyncsave.image.crc import combine, crc32
from asyncsave.image.index import Index, checkpoint_index, is_zip
from asyncsave.image.torchzip import DIGEST_PREFIX
from asyncsave.loading import Archive, is_data, rebuild
from asyncsave.reading import Records
from asyncsave.storage.source import FileSource, Source
from asyncsave.workers import Workers

__all__ = ["Deferred", "check_identity"]

_GLOBAL = re.compile(rb"c([\w.]+)\n([\w.]+)\n")
_PROTOCOL_2 = b"\x80\x02"
_KEEPS_STORAGES = {
    (b"torch._utils", b"_rebuild_tensor_v2"),
    (b"torch._utils", b"_rebuild_parameter"),
    (b"collections", b"OrderedDict"),
    (b"torch", b"Size"),
    (b"torch", b"device"),
}
_STORAGE = re.compile(rb"\w+Storage|u?int\d+|b?float\d+\w*|complex\d+|bool")
_LEAVES = (str, int, float, bool, complex, bytes, type(None), torch.dtype, torch.device, torch.Size)


class Deferred:
    """A checkpoint of asyncsave, open. Use it as a context manager.

    Args:
        source: The file, open as long as this is.
        weights_only: As for ``torch.load``.

    Attributes:
        obj: The saved object, on the CPU. What has not been read is zero.

    Raises:
        CorruptCheckpointError: The file is damaged.
        LoadError: It is no checkpoint, or holds what ``weights_only`` forbids.
    """

    def __init__(self, source: Source, *, weights_only: bool) -> None:
        if not is_zip(source.read(0, min(4, source.nbytes))):
            head = source.read(0, min(4, source.nbytes))
            message = f"{source.path!r} is damaged: its first bytes are overwritten, found {head!r}"
            raise CorruptCheckpointError(message, path=source.path, expected=repr(b"PK\x03\x04"), found=repr(head))
        index = checkpoint_index(source)
        self._workers = Workers(min(4, cores()), "asyncsave-load")
        try:
            self._records = Records(source, index.entries, self._workers, check=index.checksums)
            self._records.read(entry.name for entry in index.entries if not is_data(entry))
            archive = Archive(source.path, index, self._records)
            if not _can_wait(archive):
                self._records.read()
            self.obj: Any = rebuild(archive, "cpu", weights_only=weights_only)
            self._names = archive.addresses
            self._records.views.clear()  # from here on the tensors hold the memory
        except BaseException:
            self._workers.close()
            raise

    def __enter__(self) -> Deferred:  # noqa: PYI034 - not made for subclasses
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self._workers.close()

    def read(self, part: object) -> None:
        """Read every tensor in a part of the object, checked on arrival.

        Raises:
            CorruptCheckpointError: One differs from its checksum.
        """
        try:
            addresses = {tensor.untyped_storage().data_ptr() for tensor in _tensors(part)}
        except TypeError:  # something in there may hold tensors that cannot be seen
            self._records.read()
            return
        self._records.read(self._names[address] for address in addresses if address in self._names)


def _can_wait(archive: Archive) -> bool:
    """Tell whether unpickling looks at no byte of a tensor: then they can be read later."""
    data = archive.get_record("data.pkl")
    if archive.has_record("byteorder") and archive.get_record("byteorder") != sys.byteorder.encode():
        return False
    return data.startswith(_PROTOCOL_2) and all(
        name in _KEEPS_STORAGES or (name[0] == b"torch" and _STORAGE.fullmatch(name[1]))
        for name in set(_GLOBAL.findall(data))
    )


def _tensors(node: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in a nest of containers.

    Raises:
        TypeError: There is something else in it.
    """
    if isinstance(node, torch.Tensor):
        if node.layout is not torch.strided:
            raise TypeError("a tensor of several storages")
        yield node
    elif isinstance(node, Mapping):
        yield from _all(node.values())
        yield from _all(vars(node).values() if hasattr(node, "__dict__") else ())
    elif isinstance(node, (list, tuple, set, frozenset)) and not isinstance(node, torch.Size):
        yield from _all(node)
    elif not isinstance(node, _LEAVES):
        raise TypeError(type(node).__name__)


def _all(nodes: Iterable[object]) -> Iterator[torch.Tensor]:
    for node in nodes:
        yield from _tensors(node)


def check_identity(source: FileSource, nbytes: int, digest: str) -> None:
    """Hold a sealed file against its size and digest, without reading its records.

    The seal holds the CRC-32 of all that is before it, so the digest of the whole file follows from the seal
    alone; that the records are what the seal says is checked when they are read.

    Raises:
        CorruptCheckpointError: It is another file, or a damaged one.
    """
    found = f"{source.nbytes} bytes"
    if source.nbytes == nbytes:
        index = checkpoint_index(source)
        found = _digest(source, index)
        if found == digest:
            return
    expected = digest if source.nbytes == nbytes else f"{nbytes} bytes"
    message = f"{source.path!r} is not the file that was saved: expected {expected}, found {found}"
    raise CorruptCheckpointError(message, path=source.path, expected=expected, found=found)


def _digest(source: Source, index: Index) -> str:
    if index.image_crc is None:
        return "a file without a seal"
    seal = source.read(index.sealed_nbytes, source.nbytes - index.sealed_nbytes)
    return f"{DIGEST_PREFIX}{combine(index.image_crc, crc32(seal), len(seal)):08x}"
