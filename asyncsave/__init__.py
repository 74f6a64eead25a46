"""Save PyTorch training state without stopping training, and without ever losing it."""

from __future__ import annotations

from asyncsave import aio
from asyncsave.api import check_errors, flush, save, save_async, shutdown, warmup
from asyncsave.errors import (
    AsyncSaveError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    FormatVersionError,
    LoadError,
    OptionError,
    QueueFullError,
    SaveError,
    StagingError,
    WriterClosedError,
    WriterDiedError,
)
from asyncsave.handle import SaveHandle
from asyncsave.loading import load
from asyncsave.result import Problem, SaveResult, VerifyReport
from asyncsave.stats import WriterStats
from asyncsave.verification import verify
from asyncsave.writer import Writer

__all__ = [
    "AsyncSaveError",
    "CheckpointNotFoundError",
    "CorruptCheckpointError",
    "FormatVersionError",
    "LoadError",
    "OptionError",
    "Problem",
    "QueueFullError",
    "SaveError",
    "SaveHandle",
    "SaveResult",
    "StagingError",
    "VerifyReport",
    "Writer",
    "WriterClosedError",
    "WriterDiedError",
    "WriterStats",
    "aio",
    "check_errors",
    "flush",
    "load",
    "save",
    "save_async",
    "shutdown",
    "verify",
    "warmup",
]

__version__ = "0.1.0"
