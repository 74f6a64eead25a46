"""CRC-32 as the zip format has it, at memory speed (isal), and how parts combine."""

from __future__ import annotations

from isal import isal_zlib

__all__ = ["combine", "crc32"]

crc32 = isal_zlib.crc32
"""``crc32(data, start=0)``: CRC-32 of a buffer; releases the GIL for large ones."""

combine = isal_zlib.crc32_combine
"""``combine(left, right, length)``: CRC-32 of two parts; ``length`` in bytes is the right one's."""
