"""All checks of a folder and its machine, in the order in which they are told."""

from __future__ import annotations

import os

from asyncsave.doctor import accelerator, disk, host, software
from asyncsave.doctor.abilities import ABILITIES, abilities, memfd
from asyncsave.doctor.check import Check, fine, unknown, wrong
from asyncsave.doctor.rates import not_measured, rates
from asyncsave.doctor.scratch import Scratch
from asyncsave.errors import OptionError, SaveError
from asyncsave.staging.headroom import headroom
from asyncsave.storage.attempt import FULL
from asyncsave.storage.system import System

__all__ = ["examine"]


def examine(folder: str, *, probe: int | None = None, torch: bool = False, system: System | None = None) -> list[Check]:
    """Look at a folder and its machine; everything that is made in the folder is removed again.

    Args:
        folder: Where checkpoints are to go.
        probe: Bytes to write and read there, for the rates; None: none.
        torch: Whether to ask torch about CUDA, in a process of its own: seconds.
        system: The operating system, to look at the folder with.

    Returns:
        The checks, each name once, in a fixed order.

    Raises:
        SaveError: The folder is missing, no folder, or not writable.
        OptionError: It has no name, or none that a file can have.
        OSError: What was made in it cannot be removed.
    """
    if not folder or "\0" in folder:
        raise OptionError(f"{folder!r} is no name of a folder: leave it out for the current one")
    path = os.path.abspath(folder)
    mount, room = disk.mount(os.path.realpath(path)), disk.room(path)
    tried = _tried(path, room[0], probe, system or System())
    answer = accelerator.ask_torch() if torch else None
    return [
        *(*mount, *room, *tried),
        *(memfd(), *host.memory(), *host.limits(), host.shared_memory(), *host.processors(), host.timer()),
        *(*software.packages(), *accelerator.judge(answer), software.checksums(), *software.extras()),
    ]


def _tried(path: str, free: Check, probe: int | None, system: System) -> list[Check]:
    """Return ``writable``, and whatever has to be tried in the folder."""
    scratch = Scratch(system, path)
    with scratch, scratch:
        try:
            scratch.make()
        except OSError as error:
            if error.errno not in FULL:
                raise SaveError.of(error, path=path, phase="target") from error
            remedy = "Free some space (blocks or inodes), or raise your quota: not even a folder can be made here."
            untried = [unknown(name, "Free some space first: it could not be tried.") for name in ABILITIES]
            return [wrong("writable", value=False, remedy=remedy), *untried, *not_measured("Free some space first.")]
        checks = [fine("writable", value=True), *abilities(scratch, system)]
        if probe is None:
            return [*checks, *not_measured("Leave --no-probe out: nothing was measured.")]
        known = free.value if isinstance(free.value, int) else None
        return checks + rates(scratch, system, probe, free=known, headroom=headroom())
