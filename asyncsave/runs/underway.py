"""The steps of one manager that are on their way."""

from __future__ import annotations

import concurrent.futures
import time

from asyncsave.handle import SaveHandle
from asyncsave.runs.description import Description

__all__ = ["UnderWay"]

_LOOK_AGAIN = 0.002


class UnderWay:
    """Handles, from the call until whoever has to hear of their end has heard. Any thread may call any method.

    Every change is one step of a dict, so none takes a lock: the thread that writes must not wait for
    code that a signal handler has interrupted.
    """

    def __init__(self) -> None:
        self._steps: dict[SaveHandle, Description] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._steps)

    @property
    def steps(self) -> list[Description]:
        """What they are."""
        return list(self._steps.copy().values())

    def enter(self, handle: SaveHandle, described: Description) -> None:
        """Add a save."""
        self._steps[handle] = described

    def leave(self, handle: SaveHandle) -> None:
        """Strike off a save that has ended."""
        self._steps.pop(handle, None)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until none of those that are there now is; False if ``timeout`` seconds were over before."""
        now = list(self._steps.copy())
        deadline = None if timeout is None else time.monotonic() + timeout
        if concurrent.futures.wait(now, timeout).not_done:
            return False
        # They have ended; who has to hear of it is being told, which takes a moment.
        while any(handle in self._steps for handle in now):
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_AGAIN)
        return True
