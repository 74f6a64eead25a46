"""Documents as ``asyncsave bench --json`` makes them, by hand: one with everything, and the least there may be."""

from __future__ import annotations

import copy
import math
from typing import Any

__all__ = ["document", "hostile", "minimal"]

MODES = ("torch.save", "torch.save+fsync", "naive-thread", "aiofiles", "thread", "process")
QUIET = 42.0
ROUND_S = 3.0
NBYTES = 268_435_456

_FIGURES: dict[str, tuple[str, float, float, float, float]] = {
    "torch.save": ("page cache", 212.0, 214.0, 0.213, 1.0),
    "torch.save+fsync": ("file", 655.0, 656.0, 0.656, 1.0),
    "naive-thread": ("page cache", 3.1, 331.0, 0.62, 1.62),
    "aiofiles": ("page cache", 188.0, 402.0, 0.81, 1.48),
    "thread": ("file + folder", 47.0, 121.0, 0.58, 1.14),
    "process": ("file + folder", 44.0, 71.0, 0.61, 1.05),
}
"""Of each mode: promise, stall and cost in ms, time to durable in s, inflation."""
_PHASES = {
    "thread": {
        "wait": 0.1,
        "capture": 3.2,
        "stage": 43.6,
        "queue": 0.4,
        "seal": 2.1,
        "write": 455.0,
        "sync": 76.0,
    },
    "process": {"wait": 0.1, "capture": 3.3, "stage": 40.5, "queue": 3.9, "seal": 2.4, "write": 478.0, "sync": 82.0},
}


def spread(median: float, n: int = 12) -> dict[str, Any]:
    """Return a median with what lies around it; the interval is unknown below six samples."""
    return {
        "median": median,
        "p95": median * 1.3,
        "ci95": [median * 0.93, median * 1.08] if n > 5 else [None] * 2,
        "n": n,
    }


def document() -> dict[str, Any]:
    """Return a document with everything in it: six modes, sweeps, a verdict."""
    return {
        "machine": {
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_bytes": 8_300_000_000,
            "headroom_bytes": 5_100_000_000,
            "kernel": "Linux 6.1",
            "python": "3.11.7",
            "torch": "2.13.0",
            "asyncsave": "0.1.0",
            "gpu": None,
            "folder": "/scratch/runs",
            "file_system": "ext4",
            "direct": True,
            "load": 0.52,
        },
        "state": {"source": "synthetic", "nbytes": NBYTES, "tensors": 240, "dtype": "float32"},
        "training": {"kind": "python", "quiet_ms": spread(QUIET, 200), "saves": 12},
        "disk": {"write_mb_s": 640.0, "fsync_ms": 3.8, "read_mb_s": 1210.0},
        "modes": {name: _mode(name) for name in MODES},
        "sweeps": {
            "size": [
                {
                    "nbytes": nbytes,
                    "mode": name,
                    "stall_ms": 0.3 + _FIGURES[name][1] * nbytes / NBYTES,
                    "durable_s": 0.01 + _FIGURES[name][3] * nbytes / NBYTES,
                }
                for nbytes in (1 << 20, 1 << 23, 1 << 26, NBYTES)
                for name in ("torch.save+fsync", "thread", "process")
            ],
            "tensors": [
                {
                    "tensors": tensors,
                    "nbytes": 1 << 25,
                    "mode": name,
                    "stall_ms": _FIGURES[name][1] / 8 + tensors * each,
                    "durable_s": _FIGURES[name][3] / 8 + tensors * each / 1000,
                }
                for tensors in (10, 100, 1000, 10_000)
                for name, each in (("torch.save+fsync", 0.028), ("thread", 0.009), ("process", 0.0095))
            ],
            "threads": [
                {
                    "threads": threads,
                    "block_bytes": block,
                    "mb_s": 640 * (1 - math.exp(-threads * (block / (1 << 20)) ** 0.5 / 1.6)),
                }
                for block in (1 << 18, 1 << 20, 1 << 23)
                for threads in (1, 2, 4, 8)
            ],
            "ceiling_mb_s": 640.0,
        },
        "verdict": {
            "helps": True,
            "mode": "process",
            "baseline": "torch.save+fsync",
            "saved_ms": {"median": 585.0, "ci95": [541.0, 622.0]},
            "text": "process helps: 585 ms less per save than torch.save+fsync (95 % interval 541 to 622 ms)",
            "code": 'writer = asyncsave.Writer(process=True, max_pending=2)\nwriter.save(state, "model.pt")',
        },
    }


def minimal() -> dict[str, Any]:
    """Return the least: one mode, few saves, no sweeps, nothing known of what steps beside a save were like."""
    made = document()
    made["modes"] = {"thread": made["modes"]["thread"]}
    mode = made["modes"]["thread"]
    mode |= {"stall_ms": spread(47.0, 3), "cost_ms": spread(121.0, 3), "inflation": None, "peak_bytes": None}
    mode |= {"phases": {}, "timeline": {"quiet_ms": QUIET, "steps": [], "saves": []}}
    made["sweeps"] = None
    made["verdict"] = {
        "helps": None,
        "mode": "thread",
        "baseline": "thread",
        "saved_ms": {"median": 0.0, "ci95": [None, None]},
        "text": "no measurable difference",
        "code": "asyncsave.save(state, path)",
    }
    return made


def hostile() -> dict[str, Any]:
    """Return one whose texts would break out of a page that takes them as they are."""
    made = document()
    evil = "</script><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp; \x1b[31m\ud800 $math_{2}$"
    made["machine"] |= {"cpu": evil, "folder": f"/{evil}", "file_system": evil, "gpu": evil}
    made["state"]["source"] = made["training"]["kind"] = evil
    made["verdict"] |= {"text": evil, "code": evil}
    made["modes"][evil] = copy.deepcopy(made["modes"]["thread"])
    for one in made["sweeps"]["size"]:
        if one["mode"] == "thread":
            one["mode"] = evil
    return made


def _mode(name: str) -> dict[str, Any]:
    promise, stall, cost, durable, inflation = _FIGURES[name]
    return {
        "promise": promise,
        "stall_ms": spread(stall),
        "cost_ms": spread(cost),
        "durable_s": durable,
        "durable_mb_s": NBYTES / durable / 1e6,
        "share_of_disk": NBYTES / durable / 1e6 / 640.0,
        "inflation": inflation if inflation > 1 else None,
        "first_ms": stall * 1.9 + (310.0 if name == "process" else 0.0),
        "peak_bytes": 2 * NBYTES if name in _PHASES else NBYTES,
        "phases": dict(_PHASES.get(name, {"save": 1e3 * durable})),
        "timeline": _timeline(stall / 1e3, durable, inflation),
    }


def _timeline(stall: float, durable: float, inflation: float) -> dict[str, Any]:
    """Return steps one after another, two saves among them, and slower steps while one is written."""
    now, steps, saves, due = 0.0, [], [], [0.5, 1.8]
    while now < ROUND_S:
        if due and now >= due[0]:
            due.pop(0)
            saves.append([now, now + stall, now + durable])
            now += stall
        beside = any(returned <= now < complete for _, returned, complete in saves)
        length = QUIET / 1e3 * (inflation if beside else 1 + 0.03 * math.sin(40 * now))
        steps.append([now, now + length])
        now += length
    return {"quiet_ms": QUIET, "steps": steps, "saves": saves}
