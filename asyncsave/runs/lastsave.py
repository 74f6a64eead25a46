"""The save with which a state leaves a protected loop: made if need be, never skipped, never at another's cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from asyncsave.admission import OnBusy
from asyncsave.errors import AsyncSaveError
from asyncsave.handle import SaveHandle
from asyncsave.runs.description import Description
from asyncsave.runs.preemption import PreemptionGuard
from asyncsave.writer import Writer

__all__ = ["LastSave", "Saved"]

Saved = tuple[Description, SaveHandle]

_log = logging.getLogger("asyncsave")


class LastSave:
    """Saves one state.

    Args:
        state: What is saved.
        guard: Tells whether there is hurry.
        writer: Who saves.
        is_alone: Whether nobody else saves with that writer.
        save: Saves a step: called with its description, the policy, and what is called after every wait.
        newest: Returns the newest save of a complete step; None: there is none.
    """

    def __init__(
        self,
        state: object,
        guard: PreemptionGuard,
        writer: Writer,
        save: Callable[[Description, OnBusy, Callable[[], None]], SaveHandle],
        newest: Callable[[], Saved | None],
        *,
        is_alone: bool,
    ) -> None:
        self._state = state
        self._guard = guard
        self._writer = writer
        self._save = save
        self._newest = newest
        self._is_alone = is_alone

    def find(self, step: int) -> SaveHandle | None:
        """Return the save of this very state after this step, if it is the newest, and has not failed."""
        described, handle = self._of(step)
        return handle if described is not None and described.is_of(self._state) else None

    def make(self, step: int, deadline: float, *, complete: bool) -> SaveHandle:
        """Save the state; an earlier save's error does not keep it from that.

        What else was saved as this step is not replaced: there may be parts in it, or metrics, that this save knows
        nothing of. The state goes beside it then, as one that is not complete.

        Args:
            step: As which step.
            deadline: ``time.monotonic()`` after which it is given up.
            complete: Whether the step is over.

        Raises:
            TimeoutError: No slot has become free before the deadline.
            AsyncSaveError: It cannot be saved.
        """
        other, _ = self._of(step)
        described = Description(step, self._state, None, None, None, complete=complete and other is None)
        hurry = self._guard.preempted and described.complete and self._is_alone

        def wanted() -> None:
            if time.monotonic() > deadline:
                raise TimeoutError("no slot has become free before the deadline")

        while True:
            try:
                self._writer.check_errors()
            except AsyncSaveError as error:
                _log.error("an earlier save failed: %s", error)
            else:
                return self._save(described, "replace" if hurry else "wait", wanted)

    def _of(self, step: int) -> Saved | tuple[None, None]:
        """Return the newest save if it is of this step, and on its way or in place."""
        newest = self._newest()
        if newest is None or newest[0].step != step:
            return None, None
        handle = newest[1]
        return newest if not handle.done() or handle.status in {"durable", "written"} else (None, None)
