"""Keep a version's folder in order: what the policy drops after a save, what dead writers left before the first.

Never raises: the checkpoint that was just written is in place, whatever becomes of older ones. What fails
is logged, and tried again at the next save.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator

from asyncsave.catalogue.brief import Brief
from asyncsave.catalogue.listing import Listing, read_manifest
from asyncsave.catalogue.manifest import Manifest
from asyncsave.catalogue.names import MANIFEST, step_name
from asyncsave.catalogue.removal import Removal
from asyncsave.catalogue.retention import Retention
from asyncsave.errors import AsyncSaveError, LoadError
from asyncsave.storage.assembly import UNFINISHED
from asyncsave.storage.attempt import sync_folder
from asyncsave.storage.spare import Spares
from asyncsave.storage.sweep import sweep
from asyncsave.storage.system import System
from asyncsave.storage.temporary import is_temporary

__all__ = ["Upkeep", "tidy"]

_log = logging.getLogger("asyncsave")


class Upkeep:
    """Applies retention in the folders that one thread writes to.

    Args:
        system: The operating system.
        spares: Where dropped files may go.
    """

    def __init__(self, system: System, spares: Spares) -> None:
        self.spares = spares
        self._system = system
        self._listings: dict[str, Listing] = {}
        self._left: dict[str, dict[str, str]] = {}

    @contextlib.contextmanager
    def after(self, brief: Brief, written: str, *, sync: bool, recycle: bool, replaced: str | None) -> Iterator[None]:
        """Remove what is not needed any more, now that a step is in place; free its blocks on leaving the block.

        Args:
            brief: What was said of the step.
            written: Its folder.
            sync: Whether to flush.
            recycle: Whether dropped files may be overwritten by later ones.
            replaced: The temporary name of the folder that was there before.
        """
        folder = os.path.dirname(written)
        with contextlib.ExitStack() as opened:
            # Whatever it is, a log handler of the user's that raises: the checkpoint is in place.
            with contextlib.suppress(Exception), _told(folder):
                spares = self.spares if recycle else None
                removal = opened.enter_context(Removal(self._system, folder, sync=sync, spares=spares))
                left = self._left.setdefault(folder, {})
                if replaced is not None:
                    left[replaced] = os.path.basename(written)
                for temporary, home in list(left.items()):
                    with _told(os.path.join(folder, temporary)):
                        with contextlib.suppress(FileNotFoundError):
                            removal.discard(temporary, home)
                        del left[temporary]
                if brief.retain is not None:
                    self._prune(brief.retain, brief.protected, written, removal)
            yield

    def _prune(self, retain: Retention, protected: tuple[str, ...], written: str, removal: Removal) -> None:
        folder = os.path.dirname(written)
        listing = self._listings.setdefault(folder, Listing(folder))
        for verdict in retain.decide(listing.look().infos, written=written, protected=protected):
            if not verdict.kept:
                _drop(removal, verdict.info.path)
        for name in listing.dropped():
            _drop(removal, os.path.join(folder, name))


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Log what fails inside, and go on behind it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the checkpoint is in place, whatever it is
        _log.warning("cannot tidy up %s: %s. This is tried again at the next save", what, error)


def _drop(removal: Removal, path: str) -> bool:
    try:
        gone = removal.drop(os.path.basename(path))
    except (OSError, AsyncSaveError) as error:
        _log.warning("cannot drop %s: %s. This is tried again at the next save", path, error)
        return False
    if gone:
        _log.info("dropped %s", path)
    return gone


def tidy(system: System, folder: str) -> list[str]:
    """Finish or remove what dead writers left in a version's folder; return the paths that have gone.

    A step that was whole, and lacked nothing but its name, gets it. What a living writer is at work on stays.
    """
    gone = [os.path.join(folder, name) for name in sweep(system, folder)]
    with contextlib.suppress(OSError), Removal(system, folder, sync=True) as removal:
        for name in _newest_first(folder, [name for name in os.listdir(folder) if is_temporary(name)]):
            path = os.path.join(folder, name)
            try:
                if _settle(system, folder, name, removal):
                    gone.append(path)
            except (OSError, AsyncSaveError) as error:
                _log.warning("cannot remove %s, which a dead writer left: %s", path, error)
        for name in Listing(folder).dropped():
            path = os.path.join(folder, name)
            if _drop(removal, path):
                gone.append(path)
    return gone


def _newest_first(folder: str, names: list[str]) -> list[str]:
    """Sort temporary folders: of two that may become one step, the one that was saved later goes first."""
    return sorted(names, key=lambda name: found.time if (found := _whole(folder, name)) else 0.0, reverse=True)


def _whole(folder: str, name: str) -> Manifest | None:
    """Return the manifest of a temporary folder; None if it is not whole."""
    if os.path.lexists(os.path.join(folder, name, UNFINISHED)):
        return None
    with contextlib.suppress(OSError, LoadError):
        return read_manifest(os.path.join(folder, name, MANIFEST))
    return None


def _settle(system: System, folder: str, name: str, removal: Removal) -> bool:
    """Give a dead writer's folder its name, or remove it; False if its writer lives."""
    path = os.path.join(folder, name)
    if not stat.S_ISDIR(system.stat(path).st_mode):
        return False
    fd = system.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not system.lock(fd):
            return False
        manifest = _whole(folder, name)
        place = step_name(manifest.step, complete=manifest.complete) if manifest else ""
        if manifest is None or os.path.lexists(os.path.join(folder, place)):
            if not removal.discard(name):
                _log.warning("%s stays: it holds files that asyncsave did not write", path)
                return False
            _log.warning("removed an unfinished checkpoint of a dead writer: %s", path)
            return True
        folder_fd = system.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_folder(system, fd)  # its writer may have been killed before that
            system.rename(name, place, dir_fd=folder_fd)
            sync_folder(system, folder_fd)
        finally:
            system.close(folder_fd)
        _log.warning("finished %s, which its writer had written whole", os.path.join(folder, place))
        return False
    finally:
        system.close(fd)
