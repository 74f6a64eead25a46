"""What a measurement depends on: the machine, its system, the versions, the folder's file system."""

from __future__ import annotations

import contextlib
import os
import platform
from typing import Any

import psutil

from asyncsave.cores import cores
from asyncsave.runs.provenance import version_of
from asyncsave.staging.headroom import headroom
from asyncsave.storage.mounts import file_system

__all__ = ["cpu_name", "describe"]


def describe(folder: str, *, direct: bool, gpu: str | None = None) -> dict[str, Any]:
    """Return it as ``bench --json`` shows it.

    Args:
        folder: The folder that is measured, absolute.
        direct: Whether its file system takes direct I/O.
        gpu: The name of the accelerator in use.
    """
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "headroom_bytes": headroom(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "asyncsave": version_of("asyncsave"),
        "gpu": gpu,
        "folder": folder,
        "file_system": file_system(os.path.realpath(folder))[0] or "unknown",
        "direct": direct,
        "load": os.getloadavg()[0],
    }


def cpu_name() -> str:
    """Return what the processor is called."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as table:
        for line in table:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
