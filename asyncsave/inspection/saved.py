"""What is in a checkpoint, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Contents", "SavedRecord", "SavedTensor", "SavedValue", "Versions", "WeightsOnly"]


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One tensor.

    Attributes:
        name: Its place in the state: keys, indices and attributes with dots between, as
            ``model.layers.0.weight``; empty for the state itself. A name that two have gets a number: ``a (2)``.
        kind: Its class, as ``torch.Tensor``.
        layout: ``"strided"``, ``"sparse_coo"``, ``"sparse_csr"`` …, ``"nested"``, ``"jagged"``, ``"quantized"``,
            ``"meta"`` (it has no bytes), ``"wrapper"`` (a subclass around others; its bytes are theirs) or
            ``"storage"`` (a storage itself, as one row).
        shape: Its size in elements; -1 where a nested tensor is ragged.
        stride: Steps in elements; None where there are none (sparse, nested).
        offset: Where in its storage it begins, in elements.
        dtype: Type of the elements, as ``"float32"``.
        nbytes: Bytes of its elements, whatever it shares with others; of all its parts, if it has any.
        storage: Key of the storage that holds it (record ``data/KEY``); None if it has none of its own.
        device: Where it was, as ``"cuda:0"``.
        requires_grad: Whether it takes gradients.
        parts: The tensors that it is made of: indices and values of a sparse one, scales of a quantized one.
    """

    name: str
    kind: str
    layout: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    offset: int
    dtype: str
    nbytes: int
    storage: str | None
    device: str
    requires_grad: bool
    parts: tuple[SavedTensor, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedValue:
    """Something that is no tensor.

    Attributes:
        name: Its place in the state, as that of a tensor.
        kind: Its type, as ``"int"`` or ``"collections.OrderedDict"``.
        text: How Python would write it; shortened if it is long, with a digest of all of it.
    """

    name: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class SavedRecord:
    """One record of the zip archive.

    Attributes:
        name: As ``"data/0"``, without the archive's own folder.
        offset: Where its bytes begin in the file.
        nbytes: How many there are.
        crc32: Their CRC-32; 0 if the file has none.
    """

    name: str
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class WeightsOnly:
    """Whether ``torch.load(weights_only=True)`` accepts what the pickle names.

    Attributes:
        ok: Whether it does, with nothing allowed by ``add_safe_globals``.
        refused: What it does not: classes and functions by name, opcodes as ``"opcode FRAME"``, misuse of
            what is allowed in words. Empty exactly if ``ok``.
    """

    ok: bool
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Versions:
    """Which versions a file has.

    Attributes:
        asyncsave: Of asyncsave's format; None for a file of ``torch.save``.
        torch: What its record ``version`` says; None if there is none.
        byteorder: ``"little"`` or ``"big"``.
        pickle: The pickle's protocol.
    """

    asyncsave: int | None
    torch: str | None
    byteorder: str
    pickle: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What :func:`asyncsave.inspect` found.

    Attributes:
        path: The file, absolute.
        format: ``"asyncsave"``, ``"torch"`` (a zip of ``torch.save``) or ``"torch-legacy"`` (from before torch 1.6).
        versions: Which versions it has.
        nbytes: Size of the file in bytes.
        tensors: Its tensors, in the order of the state.
        values: What else is in the state.
        records: The zip's records, in the file's order; none in a legacy file.
        ties: Names that share memory, in groups: of tensors that are one or lie on one storage, and of
            containers that are one.
        storage_nbytes: Bytes of all storages.
        unreferenced_bytes: How many of them no tensor shows.
        weights_only: Whether ``torch.load(weights_only=True)`` takes it.
    """

    path: str
    format: str
    versions: Versions
    nbytes: int
    tensors: tuple[SavedTensor, ...]
    values: tuple[SavedValue, ...]
    records: tuple[SavedRecord, ...]
    ties: tuple[tuple[str, ...], ...]
    storage_nbytes: int
    unreferenced_bytes: int
    weights_only: WeightsOnly
