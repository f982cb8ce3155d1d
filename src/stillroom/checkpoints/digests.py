"""Fingerprints (BLAKE3 digests) of tensors, cached while the files are unchanged.

A fingerprint reads the whole checkpoint, which BLAKE3 (Aumasson et al. 2020) hashes at several
times the speed of SHA-256. Cached digests are keyed by every file's path, size, times and inode;
callers that need certainty, such as ``stillroom verify``, read the bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from stillroom.jobs import atomic_write, cache_folder
from stillroom.provenance import digest_json
from stillroom.provenance.digests import load_json

if TYPE_CHECKING:
    import torch

__all__ = [
    "Hasher",
    "as_bytes",
    "describe_equal_models",
    "fingerprint_of",
    "load_digests",
    "save_digests",
]

Hasher = blake3

_FRESH_NS = 2_000_000_000

_cache: dict[str, dict[str, str]] = {}


def load_digests(files: Sequence[Path]) -> dict[str, str] | None:
    """Return the cached digests by tensor if the files are unchanged; else None."""
    key = _key(files)
    if key in _cache:
        return _cache[key]
    try:
        values = load_json((_folder() / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or not all(
        isinstance(digest, str) for digest in values.values()
    ):
        return None
    return values


def save_digests(files: Sequence[Path], digests: Mapping[str, str]) -> None:
    """Cache digests; on disk only if the files are old enough for times to reveal changes."""
    key = _key(files)
    _cache[key] = dict(digests)
    newest = max(max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in files)
    if time.time_ns() - newest < _FRESH_NS:
        return
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(_folder() / f"{key}.json") as file:
            file.write(json.dumps(digests))
    except OSError:
        return  # the cache is optional


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


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous tensor's bytes without a copy."""
    import torch

    flat = tensor.detach().contiguous().view(-1)
    if not flat.numel():
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy().data)


def fingerprint_of(entries: Iterator[tuple[str, str, tuple[int, ...], str]]) -> str:
    """Return the fingerprint of tensors given as name, type, shape and digest of the bytes."""
    return digest_json(
        [[name, dtype, list(shape), digest] for name, dtype, shape, digest in sorted(entries)]
    )


def describe_equal_models(models: Iterable[tuple[str, object]]) -> list[str]:
    """Return a sentence for models with one fingerprint, from their names and fingerprints."""
    named: dict[object, list[str]] = {}
    for name, fingerprint in models:
        named.setdefault(fingerprint, []).append(name)
    return [
        f"{' and '.join(names)} are the same model" for names in named.values() if len(names) > 1
    ]
