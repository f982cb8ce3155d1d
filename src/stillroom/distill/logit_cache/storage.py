"""On-disk format of a logit cache: header, row layout, and append-only shards.

A shard is two files, ``tokens-N.bin`` and ``rows-N.bin``. Bytes past the last record in the index
are what a kill left: a reader never looks there, and the next writer cuts them off.
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
from stillroom.jobs.files import full_disk_as_error

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
    """Whose words a cache holds, and in which form.

    ``width`` is k in mode top_k, the number of tokens drawn in mode sampled, the vocabulary in mode
    dense; mode own has none and keeps the log-probability of each record's own token alone.
    ``temperature`` is what the teacher's logits were divided by; dense rows stand at 1 and serve
    every temperature. ``license`` is the teacher's, ``about`` what else is known of it (its name,
    where it was found, that its weights are quantized, which endpoint it stands behind), ``source``
    who made the rows: they are kept for those who share the cache, and not compared. A ``template``
    or ``precision`` of ``unknown`` belongs to words made elsewhere, and is not compared either.
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
            DataError: If the folder holds no cache.
            IntegrityError: If the header cannot be read.
        """
        path = folder / "header.json"
        if not path.is_file():
            raise DataError(
                f"{folder} is no teacher cache",
                code="distill.no-cache",
                where=str(path),
                expected="the header.json that capture writes",
                next="stillroom distill capture RECIPE --out " + str(folder),
            )
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(
                "the header of the teacher cache cannot be read",
                code="distill.cache-damaged",
                where=str(path),
                expected="the JSON that this version's capture writes",
                next=f"remove {folder} and run again",
            ) from error

    def refuse_other(self, wanted: CacheHeader, folder: Path) -> None:
        """Refuse to be used as a cache of other words.

        Raises:
            DataError: Naming the first field that differs.
        """
        for name in type(self).model_fields:
            was, now = getattr(self, name), getattr(wanted, name)
            if was == now or name in _NOT_COMPARED or UNKNOWN in (was, now):
                continue
            raise DataError(
                f"the teacher cache was made with another {name}: {was!r:.80}",
                code="distill.cache-mismatch",
                where=f"{folder / 'header.json'} {name}",
                expected=f"{now!r:.80}",
                next="give this job another targets.cache folder",
            )


def row_dtype(header: CacheHeader) -> np.dtype[np.void]:
    """Return the layout of one row, little-endian: ids, log-probabilities, and one number more."""
    import numpy as np

    if header.mode == "own":
        return np.dtype([("logprob", "<f4")])
    number = "<f2" if header.logprob_dtype == "float16" else "<f4"
    logprobs: tuple[Any, ...] = ("logprobs", number, (header.width,))
    if header.mode == "dense":
        return np.dtype([logprobs])
    last = "tail" if header.mode == "top_k" else "scale"
    return np.dtype([("ids", _id_type(header), (header.width,)), logprobs, (last, "<f4")])


def token_dtype(header: CacheHeader) -> np.dtype[np.void]:
    """Return the layout of one token of a record: its id, and 1 where a row predicts the next."""
    import numpy as np

    return np.dtype([("id", _id_type(header)), ("row", "u1")])


def row_bytes(header: CacheHeader) -> tuple[int, int]:
    """Return bytes of one row, and of one token of a record beside it."""
    return row_dtype(header).itemsize, token_dtype(header).itemsize


def _id_type(header: CacheHeader) -> str:
    return "<u2" if header.vocabulary <= _SMALL_VOCABULARY else "<u4"


_SYNC_INTERVAL_S = 1.0


Bytes = npt.NDArray[np.uint8]


ShardLocation = dict[str, Any]


"""Where a record lies: ``shard``, first ``token`` and ``tokens``, first ``row`` and ``rows``."""


class ShardReader:
    """Reads records from the shards of one folder; maps each file once."""

    def __init__(self, folder: Path, token_bytes: int, row_bytes: int) -> None:
        """Stand over a folder whose records have so many bytes a token and a row."""
        self.folder = folder
        self.widths = {"tokens": token_bytes, "rows": row_bytes}
        self._maps: dict[tuple[str, int], Bytes] = {}

    def path(self, kind: str, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"{kind}-{shard:05d}.bin"

    def read(self, kind: str, place: ShardLocation) -> Bytes:
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


class ShardWriter:
    """Appends records to the last shard, and begins another where one would pass its size."""

    def __init__(self, shards: ShardReader, places: list[ShardLocation], shard_bytes: int) -> None:
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

    def add(self, tokens: bytes, rows: bytes) -> ShardLocation:
        """Append one record and return where it lies.

        Raises:
            ResourceError: If the disk is full.
        """
        if self.ends["rows"] and self._end("rows") + len(rows) > self.shard_bytes:
            self.sync()
            self.close()
            self.shard, self.ends = self.shard + 1, {"tokens": 0, "rows": 0}
            self._open()
        place: ShardLocation = {"shard": self.shard}
        for kind, data in (("tokens", tokens), ("rows", rows)):
            with full_disk_as_error(self.shards.folder):
                self._files[kind].write(data)
            place[kind.removesuffix("s")] = self.ends[kind]
            place[kind] = len(data) // self.shards.widths[kind]
        for kind in self.ends:
            self.ends[kind] += place[kind]
        if time.monotonic() - self._synced > _SYNC_INTERVAL_S:
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
