"""The storages that one pickle refers to: each is taken once, whoever sees it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["Seen", "StorageSpan", "Storages"]


class StorageSpan(NamedTuple):
    """The part of one storage that is saved, in bytes; the storage itself is the live one."""

    storage: torch.UntypedStorage
    start: int
    nbytes: int


class Seen:
    """One storage: its record's number, its dtype, what is taken and what is seen of it, in bytes."""

    __slots__ = ("dtype", "key", "nbytes", "start", "stop", "storage", "taken")

    def __init__(self, storage: torch.UntypedStorage, key: str, dtype: torch.dtype) -> None:
        self.storage = storage
        self.key = key
        self.dtype = dtype
        self.nbytes = self.start = storage.nbytes()
        self.stop = 0
        self.taken = (0, self.nbytes)

    def see(self, start: int, stop: int) -> None:
        """Note that a tensor sees these bytes."""
        self.start = min(self.start, start)
        self.stop = max(self.stop, stop)

    @property
    def visible(self) -> tuple[int, int]:
        """What tensors see, from its first byte to behind its last."""
        return min(self.start, self.stop), self.stop

    def see_all(self) -> None:
        """Note that all bytes are seen, or must be taken to be."""
        self.start, self.stop = 0, self.nbytes


class Storages:
    """The storages of one pickle, in the order of their first appearance.

    Args:
        first: For a compact second pass: the first one, which has seen what is needed of each storage.
            It also keeps those alive that were made while pickling: no address may stand for two.

    Attributes:
        globals: The classes and functions that the pickle names.
        tensors: How many times a tensor has brought its storage.
    """

    def __init__(self, first: Storages | None = None) -> None:
        self._seen: dict[int, Seen] = {}
        self._dtypes: dict[int, torch.dtype] = {}
        self._before = first._seen if first else {}  # noqa: SLF001 - one of us
        self.globals: set[Any] = set()
        self.tensors = 0

    def add(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> Seen:
        """Return the entry of a storage, new or known.

        Raises:
            RuntimeError: Its memory was met with another dtype, which ``torch.save`` refuses too.
        """
        self.tensors += 1
        address = storage._cdata  # noqa: SLF001 - identity of a storage, as torch.save takes it
        seen = self._seen.get(address)
        if seen is None:
            seen = self._seen[address] = Seen(storage, str(len(self._seen)), dtype)
            before = self._before.get(address)
            if before is not None:  # one that is made anew by each pickling is taken whole
                seen.taken = before.visible
            if pointer := storage.data_ptr():
                dtype = self._dtypes.setdefault(pointer, dtype)
        if seen.dtype != dtype and seen.nbytes:
            message = "Cannot save multiple tensors or storages that view the same data as different types"
            raise RuntimeError(message)
        return seen

    @property
    def unreferenced(self) -> int:
        """Bytes taken that no tensor sees."""
        return sum(seen.taken[1] - seen.taken[0] - max(0, seen.stop - seen.start) for seen in self._seen.values())

    def spans(self) -> list[StorageSpan]:
        """Return what each record holds."""
        return [StorageSpan(seen.storage, seen.taken[0], seen.taken[1] - seen.taken[0]) for seen in self._seen.values()]
