"""One measurement from beginning to end: state, training, disk, every way of saving in turns, and the verdict."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from types import TracebackType
from typing import Any

import torch

from asyncsave.bench.footprint import Footprint
from asyncsave.bench.grid import MOST_PROBED
from asyncsave.bench.loops import loop_of
from asyncsave.bench.machine import describe
from asyncsave.bench.plan import PROBES, Estimate, Needs, Plan, estimate
from asyncsave.bench.probes import RawDisk, warm_pages
from asyncsave.bench.rounds import interleave, save_beside
from asyncsave.bench.savers import SAVERS, Saver, discard
from asyncsave.bench.spread import Spread
from asyncsave.bench.states import State, dtype_of, flatten, like, moved, saved_bytes, synthetic
from asyncsave.bench.summary import summed
from asyncsave.bench.sweeps import sweep
from asyncsave.bench.timeline import Timeline, tolls
from asyncsave.bench.verdict import decide
from asyncsave.errors import SaveError
from asyncsave.staging.headroom import headroom

__all__ = ["Session", "measure"]

_QUIET_STEPS = 6
_PREFIX = "asyncsave-bench-"
_PART = 256_000_000
"""Bytes of a trial save."""


class Session:
    """A measurement that has been prepared: the state is there, and how long it will take is known.

    A context manager. Everything it writes lies in a temporary folder of its own, which is gone afterwards, whatever
    ends it.

    Args:
        plan: What to measure.

    Attributes:
        estimate: What it will take.

    Raises:
        OptionError: The plan makes no sense, or its limits allow nothing.
        SaveError: The folder cannot be written to, or has no room; or the memory does not suffice.
        LoadError: The checkpoint to take the state of cannot be loaded.
    """

    estimate: Estimate

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stack = ExitStack()
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Session:  # noqa: PYI034 - not made for subclasses
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written."""
        self._stack.close()

    @property
    def units(self) -> int:
        """How often :meth:`run` calls ``done``."""
        return (self.estimate.saves + 2) * len(self._plan.modes) + len(self._needs.points or ())

    def run(self, done: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """Measure; return what ``bench --json`` shows (docs/cli.md).

        Args:
            done: Called after every save, and every point of the sweeps.

        Raises:
            SaveError: The disk is full, or whatever else it has to say.
            OptionError: The user's own step has failed.
        """
        first = {mode: self._first(mode, done) for mode in self._plan.modes}
        found = self._race(done)
        taken = {mode: [tolls(one)[0] for one in timelines] for mode, (_, timelines) in found.items()}
        verdict = decide({mode: [toll.cost for toll in of] for mode, of in taken.items()})
        return {
            "machine": self._machine,
            "state": {
                "source": self._plan.like or "synthetic",
                "nbytes": self._nbytes,
                "tensors": len(flatten(self._state)),
                "dtype": dtype_of(self._state),
            },
            "training": {
                "kind": self._plan.step,
                "quiet_ms": Spread.of([toll.quiet for of in taken.values() for toll in of]).as_json(1e3),
                "saves": self.estimate.saves,
            },
            "disk": self._raw,
            "modes": {
                mode: summed(
                    taken[mode],
                    timelines[-1],
                    promise=promise,
                    nbytes=self._nbytes,
                    disk_mb_s=self._raw["write_mb_s"],
                )
                | first[mode]
                for mode, (promise, timelines) in found.items()
            },
            "sweeps": self._sweeps(done),
            "verdict": verdict.as_json() if verdict else None,
        }

    def _prepare(self) -> None:
        plan = self._plan
        self._loop = loop_of(plan.step)
        folder = os.path.abspath(plan.folder)
        try:
            made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder, ignore_cleanup_errors=True)
        except OSError as error:
            raise SaveError.of(error, path=folder, phase="target") from error
        self._folder = self._stack.enter_context(made)
        expected = plan.nbytes if plan.like is None else _file_bytes(plan.like)
        self._require(Needs(plan, expected), expected)
        self._state = synthetic(plan.nbytes, plan.tensors, plan.dtype) if plan.like is None else like(plan.like)
        self._gpu = torch.cuda.get_device_name() if plan.step == "gpu" else None
        if self._gpu is not None:
            self._state = moved(self._state, "cuda")
        self._nbytes = saved_bytes(self._state)
        self._needs = Needs(plan, self._nbytes)
        self._require(self._needs)
        try:
            self._memory = self._stack.enter_context(closing(warm_pages(min(self._nbytes, MOST_PROBED))))
        except OSError as error:
            raise SaveError.of(error, path=folder, phase="target") from error
        self._disk = self._stack.enter_context(closing(RawDisk(self._folder, self._memory)))
        self._machine = describe(folder, direct=self._disk.direct, gpu=self._gpu)
        self._raw = self._probe()
        step = statistics.median([_seconds(self._loop.step) for _ in range(5)][2:])
        part = _part(self._state)
        save = _seconds(lambda: SAVERS["torch.save"](None).save(part, self._path("torch.save")))
        save *= self._nbytes / max(1, saved_bytes(part))
        discard(self._path("torch.save"))
        self.estimate = estimate(
            plan, self._nbytes, step=step, quiet_steps=_QUIET_STEPS, save=save, disk=self._raw["write_mb_s"] * 1e6
        )

    def _require(self, needs: Needs, state: int = 0) -> None:
        """See that there is enough of everything, before any of it is taken; ``state`` is what that will take."""
        self._enough("on the disk", needs.disk, shutil.disk_usage(self._folder).free)
        self._enough("in memory", needs.memory + state, headroom())
        needs.check()

    def _enough(self, where: str, wanted: int, free: int) -> None:
        if wanted > free:
            message = (
                f"cannot measure in {self._plan.folder!r}: that needs {wanted:,} bytes {where}, there are {free:,}. "
                "Take a smaller state, or fewer modes"
            )
            raise SaveError(message, path=self._plan.folder, phase="target")

    def _path(self, mode: str) -> str:
        return os.path.join(self._folder, f"{mode}.pt")

    def _probe(self) -> dict[str, float]:
        """Return what the bare disk does: medians of a few files."""
        writes, reads = [], []
        nbytes = len(self._memory.view)
        try:
            for _ in range(PROBES):
                writes.append(self._disk.write("probe", nbytes))
                reads.append(self._disk.read("probe"))
                self._disk.remove("probe")
        except OSError as error:
            raise SaveError.of(error, path=self._plan.folder, phase="write") from error
        return {
            "write_mb_s": nbytes / statistics.median(write.total for write in writes) / 1e6,
            "fsync_ms": 1e3 * statistics.median(write.sync for write in writes),
            "read_mb_s": nbytes / statistics.median(reads) / 1e6,
        }

    def _first(self, mode: str, done: Callable[[], object]) -> dict[str, Any]:
        """Make a way of saving and save once; say how long that held the caller, and what memory it took."""
        footprint = Footprint()
        began = time.perf_counter()
        with closing(SAVERS[mode](None)) as saver:
            held = time.perf_counter() - began
            saving = saver.save(self._state, self._path(mode))
            saving.wait()
            peak = footprint.peak()
            if not saver.check(self._state, self._path(mode)):
                message = f"what {mode} wrote to {self._path(mode)!r} is not what was saved"
                raise SaveError(message, path=self._path(mode), phase="write")
        discard(self._path(mode))
        done()
        return {"first_ms": 1e3 * (held + saving.blocked), "peak_bytes": peak}

    def _race(self, done: Callable[[], object]) -> dict[str, tuple[str, list[Timeline]]]:
        with ExitStack() as stack:
            made = (SAVERS[mode](self._state) for mode in self._plan.modes)
            savers: list[Saver] = [stack.enter_context(closing(saver)) for saver in made]
            for saver in savers:
                saver.save(self._state, self._path(saver.name)).wait()
            runs = {
                saver.name: partial(save_beside, saver, self._state, self._path(saver.name), self._loop, _QUIET_STEPS)
                for saver in savers
            }
            found = interleave(runs, self.estimate.saves, done)
            promises = {saver.name: saver.promise for saver in savers}
        for mode in promises:
            discard(self._path(mode))
        return {mode: (promises[mode], found[mode]) for mode in found}

    def _sweeps(self, done: Callable[[], object]) -> dict[str, Any] | None:
        points = self._needs.points
        return sweep(self._folder, points, self._plan.dtype, self._memory, done) if points else None


def measure(plan: Plan, done: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Prepare and run a measurement; return what ``bench --json`` shows (docs/cli.md).

    Raises what :class:`Session` does.
    """
    with Session(plan) as session:
        return session.run(done)


def _file_bytes(path: str) -> int:
    """Return about how large the state of a checkpoint is; 0 for one that loading will complain of."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _part(state: State) -> State:
    """Return so many tensors of a state that a save of them tells the rate, and does not take minutes."""
    part: State = {}
    nbytes = 0
    for name, tensor in flatten(state).items():
        part[name] = tensor
        nbytes += saved_bytes({name: tensor})
        if nbytes >= _PART:
            break
    return part


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
