"""Read a pickle without unpickling it: a machine that follows the opcodes, and calls nothing.

Where ``pickle`` would import, call or set, it makes a node of :mod:`asyncsave.inspection.tree`. Three things hold
for whatever bytes it gets: it takes each byte once; its memory is bounded, because every opcode is charged
what it may take; and nothing in it recurses.
"""

from __future__ import annotations

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from asyncsave.errors import CorruptCheckpointError, LoadError
from asyncsave.inspection.literals import BULK, LONGEST_NAME, TooLargeError
from asyncsave.inspection.opcodes import NEWEST, OPCODES
from asyncsave.inspection.stack import Stack
from asyncsave.inspection.tree import Bulk, Call, Dict, Frozen, Global, Persistent, Set

__all__ = ["ROOM", "Pickled", "TruncatedPickleError", "read_pickle"]

ROOM = 288 << 20
"""Bytes of memory that a tree may take, about: that of 270,000 tensors."""

_PLAIN = frozenset(("_codecs.encode", "builtins.bytearray", "builtins.bytes", "builtins.frozenset", "builtins.set"))
_WITH_BYTE = b"hqK"
"""The opcodes that a byte comes after, which they take as it is: BINGET, BINPUT, BININT1."""
_GLOBAL = 1000
"""Bytes that a class or function is charged: a state has hundreds of them, and thousands of each."""


class Pickled(NamedTuple):
    """A pickle that was read.

    Attributes:
        root: The tree's root.
        protocol: The highest protocol that it names, or 0.
        opcodes: The names of the opcodes that occur.
        globals: The classes and functions that it names, in order, each once.
        calls: Every call, in order.
        persistent: Every reference to the outside, in order.
        nbytes: How many bytes the pickle takes, its end included.
    """

    root: Any
    protocol: int
    opcodes: frozenset[str]
    globals: tuple[str, ...]
    calls: list[Call]
    persistent: list[Persistent]
    nbytes: int


class TruncatedPickleError(CorruptCheckpointError):
    """The bytes end before the pickle does."""


def read_pickle(data: bytes, *, path: str, record: str | None, start: int = 0, room: int = ROOM) -> Pickled:
    """Follow the opcodes of a pickle to its end.

    Args:
        data: The bytes; what comes after the pickle's end is not looked at.
        path: What errors call the file.
        record: What errors call the record.
        start: Where in ``data`` it begins.
        room: Bytes of memory that the tree may take.

    Raises:
        CorruptCheckpointError: They are no whole pickle.
        TruncatedPickleError: They end before it does.
        LoadError: It needs more memory than that, or a newer protocol.
    """
    return _Machine(data, path, record).run(start, room)


class _Machine(Stack):
    def __init__(self, data: bytes, path: str, record: str | None) -> None:
        super().__init__(data)
        self._path, self._record = path, record
        self._globals: dict[str, Global] = {}
        self._calls: list[Call] = []
        self._persistent: list[Persistent] = []
        self._protocol = 0
        self._root: Any = None

    def run(self, start: int, room: int) -> Pickled:
        data, at = self._data, start
        handlers: list[Callable[[int], int]] = [self._unknown] * 256
        costs = [0] * 256
        for code, (name, nbytes) in OPCODES.items():
            handlers[code] = getattr(self, f"_{name.lower()}")
            costs[code] = nbytes
        seen = bytearray(256)
        begun = at
        try:
            while at >= 0:
                begun = at
                code = data[at]
                seen[code] = 1
                room -= costs[code]
                if room < 0:
                    self._too_large(begun)
                at = handlers[code](at + 1)
        except TooLargeError:
            self._too_large(begun)
        except (IndexError, KeyError, ValueError, OverflowError, struct.error) as error:
            self._fail(begun, error)
        opcodes = frozenset(OPCODES[code].name for code in range(256) if seen[code])
        names = tuple(self._globals)
        nbytes = begun + 1 - start
        return Pickled(self._root, self._protocol, opcodes, names, self._calls, self._persistent, nbytes)

    # What is wrong.

    def _fail(self, at: int, error: Exception) -> NoReturn:
        short = at + 1 == len(self._data) and self._data[at] in _WITH_BYTE
        if at >= len(self._data) or short or isinstance(error, struct.error):
            self._truncated(at)
        name = OPCODES[self._data[at]].name if self._data[at] in OPCODES else f"0x{self._data[at]:02x}"
        reason = "an empty stack" if isinstance(error, IndexError) else str(error)
        if isinstance(error, KeyError):
            reason = f"no entry {error} in the memo"
        found = f"opcode {name} at byte {at}: {reason}"
        raise self._damaged("a pickle's opcodes", found) from None

    def _truncated(self, at: int) -> NoReturn:
        raise self._damaged("a whole pickle", f"its end at byte {len(self._data)}, in {at}", TruncatedPickleError)

    def _damaged(
        self, expected: str, found: str, kind: type[CorruptCheckpointError] = CorruptCheckpointError
    ) -> CorruptCheckpointError:
        what = "" if self._record else "its pickle"
        return kind.of(self._path, expected, found, record=self._record, what=what)

    def _too_large(self, at: int) -> NoReturn:
        message = (
            f"{self._path!r}: its pickle describes more objects than can be looked at without loading it "
            f"(byte {at:,} of {len(self._data):,})"
        )
        raise LoadError(message, path=self._path)

    def _unknown(self, _: int) -> int:
        raise ValueError("there is no such opcode")

    # The beginning and the end.

    def _stop(self, _: int) -> int:
        self._root = self._stack.pop()
        return -1

    def _proto(self, at: int) -> int:
        protocol = self._number("<B", at)
        if protocol > NEWEST:
            message = f"{self._path!r} is pickled in protocol {protocol}, this asyncsave knows {NEWEST}"
            raise LoadError(message, path=self._path)
        self._protocol = max(self._protocol, protocol)
        return at + 1

    def _frame(self, at: int) -> int:
        self._end(at + 8, self._number("<Q", at))
        return at + 8

    # What would be imported, called or set.

    def _named(self, path: str) -> Global:
        found = self._globals.get(path)
        if found is None:
            self._charge(_GLOBAL + 2 * len(path))
            found = self._globals[path] = Global(path)
        return found

    def _global_line(self, at: int) -> tuple[Global, int]:
        first, at = self._line(at, LONGEST_NAME)
        second, at = self._line(at, LONGEST_NAME)
        module, name = first.decode("utf-8"), second.decode("utf-8")
        if (module, name) in NAME_MAPPING:  # Python 2's names, which protocol 2 goes by
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        return self._named(f"{module}.{name}"), at

    def _global(self, at: int) -> int:
        found, at = self._global_line(at)
        self._stack.append(found)
        return at

    def _stack_global(self, at: int) -> int:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str or len(name) + len(module) > 2 * LONGEST_NAME:
            raise ValueError("no name")
        self._stack.append(self._named(f"{module}.{name}"))
        return at

    def _called(self, call: Call) -> None:
        self._calls.append(call)
        self._stack.append(call)

    def _inst(self, at: int) -> int:
        func, at = self._global_line(at)
        items = self._marked()
        self._called(Call(func, tuple(items)))
        return at

    def _obj(self, at: int) -> int:
        items = self._marked()
        self._called(Call(items[0], tuple(items[1:])))
        return at

    def _reduce(self, at: int) -> int:
        args, func = self._stack.pop(), self._stack.pop()
        self._called(Call(func, _arguments(args)))
        if type(func) is Global and func.path in _PLAIN:
            self._plain(func.path, args)
        return at

    def _plain(self, path: str, args: tuple[Any, ...]) -> None:
        """Take a plain value that protocols before 4 have no opcode for, and write as a call."""
        first, encoding = (*args, None, None)[:2]
        if path in {"builtins.set", "builtins.frozenset"} and len(args) == 1 and type(first) is list:
            self._charge(8 * len(first))
            self._stack[-1] = (Set if path == "builtins.set" else Frozen)(first)
        elif path == "builtins.bytes" and not args:
            self._stack[-1] = b""
        elif path == "builtins.bytearray" and len(args) == 1 and type(first) in (bytes, Bulk):
            latin = type(first) is Bulk and first.latin
            self._stack[-1] = Bulk("bytearray", first.view if type(first) is Bulk else memoryview(first), latin=latin)
        elif type(encoding) is str and encoding in {"latin1", "latin-1"}:
            kind = "bytes" if path == "_codecs.encode" else "bytearray"
            text = str(first.view, "utf-8") if type(first) is Bulk and first.view.nbytes <= 2 * BULK else first
            if type(text) is str and len(text) <= BULK:
                self._charge(len(text))
                data = text.encode("latin-1")
                self._stack[-1] = data if kind == "bytes" else Bulk(kind, memoryview(data))
            elif type(first) is Bulk:
                self._stack[-1] = Bulk(kind, first.view, latin=True)

    def _newobj(self, at: int) -> int:
        args, func = self._stack.pop(), self._stack.pop()
        self._called(Call(func, _arguments(args), new=True))
        return at

    def _newobj_ex(self, at: int) -> int:
        kwargs, args, func = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if type(kwargs) is not Dict:
            raise ValueError("arguments by name that are no dict")
        self._called(Call(func, _arguments(args), new=True, kwargs=kwargs))
        return at

    def _build(self, at: int) -> int:
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is not Call or len(target.states) > 1:
            raise ValueError("nothing that has a state")
        target.states = (*target.states, state)
        return at

    def _extension(self, _: int) -> int:
        message = f"{self._path!r} names classes by numbers (copyreg's extensions), which only its writer knows"
        raise LoadError(message, path=self._path)

    _ext1 = _ext2 = _ext4 = _extension

    def _refer(self, pid: Any) -> None:
        found = Persistent(pid)
        self._persistent.append(found)
        self._stack.append(found)

    def _persid(self, at: int) -> int:
        line, at = self._line(at, LONGEST_NAME)
        self._refer(line.decode("ascii"))
        return at

    def _binpersid(self, at: int) -> int:
        self._refer(self._stack.pop())
        return at


def _arguments(args: Any) -> tuple[Any, ...]:
    if type(args) is not tuple:
        raise ValueError("arguments that are no tuple")
    return args
