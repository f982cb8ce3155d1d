"""The files of a teacher cache: token ids and rows of fixed width, in shards that only grow.

A shard is two files, ``tokens-N.bin`` and ``rows-N.bin``. Bytes past the last record in the index
are what a kill left: a reader never looks there, and the next writer cuts them off.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import IntegrityError
from stillroom.jobs.files import full_disk_as_error

__all__ = ["Place", "Shards", "Writer"]

_SYNC_EVERY_S = 1.0

Bytes = npt.NDArray[np.uint8]
Place = dict[str, Any]
"""Where a record lies: ``shard``, first ``token`` and ``tokens``, first ``row`` and ``rows``."""


class Shards:
    """Reads records from the shards of one folder; maps each file once."""

    def __init__(self, folder: Path, token_bytes: int, row_bytes: int) -> None:
        """Stand over a folder whose records have so many bytes a token and a row."""
        self.folder = folder
        self.widths = {"tokens": token_bytes, "rows": row_bytes}
        self._maps: dict[tuple[str, int], Bytes] = {}

    def path(self, kind: str, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"{kind}-{shard:05d}.bin"

    def read(self, kind: str, place: Place) -> Bytes:
        """Return the tokens or rows of a record as bytes, (n, width), mapped from disk.

        Raises:
            IntegrityError: If the file is shorter than the index says.
        """
        start, count = place[kind.removesuffix("s")], place[kind]
        mapped = self._maps.get((kind, place["shard"]))
        if mapped is None or len(mapped) < start + count:
            mapped = self._map(kind, place["shard"], start + count)
        return mapped[start : start + count]

    def forget(self) -> None:
        """Let the maps go."""
        self._maps.clear()

    def _map(self, kind: str, shard: int, wanted: int) -> Bytes:
        path, width = self.path(kind, shard), self.widths[kind]
        found = path.stat().st_size if path.is_file() else 0
        if found < wanted * width:
            raise IntegrityError(
                f"the teacher cache is cut off: {found} bytes",
                code="distill.cache-damaged",
                where=str(path),
                expected=f"{wanted * width} bytes",
                next=f"remove {self.folder} and run again",
            )
        if not wanted:
            return np.empty((0, width), np.uint8)
        mapped = np.memmap(path, np.uint8, "r", shape=(found // width, width))
        # a plain array over the map: slices of np.memmap are many times slower to make
        plain: Bytes = mapped.view(np.ndarray)
        self._maps[kind, shard] = plain
        return plain


class Writer:
    """Appends records to the last shard, and begins another where one would pass its size."""

    def __init__(self, shards: Shards, places: list[Place], shard_bytes: int) -> None:
        """Take up where the indexed records end; what lies behind them is cut off at once."""
        self.shards, self.shard_bytes = shards, shard_bytes
        last = max(places, key=lambda place: (place["shard"], place["row"]), default=None)
        self.shard = last["shard"] if last else 0
        self.ends = {"tokens": 0, "rows": 0}
        if last:
            inside = [place for place in places if place["shard"] == self.shard]
            for kind in self.ends:
                one = kind.removesuffix("s")
                self.ends[kind] = max(place[one] + place[kind] for place in inside)
        self._files: dict[str, IO[bytes]] = {}
        self._synced = time.monotonic()
        self._open()

    def add(self, tokens: bytes, rows: bytes) -> Place:
        """Append one record and return where it lies.

        Raises:
            ResourceError: If the disk is full.
        """
        if self.ends["rows"] and self._end("rows") + len(rows) > self.shard_bytes:
            self.sync()
            self.close()
            self.shard, self.ends = self.shard + 1, {"tokens": 0, "rows": 0}
            self._open()
        place: Place = {"shard": self.shard}
        for kind, data in (("tokens", tokens), ("rows", rows)):
            with full_disk_as_error(self.shards.folder):
                self._files[kind].write(data)
            place[kind.removesuffix("s")] = self.ends[kind]
            place[kind] = len(data) // self.shards.widths[kind]
        for kind in self.ends:
            self.ends[kind] += place[kind]
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self.sync()
        return place

    def sync(self) -> None:
        """Force what was written to disk, ahead of the index that names it."""
        for file in self._files.values():
            with full_disk_as_error(self.shards.folder):
                os.fdatasync(file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _end(self, kind: str) -> int:
        return self.ends[kind] * self.shards.widths[kind]

    def _open(self) -> None:
        for kind in self.ends:
            path = self.shards.path(kind, self.shard)
            path.touch()
            file = path.open("r+b", buffering=0)
            file.truncate(self._end(kind))
            file.seek(0, 2)
            self._files[kind] = file
