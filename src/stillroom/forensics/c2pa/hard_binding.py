"""Checks of C2PA data hashes with excess exclusions, and manifest stores in fonts.

Early signers excluded the whole head of a file from the hash, where the specification now allows
only the credentials to be excluded: other bytes of the head could be changed unnoticed. Such a file
is refused although nobody changed it; reporting it as changed would mislead.

Source: C2PA Technical Specification 2.2, sections 18.5 (hashing of data, exclusions) and A.3.6
(embedding manifests into fonts); OpenType 1.9.1, "Organization of an OpenType font" (the table
directory).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import c2pa

__all__ = [
    "explain_mismatch",
    "read_font_store",
]

_BLOCK = 1 << 20
_MISMATCH = "assertion.dataHash.mismatch"
_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


def explain_mismatch(file: BinaryIO, reader: c2pa.Reader, codes: Sequence[str]) -> str:
    """Explain why an unchanged file is refused; empty if it was changed.

    Args:
        file: The file, at any position.
        reader: Reader of the file.
        codes: Its failures; the data hash must be the only one that concerns the bytes.
    """
    if [code for code in codes if not code.startswith("signingCredential.")] != [_MISMATCH]:
        return ""
    try:
        store = json.loads(reader.detailed_json())
        active = store["manifests"][store["active_manifest"]]
        data_hash = active["assertion_store"]["c2pa.hash.data"]
        parts = sorted(
            (int(p["start"]), int(p["length"])) for p in data_hash.get("exclusions") or []
        )
        expected = base64.b64decode(data_hash["hash"])
        holds = _hash(file, parts, data_hash, active) == expected
    except (KeyError, TypeError, ValueError):
        return ""
    if not holds or not parts:
        return ""
    excluded = sum(length for _, length in parts)
    size = file.seek(0, os.SEEK_END)
    return (
        f"the signature leaves out {excluded} bytes, more than its own credentials; the other "
        f"{size - excluded} are as they were signed"
    )


def _hash(
    file: BinaryIO,
    parts: Sequence[tuple[int, int]],
    data_hash: Mapping[str, Any],
    active: Mapping[str, Any],
) -> bytes:
    hasher, position = _HASHES[str(data_hash.get("alg") or active["claim"].get("alg"))](), 0
    for start, length in [*parts, (file.seek(0, os.SEEK_END), 0)]:
        file.seek(position)
        while position < start and (block := file.read(min(start - position, _BLOCK))):
            hasher.update(block)
            position += len(block)
        position = start + length
    return hasher.digest()


_HEAD, _ROW = struct.Struct(">4sH"), struct.Struct(">4sIII")
_TABLE = struct.Struct(">HHIHHII")  # version, URI offset and length, reserved, store offset, size
_FIRST_ROW = 12


def read_font_store(data: bytes) -> bytes | None:
    """Return the manifest store of a font, None without one, empty if truncated or remote.

    Args:
        data: An OpenType or TrueType font.
    """
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
