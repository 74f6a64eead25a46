"""Remove what takes up room in a version without being a checkpoint, as far as it is ours and nobody's any more."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.upkeep import tidy
from asyncsave.storage.system import System

__all__ = ["clean"]

_log = logging.getLogger("asyncsave")
_PATIENCE = 2.0
_LOOK_AGAIN = 0.01


def clean(listing: Listing, drop_spare: Callable[[], None], *, dry_run: bool) -> list[str]:
    """Remove it, and return the paths.

    Unfinished folders of dead writers go, spare files, what is left of dropped steps, and empty step folders.
    Checkpoints that were put aside stay, and so does everything that is not known to be ours.

    Args:
        listing: The version.
        drop_spare: Has the writer remove its spare.
        dry_run: Whether to remove nothing, and only return what would be tried.
    """
    before = [info for info in listing.remnants() if info.kind not in {"corrupt", "abandoned"}]
    if dry_run:
        return [info.path for info in before]
    system = System()
    drop_spare()
    deadline = time.monotonic() + _PATIENCE
    spares = [info.path for info in before if info.kind == "spare"]
    while any(map(os.path.lexists, spares)) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)
        tidy(system, listing.folder)
    tidy(system, listing.folder)
    return [info.path for info in before if not os.path.lexists(info.path)]
