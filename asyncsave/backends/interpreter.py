"""The Python that a writer process runs in, and the surroundings in which it finds the same packages."""

from __future__ import annotations

import multiprocessing.spawn
import os
import site
import sys

import isal

import asyncsave
from asyncsave.errors import OptionError

__all__ = ["environment", "interpreter"]

_FOLDERS = [os.path.dirname(os.path.dirname(os.path.abspath(str(one.__file__)))) for one in (asyncsave, isal)]


def interpreter() -> str:
    """Return the path of a Python: the one that :mod:`multiprocessing` uses.

    Raises:
        OptionError: This program has none.
    """
    executable = os.fsdecode(multiprocessing.spawn.get_executable() or "")
    if not executable or (getattr(sys, "frozen", False) and executable == sys.executable):
        raise OptionError(
            "this program has no Python interpreter of its own to run a writer process with (it is frozen, or "
            'embeds Python): use backend="thread", or name one with multiprocessing.set_executable'
        )
    return executable


def environment() -> dict[str, str]:
    """Return this process's environment, with the folders of our packages first on Python's path.

    What a fresh interpreter finds by itself is left out: it would stand before the standard library.
    """
    known = {*site.getsitepackages(), site.getusersitepackages()}
    path = [*(folder for folder in _FOLDERS if folder not in known), os.environ.get("PYTHONPATH", "")]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONINSPECT"}  # it would stay
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, path))),
        "PYTHONSAFEPATH": "1",  # the folder it runs in is nobody's
        "PYTHONUTF8": str(sys.flags.utf8_mode),  # names of files must mean the same
    }
