"""Save PyTorch training state without stopping training, and without ever losing it."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from asyncsave import lifecycle
from asyncsave.errors import (
    AsyncSaveError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    FormatVersionError,
    LoadError,
    OptionError,
    QueueFullError,
    RestoreError,
    SaveError,
    StagingError,
    VersionInUseError,
    WriterClosedError,
    WriterDiedError,
)
from asyncsave.result import Problem, SaveResult, VerifyReport
from asyncsave.stats import WriterStats

if TYPE_CHECKING:
    from asyncsave import aio
    from asyncsave.api import check_errors, flush, save, save_async, shutdown, warmup
    from asyncsave.backends.settings import WriterProcess
    from asyncsave.bench.profile import Profile, profile
    from asyncsave.catalogue.info import CheckpointFile, CheckpointInfo
    from asyncsave.catalogue.retention import Retention, Verdict
    from asyncsave.handle import SaveHandle
    from asyncsave.inspection.contents import inspect
    from asyncsave.inspection.saved import Contents, SavedRecord, SavedTensor, SavedValue, Versions, WeightsOnly
    from asyncsave.loading import load
    from asyncsave.runs.manager import CheckpointManager
    from asyncsave.runs.preemption import PreemptionGuard
    from asyncsave.runs.protection import ProtectedRun
    from asyncsave.runs.training_state import TrainingState
    from asyncsave.verification import verify
    from asyncsave.writer import Writer

__all__ = [
    "AsyncSaveError",
    "CheckpointFile",
    "CheckpointInfo",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "Contents",
    "CorruptCheckpointError",
    "FormatVersionError",
    "LoadError",
    "OptionError",
    "PreemptionGuard",
    "Problem",
    "Profile",
    "ProtectedRun",
    "QueueFullError",
    "RestoreError",
    "Retention",
    "SaveError",
    "SaveHandle",
    "SaveResult",
    "SavedRecord",
    "SavedTensor",
    "SavedValue",
    "StagingError",
    "TrainingState",
    "Verdict",
    "VerifyReport",
    "VersionInUseError",
    "Versions",
    "WeightsOnly",
    "Writer",
    "WriterClosedError",
    "WriterDiedError",
    "WriterProcess",
    "WriterStats",
    "aio",
    "check_errors",
    "flush",
    "inspect",
    "load",
    "profile",
    "save",
    "save_async",
    "shutdown",
    "verify",
    "warmup",
]

__version__ = "0.1.0"

_MODULES = {
    "aio": ("aio",),
    "api": ("check_errors", "flush", "save", "save_async", "shutdown", "warmup"),
    "backends.settings": ("WriterProcess",),
    "bench.profile": ("Profile", "profile"),
    "catalogue.info": ("CheckpointFile", "CheckpointInfo"),
    "catalogue.retention": ("Retention", "Verdict"),
    "handle": ("SaveHandle",),
    "inspection.contents": ("inspect",),
    "inspection.saved": ("Contents", "SavedRecord", "SavedTensor", "SavedValue", "Versions", "WeightsOnly"),
    "loading": ("load",),
    "runs.manager": ("CheckpointManager",),
    "runs.preemption": ("PreemptionGuard",),
    "runs.protection": ("ProtectedRun",),
    "runs.training_state": ("TrainingState",),
    "verification": ("verify",),
    "writer": ("Writer",),
}
"""Where the names are that stand on torch, or on much else. They are looked up at their first use, unless torch is
there already: the writer process is a part of this package too, and has to start in no time, without torch."""

_HOMES = {name: module for module, names in _MODULES.items() for name in names}

lifecycle.watch()  # the exit hook is that of the import, not that of the first use


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    found = module if name == "aio" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names too, used or not."""
    return sorted({*globals(), *__all__})


if "torch" in sys.modules:  # a trainer: no import is left for the first save, in the midst of training
    for _name in _HOMES:
        __getattr__(_name)
