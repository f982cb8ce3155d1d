"""On-disk format of a logit cache: header, row layout, and append-only shards.

A shard consists of two files, ``tokens-N.bin`` and ``rows-N.bin``. Bytes after the last indexed
record are left by an interrupted writer: readers ignore them, and the next writer truncates them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from stillroom.distill.settings import CacheMode
from stillroom.errors import DataError, IntegrityError
from stillroom.objects.disk import full_disk_as_error

__all__ = [
    "UNKNOWN",
    "CacheHeader",
    "ShardLocation",
    "ShardReader",
    "ShardWriter",
    "row_bytes",
    "row_dtype",
    "token_dtype",
]

UNKNOWN = "unknown"
_FORMAT_VERSION = 2
_SMALL_VOCABULARY = 1 << 16
_NOT_COMPARED = frozenset({"license", "about", "source"})


class CacheHeader(BaseModel):
    """Teacher and row format of a cache.

    ``width`` is k in mode top_k, the number of sampled tokens in mode sampled, and the vocabulary
    in mode dense; mode own stores only the log-probability of each label and has none.
    ``temperature`` is the divisor of the teacher's logits; dense rows have 1 and serve every
    temperature. ``license`` is the teacher's; ``about`` further metadata (its name, location,
    quantization, endpoint), ``source`` the producer of the rows: these three are informational and
    not compared. A ``template`` or ``precision`` of ``unknown`` marks imported rows and is not
    compared either.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: int = _FORMAT_VERSION
    teacher: str
    tokenizer: str
    template: str
    vocabulary: int = Field(gt=0)
    mode: CacheMode
    width: int = Field(ge=0)
    temperature: float = Field(default=1.0, gt=0)
    sampling_temperature: float = Field(default=1.0, gt=0)
    precision: str
    logprob_dtype: Literal["float16", "float32"]
    seed: int = 0
    license: str = ""
    about: dict[str, Any] = {}
    source: str = "capture"

    @classmethod
    def read(cls, folder: Path) -> CacheHeader:
        """Read the header of a cache.

        Raises:
            DataError: If the folder contains no cache.
            IntegrityError: If the header cannot be read.
        """
        path = folder / "header.json"
        if not path.is_file():
            raise DataError(
                f"{folder} is not a logit cache",
                code="distill.no-cache",
                where=str(path),
                expected="a header.json written by capture",
                next="stillroom distill capture RECIPE --out " + str(folder),
            )
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(
                "the header of the logit cache cannot be read",
                code="distill.cache-damaged",
                where=str(path),
                expected="a header.json of this version",
                next=f"remove {folder} and run again",
            ) from error

    def refuse_other(self, expected: CacheHeader, folder: Path) -> None:
        """Raise if the cache has other contents than expected.

        Raises:
            DataError: Naming the first field that differs.
        """
        for name in type(self).model_fields:
            actual, value = getattr(self, name), getattr(expected, name)
            if actual == value or name in _NOT_COMPARED or UNKNOWN in (actual, value):
                continue
            raise DataError(
                f"the logit cache was made with another {name}: {actual!r:.80}",
                code="distill.cache-mismatch",
                where=f"{folder / 'header.json'} {name}",
                expected=f"{value!r:.80}",
                next="set another targets.cache folder for this job",
            )


def row_dtype(header: CacheHeader) -> np.dtype[np.void]:
    """Return the layout of one row, little-endian: ids, log-probabilities, and tail or scale."""
    if header.mode == "own":
        return np.dtype([("logprob", "<f4")])
    number = "<f2" if header.logprob_dtype == "float16" else "<f4"
    logprobs: tuple[Any, ...] = ("logprobs", number, (header.width,))
    if header.mode == "dense":
        return np.dtype([logprobs])
    last = "tail" if header.mode == "top_k" else "scale"
    return np.dtype([("ids", _id_type(header), (header.width,)), logprobs, (last, "<f4")])


def token_dtype(header: CacheHeader) -> np.dtype[np.void]:
    """Return the layout of one token of a record: its id, and 1 if a row predicts the next."""
    return np.dtype([("id", _id_type(header)), ("row", "u1")])


def row_bytes(header: CacheHeader) -> tuple[int, int]:
    """Return the bytes of one row, and of one token of a record."""
    return row_dtype(header).itemsize, token_dtype(header).itemsize


def _id_type(header: CacheHeader) -> str:
    return "<u2" if header.vocabulary <= _SMALL_VOCABULARY else "<u4"


_SYNC_INTERVAL_S = 1.0
Bytes = npt.NDArray[np.uint8]
ShardLocation = dict[str, Any]
"""Location of a record: ``shard``, first ``token`` and ``tokens``, first ``row`` and ``rows``."""


class ShardReader:
    """Reader of the shards of one folder; maps each file once."""

    def __init__(self, folder: Path, token_bytes: int, row_bytes: int) -> None:
        self.folder = folder
        self.widths = {"tokens": token_bytes, "rows": row_bytes}
        self._maps: dict[tuple[str, int], Bytes] = {}

    def path(self, kind: str, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"{kind}-{shard:05d}.bin"

    def read(self, kind: str, location: ShardLocation) -> Bytes:
        """Return the tokens or rows of a record as bytes, (n, width), memory-mapped.

        Raises:
            IntegrityError: If the file is shorter than indexed.
        """
        start, count = location[kind.removesuffix("s")], location[kind]
        mapped = self._maps.get((kind, location["shard"]))
        if mapped is None or len(mapped) < start + count:
            mapped = self._map(kind, location["shard"], start + count)
        return mapped[start : start + count]

    def forget(self) -> None:
        """Release the memory maps."""
        self._maps.clear()

    def _map(self, kind: str, shard: int, count: int) -> Bytes:
        path, width = self.path(kind, shard), self.widths[kind]
        size = path.stat().st_size if path.is_file() else 0
        if size < count * width:
            raise IntegrityError(
                f"the logit cache is truncated: {size} bytes",
                code="distill.cache-damaged",
                where=str(path),
                expected=f"{count * width} bytes",
                next=f"remove {self.folder} and run again",
            )
        if not count:
            return np.empty((0, width), np.uint8)
        mapped = np.memmap(path, np.uint8, "r", shape=(size // width, width))
        # a plain array over the map: slices of np.memmap are many times slower
        plain: Bytes = mapped.view(np.ndarray)
        self._maps[kind, shard] = plain
        return plain


class ShardWriter:
    """Writer that appends records to the last shard, and starts a new one at the size limit."""

    def __init__(
        self, shards: ShardReader, locations: list[ShardLocation], shard_bytes: int
    ) -> None:
        """Continue after the indexed records; anything beyond them is truncated."""
        self.shards, self.shard_bytes = shards, shard_bytes
        last = max(
            locations, key=lambda location: (location["shard"], location["row"]), default=None
        )
        self.shard = last["shard"] if last else 0
        self.ends = {"tokens": 0, "rows": 0}
        if last:
            inside = [location for location in locations if location["shard"] == self.shard]
            for kind in self.ends:
                first = kind.removesuffix("s")
                self.ends[kind] = max(location[first] + location[kind] for location in inside)
        self._files: dict[str, IO[bytes]] = {}
        self._synced = time.monotonic()
        self._open()

    def add(self, tokens: bytes, rows: bytes) -> ShardLocation:
        """Append one record and return its location.

        Raises:
            ResourceError: If the disk is full.
        """
        if self.ends["rows"] and self._end("rows") + len(rows) > self.shard_bytes:
            self.sync()
            self.close()
            self.shard, self.ends = self.shard + 1, {"tokens": 0, "rows": 0}
            self._open()
        location: ShardLocation = {"shard": self.shard}
        for kind, data in (("tokens", tokens), ("rows", rows)):
            with full_disk_as_error(self.shards.folder):
                rest = memoryview(data)
                while rest:  # a write of an unbuffered file may be short, as on a full disk
                    rest = rest[self._files[kind].write(rest) :]
            location[kind.removesuffix("s")] = self.ends[kind]
            location[kind] = len(data) // self.shards.widths[kind]
        for kind in self.ends:
            self.ends[kind] += location[kind]
        if time.monotonic() - self._synced > _SYNC_INTERVAL_S:
            self.sync()
        return location

    def sync(self) -> None:
        """Flush written data to disk, before the index refers to it."""
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
