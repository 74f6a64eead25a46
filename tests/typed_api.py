"""How the public face is typed. mypy checks this file (see pyproject.toml); nobody runs it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import pathlib
import pickle
from typing import Any, BinaryIO

import torch
from typing_extensions import assert_type

import asyncsave
from asyncsave import aio

model = torch.nn.Linear(2, 2)
buffer = io.BytesIO()
path = pathlib.Path("f.pt")


def saving() -> None:
    """Everything that torch.save takes is taken, and each call has one type of result."""
    assert_type(asyncsave.save_async({"model": model.state_dict()}, "f.pt"), asyncsave.SaveHandle)
    assert_type(asyncsave.save_async(model, path, pickle, 2), asyncsave.SaveHandle)
    assert_type(asyncsave.save_async([1], buffer, writer=None, on_busy="skip", compact=True), asyncsave.SaveHandle)
    assert_type(asyncsave.save(model, "f.pt"), asyncsave.SaveResult)
    with path.open("wb") as file:
        assert_type(asyncsave.save(model, file, compact=True), asyncsave.SaveResult)
    assert_type(asyncsave.warmup(model), None)
    assert_type(asyncsave.flush(), None)
    assert_type(asyncsave.flush(1.5), None)
    assert_type(asyncsave.check_errors(), None)
    assert_type(asyncsave.shutdown(timeout=None), None)
    asyncsave.save_async(1, "f.pt", on_busy="never")  # type: ignore[arg-type]
    asyncsave.save_async(1, 5)  # type: ignore[arg-type]
    asyncsave.save_async(1, "f.pt", pickle, 2, None)  # type: ignore[call-arg]


def handles(handle: asyncsave.SaveHandle) -> None:
    """A handle is a Future of a SaveResult, for every function that takes one."""
    future: concurrent.futures.Future[asyncsave.SaveResult] = handle
    assert_type(handle.result(), asyncsave.SaveResult)
    assert_type(handle.result(timeout=1.0), asyncsave.SaveResult)
    assert_type(handle.exception(), BaseException | None)
    assert_type(handle.path, str)
    assert_type(handle.progress, tuple[int, int])
    assert_type(handle.timings, dict[str, float])
    assert_type(handle.staged.is_set(), bool)
    assert_type(handle.durable.wait(1.0), bool)
    assert_type(handle.cancel(), bool)
    if handle.status == "durable":
        handle.add_done_callback(lambda done: print(done.result().nbytes))  # noqa: T201
    for done in concurrent.futures.as_completed([handle, future]):
        assert_type(done.result().digest, str)
    if handle.status == "never":  # type: ignore[comparison-overlap]
        raise AssertionError


async def awaiting(handle: asyncsave.SaveHandle) -> None:
    """In asyncio a handle can be awaited, and the functions of aio have the types of the others."""
    assert_type(await handle, asyncsave.SaveResult)
    assert_type(await asyncio.wrap_future(handle), asyncsave.SaveResult)
    assert_type(await aio.save(model, path), asyncsave.SaveResult)
    assert_type(await aio.load("f.pt"), Any)
    assert_type(await aio.verify(path), asyncsave.VerifyReport)
    assert_type(await aio.copy(path, "g.pt"), asyncsave.SaveResult)
    first, second = await asyncio.gather(aio.save(1, "a"), aio.verify("a"))
    assert_type(first, asyncsave.SaveResult)
    assert_type(second, asyncsave.VerifyReport)


def writers() -> None:
    """A writer is its own context manager, and all of its options are named."""
    with asyncsave.Writer(
        max_pending=2,
        on_busy="replace",
        memory_budget=1 << 30,
        threads=2,
        durable=True,
        on_error="log",
        exit_timeout=60.0,
    ) as writer:
        assert_type(writer, asyncsave.Writer)
        assert_type(writer.save(model, "f.pt", on_busy="raise", compact=True), asyncsave.SaveHandle)
        assert_type(asyncsave.save_async(model, "f.pt", writer=writer), asyncsave.SaveHandle)
        assert_type(writer.warmup(model), None)
        assert_type(writer.flush(1.0), None)
        assert_type(writer.check_errors(), None)
        assert_type(writer.stats, asyncsave.WriterStats)
        assert_type(writer.stats.saved, int)
        assert_type(writer.close(1.0), None)
    asyncsave.Writer(backend="thread").close()
    asyncsave.Writer(backend="process").close()
    asyncsave.Writer(backend=asyncsave.WriterProcess(nice=10, ionice="low", cpu_affinity=[2, 3])).close()
    asyncsave.Writer(backend="fibre")  # type: ignore[arg-type]
    asyncsave.WriterProcess(ionice="high")  # type: ignore[arg-type]
    asyncsave.Writer(2)  # type: ignore[call-arg]
    asyncsave.Writer(on_busy="never")  # type: ignore[arg-type]


def runs() -> None:
    """A run's manager, what it is given, and what comes out."""
    optimizer = torch.optim.SGD(model.parameters())
    state = asyncsave.TrainingState(model=model, optimizer=optimizer, epoch=0, rng=False)
    assert_type(state.epoch, Any)
    keep = asyncsave.Retention(last=3, best=2, metric="val_loss", mode="max", every=10, hours=1.5)
    assert_type(keep | asyncsave.Retention(last=1), asyncsave.Retention)
    guard = asyncsave.PreemptionGuard(signals=(15,), deadline=10)
    with asyncsave.CheckpointManager(
        path,
        project="p",
        experiment="e",
        version="new",
        versioning="timestamp",
        retain=keep,
        writer=asyncsave.Writer(recycle=False),
        shared=False,
        recycle=False,
        on_durable=lambda info: info.step,
    ) as manager:
        assert_type(manager, asyncsave.CheckpointManager)
        assert_type(manager.restore(state, "latest", strict=False, strict_latest=True, emergency=True), int)
        with guard, manager.protect(state, guard) as run:
            assert_type(run, asyncsave.ProtectedRun)
            for step in run.steps(0, 3):
                assert_type(step, int)
            assert_type((run.preempted, guard.preempted, guard.agreed()), tuple[bool, bool, bool])
        assert_type(manager.save(3, state, metrics={"val_loss": 0.5}, metadata={"a": [1]}), asyncsave.SaveHandle)
        assert_type(manager.save(4, parts={"ema": model.state_dict()}, only_if_best=True), asyncsave.SaveHandle)
        assert_type(manager.latest(), asyncsave.CheckpointInfo | None)
        assert_type(manager.best("val_loss", "min"), asyncsave.CheckpointInfo | None)
        assert_type(manager.list(all=True), list[asyncsave.CheckpointInfo])
        assert_type(manager.load("best", part="ema", map_location="cpu"), Any)
        assert_type(manager.export(3, "model.pt", part="model", format="torch"), asyncsave.SaveResult)
        assert_type(manager.clean(dry_run=True), list[str])
        assert_type(manager.prune(keep, dry_run=True), list[asyncsave.Verdict])
        manager.prune(3)  # type: ignore[arg-type]
        assert_type((manager.path, manager.version), tuple[str, str])
        assert_type(manager.pin(3), None)
        assert_type(manager.unpin(3), None)
        assert_type(manager.wait(1.0), None)
        manager.load("newest")  # type: ignore[arg-type]
        manager.save("3", state)  # type: ignore[arg-type]
    for verdict in keep.decide([asyncsave.CheckpointInfo(1, "step-1")], written="step-1", protected=["step-1"]):
        assert_type(verdict, asyncsave.Verdict)
        assert_type(verdict.info.files, dict[str, asyncsave.CheckpointFile])
    asyncsave.Retention(mode="most")  # type: ignore[arg-type]


def loading(file: BinaryIO) -> None:
    """What comes out of a file has any type; what is said about a file has one."""
    assert_type(asyncsave.load("f.pt"), Any)
    assert_type(asyncsave.load(path, "cpu", weights_only=False, mmap=True, verify=True), Any)
    assert_type(asyncsave.load(file, lambda storage, location: storage), Any)
    report = asyncsave.verify(path)
    assert_type(report, asyncsave.VerifyReport)
    assert_type(report.ok, bool)
    for problem in report.problems:
        assert_type(problem, asyncsave.Problem)
        assert_type(problem.record, str | None)
    contents = asyncsave.inspect(path)
    assert_type(contents, asyncsave.Contents)
    assert_type(contents.tensors, tuple[asyncsave.SavedTensor, ...])
    assert_type(contents.records, tuple[asyncsave.SavedRecord, ...])
    assert_type(contents.values, tuple[asyncsave.SavedValue, ...])
    assert_type(contents.ties, tuple[tuple[str, ...], ...])
    assert_type(contents.versions, asyncsave.Versions)
    assert_type(contents.weights_only, asyncsave.WeightsOnly)
    assert_type(contents.weights_only.ok, bool)
    asyncsave.load("f.pt", "cpu", False)  # type: ignore[call-arg]  # noqa: FBT003


def failures() -> None:
    """What an error knows is typed as well."""
    try:
        asyncsave.save(model, "f.pt")
    except asyncsave.SaveError as error:
        assert_type(error.path, str)
        assert_type(error.phase, str)
        assert_type(error.outcome, str)
        system: OSError = error
        assert_type(system.errno, int | None)
    except asyncsave.QueueFullError as error:
        root: asyncsave.AsyncSaveError = error
        raise root from None
    try:
        asyncsave.load("f.pt")
    except asyncsave.CorruptCheckpointError as error:
        assert_type(error.record, str | None)
        assert_type((error.path, error.expected, error.found), tuple[str, str, str])


def profiling() -> None:
    """A profile is a context manager, and its figures are plain values."""
    with asyncsave.profile() as report:
        assert_type(report, asyncsave.Profile)
        assert_type(report.step(), None)
    assert_type(report.document(), dict[str, Any])
    asyncsave.profile(show=False)
    asyncsave.profile(show=3)  # type: ignore[arg-type]
