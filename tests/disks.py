"""Disks that are small, or read-only: file systems in memory, mounted for one test."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["mounted"]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system on a folder while the block runs, whatever comes of it; skip the test where nobody may.

    Args:
        folder: Where; it is made if it is not there.
        options: What ``mount`` is told, as in ``"size=1m"`` or ``"ro"``.

    Raises:
        subprocess.CalledProcessError: In the end something still used it; then it goes as soon as that is over.
    """
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mount is not possible here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        try:
            subprocess.run(["umount", folder], check=True)
        except subprocess.CalledProcessError:
            subprocess.run(["umount", "-l", folder], check=True)
            raise
