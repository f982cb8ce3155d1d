"""Data hash of a refused file (hard binding, ``c2pa.hash.data``): why an unchanged file is refused.

The c2pa library verifies the hard binding; here it is hashed only to explain a refusal.

Source: C2PA Technical Specification 2.2, section 18.5 (data hashes).
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from stillroom.provenance.digests import load_json

if TYPE_CHECKING:
    import c2pa

__all__ = ["explain_mismatch"]

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
        store = load_json(reader.detailed_json())
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
