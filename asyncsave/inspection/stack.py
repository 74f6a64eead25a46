"""The opcodes of a pickle that move what is on the stack, keep it in the memo, and put it into containers."""

from __future__ import annotations

from typing import Any, cast

from asyncsave.inspection.literals import LONGEST_NUMBER, Literals, TooLargeError
from asyncsave.inspection.tree import Call, Dict, Frozen, Set

__all__ = ["Stack"]

_DEEPEST = 200_000
"""Marks that may be open at once."""
_FAR = 110
"""Bytes of an entry in a dict."""


class Stack(Literals):
    """The part of the machine that keeps what has been read: each method takes an opcode, and returns where it ends.

    Args:
        data: The bytes.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._below: list[list[Any]] = []
        self._memo: list[Any] = []
        self._far: dict[int, Any] = {}  # entries that are not numbered one by one, as picklers do

    def _mark(self, at: int) -> int:
        if len(self._below) >= _DEEPEST:
            raise TooLargeError
        self._below.append(self._stack)
        self._stack = []
        return at

    def _marked(self) -> list[Any]:
        if not self._below:
            raise ValueError("no mark")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, at: int) -> int:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()
        return at

    def _pop_mark(self, at: int) -> int:
        self._marked()
        return at

    def _dup(self, at: int) -> int:
        self._stack.append(self._stack[-1])
        return at

    def _keep(self, number: int) -> None:
        if number < len(self._memo):
            self._memo[number] = self._stack[-1]
        elif number == len(self._memo):
            self._memo.append(self._stack[-1])
        else:
            self._charge(_FAR)
            self._far[number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        self._stack.append(self._memo[number] if number < len(self._memo) else self._far[number])

    def _put(self, at: int) -> int:
        line, at = self._line(at, LONGEST_NUMBER)
        if (number := int(line)) < 0:
            raise ValueError(f"a memo's entry {number}")
        self._keep(number)
        return at

    def _binput(self, at: int) -> int:
        self._keep(self._data[at])
        return at + 1

    def _long_binput(self, at: int) -> int:
        self._keep(self._number("<I", at))
        return at + 4

    def _memoize(self, at: int) -> int:
        self._keep(len(self._memo) + len(self._far))
        return at

    def _get(self, at: int) -> int:
        line, at = self._line(at, LONGEST_NUMBER)
        if (number := int(line)) < 0:
            raise ValueError(f"a memo's entry {number}")
        self._recall(number)
        return at

    def _binget(self, at: int) -> int:
        self._recall(self._data[at])
        return at + 1

    def _long_binget(self, at: int) -> int:
        self._recall(self._number("<I", at))
        return at + 4

    # Containers.

    def _empty_tuple(self, at: int) -> int:
        self._stack.append(())
        return at

    def _tuple1(self, at: int) -> int:
        self._stack[-1] = (self._stack[-1],)
        return at

    def _tuple2(self, at: int) -> int:
        last = self._stack.pop()
        self._stack[-1] = (self._stack[-1], last)
        return at

    def _tuple3(self, at: int) -> int:
        last, before = self._stack.pop(), self._stack.pop()
        self._stack[-1] = (self._stack[-1], before, last)
        return at

    def _tuple(self, at: int) -> int:
        items = self._marked()
        self._stack.append(tuple(items))
        return at

    def _empty_list(self, at: int) -> int:
        self._stack.append([])
        return at

    def _list(self, at: int) -> int:
        items = self._marked()
        self._stack.append(items)
        return at

    def _empty_dict(self, at: int) -> int:
        self._stack.append(Dict())
        return at

    def _dict(self, at: int) -> int:
        items = self._marked()
        self._stack.append(Dict(_paired(items)))
        return at

    def _empty_set(self, at: int) -> int:
        self._stack.append(Set())
        return at

    def _frozenset(self, at: int) -> int:
        items = self._marked()
        self._stack.append(Frozen(items))
        return at

    def _append(self, at: int) -> int:
        item = self._stack.pop()
        _items(self._stack[-1], list).append(item)
        return at

    def _appends(self, at: int) -> int:
        items = self._marked()
        _items(self._stack[-1], list).extend(items)
        return at

    def _additems(self, at: int) -> int:
        items = self._marked()
        _items(self._stack[-1], Set).extend(items)
        return at

    def _setitem(self, at: int) -> int:
        value, key = self._stack.pop(), self._stack.pop()
        _pairs(self._stack[-1]).extend((key, value))
        return at

    def _setitems(self, at: int) -> int:
        items = self._marked()
        _pairs(self._stack[-1]).extend(_paired(items))
        return at


def _paired(items: list[Any]) -> list[Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return items


def _items(target: Any, kind: type) -> list[Any]:
    if type(target) is Call:
        if target.items is None:
            target.items = []
        return target.items
    if type(target) is not kind:
        raise ValueError("nothing that can be added to")
    return cast("list[Any]", target)


def _pairs(target: Any) -> Dict:
    if type(target) is Call:
        if target.pairs is None:
            target.pairs = Dict()
        return target.pairs
    if type(target) is not Dict:
        raise ValueError("nothing that has items")
    return target
