"""Logit cache (offline logits, soft labels): stored top-k, sampled or dense teacher targets.

``header.json`` identifies the teacher; a cache of another teacher, tokenizer, template, vocabulary
or form is rejected with the name of what differs. Shards contain the token ids of every record and
one little-endian row of fixed width for each captured position, so that a cache can be read,
verified and rescored without its records. ``index.jsonl`` (a journal) maps the digest of a record's
tokens to its location and content digest: a crash in the middle of a record loses only that record,
and records can be added later. Any number of jobs may read, also while one writes: indexed data
never changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.logit_cache.storage import (
    Bytes,
    CacheHeader,
    ShardLocation,
    ShardReader,
    ShardWriter,
    row_dtype,
    token_dtype,
)
from stillroom.distill.losses.targets import DenseTargets, SampledTargets, Targets, TopKTargets
from stillroom.errors import DataError, IntegrityError, ResourceError
from stillroom.jobs import Journal, atomic_write, read_journal
from stillroom.jobs.files import lock_folder
from stillroom.provenance import digest_bytes

__all__ = ["CacheCoverage", "LogitCache", "describe_cache", "digest_tokens"]

SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True)
class CacheCoverage:
    """Number of requested records and positions in a cache; ``missing`` names the first few."""

    records: int
    records_found: int
    positions: int
    positions_found: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """Return a one-line summary."""
        line = (
            f"{self.records_found} of {self.records} records are cached, "
            f"{self.positions_found} of {self.positions} positions"
        )
        if not self.records_found:  # a first run: nothing is amiss
            return line
        more = self.records - self.records_found - len(self.missing)
        others = f" and {more} more" if more else ""
        return line + (f"; missing: {', '.join(self.missing)}{others}" if self.missing else "")


def digest_tokens(ids: npt.NDArray[np.int64]) -> str:
    """Return the index key of a record: the digest of its token ids."""
    return digest_bytes(ids.astype("<u4").tobytes())[:32]


class LogitCache:
    """Rows of teacher targets by record; opened with ``open``, read with ``target``.

    Records are added only in the body of ``writing``, by one process at a time.
    """

    def __init__(
        self, folder: Path, header: CacheHeader, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Initialize without reading; callers use ``open``."""
        self.folder, self.header, self.shard_bytes = folder, header, shard_bytes
        self.dtype, self.token_dtype = row_dtype(header), token_dtype(header)
        self._shards = ShardReader(folder, self.token_dtype.itemsize, self.dtype.itemsize)
        self._index: dict[str, ShardLocation] = {}
        self._journal: Journal | None = None
        self._writer: ShardWriter | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        header: CacheHeader | None = None,
        *,
        shard_bytes: int = SHARD_BYTES,
        on_damage: Callable[[str], None] | None = None,
    ) -> LogitCache:
        """Open a cache, and create it if it does not exist.

        Args:
            folder: Folder of the cache.
            header: Expected header; None accepts any existing cache.
            shard_bytes: Maximum size of a file of rows.
            on_damage: Receives what is wrong with the index if a changed line hides those after
                it, whose records are captured again.

        Raises:
            DataError: If the cache is of another teacher or form, or does not exist and ``header``
                is None.
            IntegrityError: If the header or a shard is damaged.
        """
        if header is not None and not (folder / "header.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder, wait=True):
                if not (folder / "header.json").is_file():
                    with atomic_write(folder / "header.json") as file:
                        file.write(json.dumps(header.model_dump(), indent=1) + "\n")
        stored = CacheHeader.read(folder)
        if header is not None:
            stored.refuse_other(header, folder)
        cache = cls(folder, stored, shard_bytes=shard_bytes)
        cache._index = read_journal(folder / "index.jsonl", on_damage)
        cache._check_length()
        return cache

    def __enter__(self) -> LogitCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, record: TokenizedRecord) -> bool:
        return self._find(record) is not None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def rows(self) -> int:
        """Number of positions."""
        return sum(int(location["rows"]) for location in self._index.values())

    @property
    def size_bytes(self) -> int:
        """Size of all rows and tokens in bytes."""
        tokens = sum(int(location["tokens"]) for location in self._index.values())
        return self.rows * self.dtype.itemsize + tokens * self.token_dtype.itemsize

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Allow adding records within the body; records added by others are read first.

        Raises:
            ResourceError: If another process is writing.
        """
        with _lock(self.folder, wait=False), Journal(self.folder / "index.jsonl") as journal:
            keys = journal.keys()
            self._index = {key: journal[key] for key in keys}
            writer = ShardWriter(self._shards, list(self._index.values()), self.shard_bytes)
            self._journal, self._writer = journal, writer
            try:
                yield
                writer.sync()
            finally:
                writer.close()
                self._journal = self._writer = None

    def add(self, record: TokenizedRecord, rows: npt.NDArray[np.void]) -> None:
        """Append the rows of one record, (N,) of ``dtype``, and index them.

        Raises:
            DataError: If a token is outside the vocabulary.
            ResourceError: If the disk is full.
        """
        if self._writer is None or self._journal is None:
            raise ValueError("add must be called within `with cache.writing():`")
        if len(record.ids) and int(record.ids.max()) >= self.header.vocabulary:
            raise DataError(
                f"record {record.record_id} has token {int(record.ids.max())}",
                code="distill.token-id",
                where=record.record_id,
                expected=f"ids below the vocabulary of {self.header.vocabulary}",
                next="check that teacher and tokenizer match",
            )
        tokens = np.zeros(len(record.ids), self.token_dtype)
        tokens["id"] = record.ids
        tokens["row"][record.positions] = 1
        data = (tokens.tobytes(), rows.tobytes())
        location = self._writer.add(*data)
        location |= {"digest": digest_bytes(b"".join(data)), "record": record.record_id}
        key = digest_tokens(record.ids)
        self._journal.put(key, location)
        self._index[key] = location

    def records(self) -> Iterator[TokenizedRecord]:
        """Yield every record as captured: its tokens and positions."""
        for location in list(self._index.values()):
            yield self._read_record(location)

    def cover(self, records: Sequence[TokenizedRecord]) -> CacheCoverage:
        """Return how many of the records and positions are cached."""
        cached: list[TokenizedRecord] = []
        missing: list[TokenizedRecord] = []
        for record in records:
            (cached if record in self else missing).append(record)
        return CacheCoverage(
            len(records),
            len(cached),
            sum(len(record.positions) for record in records),
            sum(len(record.positions) for record in cached),
            tuple(record.record_id for record in missing[:3]),
        )

    def lacking(self, records: Sequence[TokenizedRecord]) -> list[TokenizedRecord]:
        """Return what remains to be captured, one record for each text.

        Records of the same tokens are merged, together with positions that are already cached, so
        that one entry serves all of them.
        """
        joined: dict[str, TokenizedRecord] = {}
        for record in records:
            if record in self:
                continue
            key = digest_tokens(record.ids)
            location, positions = self._index.get(key), record.positions
            if key in joined:
                positions = np.union1d(joined[key].positions, positions)
            elif location is not None:
                positions = np.union1d(self._read_record(location).positions, positions)
            name = joined[key].record_id if key in joined else record.record_id
            joined[key] = TokenizedRecord(name, record.ids, positions)
        return list(joined.values())

    def verify(self) -> int:
        """Recompute the digests of all rows; return the number of records.

        Raises:
            IntegrityError: If the bytes have changed.
        """
        for location in self._index.values():
            tokens, rows = (self._shards.read(kind, location) for kind in ("tokens", "rows"))
            if digest_bytes(tokens.tobytes() + rows.tobytes()) != location["digest"]:
                raise IntegrityError(
                    f"the rows of record {location['record']} do not match their digest",
                    code="distill.cache-damaged",
                    where=f"{self._shards.path('rows', location['shard'])} row {location['row']}",
                    expected=f"digest {location['digest'][:16]}",
                    next=f"remove {self.folder} and run again",
                )
        return len(self)

    def read(self, record: TokenizedRecord) -> npt.NDArray[np.void]:
        """Return the rows of one record, (N,) of ``dtype``, memory-mapped.

        Raises:
            DataError: If the record is not cached.
        """
        return self._view(self._bytes(record))

    def target(
        self, records: Sequence[TokenizedRecord], device: torch.device | None = None
    ) -> Targets:
        """Return the targets of records, one row for each position, in order.

        Raises:
            DataError: If a record is not cached.
            ValueError: If the cache is of mode ``own``, which stores no distributions.
        """
        if self.header.mode == "own":
            raise ValueError("a cache of mode own stores no distributions")
        rows = self._view(np.concatenate([self._bytes(record) for record in records]))
        logprobs = torch.from_numpy(rows["logprobs"].astype(np.float32)).to(device)
        temperature = self.header.temperature
        if self.header.mode == "dense":
            return DenseTargets(logprobs)
        ids = torch.from_numpy(rows["ids"].astype(np.int64)).to(device)
        if self.header.mode == "top_k":
            return TopKTargets(
                ids, logprobs, torch.from_numpy(rows["tail"].copy()).to(device), temperature
            )
        scale = torch.from_numpy(rows["scale"].copy()).to(device)
        return SampledTargets.from_scale(
            ids, logprobs, scale, temperature, sampling_temperature=self.header.sampling_temperature
        )

    def close(self) -> None:
        """Release the files."""
        self._shards.forget()

    def _read_record(self, location: ShardLocation) -> TokenizedRecord:
        tokens = self._shards.read("tokens", location).reshape(-1).view(self.token_dtype)
        positions = np.flatnonzero(tokens["row"])
        return TokenizedRecord(location["record"], tokens["id"].astype(np.int64), positions)

    def _find(
        self, record: TokenizedRecord
    ) -> tuple[ShardLocation, npt.NDArray[np.int64] | None] | None:
        """Return a record's location, and the indices of its requested rows; None is all."""
        location = self._index.get(digest_tokens(record.ids))
        if location is None:
            return None
        tokens = self._shards.read("tokens", location)
        captured = np.flatnonzero(tokens[:, -1])
        if np.array_equal(captured, record.positions):
            return location, None
        indices = np.searchsorted(captured, record.positions)
        if indices.max(initial=-1) >= len(captured) or not np.array_equal(
            captured[indices], record.positions
        ):
            return None
        return location, indices

    def _bytes(self, record: TokenizedRecord) -> Bytes:
        entry = self._find(record)
        if entry is None:
            raise DataError(
                f"record {record.record_id} is not in the logit cache",
                code="distill.cache-missing",
                where=str(self.folder),
                expected="every training record captured",
                next="run the job again with --resume",
            )
        location, indices = entry
        rows = self._shards.read("rows", location)
        return rows if indices is None else rows[indices]

    def _view(self, rows: Bytes) -> npt.NDArray[np.void]:
        return rows.reshape(-1).view(self.dtype)

    def _check_length(self) -> None:
        """Read the end of every shard, so that truncation is detected on opening."""
        ends: dict[int, ShardLocation] = {}
        for location in self._index.values():
            if location["shard"] not in ends or location["row"] >= ends[location["shard"]]["row"]:
                ends[location["shard"]] = location
        for location in ends.values():
            for kind in ("tokens", "rows"):
                self._shards.read(kind, location)


def _lock(folder: Path, *, wait: bool) -> AbstractContextManager[object]:
    busy = ResourceError(
        f"another process is writing to the logit cache {folder}",
        code="distill.cache-busy",
        where=str(folder),
        expected="one writer at a time; any number may read",
        next="wait for it, or set another targets.cache",
    )
    return lock_folder(folder, busy, wait=wait)


def describe_cache(cache: LogitCache) -> dict[str, Any]:
    """Return a cache's header, numbers of records and positions, and sizes."""
    rows = cache.rows
    return {
        "header": cache.header.model_dump(),
        "records": len(cache),
        "positions": rows,
        "size_bytes": cache.size_bytes,
        "bytes_per_position": round(cache.size_bytes / rows, 2) if rows else 0.0,
    }
