"""What a pickle says, as plain values: the nodes of the tree that is built from its opcodes.

Numbers, texts, None, tuples and lists stand for themselves. Nothing here is ever hashed or compared by
value: both recurse into what a hostile file has nested a million deep.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Bulk", "Call", "Dict", "Frozen", "Global", "Huge", "Persistent", "Set"]


class Global:
    """A class or function, by name only.

    Attributes:
        path: Module and qualified name, with a dot between, as Python 3 calls them.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


class Dict(list[Any]):
    """A dict, as a flat list: key, value, key, value."""

    __slots__ = ()


class Set(list[Any]):
    """A set, as a list of its items."""

    __slots__ = ()


class Frozen(list[Any]):
    """A frozenset, as a list of its items."""

    __slots__ = ()


class Call:
    """What would be a call, if anything were executed.

    Attributes:
        func: What would be called, mostly a :class:`Global`.
        args: With what.
        new: Whether it makes an object without its ``__init__`` (the opcodes NEWOBJ and NEWOBJ_EX).
        kwargs: Arguments by name, as a :class:`Dict`, or None.
        states: What the object's state was to be set to, mostly one, by BUILD.
        items: What was to be appended, or added, to the object; None: nothing.
        pairs: What was to be set in the object, as in a :class:`Dict`; None: nothing.
    """

    __slots__ = ("args", "func", "items", "kwargs", "new", "pairs", "states")

    def __init__(self, func: Any, args: Any, *, new: bool = False, kwargs: Dict | None = None) -> None:
        self.func = func
        self.args = args
        self.new = new
        self.kwargs = kwargs
        self.states: tuple[Any, ...] = ()
        self.items: list[Any] | None = None
        self.pairs: Dict | None = None

    @property
    def path(self) -> str | None:
        """Name of what is called; None if that is no plain name."""
        return self.func.path if type(self.func) is Global else None


class Persistent:
    """A reference to what lies outside of the pickle: in torch's files, to a storage."""

    __slots__ = ("pid",)

    def __init__(self, pid: Any) -> None:
        self.pid = pid


class Bulk:
    """A long text, or long bytes: where they lie in the pickle, not copied.

    Attributes:
        kind: ``"str"``, ``"bytes"`` or ``"bytearray"``.
        view: The bytes; a text's in UTF-8.
        latin: Whether they are bytes that protocol 2 wrote as a text: one character for each, in UTF-8.
    """

    __slots__ = ("kind", "latin", "view")

    def __init__(self, kind: str, view: memoryview, *, latin: bool = False) -> None:
        self.kind = kind
        self.view = view
        self.latin = latin


class Huge:
    """A whole number of too many digits to calculate with.

    Attributes:
        view: Its bytes, in whatever way the pickle wrote them.
    """

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view
