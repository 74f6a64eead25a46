"""What an advice takes from a measurement: that may come from a file, so nothing in it is taken for granted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from asyncsave.errors import LoadError, OptionError
from asyncsave.units import plain

__all__ = ["MOST_BYTES", "Measured", "measured", "parsed"]

MOST_BYTES = 64 << 20
"""No measurement takes more."""

_MOST_MS = 1e15
_REMEDY = "measure anew: asyncsave bench --json > bench.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of saving, as it was measured. Times are in seconds.

    Attributes:
        mode: Its name.
        promise: What a save that is complete has promised.
        cost_s: What a save cost the training: the median.
        cost_ci95_s: Between which bounds that lies; None: there were too few saves.
        stall_s: How long the call held the loop.
        durable_s: From the call until complete.
        step_s: A quiet step of the training that was measured.
        helps: What the verdict was: whether background saving helps.
    """

    mode: str
    promise: str
    cost_s: float
    cost_ci95_s: tuple[float, float] | None
    stall_s: float
    durable_s: float
    step_s: float
    helps: bool | None

    @property
    def charged_s(self) -> float:
        """What to count with: at least the stall, for steps are not quicker because a save is written beside them."""
        return max(self.cost_s, self.stall_s)


def parsed(data: bytes, path: str) -> Any:
    """Return the document that some bytes are.

    Raises:
        LoadError: They are none.
    """
    try:
        return json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path!r} is no JSON document: {plain(error)}; {_REMEDY}", path=path) from error


def measured(document: Any, mode: str | None, path: str) -> Measured:
    """Return what a document says of a way of saving.

    Args:
        document: A measurement, as ``bench --json`` shows it; or anything else.
        mode: The way of saving; None: the one that the verdict recommends.
        path: Where the document came from, for messages.

    Raises:
        LoadError: The document is no measurement, or its figures cannot be.
        OptionError: It has no such way of saving, or names none and has several.
    """
    read = _Reader(path)
    whole = read.mapping(document, "the document")
    modes = read.mapping(whole.get("modes"), "modes")
    verdict = whole.get("verdict")
    if verdict is not None:
        verdict = read.mapping(verdict, "verdict")
    helps = verdict.get("helps") if verdict else None
    if helps not in (True, False, None) or isinstance(helps, (int, float)) is not isinstance(helps, bool):
        read.refuse("verdict.helps", "true, false or null", helps)
    name = _chosen(modes, verdict, mode)
    at = f"modes.{plain(name)}"
    found = read.mapping(modes[name], at)
    cost = read.mapping(found.get("cost_ms"), f"{at}.cost_ms")
    stall = read.mapping(found.get("stall_ms"), f"{at}.stall_ms")
    training = read.mapping(whole.get("training"), "training")
    quiet = read.mapping(training.get("quiet_ms"), "training.quiet_ms")
    promise = found.get("promise")
    if not isinstance(promise, str):
        read.refuse(f"{at}.promise", "a text", promise)
    return Measured(
        mode=name,
        promise=promise,
        cost_s=read.number(cost.get("median"), f"{at}.cost_ms.median") / 1e3,
        cost_ci95_s=_interval(read, cost.get("ci95"), f"{at}.cost_ms.ci95"),
        stall_s=read.above_zero(stall.get("median"), f"{at}.stall_ms.median") / 1e3,
        durable_s=read.above_zero(found.get("durable_s"), f"{at}.durable_s"),
        step_s=read.above_zero(quiet.get("median"), "training.quiet_ms.median") / 1e3,
        helps=helps,
    )


def _chosen(modes: Mapping[str, Any], verdict: Mapping[str, Any] | None, mode: str | None) -> str:
    known = ", ".join(plain(name) for name in modes) or "none"
    if mode is not None:
        if mode not in modes:
            raise OptionError(f"mode must be one that was measured ({known}), not {plain(mode)!r}")
        return mode
    named = verdict.get("baseline" if verdict.get("helps") is False else "mode") if verdict else None
    if isinstance(named, str) and named in modes:
        return named
    if len(modes) == 1:
        return next(iter(modes))
    raise OptionError(f"the measurement recommends no way of saving: name one with --mode ({known})")


def _interval(read: _Reader, value: Any, where: str) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:  # noqa: PLR2004 - its two ends
        read.refuse(where, "two numbers", value)
    if value[0] is None or value[1] is None:
        return None
    low, high = (read.number(one, where) / 1e3 for one in value)
    if low > high:
        read.refuse(where, "two numbers in order", value)
    return low, high


class _Reader:
    """Takes values of the kinds that are expected, and says where there is another."""

    def __init__(self, path: str) -> None:
        self._path = path

    def mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.refuse(where, "an object", value)
        return value

    def number(self, value: Any, where: str) -> float:
        # A whole number of many digits has no float; it is refused before it needs one.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MOST_MS:
            self.refuse(where, "a number within reason", value)
        return float(value)

    def above_zero(self, value: Any, where: str) -> float:
        number = self.number(value, where)
        if number <= 0 or not math.isfinite(number):
            self.refuse(where, "a number above 0", value)
        return number

    def refuse(self, where: str, expected: str, found: Any) -> NoReturn:
        text = plain(json.dumps(found, default=repr))
        text = text if len(text) <= 60 else f"{text[:60]}..."  # noqa: PLR2004 - the head of it will do
        message = f"{self._path!r} is no measurement: {where} must be {expected}, not {text}; {_REMEDY}"
        raise LoadError(message, path=self._path)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
