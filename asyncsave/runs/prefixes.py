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
    by_stripped = {stripped(name): name for name in live}
    known = {stripped(name) for name in saved}
    if len(by_stripped) != len(live) or len(known) != len(saved) or known != by_stripped.keys():
        return {}
    return {name: by_stripped[stripped(name)] for name in saved}
