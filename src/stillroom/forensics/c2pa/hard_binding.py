"""Checks of C2PA data hashes with excess exclusions, and manifest stores in fonts.

Early signers left out the whole head of a file, where readers now let them leave out the
credentials alone: what stands in the rest of the head could be changed unnoticed. Such a file is
refused, and yet nobody changed it; to call it changed would mislead.

Source: C2PA Technical Specification 2.2, section 18.5 (hashing of data, exclusions).

Source: C2PA Technical Specification 2.2, section A.3.6 (embedding manifests into fonts); OpenType
1.9.1, "Organization of an OpenType font" (the table directory).
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
    """Return why a file is refused although it is as it was signed; empty if it is not.

    Args:
        file: The file; where it stands does not matter.
        reader: Of it.
        codes: Its failures, of which the data hash has to be the only one of bytes.
    """
    if [code for code in codes if not code.startswith("signingCredential.")] != [_MISMATCH]:
        return ""
    try:
        store = json.loads(reader.detailed_json())
        active = store["manifests"][store["active_manifest"]]
        said = active["assertion_store"]["c2pa.hash.data"]
        parts = sorted((int(p["start"]), int(p["length"])) for p in said.get("exclusions") or [])
        wanted = base64.b64decode(said["hash"])
        holds = _hash(file, parts, said, active) == wanted
    except (KeyError, TypeError, ValueError):
        return ""
    if not holds or not parts:
        return ""
    left = sum(length for _, length in parts)
    size = file.seek(0, os.SEEK_END)
    return (
        f"the signature leaves out {left} bytes, more than its own credentials; the other "
        f"{size - left} are as they were signed"
    )


def _hash(
    file: BinaryIO,
    parts: Sequence[tuple[int, int]],
    said: Mapping[str, Any],
    active: Mapping[str, Any],
) -> bytes:
    made, at = _HASHES[str(said.get("alg") or active["claim"].get("alg"))](), 0
    for start, length in [*parts, (file.seek(0, os.SEEK_END), 0)]:
        file.seek(at)
        while at < start and (block := file.read(min(start - at, _BLOCK))):
            made.update(block)
            at += len(block)
        at = start + length
    return made.digest()


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
