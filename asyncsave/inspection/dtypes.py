"""torch's element types by name, without torch. A test holds the table against the torch that is installed."""

from __future__ import annotations

__all__ = ["ITEMSIZES", "STORAGES"]

_BY_SIZE = {
    1: (
        "bool uint8 int8 qint8 quint8 quint2x4 quint4x2 bits1x8 bits2x4 bits4x2 bits8 "
        "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 "
        "int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7"
    ),
    2: "float16 bfloat16 int16 uint16 bits16",
    4: "float32 int32 uint32 qint32 complex32",
    8: "float64 int64 uint64 complex64",
    16: "complex128",
}

ITEMSIZES: dict[str, int] = {name: nbytes for nbytes, names in _BY_SIZE.items() for name in names.split()}
"""Bytes of one element."""

STORAGES: dict[str, str] = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "QInt32Storage": "qint32",
    "QInt8Storage": "qint8",
    "QUInt2x4Storage": "quint2x4",
    "QUInt4x2Storage": "quint4x2",
    "QUInt8Storage": "quint8",
    "ShortStorage": "int16",
    "UntypedStorage": "uint8",
}
"""Which type the elements of a storage have that a pickle calls so."""
