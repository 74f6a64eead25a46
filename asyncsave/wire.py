"""The messages between a writer and its writer process: a fixed format, every length checked.

A message is a header, then its fields one behind the other, all in network order::

    "AS" | version | kind | length of the rest | fields

A whole number and a number of seconds take 8 bytes, a truth value one, a text a 4-byte length and
its UTF-8. Nothing else can be said: no pickle, no code, no nesting. What a message takes along are
descriptors, in a number that its kind fixes; tensors never travel.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, get_type_hints

__all__ = [
    "HEADER",
    "LONGEST",
    "Begun",
    "Clear",
    "Done",
    "Failed",
    "Log",
    "Message",
    "Progress",
    "ProtocolError",
    "Ready",
    "Save",
    "Start",
    "body_nbytes",
    "decode",
    "encode",
    "shortened",
]

VERSION = 1
LONGEST = 64 << 10
"""Most bytes of a message behind its header: three paths of the longest kind, and a text."""
_LONGEST_TEXT = 8 << 10
HEADER = struct.Struct("!2sBBI")
_MAGIC = b"AS"
_LENGTH = struct.Struct("!I")
_FORMS = {int: struct.Struct("!q"), float: struct.Struct("!d"), bool: struct.Struct("!B")}


class ProtocolError(ValueError):
    """What came is no message, or not one that is expected here: the talk ends."""


class Start(NamedTuple):
    """To the process, first of all.

    Attributes:
        trainer: Number of the process that it serves.
        threads: How many write blocks at once.
        log: Where to write to once that process is gone.
    """

    trainer: int
    threads: int
    log: str


class Save(NamedTuple):
    """To the process: one staged checkpoint. Takes along its memory, both ends of its claim, and others.

    Attributes:
        number: What the save is called in the answers.
        nbytes: Size of the image, whose table lies behind it; of a step, of all its images.
        path: The target, as the user named it, absolute.
        folder: The folder that it really lies in.
        name: Its name in there.
        sync: Whether to flush to the medium.
        umask: Of the trainer at the call, for the mode of a new file; -1 where it is not known.
        started: ``time.perf_counter()`` of the call.
        queued: The same when the state was staged.
        after: How many saves must have ended before; as many descriptors come next.
        locked: Whether a descriptor comes last that is to be held until the save has ended.
        recycle: Whether replaced files may be overwritten.
        brief_at: Where in the memory the brief of a step begins.
        brief_nbytes: Its size; 0: this is a file.
    """

    number: int
    nbytes: int
    path: str
    folder: str
    name: str
    sync: bool
    umask: int
    started: float
    queued: float
    after: int
    locked: bool = False
    recycle: bool = True
    brief_at: int = 0
    brief_nbytes: int = 0


class Clear(NamedTuple):
    """To the process: remove the file that is kept to be overwritten, when what was sent before is done."""


class Ready(NamedTuple):
    """From the process: it takes saves."""

    process: int


class Begun(NamedTuple):
    """From the process: it has claimed a save, ``queue`` seconds after it was staged."""

    number: int
    queue: float


class Progress(NamedTuple):
    """From the process: so many more bytes of a save are written."""

    number: int
    nbytes: int


class Done(NamedTuple):
    """From the process: the checkpoint is in place. The figures are those of a ``SaveResult``."""

    number: int
    digest: str
    durable: bool
    seal: float
    write: float
    sync: float
    total: float


class Failed(NamedTuple):
    """From the process: a save failed. The figures are those of a ``SaveError``; ``errno`` 0: it has none."""

    number: int
    message: str
    phase: str
    errno: int
    outcome: str


class Log(NamedTuple):
    """From the process: a line for the log."""

    level: int
    text: str


Message = Start | Save | Ready | Begun | Progress | Done | Failed | Log | Clear
_KINDS: tuple[type[Message], ...] = (Start, Save, Ready, Begun, Progress, Done, Failed, Log, Clear)
_FIELDS = {kind: tuple(get_type_hints(kind).values()) for kind in _KINDS}


def encode(message: Message) -> bytes:
    """Return a message as bytes, its header first.

    Raises:
        ProtocolError: It is longer than :data:`LONGEST`, or a field of it cannot be said.
    """
    try:
        body = b"".join(_pack(kind, value) for kind, value in zip(_FIELDS[type(message)], message, strict=True))
    except (UnicodeEncodeError, struct.error) as error:
        raise ProtocolError(f"a {type(message).__name__} that cannot be said: {error}") from error
    if len(body) > LONGEST:
        raise ProtocolError(f"a {type(message).__name__} of {len(body)} bytes is longer than {LONGEST}")
    return HEADER.pack(_MAGIC, VERSION, _KINDS.index(type(message)), len(body)) + body


def shortened(text: str) -> str:
    """Cut a text so that a message has room for it beside its paths."""
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."


def _pack(kind: type, value: Any) -> bytes:
    if kind is str:
        text: bytes = value.encode("utf-8", "surrogateescape")
        return _LENGTH.pack(len(text)) + text
    packed: bytes = _FORMS[kind].pack(value)
    return packed


def body_nbytes(header: bytes) -> int:
    """Return how many bytes follow a header.

    Raises:
        ProtocolError: It is not the header of a message, or of one that is too long.
    """
    if len(header) != HEADER.size:
        raise ProtocolError(f"a header of {len(header)} bytes")
    magic, version, kind, length = HEADER.unpack(header)
    if magic != _MAGIC or version != VERSION:
        raise ProtocolError(f"expected a message of version {VERSION}, found {header[:4]!r}")
    if kind >= len(_KINDS) or length > LONGEST:
        raise ProtocolError(f"there is no message of kind {kind} and {length} bytes")
    return int(length)


def decode(header: bytes, body: bytes) -> Message:
    """Return the message that a header and its body are.

    Raises:
        ProtocolError: They are none.
    """
    if body_nbytes(header) != len(body):
        raise ProtocolError(f"{len(body)} bytes behind a header that says {body_nbytes(header)}")
    message = _KINDS[header[3]]
    reader = _Reader(body)
    values = [reader.take(kind) for kind in _FIELDS[message]]
    if reader.rest:
        raise ProtocolError(f"{reader.rest} bytes too many in a {message.__name__}")
    return message(*values)


class _Reader:
    """Takes fields off a message's body, front to back."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def rest(self) -> int:
        return len(self._body) - self._at

    def take(self, kind: type) -> Any:
        form = _LENGTH if kind is str else _FORMS[kind]
        (value,) = form.unpack(self._bytes(form.size))
        if kind is str:
            return self._bytes(value).decode("utf-8", "surrogateescape")
        if kind is bool:
            if value > 1:
                raise ProtocolError(f"a truth value of {value}")
            return bool(value)
        return value

    def _bytes(self, count: int) -> bytes:
        if count > self.rest:
            raise ProtocolError(f"a field of {count} bytes where {self.rest} are left")
        self._at += count
        return self._body[self._at - count : self._at]
