"""The steps of one manager that are on their way."""

from __future__ import annotations

import threading

from asyncsave.handle import SaveHandle
from asyncsave.runs.description import Description

__all__ = ["UnderWay"]


class UnderWay:
    """Handles, from the call until whoever has to hear of their end has heard. Any thread may call any method."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._steps: dict[SaveHandle, Description] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._steps)

    @property
    def steps(self) -> list[Description]:
        """What they are."""
        with self._changed:
            return list(self._steps.values())

    def enter(self, handle: SaveHandle, described: Description) -> None:
        """Add a save."""
        with self._changed:
            self._steps[handle] = described

    def leave(self, handle: SaveHandle) -> None:
        """Strike off a save that has ended."""
        with self._changed:
            self._steps.pop(handle, None)
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until none of those that are there now is; False if ``timeout`` seconds were over before."""
        with self._changed:
            now = list(self._steps)
            return self._changed.wait_for(lambda: not any(handle in self._steps for handle in now), timeout)
