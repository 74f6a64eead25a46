"""What a finished save and a finished check say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Problem", "SaveResult", "VerifyReport"]


@dataclass(frozen=True, slots=True)
class SaveResult:
    """A checkpoint that is in place.

    Attributes:
        path: The file, absolute, as it was at the call; for a file object its ``name`` or type.
        nbytes: Size of the file in bytes.
        digest: ``"crc32:…"``: CRC-32 of the whole file, in hexadecimal.
        durable: Whether it survives a power cut as far as the system can tell. False on a file
            system in memory, with ``durable=False``, and for file objects.
        timings: Seconds: ``wait`` (for a slot), ``capture`` (pickling), ``stage`` (copying),
            ``queue``, ``seal``, ``write``, ``sync``, and ``total`` from the call on.
    """

    path: str
    nbytes: int
    digest: str
    durable: bool
    timings: dict[str, float]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a file.

    Attributes:
        record: Name of the damaged record (``"data/7"``), or None for the container.
        kind: ``"checksum"``: a record's bytes changed; ``"container"``: the file is truncated, or what
            lies around the records changed; ``"no checksums"``: it cannot be told; ``"foreign"``: this
            is no checkpoint.
        expected: What should be there.
        found: What is there.
    """

    record: str | None
    kind: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What :func:`asyncsave.verify` found.

    Attributes:
        path: The file, absolute.
        ok: True if every byte of every record is what was written.
        nbytes: Size of the file in bytes.
        records: How many records it has.
        problems: What is wrong; empty exactly if ``ok``.
    """

    path: str
    ok: bool
    nbytes: int
    records: int
    problems: tuple[Problem, ...] = field(default=())
