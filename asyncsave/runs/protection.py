"""A training loop whose state is saved when it has to end: on preemption, on Ctrl-C, and on an exception."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from asyncsave.errors import SaveError
from asyncsave.options import at_least, step_number
from asyncsave.runs.lastsave import LastSave
from asyncsave.runs.preemption import PreemptionGuard

__all__ = ["ProtectedRun"]

_log = logging.getLogger("asyncsave")


class ProtectedRun:
    """What ``manager.protect(state)`` gives: a context manager around the loop.

    When the block is left because of a preemption, of Ctrl-C or of an exception, the state is saved, and waited for
    as long as the guard's deadline allows. The exception goes on its way.

    - **Preemption**: :meth:`steps` ends by itself after the step; the state is saved as that step.
    - **Ctrl-C**: the first one does the same, and ``KeyboardInterrupt`` is raised when the block is left. The second
      one raises it at once, and nothing more is saved; what is on disk stays whole.
    - **break** out of the loop, when one of the two has happened: the step counts as over.
    - **An exception**: the state is saved with ``complete: false``, beside the
      complete ones; ``restore(emergency=True)`` uses it.

    Args:
        last: Saves the state, if it is not saved already.
        guard: Watches for signals; if it was not entered, the block enters and leaves it.
        leave: Called when everything is to be left at once.
    """

    def __init__(
        self,
        last: LastSave,
        guard: PreemptionGuard,
        leave: Callable[[], None],
    ) -> None:
        self._last = last
        self._guard = guard
        self._leave = leave
        self._block = contextlib.ExitStack()
        self._interrupts = 0
        self._process = os.getpid()
        self._step: int | None = None
        self._inside = False
        self._broken_off = False
        self._stopped = False

    def __enter__(self) -> ProtectedRun:  # noqa: PYI034 - not made for subclasses
        """Begin to watch."""
        if threading.current_thread() is threading.main_thread():
            if not self._guard.entered:
                self._block.enter_context(self._guard)
            old = signal.getsignal(signal.SIGINT)
            # One that is ignored (nohup, a background job) stays ignored, and another's handler stays in charge.
            if old is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._interrupt)
                self._block.callback(self._put_back, old)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save if there is need to; put the old handlers back."""
        with self._block:
            if self._interrupts > 1:
                self._leave()
            elif error is not None or self._ends:
                try:
                    self._save_last(error)
                except KeyboardInterrupt:
                    self._leave()
                    raise
        if error is None and self._interrupts:
            raise KeyboardInterrupt

    @property
    def preempted(self) -> bool:
        """Whether a signal of the guard has come."""
        return self._guard.preempted

    @property
    def stopped(self) -> bool:
        """Whether :meth:`steps` has ended before its last step, or will."""
        return self._stopped or self._ends

    def steps(self, start: int, stop: int) -> Iterator[int]:
        """Yield the steps from ``start`` to before ``stop``; end by itself on preemption and on Ctrl-C.

        A step is over when the next one is asked for. Once it has ended by itself, it yields no step in a later call
        either. Where torch.distributed is initialised all processes must go through it alike: before each step
        they agree whether to go on.
        """
        first = step_number(start)
        at_least("stop", stop, 0)
        for step in range(first, stop):
            if self._guard.agree(self._ends):
                self._stopped = True
                return
            self._step, self._inside, self._broken_off = step, True, False
            try:
                yield step
            except GeneratorExit:
                # The loop was left: by break, because of a signal; by an exception, which comes to the block then; or
                # by another iterator that came to its end before this step was begun in earnest.
                self._broken_off = self._ends
                raise
            self._inside = False

    @property
    def _ends(self) -> bool:
        return self.preempted or self._interrupts > 0

    def _save_last(self, error: BaseException | None) -> None:
        """Save the state as it is now, and wait. An error of this never takes the place of the loop's own."""
        step = self._step
        if step is None:
            _log.info("no step has been begun by steps(): there is nothing to save")
            return
        # In the midst of a step only a break because of a signal says that it is over; an exception breaks off too.
        over = (self._broken_off and error is None) if self._inside else (error is None or self._ends)
        deadline = time.monotonic() + self._guard.remaining
        try:
            handle = self._last.find(step) if over else None
            if handle is not None:
                try:
                    handle.result(max(0.0, deadline - time.monotonic()))
                except SaveError as failure:
                    _log.error("the save of step %d failed, it is tried again: %s", step, failure)
                else:
                    return
            handle = self._last.make(step, deadline, complete=over)
            _log.warning("saving step %d%s before leaving", step, "" if over else ", which may not be over,")
            handle.result(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, concurrent.futures.TimeoutError):  # two classes before Python 3.11
            _log.critical("step %d is not durable after %s s, the deadline", step, self._guard.deadline)
        except Exception as ours:
            if error is None:
                raise
            _log.error("while another error was on its way, the last save failed: %s", ours)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child is not the training
            signal.default_int_handler(number, frame)
        self._interrupts += 1
        if self._interrupts > 1 or not self._inside:
            signal.default_int_handler(number, frame)

    def _put_back(self, old: Any) -> None:
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, old)
