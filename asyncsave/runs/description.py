"""What a user says of a step: its number, parts, metrics and metadata, checked and made plain values."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import torch

from asyncsave.catalogue.info import CheckpointInfo
from asyncsave.catalogue.manifest import DEEPEST, Manifest, is_too_deep
from asyncsave.catalogue.names import STATE, file_of, is_plain
from asyncsave.errors import OptionError
from asyncsave.options import step_number
from asyncsave.runs.provenance import git_commit, host, version_of
from asyncsave.runs.training_state import TrainingState

__all__ = ["NOTHING", "Description"]

_LONGEST_METADATA = 4 << 20
"""Bytes of JSON: a manifest is read at every look at the version."""

NOTHING = object()
"""Stands for an object that was not given: None is one that can be saved."""


class Description:
    """One step that is to be saved.

    Args:
        step: Its number.
        obj: What becomes the part ``state``; :data:`NOTHING`: nothing.
        parts: Further objects by name.
        metrics: Numbers by name: whatever ``float()`` takes, or None.
        metadata: What JSON can say.
        complete: Whether the step is over.

    Attributes:
        time: When it was made, seconds since 1970.
        objects: What to save, by file name; training states as what they save. Emptied once it has been copied.

    Raises:
        OptionError: Any of that makes no sense.
    """

    def __init__(
        self,
        step: object,
        obj: object,
        parts: Mapping[str, object] | None,
        metrics: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        *,
        complete: bool,
    ) -> None:
        self.step = step_number(step)
        self.complete = complete
        self.time = time.time()
        self.metrics = {_name("metrics", name): _metric(name, value) for name, value in _mapping("metrics", metrics)}
        self._metadata = _metadata(metadata)
        self._identity = id(obj)
        given = dict(_mapping("parts", parts))
        if obj is not NOTHING:
            if STATE in given:
                raise OptionError(f"part {STATE!r} is the object itself: choose another name for the other one")
            given = {STATE: obj, **given}
        if not given:
            raise OptionError("there is nothing to save: give an object, or parts={...}")
        epochs = [part.parts.get("epoch") for part in given.values() if isinstance(part, TrainingState)]
        self._epoch = next((epoch for epoch in epochs if type(epoch) is int), None)
        self.objects = {_file(name): _saved(part) for name, part in given.items()}

    def is_of(self, state: object) -> bool:
        """Tell whether it is a save of this very object, which was there at the call."""
        return self._identity == id(state)

    def info(self, path: str) -> CheckpointInfo:
        """Return what is known of it without its files."""
        return CheckpointInfo(
            step=self.step,
            path=path,
            epoch=self._epoch,
            metrics=self.metrics,
            metadata=self._metadata,
            time=self.time,
            complete=self.complete,
            kind="step" if self.complete else "emergency",
        )

    def manifest(self, tensors: int) -> Manifest:
        """Return the manifest, but for the files, which are not written yet."""
        return Manifest(
            step=self.step,
            complete=self.complete,
            epoch=self._epoch,
            metrics=self.metrics,
            metadata=self._metadata,
            time=self.time,
            tensors=tensors,
            asyncsave=version_of("asyncsave"),
            torch=version_of("torch"),
            host=host(),
            commit=_commit(),
        )


@functools.cache
def _commit() -> str | None:
    """Return the commit of the working tree that the program was started in, as it was at the first save."""
    try:
        return git_commit(os.getcwd())
    except OSError:  # the folder is gone
        return None


def _mapping(name: str, value: object) -> list[tuple[Any, Any]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise OptionError(f"{name} must be a dict, not {value!r}")
    return list(value.items())


def _name(what: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise OptionError(f"the names in {what} must be texts, not {name!r}")
    return name


def _file(part: object) -> str:
    name = file_of(_name("parts", part))
    if not is_plain(name):
        raise OptionError(f"a part cannot be called {part!r}: its name becomes that of a file")
    return name


def _saved(part: object) -> object:
    return part.state_dict() if isinstance(part, TrainingState) else part


def _metric(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, bool)):
        raise OptionError(f"metric {name!r} must be a number or None, not {value!r}")
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise OptionError(f"metric {name!r} must be a number or None, not {value!r}: {error}") from error


def _metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    said = dict(_mapping("metadata", metadata))
    try:
        text = json.dumps(said, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"metadata must be what JSON can say: {error}") from error
    for name in said:
        _name("metadata", name)
    plain: dict[str, Any] = json.loads(text)
    if is_too_deep(plain):
        raise OptionError(f"metadata may be nested in at most {DEEPEST} levels of lists and dicts")
    if len(text) > _LONGEST_METADATA:
        raise OptionError(f"metadata of {len(text):,} bytes is too much for a manifest: at most {_LONGEST_METADATA:,}")
    return plain
