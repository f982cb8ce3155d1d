"""Digests: sha256 of bytes, and of JSON values in one canonical form."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

__all__ = ["canonical_json", "digest_bytes", "digest_file", "digest_json", "digest_text"]


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the sha256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_text(text: str) -> str:
    """Return the sha256 of text as UTF-8."""
    return digest_bytes(text.encode("utf-8", "surrogatepass"))


def digest_file(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def digest_json(value: object) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return digest_text(canonical_json(value))
