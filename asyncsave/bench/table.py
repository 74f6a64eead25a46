"""What a bench or a profile has found, as text of at most 60 columns: the verdict, the tables, the line to paste."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asyncsave.units import size

__all__ = ["told"]

_MISSING = "-"
_PHASES = ("wait", "capture", "stage", "queue", "seal", "write", "sync")
_PLACES = ((100, 0), (10, 1), (1, 2))

Rows = list[tuple[str, ...]]


def told(document: Mapping[str, Any]) -> str:
    """Return it all, the verdict first.

    Args:
        document: What ``bench --json`` shows (docs/cli.md).
    """
    modes = document["modes"]
    parts = []
    if document.get("verdict"):
        parts.append(document["verdict"]["text"])
    parts.append(f"{_setting(document)}")
    parts += [_table(*table) for table in _tables(modes)]
    if document.get("verdict"):
        parts.append(f"For this machine:\n    {document['verdict']['code']}")
    return "\n\n".join(parts)


def _setting(document: Mapping[str, Any]) -> str:
    """Say what was measured, and where."""
    state, training, disk = document.get("state"), document["training"], document.get("disk")
    said = []
    if state:
        said.append(f"state: {state['nbytes'] / 1e6:.4g} MB in {state['tensors']} tensors, {state['dtype']}")
    said.append(
        f"training: {training['kind']}, quiet step {_ms(training['quiet_ms']['median'])} ms, "
        f"{training['saves']} saves{' of each' if len(document['modes']) > 1 else ''}"
    )
    if disk:
        said.append(
            f"disk: {document['machine']['file_system']}, writes {disk['write_mb_s']:.0f} MB/s, "
            f"flush {_ms(disk['fsync_ms'])} ms"
        )
    said.append(f"memory: {size(document['machine']['headroom_bytes'])} left by machine and containers")
    return "\n".join(said)


def _tables(modes: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Rows]]:
    yield (
        "What a save takes from the training",
        ("mode", "stall ms", "cost ms", "95 % interval", "step x"),
        [
            (name, _ms(of["stall_ms"]["median"]), _ms(of["cost_ms"]["median"]), _interval(of), _times(of["inflation"]))
            for name, of in modes.items()
        ],
    )
    yield (
        "When it is complete",
        ("mode", "s", "MB/s", "of disk", "flushed"),
        [
            (name, f"{of['durable_s']:.3g}", f"{of['durable_mb_s']:.0f}", _percent(of["share_of_disk"]), of["promise"])
            for name, of in modes.items()
        ],
    )
    yield (
        "At worst",
        ("mode", "stall p95", "cost p95", "first ms", "memory MB"),
        [
            (
                name,
                _ms(of["stall_ms"]["p95"]),
                _ms(of["cost_ms"]["p95"]),
                _ms(of.get("first_ms")),
                _megabytes(of.get("peak_bytes")),
            )
            for name, of in modes.items()
        ],
    )
    phased = {name: of["phases"] for name, of in modes.items() if "stage" in of["phases"]}
    if phased:
        yield (
            "Phases, ms (the loop is held for the first three)",
            ("mode", *_PHASES),
            [(name, *(_ms(of.get(phase)) for phase in _PHASES)) for name, of in phased.items()],
        )


def _table(title: str, heads: Sequence[str], rows: Rows) -> str:
    widths = [max(len(row[i]) for row in (tuple(heads), *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        return "  ".join(
            [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        ).rstrip()

    return "\n".join([title, line(heads), "  ".join("-" * width for width in widths), *map(line, rows)])


def _ms(value: float | None) -> str:
    """Write milliseconds in at most five columns, up to a minute."""
    if value is None:
        return _MISSING
    places = next((places for limit, places in _PLACES if abs(value) >= limit), 3)
    return f"{value:.{places}f}"


def _interval(mode: Mapping[str, Any]) -> str:
    low, high = mode["cost_ms"]["ci95"]
    return _MISSING if low is None else f"{_ms(low)}..{_ms(high)}"


def _times(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.0%}"


def _megabytes(value: int | None) -> str:
    return _MISSING if value is None else f"{value / 1e6:.0f}"
