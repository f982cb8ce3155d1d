"""Digests of tensors: BLAKE3 of their bytes, kept while the files are what they were.

A checkpoint is read whole to be named, and BLAKE3 (aumasson et al. 2020) does that at several times
the speed of sha256. What is kept is keyed by every file's place, size, times and inode; whoever
must be sure, as ``stillroom verify``, reads the bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from blake3 import blake3

from stillroom.jobs import atomic_write
from stillroom.provenance import digest_json

__all__ = ["Hasher", "cache_folder", "load_digests", "save_digests"]

Hasher = blake3
_FRESH_NS = 2_000_000_000
_kept: dict[str, dict[str, str]] = {}


def cache_folder() -> Path:
    """Return where to keep what can be made again: STILLROOM_CACHE, else the user's cache."""
    own = os.environ.get("STILLROOM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillroom"


def load_digests(files: Sequence[Path]) -> dict[str, str] | None:
    """Return the kept digests by tensor, if the files are what they were; else None."""
    key = _key(files)
    if key in _kept:
        return _kept[key]
    try:
        values = json.loads((_folder() / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or not all(isinstance(each, str) for each in values.values()):
        return None
    return values


def save_digests(files: Sequence[Path], digests: Mapping[str, str]) -> None:
    """Keep digests; on disk too, unless a file is so new that its time may not tell a change."""
    key = _key(files)
    _kept[key] = dict(digests)
    newest = max(max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in files)
    if time.time_ns() - newest < _FRESH_NS:
        return
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(_folder() / f"{key}.json") as file:
            file.write(json.dumps(digests))
    except OSError:
        return  # nothing is lost but time


def _key(files: Sequence[Path]) -> str:
    return digest_json(
        [
            [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            for path in files
            for stat in [path.stat()]
        ]
    )


def _folder() -> Path:
    return cache_folder() / "digests"
