"""How plain values are written: as Python would, but never at length, and never by what a file says to call."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from asyncsave.inspection.dtypes import ITEMSIZES
from asyncsave.inspection.literals import BULK
from asyncsave.inspection.tree import Bulk, Call, Dict, Frozen, Global, Huge, Set

__all__ = ["AS_DICT", "effort_of", "is_scalar", "key_text", "kind_of", "text_of"]

AS_DICT = frozenset(("collections.OrderedDict", "collections.defaultdict", "collections.Counter"))
"""The classes that are told as a dict is, by keys."""

_SHORT = 100
_BEGINNING = 60
_SHORT_KEY = 8
_PIECE = 1 << 20
_RUN = 1024
_SCALARS = frozenset((int, float, bool, str, bytes, type(None), Global, Bulk, Huge))
_BUILT_IN = frozenset((int, float, bool, str, bytes, type(None)))
_BRACKETS: dict[type, tuple[str, str]] = {
    tuple: ("(", ")"),
    list: ("[", "]"),
    Dict: ("{", "}"),
    Set: ("{", "}"),
    Frozen: ("frozenset({", "})"),
}
_KINDS: dict[type, str] = {
    type(None): "NoneType",
    Global: "global",
    Huge: "int",
    Dict: "dict",
    Set: "set",
    Frozen: "frozenset",
}


def is_scalar(node: Any) -> bool:
    """Tell whether a node holds no others."""
    return type(node) in _SCALARS


def kind_of(node: Any) -> str:
    """Return the type that a node's value would have."""
    kind = type(node)
    if kind is Global and node.path.removeprefix("torch.") in ITEMSIZES:
        return "torch.dtype"
    if kind is Call:
        return str(node.path or "object").removeprefix("builtins.")
    return str(node.kind) if kind is Bulk else _KINDS.get(kind, kind.__name__)


def text_of(node: Any) -> str:
    """Return what Python would write for a scalar, or for a container or a call of scalars only.

    A long text is cut; its whole length and its SHA-256 come after it, so that two texts are equal
    exactly if what they stand for is.
    """
    text, length, digest = "", 0, None
    for piece in _pieces(node):
        length += len(piece)
        if digest is None and length > _SHORT:
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
        if digest is None:
            text += str(piece, "utf-8", "surrogateescape") if isinstance(piece, memoryview) else piece
        else:
            digest.update(piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece)
            if len(text) < _BEGINNING:
                more = piece[: _BEGINNING - len(text)]
                text += more if isinstance(more, str) else str(more, "utf-8", "replace")
    return text if digest is None else f"{text[:_BEGINNING]}... ({length} characters, sha256 {digest.hexdigest()[:16]})"


def key_text(key: Any) -> str:
    """Return how a key of a dict appears in a name."""
    if type(key) is str:
        return key
    if isinstance(key, Bulk):
        return f"<{key.kind} of {key.view.nbytes} bytes>"
    short = is_scalar(key) or (type(key) is tuple and len(key) <= _SHORT_KEY and all(map(_is_short, key)))
    return text_of(key) if short else f"<{kind_of(key)}>"


def effort_of(node: Any) -> int:
    """Return how much there is to be gone through to write a node, in some unit."""
    kind = type(node)
    if kind in {Bulk, Huge}:
        return 1 + node.view.nbytes // 64  # type: ignore[no-any-return]
    if kind in {str, bytes}:
        return 1 + len(node) // 64
    if kind is Call:
        return 1 + sum(map(effort_of, node.args)) + sum(map(effort_of, node.items or ()))
    if kind is Dict:
        return 4 * sum(map(effort_of, node))
    return 1 if is_scalar(node) else 1 + sum(map(effort_of, node))


def _is_short(node: Any) -> bool:
    return is_scalar(node) and not isinstance(node, (Bulk, Huge))


def _pieces(node: Any) -> Iterator[str | memoryview]:
    if is_scalar(node):
        yield from _scalar(node)
    elif type(node) is Call:
        yield kind_of(node) + "("
        for number, one in enumerate((*node.args, node.items) if node.items else node.args):
            if number:
                yield ", "
            yield from _pieces(one)
        yield ")"
    else:
        opening, closing = _BRACKETS[type(node)]
        if type(node) is Set and not node:
            opening, closing = "set(", ")"
        yield opening
        if type(node) is Dict:
            yield from _entries(node)
        else:
            yield from _joined(_sorted(node) if type(node) in {Set, Frozen} else node)
        yield "," + closing if type(node) is tuple and len(node) == 1 else closing


def _joined(nodes: Sequence[Any]) -> Iterator[str | memoryview]:
    """Write some scalars with commas between, many at once where that is Python's own ``repr`` of a list."""
    for at in range(0, len(nodes), _RUN):
        run = nodes[at : at + _RUN]
        if at:
            yield ", "
        if _BUILT_IN.issuperset(map(type, run)):
            yield repr(list(run))[1:-1]
            continue
        for number, node in enumerate(run):
            if number:
                yield ", "
            yield from _scalar(node)


def _sorted(nodes: list[Any]) -> list[Any]:
    """Put a set into an order that does not change from one run of Python to the next."""
    return sorted(nodes, key=lambda node: repr(node) if _is_short(node) and type(node) is not Global else kind_of(node))


def _entries(node: Dict) -> Iterator[str | memoryview]:
    for at in range(0, len(node), 2):
        if at:
            yield ", "
        yield key_text(node[at]) if type(node[at]) is not str else repr(node[at])
        yield ": "
        yield from _scalar(node[at + 1])


def _scalar(node: Any) -> Iterator[str | memoryview]:
    if type(node) is Bulk and node.kind == "bytearray" and node.view.nbytes <= BULK and not node.latin:
        yield f"bytearray({bytes(node.view)!r})"
    elif type(node) is Bulk:
        yield f"<{node.kind}> "
        if node.latin:
            yield from _latin(node.view)
        else:
            yield node.view
    elif type(node) is Huge:
        yield "<int> "
        yield node.view
    elif type(node) is Global:
        yield node.path
    else:
        yield repr(node)


def _latin(view: memoryview) -> Iterator[memoryview]:
    """Turn a text of characters up to 255 back into the bytes that it stands for."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for at in range(0, view.nbytes, _PIECE):
        yield memoryview(decoder.decode(view[at : at + _PIECE]).encode("latin-1", "replace"))
