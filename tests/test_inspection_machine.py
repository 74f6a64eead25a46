"""The pickle machine: it reads what pickle writes, and survives what nobody would write."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsave.errors import AsyncSaveError, CorruptCheckpointError, LoadError
from asyncsave.inspection.machine import TruncatedPickleError, read_pickle
from asyncsave.inspection.opcodes import OPCODES
from asyncsave.inspection.tensors import MalformedTensorError, Tensors
from asyncsave.inspection.tree import Bulk, Call, Dict, Frozen, Global, Huge, Set
from asyncsave.inspection.walk import TooMuchError, walk

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner)
        | st.lists(inner, min_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers())
        | st.frozensets(st.text())
    ),
    max_leaves=30,
)


def read(data, **options):
    """Read a pickle that is in no file."""
    return read_pickle(data, path="f.pt", record="data.pkl", **options)


def value_of(node):
    """Turn a small tree into what it stands for."""
    kind = type(node)
    if kind is Dict:
        return {value_of(node[at]): value_of(node[at + 1]) for at in range(0, len(node), 2)}
    if kind in {Set, Frozen, list, tuple}:
        inner = [value_of(one) for one in node]
        return {Set: set, Frozen: frozenset, list: list, tuple: tuple}[kind](inner)
    if kind is Call:
        assert node.path == "builtins.complex"
        return complex(*node.args)
    if kind is Huge:
        return int.from_bytes(node.view, "little", signed=True)
    return bytes(node.view) if kind is Bulk else node


@settings(max_examples=300, deadline=None)
@given(PLAIN, st.integers(2, 5))
def test_plain_values_come_out_as_they_went_in(value, protocol):
    """Whatever the protocol, though the opcodes differ."""
    found = read(pickle.dumps(value, protocol))
    assert repr(value_of(found.root)) == repr(value) or value_of(found.root) == value
    assert found.protocol == protocol


@pytest.mark.parametrize("protocol", [0, 1])
def test_the_oldest_protocols_are_read_too(protocol):
    """Those of text."""
    value = {"a": [1, -2, 10**20, 1.5, True, None], "b": ("x", ()), "c": {"d": []}}
    assert value_of(read(pickle.dumps(value, protocol)).root) == value


def test_the_table_of_opcodes_is_pythons():
    """All of them, by name."""
    assert {code: opcode.name for code, opcode in OPCODES.items()} == {
        ord(opcode.code): opcode.name for opcode in pickletools.opcodes
    }


def test_long_texts_are_not_copied():
    """They are views of the pickle."""
    data = pickle.dumps(["a" * 5000, b"b" * 5000], 4)
    text, raw = read(data).root
    assert (text.kind, raw.kind) == ("str", "bytes")
    assert text.view.obj is data
    assert bytes(raw.view) == b"b" * 5000


def test_a_cycle_is_a_cycle():
    """A list that holds itself is read, and walked, once."""
    loop = []
    loop.append(loop)
    found = read(pickle.dumps(loop))
    assert found.root[0] is found.root
    walked = walk(found.root, Tensors())
    assert (walked.tensors, walked.values) == ([], [])


def test_globals_of_python_2_have_their_new_names():
    """As pickle, and torch, map them."""
    found = read(b"\x80\x02(c__builtin__\nset\ncUserDict\nUserDict\nccopy_reg\n_reconstructor\nl.")
    assert found.globals == ("builtins.set", "collections.UserDict", "copyreg._reconstructor")


def test_calls_are_noted_and_not_made():
    """INST, OBJ, REDUCE, NEWOBJ, NEWOBJ_EX, BUILD: nodes."""
    data = b"(I1\nios\nsystem\n0(cos\nsystem\nI2\no0cos\nsystem\n(I3\ntR0cos\nsystem\n(I4\nt\x810cos\nsystem\n)}\x92}b."
    found = read(data)
    assert [(call.path, call.args, call.new) for call in found.calls] == [
        ("os.system", (1,), False),
        ("os.system", (2,), False),
        ("os.system", (3,), False),
        ("os.system", (4,), True),
        ("os.system", (), True),
    ]
    assert isinstance(found.root, Call)
    assert isinstance(found.root.func, Global)
    assert len(found.root.states) == 1


P = b"\x80\x02"
DAMAGED = {
    "empty": b"",
    "only a protocol": P,
    "no end": P + b"N",
    "nothing to end with": P + b".",
    "unknown opcode": P + b"\xff.",
    "text longer than the file": P + b"X\xff\xff\xff\x7fabc.",
    "text of 2^63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b".",
    "bytes of 2^64 - 1": b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    "bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "number of -1 bytes": P + b"\x8b\xff\xff\xff\xff.",
    "number of 2^31 - 1 bytes": P + b"\x8b\xff\xff\xff\x7f.",
    "string of -1 bytes": P + b"T\xff\xff\xff\xff.",
    "frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "memo without entry": P + b"h\x05.",
    "memo of a text": P + b"g12345678901234567890123456789012345\n.",
    "memo below zero": P + b"Np-1\n.",
    "memo of nothing": P + b"q\x00.",
    "no mark": P + b"t.",
    "no mark for items": P + b"]e.",
    "pop of nothing": P + b"0.",
    "reduce of nothing": P + b"R.",
    "reduce without a tuple": P + b"cb\na\nNR.",
    "append to a number": P + b"K\x01K\x02a.",
    "set items of a list": P + b"](K\x01K\x02u.",
    "key without value": P + b"}(K\x01u.",
    "dict of one": P + b"(K\x01d.",
    "add to a dict": b"\x80\x04}(K\x01\x90.",
    "state of a number": P + b"K\x01}b.",
    "state of a class": P + b"cb\na\n}b.",
    "state three times": P + b"cb\na\n)RNbNbNb.",
    "object of nothing": P + b"(o.",
    "global without a line": P + b"cos",
    "global that is no text": P + b"c\xff\xfe\n\xff\n.",
    "global of a long name": P + b"c" + b"a" * 5000 + b"\nb\n.",
    "stack global of numbers": b"\x80\x04K\x01K\x02\x93.",
    "text that is none": P + b"X\x02\x00\x00\x00\xff\xff.",
    "number that is none": P + b"Iabc\n.",
    "float that is none": P + b"Fabc\n.",
    "buffer from outside": b"\x80\x05\x97.",
    "short number": P + b"J\x01",
    "short float": P + b"G\x00",
}
FOREIGN = {
    "newer protocol": b"\x80\x09N.",
    "extension": P + b"\x82\x01.",
    "extension of 2 bytes": P + b"\x83\x01\x00.",
    "extension of 4 bytes": P + b"\x84\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_pickle_is_damaged(name):
    """With the byte, what was expected and what was found."""
    with pytest.raises(CorruptCheckpointError, match=r"'f\.pt' is damaged: record 'data\.pkl'") as raised:
        read(DAMAGED[name])
    assert raised.value.found
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", FOREIGN)
def test_what_only_others_can_read_is_no_damage(name):
    """It is told as such."""
    with pytest.raises(LoadError, match=r"f\.pt") as raised:
        read(FOREIGN[name])
    assert not isinstance(raised.value, CorruptCheckpointError)


def test_every_cut_is_a_truncation():
    """At whatever byte a pickle ends too early."""
    for protocol in range(6):
        data = pickle.dumps({"a": [1, 2.5, "x" * 300], "b": {3, 4}, "c": 10**90}, protocol)
        for length in range(len(data)):
            with pytest.raises(TruncatedPickleError):
                read(data[:length])


REPEATED = {
    "dicts": b"}\x94",
    "lists": b"]",
    "sets": b"\x8f",
    "marks": b"(",
    "tuples": b")\x85",
    "numbers": b"M\xff\xff",
    "duplicates": b"N2",
    "nothings": b"N0",
    "texts": b"X\x04\x00\x00\x00abc!",
    "references": b"NQ",
    "calls": b"cb\na\n)R",
}


@pytest.mark.parametrize("name", REPEATED)
def test_memory_is_bounded(name):
    """Every opcode is charged: a bomb ends when the room does, long before its own end."""
    with pytest.raises(LoadError, match="describes more objects"):
        read(P + REPEATED[name] * 100_000, room=1_000_000)


COPIES = {
    "a set of a long list, again and again": P + b"](" + b"N" * 200_000 + b"eq\x00c__builtin__\nset\nq\x01("
    + b"h\x01h\x00\x85R" * 100,
    "bytes of a long text, again and again": P + b"X\xa0\x0f\x00\x00" + b"a" * 4000 + b"q\x00c_codecs\nencode\nq\x01"
    b"X\x06\x00\x00\x00latin1q\x02(" + b"h\x01h\x00h\x02\x86R" * 30_000,
    "ever new classes": P + b"(" + b"".join(b"cm%d\nn\n" % n for n in range(120_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_what_is_copied_is_bounded(name):
    """Short opcodes that would take much memory each."""
    with pytest.raises(LoadError, match="describes more objects"):
        read(COPIES[name] + b"l.")


def laughs(levels):
    """Return lists of a hundred times the same list, over and over."""
    inner = b"".join(b"0]q%c(" % (n + 1) + b"h%c" % n * 100 + b"e" for n in range(levels))
    return P + b"]q\x00X\x01\x00\x00\x00aa" + inner + b"."


def test_a_structure_is_walked_once_however_often_it_is_referred_to():
    """A hundred to the power of two hundred ways, and each container once."""
    walked = walk(read(laughs(200)).root, Tensors())
    assert [(one.name.count("."), one.text) for one in walked.values[:1]] == [(199, "['a']")]
    assert len(walked.values) == 100


def text(value):
    """Return a text's opcode."""
    return b"X" + struct.pack("<I", len(value)) + value


FLAT = b"](" + b"K\x01" * 300_000 + b"eq\x00"
TOO_MUCH = {
    "deeper than anything": b"]" * 20_000 + b"a" * 19_999,
    "long names at a great depth": (b"}" + text(b"k" * 1000)) * 9000 + b"(" + b"]N\x85a" * 2000 + b"l" + b"s" * 9000,
    "one long text, referred to": text(b"x" * 5_000_000) + b"q\x00](" + b"h\x00" * 900_000 + b"e",
    "one long list in many calls": FLAT + b"cb\na\nq\x01(" + b"h\x01h\x00\x85R" * 1000 + b"l",
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_telling_is_bounded_too(name):
    """A tree that fits, but would take forever to be told."""
    root = read(P + TOO_MUCH[name] + b".").root
    with pytest.raises(TooMuchError):
        walk(root, Tensors())


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
V2 = b"ctorch._utils\n_rebuild_tensor_v2\n("
MALFORMED = {
    "more than its storage": V2 + STORAGE + b"K\x00K\x05\x85K\x01\x85\x89NtR",
    "strides beyond its storage": V2 + STORAGE + b"K\x00K\x02\x85M\xff\xff\x85\x89NtR",
    "a size below zero": V2 + STORAGE + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85\x89NtR",
    "sizes of 2^62": V2 + STORAGE + b"K\x00" + (b"\x8a\x08" + bytes(7) + b"\x40") * 2 + b"\x86K\x00K\x00\x86\x89NtR",
    "a thousand dimensions": V2 + STORAGE + b"K\x00(" + b"K\x01" * 1000 + b"t(" + b"K\x01" * 1000 + b"t\x89NtR",
    "sizes and strides": V2 + STORAGE + b"K\x00K\x01\x85)\x89NtR",
    "no storage": V2 + b"NK\x00K\x01\x85K\x01\x85\x89NtR",
    "no arguments": V2 + b"tR",
    "a storage of no type": V2 + STORAGE.replace(b"FloatStorage", b"SoundStorage") + b"K\x00)K\x01\x85\x89NtR",
    "a storage of a text": V2 + STORAGE.replace(b"K\x04", b"N") + b"K\x00))\x89NtR",
    "a storage of two sizes": b"(" + V2 + STORAGE + b"K\x00))\x89NtR" + V2 + STORAGE.replace(b"K\x04", b"K\x05")
    + b"K\x00))\x89NtRl",
    "a parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(N\x89NtR",
    "a parameter of parameters": b"ctorch._utils\n_rebuild_parameter\nq\x00" + b"h\x00(" * 50 + b"N" + b"\x89NtR" * 50,
    "types of types": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + b"(h\x00ca\nb\n" * 50 + b")" + b"Nt" * 50
    + b"R",
    "sparse of numbers": b"ctorch._utils\n_rebuild_sparse_tensor\n(X\x0a\x00\x00\x00sparse_coo(K\x01K\x02)ttR",
    "nested of numbers": b"ctorch._utils\n_rebuild_nested_tensor\n(K\x01K\x02K\x03K\x04tR",
    "an unknown type": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat7\n))\x89tR",
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_tensors_that_cannot_be_are_refused(name):
    """Figures of a pickle are held against each other before anything is told of them."""
    root = read(P + MALFORMED[name] + b".").root
    with pytest.raises(MalformedTensorError):
        walk(root, Tensors())


def test_a_sparse_tensor_of_itself_ends():
    """What is made of itself is made of nothing."""
    data = P + b"ctorch._utils\n_rebuild_sparse_tensor\n(X\x0a\x00\x00\x00sparse_coo]q\x00tRq\x010h\x00h\x01a0h\x01."
    with pytest.raises(MalformedTensorError):
        walk(read(data).root, Tensors())


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(sorted(OPCODES)) | st.integers(0, 255), max_size=200).map(bytes))
def test_whatever_the_bytes_there_is_an_answer(data):
    """A tree or an error of ours."""
    with contextlib.suppress(AsyncSaveError, MalformedTensorError, TooMuchError):
        walk(read(P + data).root, Tensors())
