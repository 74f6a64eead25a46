"""The versions: Python, torch, CUDA, the checksums' library, and what is optional."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import asyncsave
from asyncsave.doctor.check import Check, fine, unknown, wrong
from asyncsave.image.crc import crc32

__all__ = ["EXTRAS", "checksums", "extras", "packages"]

EXTRAS = {"cli": ("rich", "typer"), "plots": ("matplotlib",)}
"""What ``pip install 'asyncsave[NAME]'`` brings."""

_TORCH = (2, 6)
_CRC_NBYTES, _CRC_TRIALS, _SLOWEST_CRC_MB_S = 8 << 20, 5, 1000.0

Ask = Callable[[str], str]


def packages(*, ask: Ask = version) -> list[Check]:
    """Return ``asyncsave``, ``python``, ``torch`` and ``isal``, without importing torch.

    Args:
        ask: Returns the version of a package that is installed, as :func:`importlib.metadata.version`.
    """
    checks = [fine("asyncsave", asyncsave.__version__)]
    old = "Install Python 3.10 or newer: asyncsave needs it."
    known = sys.version_info >= (3, 10)
    checks.append(
        fine("python", platform.python_version()) if known else wrong("python", platform.python_version(), old)
    )
    found = _installed("torch", ask)
    if found is None:
        checks.append(wrong("torch", None, "Install torch (pip install torch): there is nothing to save without it."))
    elif _release(found) < _TORCH:
        checks.append(wrong("torch", found, "Install torch 2.6 or newer (pip install -U torch): asyncsave needs it."))
    else:
        checks.append(fine("torch", found))
    found = _installed("isal", ask)
    if found is None:
        checks.append(wrong("isal", None, "Install isal (pip install isal): checksums are taken by it."))
    else:
        checks.append(fine("isal", found))
    return checks


def checksums(*, crc: Callable[[bytes], int] = crc32) -> Check:
    """Return ``crc_mb_s``: the rate at which one processor takes checksums, the best of some trials.

    Args:
        crc: Takes a CRC-32.
    """
    data = bytes(_CRC_NBYTES)
    times = []
    for _ in range(_CRC_TRIALS):
        began = time.perf_counter()
        crc(data)
        times.append(time.perf_counter() - began)
    rate = round(_CRC_NBYTES / max(min(times), 1e-9) / 1e6)
    if rate < _SLOWEST_CRC_MB_S:
        return wrong("crc_mb_s", rate, "Reinstall isal from a wheel for this processor: it runs without its fast code.")
    return fine("crc_mb_s", rate)


def extras(*, ask: Ask = version) -> list[Check]:
    """Return ``extra_cli`` and ``extra_plots``: the packages of each that are there, or how to get them.

    Args:
        ask: Returns the version of a package that is installed.
    """
    checks = []
    for extra, names in EXTRAS.items():
        found = {name: _installed(name, ask) for name in names}
        value = ", ".join(f"{name} {number}" for name, number in found.items() if number) or None
        if None in found.values():
            why = f"Run pip install 'asyncsave[{extra}]' if you want it: {', '.join(names)}."
            checks.append(unknown(f"extra_{extra}", why, value=value))
        else:
            checks.append(fine(f"extra_{extra}", value))
    return checks


def _installed(name: str, ask: Ask) -> str | None:
    try:
        return ask(name)
    except PackageNotFoundError:
        return None


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
