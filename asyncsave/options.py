"""Checks of arguments: a wrong one is named with what it may be."""

from __future__ import annotations

import operator
import os
import pickle
from collections.abc import Iterable
from typing import Any, get_args

from asyncsave.errors import OptionError

__all__ = [
    "above_zero",
    "at_least",
    "core_numbers",
    "file_path",
    "folder_name",
    "instance",
    "one_of",
    "pickler",
    "seconds",
    "step_number",
    "text",
    "whole_number",
    "yes_or_no",
]

_LONGEST_NAME = 255
_MOST = 1 << 16
"""No machine has more processors."""


def at_least(name: str, value: object, minimum: int) -> None:
    """Refuse everything but whole numbers from ``minimum`` on.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        message = f"{name} must be a whole number, at least {minimum}, not {value!r}"
        raise OptionError(message)


def whole_number(name: str, value: object, minimum: int, maximum: int) -> None:
    """Refuse everything but whole numbers between two bounds.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        message = f"{name} must be a whole number from {minimum} to {maximum}, not {value!r}"
        raise OptionError(message)


def core_numbers(name: str, value: object) -> list[int]:
    """Return a list of processors.

    Raises:
        OptionError: It is empty, or something else.
    """
    cores = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
    if not cores or not all(
        isinstance(core, int) and not isinstance(core, bool) and 0 <= core <= _MOST for core in cores
    ):
        message = f"{name} must be numbers of processors, as in [2, 3], not {value!r}"
        raise OptionError(message)
    return cores


def file_path(f: object) -> str:
    """Return a path as text.

    Raises:
        OptionError: It is no path.
    """
    path = os.fspath(f) if isinstance(f, (str, os.PathLike)) else f
    if not isinstance(path, str):
        message = f"expected a path (str or os.PathLike), not {type(f).__name__}"
        raise OptionError(message)
    return path


def seconds(name: str, value: object) -> None:
    """Refuse everything but a length of time in seconds.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, (int, float)) or not value >= 0:
        message = f"{name} must be a number of seconds, at least 0, not {value!r}"
        raise OptionError(message)


def step_number(step: object) -> int:
    """Return a step's number.

    Raises:
        OptionError: It is no whole number, or negative.
    """
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 10**18:
        raise OptionError(f"step must be a whole number, at least 0, not {step!r}")
    return number


def _is_above_zero(value: float) -> bool:
    try:
        return float(value) > 0
    except OverflowError:
        return False


def above_zero(name: str, value: object) -> None:
    """Refuse everything but numbers above zero.

    Raises:
        OptionError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_above_zero(value):
        message = f"{name} must be a number above 0, not {value!r}"
        raise OptionError(message)


def _is_folder_name(value: str) -> bool:
    if value.startswith(".") or any(character in value for character in "/\\\0"):
        return False
    try:
        return len(os.fsencode(value)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def instance(name: str, value: object, kind: type) -> None:
    """Refuse everything but None and objects of a class.

    Raises:
        OptionError: It is something else.
    """
    if value is not None and not isinstance(value, kind):
        message = f"{name} must be a {kind.__name__}, not {value!r}"
        raise OptionError(message)


def text(name: str, value: object) -> None:
    """Refuse everything but a text of at least one character.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, str) or not value:
        message = f"{name} must be a text, not {value!r}"
        raise OptionError(message)


def folder_name(name: str, value: object) -> None:
    """Refuse everything but the name of one folder, visible and not nested.

    Raises:
        OptionError: It is something else.
    """
    text(name, value)
    if not isinstance(value, str) or not _is_folder_name(value):
        message = f"{name} must be the name of one folder: no slash, no leading dot, at most 255 bytes; not {value!r}"
        raise OptionError(message)


def yes_or_no(name: str, value: object) -> None:
    """Refuse everything but True and False.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, bool):
        message = f"{name} must be True or False, not {value!r}"
        raise OptionError(message)


def pickler(module: object, protocol: object) -> None:
    """Refuse what cannot pickle.

    Raises:
        OptionError: The module has no ``Pickler``, or there is no such protocol.
    """
    if not callable(getattr(module, "Pickler", None)):
        message = f"pickle_module must have a Pickler, as pickle has; {module!r} has none"
        raise OptionError(message)
    if not isinstance(protocol, int) or not -1 <= protocol <= pickle.HIGHEST_PROTOCOL:
        message = f"pickle_protocol must be a number up to {pickle.HIGHEST_PROTOCOL}, not {protocol!r}"
        raise OptionError(message)


def one_of(name: str, value: object, choices: Any) -> None:
    """Refuse what is not one of a ``Literal``'s values.

    Raises:
        OptionError: It is something else.
    """
    if value not in get_args(choices):
        message = f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, not {value!r}"
        raise OptionError(message)
