"""Walk through the tree of a pickle: every tensor and every plain value, by name.

Each container is walked once, however many refer to it, so a structure that would be endless if it were
written out takes no longer than its bytes. Nothing recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from asyncsave.inspection.dtypes import ITEMSIZES
from asyncsave.inspection.literals import BULK
from asyncsave.inspection.numbers import dtype_of, number_of
from asyncsave.inspection.saved import SavedTensor, SavedValue
from asyncsave.inspection.tensors import Rebuilt, Tensors
from asyncsave.inspection.text import AS_DICT, effort_of, is_scalar, key_text, kind_of, text_of
from asyncsave.inspection.tree import Bulk, Call, Dict, Huge, Persistent, Set

__all__ = ["TooMuchError", "Walked", "walk"]

_DEEPEST = 10_000
_ROOM = 112 << 20
_ENTRY = 250
_EFFORT = 8 << 20
_FEW = 256

_MODULE = ("_parameters", "_buffers", "_modules")
"""The attributes of a torch.nn.Module that its state_dict leaves out of its names."""
_ARRAYS = frozenset(("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct"))
_BUFFERS = frozenset(("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"))
_NUMBERS = frozenset(("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar"))

_Children = Iterator[tuple[str | None, Any]]


class TooMuchError(Exception):
    """More is in the tree than can be told."""


class Walked(NamedTuple):
    """What is in a tree.

    Attributes:
        tensors: Its tensors, by the order of the walk.
        values: What else is there.
        ties: Names of what is one, or lies on one storage.
    """

    tensors: list[SavedTensor]
    values: list[SavedValue]
    ties: list[tuple[str, ...]]


def walk(root: Any, tensors: Tensors) -> Walked:
    """Walk through a tree.

    Raises:
        TooMuchError: It is too deep, or all its names together are too long.
        MalformedTensorError: A call makes a tensor that cannot be.
    """
    walker = _Walker(tensors)
    walker.run(root)
    return Walked(walker.tensors, walker.values, walker.ties())


class _Walker:
    def __init__(self, tensors: Tensors) -> None:
        self._known = tensors
        self.tensors: list[SavedTensor] = []
        self.values: list[SavedValue] = []
        self._room = _ROOM
        self._effort = _EFFORT
        self._names: dict[str, int] = {}
        self._groups: dict[object, list[str]] = {}
        self._begun: dict[int, _Span] = {}
        self._leaves: dict[int, tuple[str, str]] = {}
        self._scalar: dict[int, bool] = {}

    def run(self, root: Any) -> None:
        path: list[str] = []
        # Each frame: a container's children that are left, how long the path was before it, its span.
        frames: list[tuple[_Children, int, _Span | None]] = [(iter([(None, root)]), 0, None)]
        while frames:
            children, length, span = frames[-1]
            del path[length:]
            for key, child in children:
                if key is not None:
                    path.append(key)
                if inside := self._visit(path, child):
                    if len(frames) > _DEEPEST:
                        raise TooMuchError(f"it is nested more than {_DEEPEST:,} deep")
                    frames.append((inside[0], len(path), inside[1]))
                    break
                del path[length:]
            else:
                frames.pop()
                if span is not None:
                    span.stop = len(self.tensors)

    def ties(self) -> list[tuple[str, ...]]:
        """Return the names that share memory, in groups of two and more."""
        spans = [tuple(span.names) for span in self._begun.values() if len(span.names) > 1 and span.stop > span.start]
        return [tuple(names) for names in self._groups.values() if len(names) > 1] + spans

    def _visit(self, path: list[str], node: Any) -> tuple[_Children, _Span] | None:
        """Take a leaf, or return a container's children."""
        if is_scalar(node) and not isinstance(node, (Bulk, Huge)):
            self._value(path, kind_of(node), text_of(node))
            return None
        found = self._known.rebuilt(node) if type(node) is Call else None
        if found is not None:
            name = self._tensor(path, found)
            return self._enter(found.inner, name, _attributes(found.states)) if any(found.states) else None
        if type(node) is Persistent:
            self._reference(path, node)
        elif (span := self._begun.get(id(node))) is not None:
            span.names.append(self._name(path))
        elif (leaf := self._leaf(node)) is not None:
            self._value(path, *leaf)
        else:
            return self._container(path, node)
        return None

    def _container(self, path: list[str], node: Any) -> tuple[_Children, _Span] | None:
        if type(node) is Call and node.path not in AS_DICT:
            return self._enter(node, self._value(path, kind_of(node), "object"), _children(node))
        self._charge(_ENTRY + sum(map(len, path)) + len(path))
        return self._enter(node, ".".join(path), _children(node))

    def _leaf(self, node: Any) -> tuple[str, str] | None:
        """Return kind and text of what is one value, though it may hold some; each is looked at once."""
        leaf = self._leaves.get(id(node))
        if leaf is None:
            if type(node) is Call and (array := self._array(node)):
                leaf = array
            elif is_scalar(node) or self._is_flat(node):
                self._work(node)
                leaf = kind_of(node), text_of(node)
            else:
                return None
            self._charge(_ENTRY)
            self._leaves[id(node)] = leaf
        return leaf

    def _is_flat(self, node: Any) -> bool:
        """Tell whether a container is one value: a sequence of scalars, a long table of them, a call with some."""
        kind = type(node)
        if kind is not Call:
            if kind is Dict and 0 < len(node) <= 2 * _FEW:
                return False
            return self._all_scalar(node)
        if node.states or node.kwargs is not None or node.pairs:
            return False
        args = (is_scalar(one) or (type(one) in (list, tuple) and self._all_scalar(one)) for one in node.args)
        return all(args) and self._all_scalar(node.items or ())

    def _all_scalar(self, nodes: Any) -> bool:
        if len(nodes) <= _FEW:
            return all(map(is_scalar, nodes))
        known = self._scalar.get(id(nodes))
        if known is None:
            known = self._scalar[id(nodes)] = all(map(is_scalar, nodes))
        return known

    def _work(self, node: Any) -> None:
        """Charge for what has to be gone through to write a value."""
        self._effort -= effort_of(node)
        if self._effort < 0:
            raise TooMuchError("its values refer to each other too often")

    def _array(self, node: Call) -> tuple[str, str] | None:
        """Tell an array of numpy's, or one of its numbers: kind and text."""
        if node.path in _NUMBERS and len(node.args) == 2 and type(raw := node.args[1]) is bytes:  # noqa: PLR2004
            return number_of(node.args[0], raw)
        if node.path in _BUFFERS and len(node.args) > 2:  # noqa: PLR2004 - bytes, type, shape
            return self._array_of(*node.args[:3])
        if node.path not in _ARRAYS or len(node.states) != 1 or type(state := node.states[0]) is not tuple:
            return None
        return self._array_of(state[4], state[2], state[1]) if len(state) == 5 else None  # noqa: PLR2004 - numpy's own

    def _array_of(self, raw: Any, dtype: Any, shape: Any) -> tuple[str, str] | None:
        if type(shape) is not tuple or len(shape) > _FEW or not all(map(is_scalar, shape)):
            return None
        if type(raw) is Bulk:
            short = raw.view.nbytes <= BULK and not raw.latin
            raw = bytes(raw.view) if short else Bulk("bytes", raw.view, latin=raw.latin)
        if type(raw) not in (bytes, Bulk):
            return None
        self._work(raw)
        return "numpy.ndarray", f"array of {dtype_of(dtype)[0]} {text_of(shape)}: {text_of(raw)}"

    def _enter(self, node: Any, name: str, children: _Children) -> tuple[_Children, _Span] | None:
        if id(node) in self._begun:
            return None
        span = self._begun[id(node)] = _Span(len(self.tensors), [name])
        return children, span

    def _tensor(self, path: list[str], found: Rebuilt) -> str:
        name = self._name(path)
        self.tensors.append(replace(found.tensor, name=name))
        key: object = found.tensor.storage if found.tensor.storage is not None else id(found.inner)
        self._groups.setdefault(key, []).append(name)
        return name

    def _reference(self, path: list[str], node: Persistent) -> None:
        storage = self._known.storage(node)
        if storage is None:
            self._value(path, "persistent id", "a reference to what lies outside of the pickle")
            return
        name = self._name(path)
        numel = storage.nbytes // ITEMSIZES[storage.dtype]
        self.tensors.append(
            SavedTensor(name, "torch.storage", "storage", (numel,), (1,), 0, storage.dtype, storage.nbytes, storage.key,
                        storage.device, requires_grad=False)
        )  # fmt: skip
        self._groups.setdefault(storage.key, []).append(name)

    def _value(self, path: list[str], kind: str, text: str) -> str:
        name = self._name(path)
        self._charge(len(kind) + len(text))
        self.values.append(SavedValue(name, kind, text))
        return name

    def _name(self, path: list[str]) -> str:
        self._charge(_ENTRY + sum(map(len, path)) + len(path))
        name = whole = ".".join(path)
        number = self._names.get(whole, 0) + 1
        while number > 1 and (name := f"{whole} ({number})") in self._names:
            number += 1
        self._names[whole] = number
        if number > 1:
            self._names[name] = 1
        return name

    def _charge(self, nbytes: int) -> None:
        self._room -= nbytes
        if self._room < 0:
            raise TooMuchError("its names are too many, or too long")


class _Span:
    """A container: which tensors are in it, and by what names it goes."""

    __slots__ = ("names", "start", "stop")

    def __init__(self, start: int, names: list[str]) -> None:
        self.start = self.stop = start
        self.names = names


def _children(node: Any) -> _Children:
    kind = type(node)
    if kind is Dict:
        yield from _entries(node)
    elif kind is Call:
        if node.path not in AS_DICT:
            yield from _indexed(node.args)
        elif node.args and type(node.args[0]) is Dict:
            yield from _entries(node.args[0])
        elif node.args and node.path != "collections.defaultdict":
            yield from _listed(node.args[0])
        yield from _indexed(node.items or ())
        yield from _entries(node.pairs or Dict())
        yield from _entries(node.kwargs or Dict())
        yield from _attributes(node.states)
    else:
        yield from _indexed(node)


def _indexed(nodes: Any) -> _Children:
    return ((str(number), node) for number, node in enumerate(nodes))


def _entries(node: Dict) -> _Children:
    return ((key_text(node[at]), node[at + 1]) for at in range(0, len(node), 2))


def _listed(node: Any) -> _Children:
    """Take a dict that is made from a list of pairs, as Python 2's OrderedDict is."""
    for pair in node if type(node) is list else ():
        if type(pair) in (list, tuple) and len(pair) == 2:  # noqa: PLR2004 - a pair
            yield key_text(pair[0]), pair[1]


def _is_idle(key: Any, value: Any) -> bool:
    """Tell whether an attribute of a module is one of the many that torch keeps for hooks, with nothing in it."""
    if type(key) is not str or not key.startswith("_"):
        return False
    bare = type(value) is Call and value.path in AS_DICT and not (value.pairs or value.args or value.states)
    return bare or value is None or (type(value) in (Dict, Set) and not value)


def _attributes(states: tuple[Any, ...]) -> _Children:
    for state in states:
        both = type(state) is tuple and len(state) == 2 and all(one is None or type(one) is Dict for one in state)  # noqa: PLR2004 - __dict__ and __slots__
        for one in state if both else (state,):
            if type(one) is not Dict:
                yield "state", one
                continue
            module = sum(key in _MODULE for key in one[::2] if type(key) is str) == len(_MODULE)
            for at in range(0, len(one), 2):
                # The state_dict of a module does not name these three, and so neither do we.
                name = None if module and type(one[at]) is str and one[at] in _MODULE else key_text(one[at])
                if not module or not _is_idle(one[at], one[at + 1]):
                    yield name, one[at + 1]
