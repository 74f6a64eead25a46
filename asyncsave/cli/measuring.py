"""A measurement on the command line: foretold, with a bar, and ended by a signal whatever the user's step does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncsave.bench.plan import Plan
from asyncsave.cli import signals
from asyncsave.cli.terminal import Terminal
from asyncsave.units import duration, size

__all__ = ["measure_now"]


def measure_now(terminal: Terminal, plan: Plan, *, dry_run: bool = False) -> dict[str, Any] | None:
    """Measure, with an estimate first and a bar; return what was found, None after a dry run."""
    terminal.note("preparing: torch, the state, a look at the disk ...")
    from asyncsave.bench.session import Session

    with Session(plan) as session:
        foretold = session.estimate
        terminal.note(
            f"{foretold.saves} saves of each of {len(plan.modes)} modes in {plan.folder}: about "
            f"{duration(foretold.seconds)}, {size(foretold.written)} written, {size(foretold.disk)} of disk and "
            f"{size(foretold.memory)} of memory at once; nothing is left behind"
        )
        if dry_run:
            terminal.document({"estimate": foretold.as_json()})
            return None
        with terminal.bar("measuring", session.units, unit="saves") as advance:
            return session.run(lambda: _went_on(advance))


def _went_on(advance: Callable[[float], None]) -> None:
    signals.heed()
    advance(1)
