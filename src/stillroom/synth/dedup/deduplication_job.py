"""Near-duplicate removal job: every pair above a Jaccard threshold, by an exact prefix join.

Files and counts only: the join is ``stillroom.text.dedup.near_duplicates``; MinHash is the filter
``duplicate``.

Pairs of preference are duplicates only if their rejected answers are, too, and records only if
their labels of KTO (booleans, 0 and 1) are equal: a pair with another rejected answer, and a row
with the other label, teach something else.

The result does not depend on the order of the rows: of several duplicates, the record with the best
score is kept, then the one with the lowest id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError, count_noun
from stillroom.jobs import Job, atomic_write
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Record, RecordWriter, combine_origins, read_records
from stillroom.records.files import find_record_file
from stillroom.records.streams import ByteSpan, split_lines
from stillroom.text.dedup.near_duplicates import Duplicates, find_duplicates
from stillroom.text.dedup.shingles import ShingleSets, build_shingle_sets, join_shingle_sets

if TYPE_CHECKING:
    from stillroom.synth.jobs.dedup import DedupRecipe

__all__ = ["DUPLICATES", "deduplicate"]

DUPLICATES = "duplicates.jsonl"
_CHECK_EVERY = 4096
_PIECE_BYTES = 16 << 20


def deduplicate(recipe: DedupRecipe, job: Job) -> Artifact:
    """Write the records without near duplicates.

    Writes ``records.jsonl``, in the order of the files, and ``duplicates.jsonl``: each rejected
    record, the record it duplicates, and their exact Jaccard similarity. Unreadable rows are
    counted, and listed there too. Memory use is some hundred bytes per record and some tens per
    similar pair; the n-grams are stored in the job's scratch folder.

    The artifact's details are the counts: ``read``, ``kept``, ``fell``, ``unreadable``,
    ``wordless``.

    Raises:
        DataError: If a file is missing or damaged, or no record is readable.
    """
    unreadable: list[dict[str, Any]] = []
    columns = _Columns()
    sets = _hash_records(recipe, job, columns, unreadable)
    ids, scores = columns.ids, columns.scores
    if not ids:
        raise DataError(
            "no record could be read",
            code="synth.no-records",
            where=", ".join(map(str, recipe.paths)),
            expected="at least one record",
            next="name files of records",
        )
    _check_fields(recipe, sets, scores.array(), job)
    with job.phase("compare", len(ids), "records") as progress:
        order = np.lexsort((ids.array(), -scores.array()))
        duplicates = find_duplicates(
            sets,
            threshold=recipe.threshold,
            order=order,
            scratch=job.scratch,
            also=_hash_rejected(recipe, job) if columns.has_rejected else None,
            groups=columns.groups.array() if len(columns.labels) > 1 else None,
        )
        progress.advance(len(ids))
    counts = {
        "read": len(ids),
        "kept": len(ids) - len(duplicates),
        "fell": len(duplicates),
        "unreadable": len(unreadable),
        "wordless": int((sets.sizes == 0).sum()),
    }
    is_duplicate = np.zeros(len(ids), dtype=bool)
    is_duplicate[duplicates.index] = True
    origin = _write(recipe, job, is_duplicate)
    _write_duplicates(job.output / DUPLICATES, duplicates, ids.array(), unreadable)
    sizes = np.unique(np.unique(duplicates.kept, return_counts=True)[1], return_counts=True)
    cluster_sizes = dict(zip((sizes[0] + 1).astype(str).tolist(), sizes[1].tolist(), strict=True))
    (job.warn if unreadable else job.say)(
        f"{counts['kept']} of {count_noun(counts['read'], 'record')} kept, {counts['fell']} are "
        "near duplicates "
        f"of a kept one; {counts['unreadable']} unreadable, {counts['wordless']} wordless"
    )
    if few := int((sets.sizes == 1).sum()):
        (job.warn if few + counts["wordless"] == counts["read"] else job.say)(
            f"{few} records hold at most {recipe.ngram_size} words: only equal ones are found"
        )
    details = counts | {"cluster_sizes": cluster_sizes}
    parents = [make_parent("records", path, job.out) for path in recipe.paths]
    return job.finish("records", parents=parents, origin=origin, details=details)


def _check_fields(
    recipe: DedupRecipe, sets: ShingleSets, scores: npt.NDArray[np.float64], job: Job
) -> None:
    """Raise an error if no record has a field that the recipe names; say how many lack one."""
    lacking = int(np.isneginf(scores).sum()) if recipe.prefer else 0
    if recipe.fields and not sets.sizes.any():
        setting, names = "fields", f"a word in {', '.join(recipe.fields)}"
    elif lacking == len(scores):
        setting, names = "prefer", f"a number in {recipe.prefer}"
    else:
        if lacking:
            job.warn(f"{lacking} of {len(scores)} records have no number in {recipe.prefer}")
        return
    raise DataError(
        f"no record has {names}",
        code="synth.no-field",
        where=setting,
        expected="fields that the records have",
        next=f"correct {setting}",
    )


def _hash_records(
    recipe: DedupRecipe, job: Job, columns: _Columns, unreadable: list[dict[str, Any]]
) -> ShingleSets:
    """Read all records, note what else is compared, and return the hashes of their n-grams."""
    scratch = job.scratch / "shingles.u64"
    with job.phase("read", unit="records") as progress:

        def texts() -> Iterator[str]:
            for _, record in _read(recipe, unreadable):
                if progress.done % _CHECK_EVERY == 0:
                    job.check_cancelled()
                columns.append(_describe(record, recipe))
                progress.advance()
                yield _text(record, recipe.fields)

        def blocks() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
            for piece in _read_parallel(recipe, job, unreadable):
                for row in piece.rows:
                    columns.append(row)
                progress.advance(len(piece.rows))
                yield piece.values, piece.sizes

        if job.engine.is_remote:
            return join_shingle_sets(blocks(), scratch=scratch)
        return build_shingle_sets(texts(), n=recipe.ngram_size, scratch=scratch)


def _hash_rejected(recipe: DedupRecipe, job: Job) -> ShingleSets:
    """Return the hashes of the n-grams of the rejected answers; records without one have none."""
    texts = (_rejected(record) for _, record in _read(recipe))
    return build_shingle_sets(texts, n=recipe.ngram_size, scratch=job.scratch / "rejected.u64")


class _Column:
    """A growing column of numbers or short strings, stored compactly as numpy arrays."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._packed: list[npt.NDArray[Any]] = []
        self._tail: list[Any] = []

    def __len__(self) -> int:
        return sum(map(len, self._packed)) + len(self._tail)

    def append(self, value: object) -> None:
        self._tail.append(value)
        if len(self._tail) == _CHECK_EVERY:
            self._pack()

    def array(self) -> npt.NDArray[Any]:
        """Return the column as one array."""
        self._pack()
        self._packed = [np.concatenate(self._packed)] if self._packed else []
        return self._packed[0] if self._packed else np.zeros(0, dtype=self._kind)

    def _pack(self) -> None:
        if self._tail:
            self._packed.append(np.array(self._tail, dtype=self._kind))
            self._tail = []


@dataclass(frozen=True, slots=True)
class _Row:
    """What is noted of a record: id, score, label, and whether it has a rejected answer."""

    id: bytes
    score: float
    label: str
    has_rejected: bool


class _Columns:
    """The rows of all records as columns; labels are numbered."""

    def __init__(self) -> None:
        self.ids, self.scores, self.groups = _Column("S24"), _Column("f8"), _Column("i8")
        self.labels: dict[str, int] = {}
        self.has_rejected = False

    def append(self, row: _Row) -> None:
        self.ids.append(row.id)
        self.scores.append(row.score)
        self.groups.append(self.labels.setdefault(row.label, len(self.labels)))
        self.has_rejected |= row.has_rejected


def _read(
    recipe: DedupRecipe, unreadable: list[dict[str, Any]] | None = None
) -> Iterator[tuple[Path, Record]]:
    for path in recipe.paths:

        def drop(row: int, reason: str, path: Path = path) -> None:
            if unreadable is not None:
                unreadable.append({"file": str(path), "row": row, "reason": reason})

        for record in read_records(path, on_drop=drop):
            yield path, record


@dataclass(frozen=True)
class _PieceResult:
    """Records that a worker read from a piece of a file, and its number of lines."""

    lines: int
    rows: list[_Row]
    dropped: list[tuple[int, str]]
    values: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _ReadTask:
    """Worker task: read pieces of files and hash the n-grams of their records."""

    recipe: DedupRecipe
    concurrency: int = 1

    def open(self) -> Callable[[Sequence[tuple[Path, ByteSpan | None]]], list[_PieceResult]]:
        return lambda block: [_read_part(self.recipe, *piece) for piece in block]


def _read_part(recipe: DedupRecipe, path: Path, span: ByteSpan | None) -> _PieceResult:
    dropped: list[tuple[int, str]] = []
    records = list(read_records(path, on_drop=lambda *row: dropped.append(row), span=span))
    sets = build_shingle_sets(
        (_text(record, recipe.fields) for record in records), n=recipe.ngram_size
    )
    lines = 0
    if span is not None:
        with path.open("rb") as file:
            file.seek(span[0])
            lines = file.read(span[1] - span[0]).count(b"\n")
    rows = [_describe(record, recipe) for record in records]
    return _PieceResult(lines, rows, dropped, sets.values, sets.sizes)


def _read_parallel(
    recipe: DedupRecipe, job: Job, unreadable: list[dict[str, Any]]
) -> Iterator[_PieceResult]:
    """Yield the results of the workers for all files, piece by piece in order."""
    pieces: list[tuple[Path, ByteSpan | None]] = []
    named = {find_record_file(path).absolute(): path for path in recipe.paths}
    for path in recipe.paths:
        file = find_record_file(path).absolute()  # workers have their own working folders
        pieces += [(file, span) for span in split_lines(file, _PIECE_BYTES)]
    results = job.engine.map(_ReadTask(recipe), pieces, pause=job.check_cancelled)
    first_row = 0
    for (file, span), part in zip(pieces, results, strict=True):
        first_row = 0 if span is None or span[0] == 0 else first_row
        unreadable += [
            {"file": str(named[file]), "row": first_row + row, "reason": reason}
            for row, reason in part.dropped
        ]
        first_row += part.lines
        yield part


def _text(record: Record, fields: Sequence[str]) -> str:
    if not fields:
        return "\n".join(message.content for message in record.messages)
    return "\n".join(str(record.fields.get(name, "")) for name in fields)


def _describe(record: Record, recipe: DedupRecipe) -> _Row:
    """Return what is noted of a record; fields that are named are all that is compared."""
    label, rejected = ("", "") if recipe.fields else (_label(record), _rejected(record))
    return _Row(record.id.encode(), _score(record, recipe.prefer), label, bool(rejected))


def _label(record: Record) -> str:
    """Return a label of KTO as ``1`` or ``0``; empty for others, such as classes and scores."""
    text = str(record.fields.get("label")).strip().casefold()
    return {"true": "1", "1": "1", "1.0": "1", "false": "0", "0": "0", "0.0": "0"}.get(text, "")


def _rejected(record: Record) -> str:
    value = record.fields.get("rejected")
    return "" if value is None else str(value)


def _score(record: Record, prefer: str) -> float:
    value = record.fields.get(prefer) if prefer else None
    return float(value) if isinstance(value, int | float) else float("-inf")


def _write(recipe: DedupRecipe, job: Job, is_duplicate: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Write the kept records; return their common origin."""
    origins = {}
    with RecordWriter(job.output / "records.jsonl") as writer:
        for index, (_, record) in enumerate(_read(recipe)):
            if not is_duplicate[index]:
                writer.write(record)
                origins[json.dumps(record.origin.to_json(), sort_keys=True)] = record.origin
    return combine_origins(origins.values()).to_json()


def _write_duplicates(
    path: Path,
    duplicates: Duplicates,
    ids: npt.NDArray[np.bytes_],
    unreadable: list[dict[str, Any]],
) -> None:
    with atomic_write(path) as file:
        for duplicate in duplicates:
            row = {
                "reason": "duplicate",
                "id": ids[duplicate.index].decode(),
                "kept": ids[duplicate.kept].decode(),
                "jaccard": round(duplicate.similarity, 6),
            }
            file.write(json.dumps(row) + "\n")
        for bad in unreadable:
            file.write(json.dumps(bad, ensure_ascii=False) + "\n")
