"""Checks of arguments: a wrong one is named with what it may be."""

from __future__ import annotations

from typing import Any, get_args

from asyncsave.errors import OptionError

__all__ = ["at_least", "one_of", "seconds"]


def at_least(name: str, value: object, minimum: int) -> None:
    """Refuse everything but whole numbers from ``minimum`` on.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        message = f"{name} must be a whole number, at least {minimum}, not {value!r}"
        raise OptionError(message)


def seconds(name: str, value: object) -> None:
    """Refuse everything but a length of time in seconds.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, (int, float)) or not value >= 0:
        message = f"{name} must be a number of seconds, at least 0, not {value!r}"
        raise OptionError(message)


def one_of(name: str, value: object, choices: Any) -> None:
    """Refuse what is not one of a ``Literal``'s values.

    Raises:
        OptionError: It is something else.
    """
    if value not in get_args(choices):
        message = f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, not {value!r}"
        raise OptionError(message)
