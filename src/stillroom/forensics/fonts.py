"""Where fonts keep content credentials: a table of their own.

Source: C2PA Technical Specification 2.2, section A.3.6 (embedding manifests into fonts); OpenType
1.9.1, "Organization of an OpenType font" (the table directory).
"""

from __future__ import annotations

import struct

__all__ = ["read_font_store"]

_HEAD, _ROW = struct.Struct(">4sH"), struct.Struct(">4sIII")
_TABLE = struct.Struct(">HHIHHII")  # version, URI's place and length, reserved, store's place, size
_FIRST_ROW = 12


def read_font_store(data: bytes) -> bytes | None:
    """Return the manifest store in a font, None without any; empty if it is cut off or elsewhere.

    Args:
        data: An OpenType or TrueType font.
    """
    if len(data) < _FIRST_ROW:
        return None
    count = _HEAD.unpack_from(data)[1]
    for number in range(count):
        at = _FIRST_ROW + number * _ROW.size
        if at + _ROW.size > len(data):
            return None
        tag, _, place, size = _ROW.unpack_from(data, at)
        if tag == b"C2PA":
            table = data[place : place + size]
            if len(table) < _TABLE.size:
                return b""
            store, length = _TABLE.unpack_from(table)[5:]
            return table[store : store + length]
    return None
