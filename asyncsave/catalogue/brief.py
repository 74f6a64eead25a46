"""What whoever writes a step is told of it besides its bytes; plain values, for another process too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from asyncsave.catalogue.manifest import Manifest
from asyncsave.catalogue.names import is_plain
from asyncsave.catalogue.retention import Retention

__all__ = ["Brief"]


@dataclass(frozen=True, slots=True)
class Brief:
    """One step to be written.

    Attributes:
        files: Names of its files, in the order of their images.
        manifest: Its manifest, without the files.
        retain: What to keep of the version once it is in place; None: everything.
        protected: Paths of step folders that stay, whatever the policy.
    """

    files: tuple[str, ...]
    manifest: Manifest
    retain: Retention | None = None
    protected: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return it as a text."""
        said = {
            "files": self.files,
            "manifest": self.manifest.to_json().decode("utf-8", "surrogatepass"),
            "retain": None if self.retain is None else self.retain.to_dict(),
            "protected": self.protected,
        }
        return json.dumps(said).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes | str, *, path: str) -> Brief:
        """Read it back, trusting nothing.

        Raises:
            ValueError: It is none.
            LoadError: The manifest in it is none.
        """
        try:
            said = json.loads(data)
            files = tuple(_is(list, said["files"]))
            if not all(isinstance(name, str) and is_plain(name) for name in files) or len(set(files)) != len(files):
                raise ValueError(f"{files!r} are not the files of a step")
            manifest = Manifest.from_json(said["manifest"].encode("utf-8", "surrogatepass"), path=path)
            retain = None if said["retain"] is None else Retention.from_dict(said["retain"])
            return cls(files, manifest, retain, tuple(_is(str, path) for path in _is(list, said["protected"])))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"this does not describe a step: {type(error).__name__}: {error}") from error


def _is(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value
