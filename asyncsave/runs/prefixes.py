"""The prefixes that wrappers put into the names of parameters, at any depth.

``torch.compile`` puts ``_orig_mod.`` before what it wraps, ``DataParallel`` and
``DistributedDataParallel`` put ``module.``: a state saved with them does not fit a model without, and
the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["renamed", "stripped"]

_WRAPPERS = {"module", "_orig_mod"}


def stripped(name: str) -> str:
    """Return a name without the wrappers' prefixes; the last piece of it always stays."""
    *path, last = name.split(".")
    return ".".join([piece for piece in path if piece not in _WRAPPERS] + [last])


def renamed(saved: Iterable[str], live: Iterable[str]) -> dict[str, str]:
    """Return how saved names become live ones, if wrappers' prefixes are the only difference.

    Returns:
        The live name of each saved one; empty if that is not the only difference, or if there is none.
    """
    saved, live = list(saved), list(live)
    if set(saved) == set(live):
        return {}
    ours, theirs = _grouped(live), _grouped(saved)
    if {name: len(group) for name, group in ours.items()} != {name: len(group) for name, group in theirs.items()}:
        return {}
    return {old: new for name, group in theirs.items() for old, new in zip(group, ours[name], strict=True)}


def _grouped(names: list[str]) -> dict[str, list[str]]:
    """Group names that are one without prefixes (a submodule may really be called "module"), the shortest first.

    Who is wrapped gets a prefix more in all of its names, so the order stays.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        groups.setdefault(stripped(name), []).append(name)
    return groups
