"""Which saves of this process are on their way to which file.

Loading a file that is still being written waits for it, and of two saves of one file, by whichever
writers, the later call's is the one that stays.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading

from asyncsave.result import SaveResult

__all__ = ["enter", "may_wait_here", "never_wait_here", "wait_for"]

_Future = concurrent.futures.Future[SaveResult]

_lock = threading.RLock()
_here = threading.local()
_saves: dict[str, list[tuple[_Future, object]]] = {}


def enter(real_path: str, save: _Future, *, owner: object) -> list[_Future]:
    """Note a save until it has ended; return those of the same file that it has to wait for.

    Those are the earlier ones of other owners: an owner keeps its own in order.
    """
    with _lock:
        earlier = _saves.get(real_path, [])
        _saves[real_path] = [*earlier, (save, owner)]
    save.add_done_callback(lambda _: _leave(real_path, save))
    return [other for other, others_owner in earlier if others_owner is not owner]


def _leave(real_path: str, save: _Future) -> None:
    with _lock:
        rest = [entry for entry in _saves.get(real_path, ()) if entry[0] is not save]
        if rest:
            _saves[real_path] = rest
        else:
            _saves.pop(real_path, None)


def never_wait_here() -> None:
    """Say that the calling thread writes saves: it must not wait for one, which may be its own next."""
    _here.writes = True


def may_wait_here() -> bool:
    """Tell whether the calling thread may wait for a save."""
    return not getattr(_here, "writes", False)


def wait_for(path: str) -> None:
    """Block until no save of this file is under way, whatever becomes of it.

    Returns at once on a thread that writes (in a done callback): the file is the last whole version.
    """
    if _saves and may_wait_here():
        with contextlib.suppress(ValueError):  # no path at all: whoever opens it will say so
            path = os.path.realpath(path)
        with _lock:
            # Of a step of a run the folder is entered.
            entries = [*_saves.get(path, ()), *_saves.get(os.path.dirname(path), ())]
            saves = [save for save, _ in entries]
        concurrent.futures.wait(saves)


def _forget_in_child() -> None:
    global _lock  # noqa: PLW0603 - the parent may hold the old one
    _lock = threading.RLock()
    _saves.clear()


os.register_at_fork(after_in_child=_forget_in_child)
