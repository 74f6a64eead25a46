"""Call the user's hook for every checkpoint that is durable: in their order, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from asyncsave.catalogue.info import CheckpointInfo

__all__ = ["Hooks"]

_log = logging.getLogger("asyncsave")
_LOOK_AGAIN = 0.002


class Hooks:
    """A thread that calls a hook. It may take its time: no save waits for it.

    No lock is taken: the thread that writes must not wait for code that a signal handler has interrupted.

    Args:
        hook: Called with each checkpoint; what it raises is logged, and changes nothing.
    """

    def __init__(self, hook: Callable[[CheckpointInfo], object]) -> None:
        self._hook = hook
        self._infos: SimpleQueue[CheckpointInfo | None] = SimpleQueue()
        self._left: dict[int, CheckpointInfo] = {}
        self._thread = threading.Thread(target=self._run, name="asyncsave-on-durable", daemon=True)
        self._thread.start()

    def is_current_thread(self) -> bool:
        """Tell whether the caller is the hook."""
        return threading.current_thread() is self._thread

    def call(self, info: CheckpointInfo) -> None:
        """Have the hook called; return at once."""
        self._left[id(info)] = info
        self._infos.put(info)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it has been called for all so far; False if ``timeout`` seconds were over before."""
        left = list(self._left.copy())
        deadline = None if timeout is None else time.monotonic() + timeout
        while any(one in self._left for one in left):
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_AGAIN)
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Wait, and end the thread; False if ``timeout`` seconds were over before. Idempotent."""
        if not self.wait(timeout):
            return False
        self._infos.put(None)
        self._thread.join()
        return True

    def _run(self) -> None:
        while (info := self._infos.get()) is not None:
            try:
                self._hook(info)
            except BaseException:  # noqa: BLE001 - the next checkpoint has its turn, whatever it is
                _log.exception("on_durable failed for %s; the checkpoint is in place", info.path)
            finally:
                self._left.pop(id(info), None)
