"""The teacher cache: what a teacher said at every position, run once, kept on disk, shared.

A folder of three files. ``header.json`` says whose words these are; opening the cache for another
teacher, tokenizer, template, vocabulary or form is refused by the name of what differs.
``rows.bin`` holds fixed-width little-endian rows, one a position. ``index.jsonl`` (a journal) says
which rows belong to which tokens, with their digest: a kill in the middle of a record loses that
record only, and more records can be added later.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from stillroom.distill.encode import Lesson
from stillroom.distill.targets import Sampled, Target, TopKTail
from stillroom.errors import DataError, IntegrityError, ResourceError
from stillroom.jobs import Journal, atomic_write
from stillroom.jobs.files import full_disk_as_error
from stillroom.jobs.processes import count_processes
from stillroom.provenance import digest_bytes

__all__ = ["CacheHeader", "TeacherCache", "row_dtype"]

_FORMAT = 1
_SMALL_VOCABULARY = 1 << 16
_NOT_COMPARED = {"license", "about"}


class CacheHeader(BaseModel):
    """Whose words a cache holds, and in which form.

    ``width`` is k in mode top_k, the number of draws in mode sampled; mode own has none and keeps
    the log-probability of each record's own token alone. ``license`` is the teacher's, ``about``
    what else is known of it (its name, that its weights are quantized, which endpoint it stands
    behind): both are kept for those who share the cache, and not compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = _FORMAT
    teacher: str
    tokenizer: str
    template: str
    vocabulary: int
    mode: str
    width: int
    temperature: float
    precision: str
    logprob_dtype: str
    seed: int = 0
    license: str = ""
    about: dict[str, Any] = {}


def row_dtype(header: CacheHeader) -> np.dtype[np.void]:
    """Return the layout of one row: the record's own token, ids, log-probabilities, tail."""
    if header.mode == "own":
        return np.dtype([("token", "<u4"), ("logprob", "<f4")])
    ids = "<u2" if header.vocabulary <= _SMALL_VOCABULARY else "<u4"
    number = "<f2" if header.logprob_dtype == "float16" else "<f4"
    fields: list[tuple[Any, ...]] = [
        ("token", "<u4"),
        ("ids", ids, (header.width,)),
        ("logprobs", number, (header.width,)),
    ]
    if header.mode == "sampled":
        fields.append(("counts", "u1", (header.width,)))
    else:
        fields.append(("tail", "<f4"))
    return np.dtype(fields)


class TeacherCache:
    """Rows of teacher targets by lesson; use ``open``, then ``add`` and ``target``."""

    def __init__(self, folder: Path, header: CacheHeader) -> None:
        """Stand over an opened folder; callers use ``open``."""
        self.folder, self.header = folder, header
        self.dtype = row_dtype(header)
        self._lock = (folder / ".lock").open("a")
        try:
            # of several processes of one job, one adds while the others wait, and all read
            kind = fcntl.LOCK_SH if count_processes() > 1 else fcntl.LOCK_EX
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ResourceError(
                f"another process is using the teacher cache {folder}",
                code="distill.cache-busy",
                where=str(folder),
                expected="one job a cache",
                next="wait for it, or give this job another targets.cache",
            ) from error
        self._journal = Journal(folder / "index.jsonl")
        self._rows_path = folder / "rows.bin"
        self._rows_path.touch()
        self._map: npt.NDArray[np.void] | None = None
        self._end = max(
            (
                entry["row"] + entry["rows"]
                for entry in map(self._journal.get, self._journal.keys())
            ),
            default=0,
        )

    @classmethod
    def open(cls, folder: Path, header: CacheHeader) -> TeacherCache:
        """Open a cache for these words, making it where there is none.

        Raises:
            DataError: If the folder holds another teacher's words, or words in another form.
            IntegrityError: If the header or rows are damaged.
            ResourceError: If another process is using it.
        """
        path = folder / "header.json"
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            _compare(path, header)
        else:
            with atomic_write(path) as file:
                file.write(json.dumps(header.model_dump(), indent=1) + "\n")
        cache = cls(folder, header)
        try:
            cache._check_length()
        except IntegrityError:
            cache.close()
            raise
        return cache

    def __enter__(self) -> TeacherCache:
        """Use the cache within the body."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def __contains__(self, lesson: Lesson) -> bool:
        """Return whether the teacher's words for these tokens are here."""
        return lesson.key in self._journal

    @property
    def rows(self) -> int:
        """How many positions the cache holds."""
        return self._end

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows."""
        return self._end * self.dtype.itemsize

    def add(self, lesson: Lesson, rows: npt.NDArray[np.void]) -> None:
        """Append the rows of one lesson, (N,) of ``dtype``, and enter them in the index.

        Raises:
            ResourceError: If the disk is full.
        """
        data = rows.tobytes()
        with full_disk_as_error(self._rows_path), self._rows_path.open("r+b") as file:
            file.truncate(self._end * self.dtype.itemsize)
            file.seek(0, 2)
            file.write(data)
        entry = {"row": self._end, "rows": len(rows), "digest": digest_bytes(data)}
        self._journal.put(lesson.key, entry)
        self._end += len(rows)
        self._map = None

    def verify(self, lessons: Sequence[Lesson]) -> None:
        """Recompute the digests of the lessons' rows.

        Raises:
            IntegrityError: If bytes are not what was written, or rows are another record's.
        """
        for lesson in lessons:
            rows, entry = self.read(lesson), self._journal[lesson.key]
            intact = digest_bytes(rows.tobytes()) == entry["digest"]
            if not intact or not np.array_equal(rows["token"], lesson.labels):
                raise IntegrityError(
                    f"the rows of record {lesson.record_id} are not what the teacher said",
                    code="distill.cache-damaged",
                    where=f"{self._rows_path} row {entry['row']}",
                    expected=f"digest {entry['digest'][:16]}",
                    next=f"remove {self.folder} and run again",
                )

    def read(self, lesson: Lesson) -> npt.NDArray[np.void]:
        """Return the rows of one lesson, mapped from disk.

        Raises:
            DataError: If the lesson was never captured.
        """
        entry = self._journal.get(lesson.key)
        if entry is None:
            raise DataError(
                f"record {lesson.record_id} is not in the teacher cache",
                code="distill.cache-missing",
                where=str(self.folder),
                expected="every record captured before it is learned from",
                next="run the job again with --resume",
            )
        if self._map is None:
            self._map = np.memmap(self._rows_path, dtype=self.dtype, mode="r", shape=(self._end,))
        return self._map[entry["row"] : entry["row"] + entry["rows"]]

    def target(self, lessons: Sequence[Lesson], device: torch.device | None = None) -> Target:
        """Return the targets of several lessons, one row for each position, in order."""
        rows = np.concatenate([self.read(lesson) for lesson in lessons])
        ids = torch.from_numpy(rows["ids"].astype(np.int64)).to(device)
        logprobs = torch.from_numpy(rows["logprobs"].astype(np.float32)).to(device)
        if self.header.mode == "sampled":
            counts = torch.from_numpy(rows["counts"].astype(np.float32)).to(device)
            weights = counts / counts.sum(-1, keepdim=True)
            return Sampled(ids, weights, logprobs, self.header.temperature)
        tail = torch.from_numpy(rows["tail"].astype(np.float32)).to(device)
        return TopKTail(ids, logprobs, tail, self.header.temperature)

    def close(self) -> None:
        """Sync the index and give the cache free."""
        self._map = None
        self._journal.close()
        self._lock.close()

    def _check_length(self) -> None:
        found = self._rows_path.stat().st_size
        if found < self.size_bytes:
            raise IntegrityError(
                f"the teacher cache is cut off: {found} bytes",
                code="distill.cache-damaged",
                where=str(self._rows_path),
                expected=f"{self.size_bytes} bytes",
                next=f"remove {self.folder} and run again",
            )


def _compare(path: Path, header: CacheHeader) -> None:
    try:
        kept = CacheHeader.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(
            "the header of the teacher cache cannot be read",
            code="distill.cache-damaged",
            where=str(path),
            expected="the JSON that capture wrote",
            next=f"remove {path.parent} and run again",
        ) from error
    for name in CacheHeader.model_fields:
        was, now = getattr(kept, name), getattr(header, name)
        if was != now and name not in _NOT_COMPARED:
            raise DataError(
                f"the teacher cache was made with another {name}: {was!r:.80}",
                code="distill.cache-mismatch",
                where=f"{path} {name}",
                expected=f"{now!r:.80}",
                next="give this job another targets.cache folder",
            )
