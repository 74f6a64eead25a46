"""The manifest of a step: a JSON file that says what is in its folder. Written last, deleted first.

It is strict JSON: the three numbers that JSON lacks are the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from asyncsave.catalogue.info import CheckpointFile
from asyncsave.catalogue.names import is_plain
from asyncsave.errors import CorruptCheckpointError, FormatVersionError

__all__ = ["DEEPEST", "FORMAT", "LONGEST", "Manifest", "is_too_deep", "plain_number"]

FORMAT = 1
"""Version of the manifest's format; a reader refuses a newer one."""
LONGEST = 16 << 20
"""Bytes; a longer file is no manifest."""
DEEPEST = 100
"""Levels of lists and dicts in metadata: whoever copies or prints it does so level by level on Python's own stack."""

_MOST = 1 << 63
"""No file has more bytes."""
_ODD = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a step when it is saved.

    Attributes:
        step: Its number.
        complete: False for one saved in the midst of the step.
        epoch: The epoch, or None.
        metrics: Numbers, or None for a value that there was none of.
        metadata: The user's own.
        time: When it was saved, seconds since 1970.
        tensors: How many tensors' storages all files hold together.
        asyncsave: The version that saved it.
        torch: The same of torch.
        host: The machine's name.
        commit: The git commit of the working tree that the program ran in, or None.
        files: Size and digest of each file; filled in when they are sealed.
    """

    step: int
    complete: bool
    epoch: int | None
    metrics: dict[str, float | None]
    metadata: dict[str, Any]
    time: float
    tensors: int
    asyncsave: str
    torch: str
    host: str
    commit: str | None
    files: dict[str, CheckpointFile] = field(default_factory=dict)

    def with_files(self, files: Mapping[str, CheckpointFile]) -> Manifest:
        """Return the same with its files."""
        return replace(self, files=dict(files))

    def to_json(self) -> bytes:
        """Return the file's content."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        said["metrics"] = {name: plain_number(value) for name, value in self.metrics.items()}
        del said["files"]
        text = json.dumps({"format": FORMAT, **said}, indent=2, allow_nan=False).removesuffix("\n}")
        # A line for each: there may be hundreds, and only what is not indented is written by C code.
        files = ",\n".join(f"    {json.dumps(name)}: {json.dumps(file._asdict())}" for name, file in self.files.items())
        return f'{text},\n  "files": {{\n{files}\n  }}\n}}\n'.encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, data: bytes | str, *, path: str) -> Manifest:
        """Read a manifest, trusting nothing.

        Args:
            data: The file's content.
            path: How an error names it.

        Raises:
            CorruptCheckpointError: It is none.
            FormatVersionError: A newer asyncsave wrote it.
        """
        try:
            said = json.loads(data, parse_constant=_refuse)
            version = said.get("format") if isinstance(said, dict) else None
            if isinstance(version, int) and version > FORMAT:
                message = (
                    f"{path!r} has manifest format {version}, this asyncsave reads {FORMAT}: update asyncsave. "
                    "The files beside it may still load with torch.load"
                )
                raise FormatVersionError(message, path=path)
            return _parsed(said)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            message = f"{path!r} is no manifest of asyncsave: {type(error).__name__}: {error}"
            raise CorruptCheckpointError(message, path=path, expected="a manifest", found=str(error)) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def is_too_deep(metadata: object) -> bool:
    """Tell whether there are more than :data:`DEEPEST` levels of lists and dicts in each other."""
    level = [metadata]
    for _ in range(DEEPEST):
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [inner for one in inside for inner in one if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def plain_number(value: float | None) -> float | str | None:
    """Return a number as JSON can say it: the three that it lacks are texts."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _parsed(said: dict[str, Any]) -> Manifest:
    if said["format"] != FORMAT:
        raise ValueError(f"its format is {said['format']!r}")
    files = {}
    for name, file in said["files"].items():
        if not is_plain(name):
            raise ValueError(f"{name!r} is no file of a step")
        files[name] = CheckpointFile(_number(file["nbytes"]), _text(file["digest"]))
    metrics = {_text(name): _metric(value) for name, value in said["metrics"].items()}
    if is_too_deep(said["metadata"]):
        raise ValueError(f"its metadata is nested in more than {DEEPEST} levels")
    epoch, commit = said.get("epoch"), said.get("commit")
    return Manifest(
        step=_number(said["step"]),
        complete=_is(bool, said["complete"]),
        epoch=None if epoch is None else _is(int, epoch),
        metrics=metrics,
        metadata=_is(dict, said["metadata"]),
        time=_moment(said["time"]),
        tensors=_number(said["tensors"]),
        asyncsave=_text(said["asyncsave"]),
        torch=_text(said["torch"]),
        host=_text(said["host"]),
        commit=None if commit is None else _text(commit),
        files=files,
    )


def _is(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value


def _text(value: object) -> str:
    return cast("str", _is(str, value))


def _number(value: object) -> int:
    if not 0 <= _is(int, value) <= _MOST:
        raise ValueError("a number is negative, or larger than any file")
    return cast("int", value)


def _metric(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        return _ODD[value]
    return _real(value)


def _moment(value: object) -> float:
    if not math.isfinite(moment := float(_real(value))):
        raise ValueError(f"{value!r} is no time")
    return moment


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    float(value)  # a whole number beyond all floats compares with none
    return value
