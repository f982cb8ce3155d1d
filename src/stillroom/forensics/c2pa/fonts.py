"""Manifest store in a font's ``C2PA`` table.

Source: C2PA Technical Specification 2.2, A.3.6 (fonts); OpenType 1.9.1 (the table directory).
"""

from __future__ import annotations

import struct

__all__ = ["read_font_store"]

_HEAD, _ROW = struct.Struct(">4sH"), struct.Struct(">4sIII")
_TABLE = struct.Struct(">HHIHHII")  # version, URI offset and length, reserved, store offset, size
_FIRST_ROW = 12


def read_font_store(data: bytes) -> bytes | None:
    """Return the manifest store of a font, None without one, empty if truncated or remote."""
    if len(data) < _FIRST_ROW:
        return None
    count = _HEAD.unpack_from(data)[1]
    for number in range(count):
        row_offset = _FIRST_ROW + number * _ROW.size
        if row_offset + _ROW.size > len(data):
            return None
        tag, _, table_offset, size = _ROW.unpack_from(data, row_offset)
        if tag == b"C2PA":
            table = data[table_offset : table_offset + size]
            if len(table) < _TABLE.size:
                return b""
            store, length = _TABLE.unpack_from(table)[5:]
            return table[store : store + length]
    return None
