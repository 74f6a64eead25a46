"""Notice that the machine is about to be taken away: a signal sets a flag, and that is all it does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

from asyncsave.errors import AsyncSaveError, OptionError
from asyncsave.options import above_zero

__all__ = ["PreemptionGuard"]

_log = logging.getLogger("asyncsave")
_UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


class PreemptionGuard:
    """Watches for the signals by which a scheduler says that it wants the machine back. A context manager.

    The handlers are installed on entry and the old ones put back on exit. A handler sets a flag, notes the time,
    and then calls the handler that was there, if that was a function: launchers have their own.

    Args:
        signals: Which ones.
        deadline: Seconds from the signal until the process is killed: how long a last save may take.
        group: The process group that :meth:`agreed` speaks to; None: the default one.

    Raises:
        OptionError: An argument makes no sense.
    """

    def __init__(
        self,
        signals: Iterable[int] = (signal.SIGTERM, signal.SIGUSR1),
        deadline: float = 25.0,
        *,
        group: Any = None,
    ) -> None:
        above_zero("deadline", deadline)
        try:
            self.signals = tuple(dict.fromkeys(signal.Signals(number) for number in signals))
        except (TypeError, ValueError) as error:
            raise OptionError(f"signals must be numbers of signals, not {signals!r}") from error
        if _UNCATCHABLE & set(self.signals):
            raise OptionError("no program can catch SIGKILL or SIGSTOP")
        self.deadline = deadline
        self._group = group
        self._old: dict[int, Any] = {}
        self._left: dict[int, Any] = {}
        self._process = os.getpid()
        self._since: float | None = None
        self._agreed = False

    def __repr__(self) -> str:
        """Show the signals, and whether one has come."""
        names = ", ".join(number.name for number in self.signals)
        return f"<PreemptionGuard {names}{', preempted' if self.preempted else ''}>"

    def __enter__(self) -> PreemptionGuard:  # noqa: PYI034 - not made for subclasses
        """Install the handlers.

        Raises:
            AsyncSaveError: This is not the main thread, which alone may do that; or they are installed already.
        """
        if threading.current_thread() is not threading.main_thread():
            raise AsyncSaveError("a PreemptionGuard has to be entered by the main thread: signals arrive there")
        if self._old:
            raise AsyncSaveError("this PreemptionGuard has been entered already")
        self._process = os.getpid()
        for number in self.signals:
            self._old[number] = signal.getsignal(number)  # before the first signal can come here
            signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the old handlers back, but for those that somebody else has replaced meanwhile."""
        while self._old:
            number, old = self._old.popitem()
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if old is None else old)
            else:
                self._left[number] = old  # whoever is in charge now may still pass signals on to here

    @property
    def entered(self) -> bool:
        """Whether its handlers are installed."""
        return bool(self._old)

    @property
    def preempted(self) -> bool:
        """Whether a signal has come; from any thread, at any time."""
        return self._since is not None

    @property
    def remaining(self) -> float:
        """Seconds left of the deadline; all of them while no signal has come."""
        since = self._since
        return self.deadline if since is None else max(0.0, since + self.deadline - time.monotonic())

    def agreed(self) -> bool:
        """Tell whether any process of the group has been preempted, so that all leave at the same step.

        Where torch.distributed is initialised this is a collective: every process of the group must call it, at the
        same place, and all get the same answer. Elsewhere it is :attr:`preempted`.
        """
        return self.agree(self.preempted)

    def agree(self, leaves: bool) -> bool:  # noqa: FBT001 - it is what is asked
        """Do what :meth:`agreed` does, for a process that has its own reasons to leave."""
        distributed = getattr(sys.modules.get("torch"), "distributed", None)
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return leaves
        if not self._agreed:
            torch = sys.modules["torch"]
            nccl = "nccl" in str(distributed.get_backend(self._group))
            device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
            flag = torch.tensor([int(leaves)], device=device)
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group)
            self._agreed = bool(flag.item())
            if self._agreed and self._since is None:
                self._since = time.monotonic()
        return self._agreed

    def _note(self, number: int, frame: FrameType | None) -> None:
        old = self._old.get(number, self._left.get(number))
        # A forked child is not the training, and after the block there is no training: the signal is passed on.
        if os.getpid() == self._process and number in self._old:
            if self._since is None:
                self._since = time.monotonic()
        elif not callable(old):
            signal.signal(number, signal.SIG_DFL if old is None else old)
            os.kill(os.getpid(), number)
            return
        if callable(old) and old is not signal.default_int_handler:
            old(number, frame)
