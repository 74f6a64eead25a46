"""What weights_only refuses: our table against the torch that is installed."""

from __future__ import annotations

import re

import pytest
import torch
from corpus import Config
from images import archive_of
from programs import run

import asyncsave
from asyncsave.inspection.opcodes import OPCODES as KNOWN
from asyncsave.inspection.safe import ALLOWED, OPCODES

NEWEST = "2.13"
ALLOWED_NOW = """
import torch
unpickler = torch._weights_only_unpickler
names = {*unpickler._get_allowed_globals(), *unpickler._get_user_allowed_globals()}
print(*sorted(names))
"""
P = b"\x80\x02"


def test_the_table_is_that_of_torch():
    """Every name that a plain program may load, and none more; what a newer torch adds is reported by this test."""
    allowed = set(run(ALLOWED_NOW).stdout.split())
    internal = {name for name in allowed if name.startswith("torch.distributed.")}
    assert allowed - internal <= ALLOWED
    if torch.__version__.startswith(NEWEST):
        assert allowed - internal == ALLOWED


def test_the_opcodes_are_those_of_torch(tmp_path):
    """Each opcode, alone in a pickle: torch knows it exactly if the table does."""
    unpickler = torch._weights_only_unpickler
    for code, opcode in KNOWN.items():
        try:
            unpickler.load(_Bytes(P + bytes([code])))
        except Exception as error:  # noqa: BLE001 - of any kind, as there is nothing to work on
            unknown = re.search(r"Unsupported operand (\d+)", str(error))
        else:
            unknown = None
        assert (unknown is None) == (opcode.name in OPCODES), opcode.name


class _Bytes:
    """A file that never ends."""

    def __init__(self, data):
        self.data = data

    def read(self, count):
        """Return what is left, and then the end of a pickle."""
        taken, self.data = self.data[:count], self.data[count:]
        return taken + b"." * (count - len(taken)) if count < 100 else taken

    def readline(self):
        """Return some name."""
        return b"collections\n"


MISUSE = {
    "items of a counter": (b"ccollections\nCounter\n)R(K\x01K\x02u.", True),
    "items of an ordered dict": (b"ccollections\nOrderedDict\n)R(K\x01K\x02u.", True),
    "state of an ordered dict": (b"ccollections\nOrderedDict\n)R}b.", True),
    "append to a size": (b"ctorch\nSize\n)RK\x01a.", False),
    "items of a size": (b"ctorch\nSize\n)RK\x01K\x02s.", False),
    "a call of a call": (b"ctorch\nSize\n)R)R.", False),
    "an id that is a text": (b"X\x01\x00\x00\x00aQ.", False),
    "an id of a module": (b"X\x06\x00\x00\x00moduleNN\x87Q.", False),
    "a blocked module": (b"cos\nsystem\n.", False),
    "a class that nobody knows": (b"cno.such.module\nThing\n.", False),
    "a plain dict": (b"}.", True),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_of_what_is_allowed_is_refused(name, tmp_path):
    """Not only names count: torch looks at what is done with them."""
    body, fine = MISUSE[name]
    (tmp_path / "f.pt").write_bytes(archive_of(P + body))
    said = asyncsave.inspect(tmp_path / "f.pt").weights_only
    assert said.ok is fine
    assert bool(said.refused) is not fine
    try:
        torch.load(tmp_path / "f.pt", weights_only=True)
    except Exception:  # noqa: BLE001 - of any kind
        assert not fine
    else:
        assert fine


def test_reasons_are_complete_and_in_order(tmp_path):
    """All names at once, where torch stops at the first."""
    state = {"a": Config(1.0, torch.ones(1), []), "b": frozenset([1]), "c": b""}
    torch.save(state, tmp_path / "f.pt")
    refused = ("builtins.bytes", "builtins.frozenset", "builtins.object", "copyreg._reconstructor", "corpus.Config")
    found = asyncsave.inspect(tmp_path / "f.pt").weights_only.refused
    assert set(found) <= set(refused)
    assert {"builtins.bytes", "builtins.frozenset", "corpus.Config"} <= set(found)
    assert list(found) == sorted(found)
    torch.save(state, tmp_path / "f.pt", pickle_protocol=4)
    found = asyncsave.inspect(tmp_path / "f.pt").weights_only.refused
    assert {"opcode FRAME", "opcode MEMOIZE", "opcode STACK_GLOBAL", "corpus.Config"} <= set(found)
