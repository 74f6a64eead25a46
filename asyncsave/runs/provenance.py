"""Where a checkpoint comes from: versions, machine, and the commit of the sources."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import socket
import sys

__all__ = ["git_commit", "host", "version_of"]

_HASH = re.compile(r"[0-9a-f]{40,64}")


def version_of(package: str) -> str:
    """Return the version of an installed package, as it says itself where it is imported."""
    module = sys.modules.get(package)
    said = getattr(module, "__version__", None)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return str(said or importlib.metadata.version(package))
    return "unknown"


def host() -> str:
    """Return the machine's name."""
    return socket.gethostname()


def git_commit(folder: str) -> str | None:
    """Return the commit that the working tree around a folder has checked out; None if there is none.

    Reads git's own files: no process is started, and nothing can hang.
    """
    with contextlib.suppress(OSError, ValueError):
        git = _git_folder(folder)
        if git is None:
            return None
        head = _read(os.path.join(git, "HEAD"))
        if not head.startswith("ref: "):
            return head if _HASH.fullmatch(head) else None
        reference = head[len("ref: ") :]
        common = git
        with contextlib.suppress(OSError):  # a linked working tree
            common = os.path.join(git, _read(os.path.join(git, "commondir")))
        with contextlib.suppress(OSError):
            found = _read(os.path.join(common, reference))
            return found if _HASH.fullmatch(found) else None
        for line in _read(os.path.join(common, "packed-refs")).splitlines():
            commit, _, name = line.partition(" ")
            if name == reference and _HASH.fullmatch(commit):
                return commit
    return None


def _git_folder(folder: str) -> str | None:
    """Return git's own folder of the working tree that a folder lies in."""
    while True:
        found = os.path.join(folder, ".git")
        if os.path.isdir(found):
            return found
        if os.path.isfile(found):
            said = _read(found)
            return os.path.join(folder, said[len("gitdir: ") :]) if said.startswith("gitdir: ") else None
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()
