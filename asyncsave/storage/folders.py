"""Folders and small files of a run, made durable: whatever is made on the way to them is flushed too."""

from __future__ import annotations

import os

from asyncsave.errors import SaveError
from asyncsave.storage.attempt import sync_folder
from asyncsave.storage.blocks import write_all
from asyncsave.storage.replacement import Replacement
from asyncsave.storage.system import System
from asyncsave.storage.target import resolve

__all__ = ["make_folder", "make_folders", "put_file"]


def make_folders(system: System, path: str) -> None:
    """Make a folder, and all that are missing on the way to it.

    Args:
        system: The operating system.
        path: Absolute.

    Raises:
        SaveError: With phase ``"target"``: that cannot be done.
    """
    missing = [path]
    try:
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for folder in reversed(missing[1:]):
            try:
                make_folder(system, folder)
            except FileExistsError:
                if not os.path.isdir(folder):  # else another process was quicker
                    raise
    except OSError as error:
        raise SaveError.of(error, path=missing[0], phase="target") from error


def make_folder(system: System, path: str) -> None:
    """Make one folder, which must not be there.

    Raises:
        FileExistsError: It is.
        OSError: It cannot be made.
    """
    system.mkdir(path)
    fd = system.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_folder(system, fd)
    finally:
        system.close(fd)


def put_file(system: System, path: str, data: bytes) -> None:
    """Write a small file, whole or not at all, and flush it.

    Raises:
        SaveError: That failed.
    """
    target = resolve(path)
    with Replacement(system, target, len(data), sync=True) as new:
        try:
            write_all(system, new.fd, memoryview(data), 0)
        except OSError as error:
            raise SaveError.of(error, path=target.path, phase="write") from error
        new.commit()
