"""The prefixes that wrappers put into the names of parameters, at any depth.

``torch.compile`` puts ``_orig_mod.`` before what it wraps, ``DataParallel`` and
``DistributedDataParallel`` put ``module.``: a state saved with them does not fit a model without, and
the other way round. A wrapper has nothing of its own, so such a piece of a name is a wrapper's only if nothing
else lies beside it: a model may really have a submodule of that name.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["renamed", "unwrapped", "wrapped"]

_WRAPPERS = {"module", "_orig_mod"}


def wrapped(names: Iterable[str]) -> set[str]:
    """Return the paths of the modules that lie in a wrapper, by the names of the parameters of all."""
    children: dict[str, set[str]] = {}
    leaves = set()
    for name in names:
        leaves.add(name)
        path = ""
        for piece in name.split("."):
            children.setdefault(path, set()).add(piece)
            path = f"{path}.{piece}" if path else piece
    found = set()
    for path, pieces in children.items():
        inner = f"{path}.{next(iter(pieces))}" if path else next(iter(pieces))
        if len(pieces) == 1 and pieces <= _WRAPPERS and inner not in leaves:
            found.add(inner)
    return found


def unwrapped(name: str, wrapped: set[str]) -> str:
    """Return a name without the prefixes of wrappers."""
    pieces, path = [], ""
    for piece in name.split("."):
        path = f"{path}.{piece}" if path else piece
        if path not in wrapped:
            pieces.append(piece)
    return ".".join(pieces)


def renamed(saved: Iterable[str], live: Iterable[str]) -> dict[str, str]:
    """Return how saved names become live ones, if wrappers' prefixes are the only difference.

    Returns:
        The live name of each saved one; empty if that is not the only difference, or if there is none.
    """
    saved, live = list(saved), list(live)
    if set(saved) == set(live):
        return {}
    in_saved, in_live = wrapped(saved), wrapped(live)
    by_unwrapped = {unwrapped(name, in_live): name for name in live}
    names = {name: by_unwrapped.get(unwrapped(name, in_saved), "") for name in saved}
    return names if len(names) == len(by_unwrapped) and all(names.values()) else {}
