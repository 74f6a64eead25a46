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


class Hooks:
    """A thread that calls a hook. It may take its time: no save waits for it.

    Args:
        hook: Called with each checkpoint; what it raises is logged, and changes nothing.
    """

    def __init__(self, hook: Callable[[CheckpointInfo], object]) -> None:
        self._hook = hook
        self._infos: SimpleQueue[CheckpointInfo | None] = SimpleQueue()
        self._idle = threading.Condition()
        self._left = 0
        self._thread = threading.Thread(target=self._run, name="asyncsave-on-durable", daemon=True)
        self._thread.start()

    def call(self, info: CheckpointInfo) -> None:
        """Have the hook called; return at once."""
        with self._idle:
            self._left += 1
        self._infos.put(info)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it has been called for all; False if ``timeout`` seconds pass, or if this is such a call."""
        if threading.current_thread() is self._thread:
            return False
        with self._idle:
            return self._idle.wait_for(lambda: not self._left, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Wait, and end the thread; False if ``timeout`` seconds were over before."""
        started = time.monotonic()
        done = self.wait(timeout)
        self._infos.put(None)
        if done and threading.current_thread() is not self._thread:
            self._thread.join(None if timeout is None else max(0.0, timeout - (time.monotonic() - started)))
        return done

    def _run(self) -> None:
        while (info := self._infos.get()) is not None:
            try:
                self._hook(info)
            except BaseException:  # noqa: BLE001 - the next checkpoint has its turn, whatever it is
                _log.exception("on_durable failed for %s; the checkpoint is in place", info.path)
            finally:
                with self._idle:
                    self._left -= 1
                    self._idle.notify_all()
