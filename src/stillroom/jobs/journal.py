"""Journal: finished units of work by key, appended and synced, torn tails cut off.

A unit that is in the journal is never done again; one that is not is done again from scratch. Each
line carries a digest of itself, so that a half-written or damaged line is recognised.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from stillroom.jobs.files import full_disk_as_error
from stillroom.provenance.digests import canonical_json, digest_bytes

__all__ = ["Journal", "read_journal"]

_SYNC_EVERY_S = 1.0


class Journal:
    """An append-only map from keys to JSON values in one file.

    ``put`` is durable against a kill at once and against power loss within a second. Memory holds
    every value; keep large values in files and journal their digests.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal at ``path``; a torn or damaged tail is dropped."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._values, sound = _load(path)
        self._file = path.open("ab")
        if path.stat().st_size > sound:
            self._file.truncate(sound)
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        """Return the journal, to be closed at the end of the body."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Close."""
        self.close()

    def __contains__(self, key: str) -> bool:
        """Return whether the unit is done."""
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        """Return the value of a finished unit."""
        return self._values[key]

    def __len__(self) -> int:
        """Return how many units are done."""
        return len(self._values)

    def keys(self) -> list[str]:
        """Return the keys in order of writing."""
        return list(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a unit, or the default where it is not done."""
        return self._values.get(key, default)

    def put(self, key: str, value: Any) -> None:
        """Record a finished unit; the same key again replaces the value.

        Raises:
            ResourceError: If the disk is full.
        """
        body = canonical_json([key, value]).encode("utf-8", "surrogatepass")
        with full_disk_as_error(self.path):
            self._file.write(f"{digest_bytes(body)[:16]} ".encode() + body + b"\n")
            self._file.flush()
        self._values[key] = json.loads(body.decode("utf-8", "surrogatepass"))[1]
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Force what was put to disk."""
        with full_disk_as_error(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            self.sync()
            self._file.close()


def read_journal(path: Path) -> dict[str, Any]:
    """Return the values of a journal by key, and leave the file alone; {} where there is none.

    For those who read while another writes: a line that is not whole yet is not seen.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[dict[str, Any], int]:
    """Return the values and how many bytes of the file are sound."""
    values: dict[str, Any] = {}
    sound = 0
    if not path.exists():
        return values, sound
    with path.open("rb") as file:
        for line in file:
            mark, _, body = line.removesuffix(b"\n").partition(b" ")
            if not line.endswith(b"\n") or digest_bytes(body)[:16].encode() != mark:
                break
            key, value = json.loads(body.decode("utf-8", "surrogatepass"))
            values[key] = value
            sound += len(line)
    return values, sound
