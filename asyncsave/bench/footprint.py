"""How much host memory a save takes above what the program had before: the peak, as the kernel counts it."""

from __future__ import annotations

import contextlib
import ctypes
import gc

import psutil

from asyncsave.storage.system import System

__all__ = ["Footprint"]

_PEAK = "/proc/self/clear_refs"
_STATUS = "/proc/self/status"


class Footprint:
    """Counts from its making on. Only Linux can be asked for a peak anew.

    Memory of child processes counts where no other process has it too: an arena that is shared counts here once. It is
    what they have in the end, for nobody can ask the kernel for the peak of another process anew.
    """

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):
            # What the C library keeps of freed memory would be taken first, and not be seen.
            ctypes.CDLL(None).malloc_trim(0)
        self._children = {child: _own(child) for child in psutil.Process().children()}
        self._before = self._reset()

    def peak(self) -> int | None:
        """Return the most bytes that were held at once since then, above those of then; None if it cannot be told."""
        if self._before is None:
            return None
        more = (_own(child) - self._children.get(child, 0) for child in psutil.Process().children())
        return max(0, _status("VmHWM") - self._before) + sum(max(0, one) for one in more)

    @staticmethod
    def _reset() -> int | None:
        try:
            system = System()
            fd = system.open(_PEAK, 1)
            try:
                system.pwrite(fd, memoryview(b"5"), 0)  # proc(5): the peak begins anew
            finally:
                system.close(fd)
            return _status("VmRSS")
        except (OSError, LookupError):
            return None


def _status(name: str) -> int:
    """Return a figure of the kernel's, in bytes.

    Raises:
        OSError, LookupError: There is none.
    """
    with open(_STATUS, encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise LookupError(name)


def _own(process: psutil.Process) -> int:
    """Return the bytes that a process has for itself; 0 if it has gone."""
    with contextlib.suppress(psutil.Error):
        found: int = process.memory_full_info().uss
        return found
    return 0
