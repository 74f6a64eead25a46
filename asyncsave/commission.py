"""One save as the writer process gets it: a message, and descriptors for all the rest."""

from __future__ import annotations

import os
import stat
import threading
import time

from asyncsave import wire
from asyncsave.bundle import read_bundle
from asyncsave.claim import Claim, wait_for_end
from asyncsave.errors import SaveError
from asyncsave.memory import map_shared
from asyncsave.persist import Job
from asyncsave.reporter import Reporter
from asyncsave.result import SaveResult
from asyncsave.storage.target import Target

__all__ = ["Commission"]


class Commission:
    """One save that came over the socket.

    Args:
        save: What is to be done.
        fds: The memory, the claim's two ends, one for every save that has to end first, and perhaps a lock.
        reporter: Whom to tell.

    Raises:
        ProtocolError: Its target is not one that a writer would have sent, or the descriptors are others. They
            are closed then.
    """

    job: Job

    def __init__(self, save: wire.Save, fds: list[int], reporter: Reporter) -> None:
        try:
            _check(save, fds)
            self._memory, reading, writing = fds[:3]
            self._earlier, self._locks = fds[3 : 3 + save.after], fds[3 + save.after :]
            os.set_blocking(reading, False)
        except (OSError, ValueError) as error:
            for fd in fds:
                os.close(fd)
            raise wire.ProtocolError(f"this asks for nothing that can be done: {error}") from error
        self._save = save
        self._claim = Claim((reading, writing))
        self._reporter = reporter
        self._lock = threading.Lock()
        self._is_past = False

    def is_wanted(self) -> bool:
        """Tell whether it is still to be begun; let go of all it holds if it was withdrawn."""
        with self._lock:
            if not self._is_past and not self._claim.is_free():
                self._is_past = True
                self._let_go()
            return not self._is_past

    def begin(self) -> bool:
        """Claim the save, wait for those that come before it, and look at its image."""
        save = self._save
        with self._lock:
            gone, self._is_past = self._is_past, True
        if gone:
            return False
        if not self._claim.take():
            self._let_go()
            return False
        self._reporter.say(wire.Begun(save.number, time.perf_counter() - save.queued))
        try:
            for earlier in self._earlier:
                wait_for_end(earlier)
            if save.umask >= 0:
                os.umask(save.umask)
            memory = map_shared(self._memory)
            images, brief = read_bundle(
                memory, save.nbytes, brief_at=save.brief_at, brief_nbytes=save.brief_nbytes, path=save.path
            )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with what was sent: the next save is another
            self.fail(error)
            return False
        target = Target(save.path, save.folder, save.name)
        self.job = Job(images, target, save.path, save.sync, {}, save.started, brief, view=memory, recycle=save.recycle)
        return True

    def progress(self, nbytes: int) -> None:
        """Report written bytes."""
        self._reporter.say(wire.Progress(self._save.number, nbytes))

    def finish(self, result: SaveResult) -> None:
        """Report that the checkpoint is in place."""
        self._let_go()
        seal, write, sync, total = (result.timings[phase] for phase in ("seal", "write", "sync", "total"))
        done = wire.Done(self._save.number, result.digest, result.durable, seal, write, sync, total)
        self._reporter.say(done, f"saved {result.path}: {result.nbytes} bytes, {result.digest}")

    def fail(self, error: BaseException) -> None:
        """Report that it is not, and why."""
        self._let_go()
        told = SaveError.describing(error, path=self._save.path)
        text = wire.shortened(str(told))
        failed = wire.Failed(self._save.number, text, told.phase, told.errno or 0, told.outcome)
        self._reporter.say(failed, str(told))

    def _let_go(self) -> None:
        """Close the descriptors; the mapping goes with its last view."""
        for fd in (self._memory, *self._earlier, *self._locks):
            os.close(fd)
        self._earlier, self._locks, self._memory = [], [], -1
        self._claim.close()
        self.__dict__.pop("job", None)  # and with it the mapping, as soon as nobody uses it


def _check(save: wire.Save, fds: list[int]) -> None:
    """Refuse what no writer would have sent.

    Raises:
        ValueError: It is no file in a folder; or the claims are none, or the save would wait for itself.
        OSError: A descriptor is of no use at all.
    """
    folder, name = save.folder, save.name
    if not os.path.isabs(folder) or "\0" in folder + name or os.sep in name or name in {"", os.curdir, os.pardir}:
        raise ValueError(f"{name!r} in {folder!r} is no file")
    own, _, *earlier = pipes = [os.fstat(fd) for fd in fds[1 : 3 + save.after]]
    if not all(stat.S_ISFIFO(pipe.st_mode) for pipe in pipes) or own.st_ino in {pipe.st_ino for pipe in earlier}:
        raise ValueError("these descriptors are not claims")
