"""Logit cache: teacher targets at every position, computed once and shared by jobs.

``header.json`` says whose words these are; a job for another teacher, tokenizer, template,
vocabulary or form is refused by the name of what differs. Shards hold the token ids of every record
and one little-endian row of fixed width for each position that was captured, so that a cache can be
read, checked and scored again without the records it came from. ``index.jsonl`` (a journal) says
where the record with these tokens lies, with its digest: a kill in the middle of a record loses
that record only, and more can be added later. Any number of jobs read at once, also while one
captures: what is indexed never changes.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from stillroom.provenance import digest_bytes

__all__ = ["CacheCoverage", "LogitCache", "describe_cache", "digest_tokens"]

SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True)
class CacheCoverage:
    """How much of what is wanted is there; ``missing`` names records, the first few."""

    records: int
    records_found: int
    positions: int
    positions_found: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """Return it in one line."""
        line = (
            f"{self.records_found} of {self.records} records are there, "
            f"{self.positions_found} of {self.positions} positions"
        )
        more = self.records - self.records_found - len(self.missing)
        rest = f" and {more} more" if more else ""
        return line + (f"; missing: {', '.join(self.missing)}{rest}" if self.missing else "")


def digest_tokens(ids: npt.NDArray[np.int64]) -> str:
    """Return the key of a record in the index: the digest of its token ids."""
    return digest_bytes(ids.astype("<u4").tobytes())[:32]


class LogitCache:
    """Rows of teacher targets by record; ``open`` it, read with ``target``.

    Adding goes on in the body of ``writing`` only, by one process at a time.
    """

    def __init__(
        self, folder: Path, header: CacheHeader, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Stand over a folder with a header; callers use ``open``."""
        self.folder, self.header, self.shard_bytes = folder, header, shard_bytes
        self.dtype, self.token_dtype = row_dtype(header), token_dtype(header)
        self._shards = ShardReader(folder, self.token_dtype.itemsize, self.dtype.itemsize)
        self._index: dict[str, ShardLocation] = {}
        self._journal: Journal | None = None
        self._writer: ShardWriter | None = None

    @classmethod
    def open(
        cls, folder: Path, header: CacheHeader | None = None, *, shard_bytes: int = SHARD_BYTES
    ) -> LogitCache:
        """Open a cache for these words, making it where there is none.

        Args:
            folder: Where it lies.
            header: What is wanted; None takes what is there.
            shard_bytes: A file of rows ends before it would be larger.

        Raises:
            DataError: If the folder holds another teacher's words, or words in another form; or no
                cache where none may be made.
            IntegrityError: If the header or a shard is damaged.
        """
        if header is not None and not (folder / "header.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder, wait=True):
                if not (folder / "header.json").is_file():
                    with atomic_write(folder / "header.json") as file:
                        file.write(json.dumps(header.model_dump(), indent=1) + "\n")
        kept = CacheHeader.read(folder)
        if header is not None:
            kept.refuse_other(header, folder)
        cache = cls(folder, kept, shard_bytes=shard_bytes)
        cache._index = read_journal(folder / "index.jsonl")
        cache._check_length()
        return cache

    def __enter__(self) -> LogitCache:
        """Use the cache within the body."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def __contains__(self, lesson: TokenizedRecord) -> bool:
        """Return whether the teacher's words at all positions of the lesson are here."""
        return self._find(lesson) is not None

    def __len__(self) -> int:
        """Return how many records are here."""
        return len(self._index)

    @property
    def rows(self) -> int:
        """How many positions the cache holds."""
        return sum(int(place["rows"]) for place in self._index.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows and tokens."""
        tokens = sum(int(place["tokens"]) for place in self._index.values())
        return self.rows * self.dtype.itemsize + tokens * self.token_dtype.itemsize

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within the body records may be added; what others added before is seen first.

        Raises:
            ResourceError: If another process is adding.
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

    def add(self, lesson: TokenizedRecord, rows: npt.NDArray[np.void]) -> None:
        """Append the rows of one record, (N,) of ``dtype``, and enter them in the index.

        Raises:
            DataError: If a token is outside the vocabulary.
            ResourceError: If the disk is full.
        """
        if self._writer is None or self._journal is None:
            raise ValueError("add wants the body of `with cache.writing():`")
        if len(lesson.ids) and int(lesson.ids.max()) >= self.header.vocabulary:
            raise DataError(
                f"record {lesson.record_id} has token {int(lesson.ids.max())}",
                code="distill.token-id",
                where=lesson.record_id,
                expected=f"ids below the vocabulary of {self.header.vocabulary}",
                next="check that teacher and tokenizer belong together",
            )
        tokens = np.zeros(len(lesson.ids), self.token_dtype)
        tokens["id"] = lesson.ids
        tokens["row"][lesson.positions] = 1
        data = (tokens.tobytes(), rows.tobytes())
        place = self._writer.add(*data)
        place |= {"digest": digest_bytes(b"".join(data)), "record": lesson.record_id}
        key = digest_tokens(lesson.ids)
        self._journal.put(key, place)
        self._index[key] = place

    def lessons(self) -> Iterator[TokenizedRecord]:
        """Return every record as it was captured: its tokens and positions."""
        for place in list(self._index.values()):
            yield self._lesson(place)

    def cover(self, lessons: Sequence[TokenizedRecord]) -> CacheCoverage:
        """Return how much of these lessons is here."""
        found = [lesson in self for lesson in lessons]
        missing = [one.record_id for one, here in zip(lessons, found, strict=True) if not here]
        return CacheCoverage(
            len(lessons),
            sum(found),
            sum(len(lesson.positions) for lesson in lessons),
            sum(len(one.positions) for one, here in zip(lessons, found, strict=True) if here),
            tuple(missing[:3]),
        )

    def lacking(self, lessons: Sequence[TokenizedRecord]) -> list[TokenizedRecord]:
        """Return what must be captured for these lessons: one for each text, once.

        Records of the same tokens are joined, and joined with the positions that are here already,
        so that what is added serves all of them.
        """
        joined: dict[str, TokenizedRecord] = {}
        for lesson in lessons:
            if lesson in self:
                continue
            key = digest_tokens(lesson.ids)
            place, positions = self._index.get(key), lesson.positions
            if key in joined:
                positions = np.union1d(joined[key].positions, positions)
            elif place is not None:
                positions = np.union1d(self._lesson(place).positions, positions)
            name = joined[key].record_id if key in joined else lesson.record_id
            joined[key] = TokenizedRecord(name, lesson.ids, positions)
        return list(joined.values())

    def verify(self, lessons: Sequence[TokenizedRecord] | None = None) -> int:
        """Recompute the digests of the lessons' rows, or of every record.

        Returns:
            How many records were checked.

        Raises:
            DataError: If a lesson is not here.
            IntegrityError: If bytes are not what was written.
        """
        if lessons is None:
            places = list(self._index.values())
        else:
            places = [self._found(lesson)[0] for lesson in lessons]
        for place in places:
            tokens, rows = (self._shards.read(kind, place) for kind in ("tokens", "rows"))
            if digest_bytes(tokens.tobytes() + rows.tobytes()) != place["digest"]:
                raise IntegrityError(
                    f"the rows of record {place['record']} are not what the teacher said",
                    code="distill.cache-damaged",
                    where=f"{self._shards.path('rows', place['shard'])} row {place['row']}",
                    expected=f"digest {place['digest'][:16]}",
                    next=f"remove {self.folder} and run again",
                )
        return len(places)

    def read(self, lesson: TokenizedRecord) -> npt.NDArray[np.void]:
        """Return the rows of one lesson, (N,) of ``dtype``, mapped from disk.

        Raises:
            DataError: If the lesson was never captured.
        """
        return self._view(self._bytes(lesson))

    def target(
        self, lessons: Sequence[TokenizedRecord], device: torch.device | None = None
    ) -> Targets:
        """Return the targets of several lessons, one row for each position, in order.

        Raises:
            DataError: If one of them was never captured.
            ValueError: If the cache is of mode ``own``, which holds no distributions.
        """
        if self.header.mode == "own":
            raise ValueError("a cache of mode own holds no distributions")
        rows = self._view(np.concatenate([self._bytes(lesson) for lesson in lessons]))
        logprobs = torch.from_numpy(rows["logprobs"].astype(np.float32)).to(device)
        heat = self.header.temperature
        if self.header.mode == "dense":
            return DenseTargets(logprobs)
        ids = torch.from_numpy(rows["ids"].astype(np.int64)).to(device)
        if self.header.mode == "top_k":
            return TopKTargets(
                ids, logprobs, torch.from_numpy(rows["tail"].copy()).to(device), heat
            )
        scale = torch.from_numpy(rows["scale"].copy()).to(device)
        return SampledTargets.from_scale(
            ids, logprobs, scale, heat, sampling_temperature=self.header.sampling_temperature
        )

    def close(self) -> None:
        """Let the files go."""
        self._shards.forget()

    def _lesson(self, place: ShardLocation) -> TokenizedRecord:
        tokens = self._shards.read("tokens", place).reshape(-1).view(self.token_dtype)
        positions = np.flatnonzero(tokens["row"])
        return TokenizedRecord(place["record"], tokens["id"].astype(np.int64), positions)

    def _find(
        self, lesson: TokenizedRecord
    ) -> tuple[ShardLocation, npt.NDArray[np.int64] | None] | None:
        """Return where a record lies, and which of its rows are wanted; None is all."""
        place = self._index.get(digest_tokens(lesson.ids))
        if place is None:
            return None
        tokens = self._shards.read("tokens", place)
        kept = np.flatnonzero(tokens[:, -1])
        if np.array_equal(kept, lesson.positions):
            return place, None
        at = np.searchsorted(kept, lesson.positions)
        if at.max(initial=-1) >= len(kept) or not np.array_equal(kept[at], lesson.positions):
            return None
        return place, at

    def _found(self, lesson: TokenizedRecord) -> tuple[ShardLocation, npt.NDArray[np.int64] | None]:
        found = self._find(lesson)
        if found is None:
            raise DataError(
                f"record {lesson.record_id} is not in the teacher cache",
                code="distill.cache-missing",
                where=str(self.folder),
                expected="every record captured before it is learned from",
                next="run the job again with --resume",
            )
        return found

    def _bytes(self, lesson: TokenizedRecord) -> Bytes:
        place, at = self._found(lesson)
        rows = self._shards.read("rows", place)
        return rows if at is None else rows[at]

    def _view(self, rows: Bytes) -> npt.NDArray[np.void]:
        return rows.reshape(-1).view(self.dtype)

    def _check_length(self) -> None:
        """Touch the end of every shard, so that a cut-off file is found at the door."""
        ends: dict[int, ShardLocation] = {}
        for place in self._index.values():
            if place["shard"] not in ends or place["row"] >= ends[place["shard"]]["row"]:
                ends[place["shard"]] = place
        for place in ends.values():
            for kind in ("tokens", "rows"):
                self._shards.read(kind, place)


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[None]:
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise ResourceError(
                f"another process is adding to the teacher cache {folder}",
                code="distill.cache-busy",
                where=str(folder),
                expected="one that adds at a time; any number may read",
                next="wait for it, or give this job another targets.cache",
            ) from error
        yield


def describe_cache(cache: LogitCache) -> dict[str, Any]:
    """Return what a cache holds: header, records, positions, bytes a position and in all."""
    rows = cache.rows
    return {
        "header": cache.header.model_dump(),
        "records": len(cache),
        "positions": rows,
        "size_bytes": cache.size_bytes,
        "bytes_per_position": round(cache.size_bytes / rows, 2) if rows else 0.0,
    }
