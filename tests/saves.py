"""Small states, and a writer that is busy: what the tests of the queue begin with."""

from __future__ import annotations

import io
import pathlib

import torch
from gates import Gated
from processes import until

__all__ = ["PATIENCE", "Refusing", "begun", "busy", "number_in", "state"]

PATIENCE = 30.0


def state(number: int = 0) -> dict[str, object]:
    """Return a small state that says which one it is."""
    return {"number": number, "x": torch.full((100,), float(number))}


def number_in(path: pathlib.Path) -> int:
    """Return which state lies at a path."""
    loaded = torch.load(path)
    assert torch.equal(loaded["x"], torch.full((100,), float(loaded["number"])))
    return loaded["number"]


def begun(gate, handle):
    """Wait until a save is at the gate, and its handle says so: that word takes a moment from another process."""
    gate.arrival()
    until(handle.running, "the word that the save has begun")
    return handle


def busy(open_writer, tmp_path, slots=2, **options):
    """Return a writer of so many slots with one save at the gate and one in the queue."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=slots, system=gate, **options)
    writing = begun(gate, writer.save(state(1), tmp_path / "1"))
    return gate, writer, writing, writer.save(state(2), tmp_path / "2")


class Refusing(io.RawIOBase):
    """A file object that takes nothing."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def writable(self):
        """Say yes."""
        return True

    def write(self, _):
        """Refuse."""
        raise ValueError(self.name)
