"""Open snapshots of a folder, and the content that a new index can reuse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import ARTIFACT_FILE, digest_like, read_artifact
from stillroom.provenance.sources import LEDGER
from stillroom.rag.search_engines.dense import (
    DEFAULT_OVERSAMPLING,
    ApproximateEngine,
    DenseEngine,
    MeasuredRecall,
)
from stillroom.rag.search_engines.keyword import KeywordEngine
from stillroom.rag.search_engines.late_interaction import TokenEngine
from stillroom.rag.search_engines.sparse import SparseEngine
from stillroom.rag.storage.filters import SQLITE_DIALECT, SqlCondition, SqlDialect
from stillroom.rag.storage.folder.catalog import (
    Catalog,
    SnapshotLease,
    get_snapshot_file,
    is_being_written,
)
from stillroom.rag.storage.folder.segments import Segment, open_segment
from stillroom.rag.storage.protocol import MEASURED_RECALL
from stillroom.rag.storage.snapshots import (
    FOREVER,
    PASSAGE_BITS,
    DocumentTable,
    PassageRows,
    Snapshot,
    make_damage_error,
)
from stillroom.rag.types import AuxiliaryVectors, DocumentEntry, DocumentMetadata, EmbeddingDigest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FolderDocument",
    "FolderReusableContent",
    "FolderSnapshot",
    "SegmentDenseSearch",
    "open_folder_snapshot",
    "read_embedding_digests",
    "read_passages",
]


_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class FolderSnapshot:
    """An open snapshot, kept from removal, with its segments."""

    folder: Path
    catalog: Catalog
    snapshot: Snapshot
    lease: SnapshotLease
    segments: tuple[Segment, ...]

    @property
    def where(self) -> Path:
        """Path of the catalog, for errors."""
        return self.catalog.path

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""
        return self.catalog.description

    @property
    def dialect(self) -> SqlDialect:
        """SQL dialect of conditions."""
        return SQLITE_DIALECT

    @property
    def offsets(self) -> dict[int, int]:
        """First row of each segment, by its number, in the concatenation of segments."""
        offsets, first = {}, 0
        for segment in self.segments:
            offsets[segment.number] = first
            first += len(segment.vectors)
        return offsets

    @property
    def size(self) -> int:
        """Number of rows in the segments, including rows without a document."""
        return sum(len(segment.vectors) for segment in self.segments)

    def load(self, condition: SqlCondition, within: DocumentTable | None = None) -> DocumentTable:
        """Return the documents that match a condition, in order of path.

        Raises:
            IntegrityError: If the segment of a document is missing.
        """
        columns = self.catalog.load(self.snapshot.number, condition.sql, dict(condition.values))
        keys, contents, counts, segments, starts = (
            np.ascontiguousarray(column) for column in columns
        )
        return DocumentTable(keys, contents, counts, starts + _look_up_starts(segments, self))

    def list_fields(self, condition: SqlCondition) -> Sequence[tuple[str, str]]:
        """Return name and type of every field of documents that match a condition."""
        return self.catalog.list_fields(self.snapshot.number, condition.sql, dict(condition.values))

    def list_values(self, name: str, keys: Sequence[int]) -> Sequence[tuple[int, str | float]]:
        """Return the values of a field among documents, each with its document's key."""
        return self.catalog.list_values(name, keys)

    def open_keywords(self, everyone: PassageRows, population: SqlCondition) -> KeywordEngine:
        """Return a keyword search engine over a population."""
        return KeywordEngine([segment.postings for segment in self.segments], everyone.mask)

    def open_dense(self, everyone: PassageRows, population: SqlCondition) -> SegmentDenseSearch:
        """Return a vector search engine over a population."""
        parts = [segment.vectors for segment in self.segments]
        codes = [segment.codes for segment in self.segments]
        exact = DenseEngine(parts, everyone.mask, codes=codes)
        measured = self.get_setting(MEASURED_RECALL)
        approximate = ApproximateEngine(
            exact,
            sketches=[segment.sketches for segment in self.segments],
            oversampling=measured["oversampling"] if measured else DEFAULT_OVERSAMPLING,
        )
        return SegmentDenseSearch(exact, approximate)

    def open_sparse(self, everyone: PassageRows) -> SparseEngine | None:
        """Return a search engine over the term weights, or None where there are none."""
        parts = [segment.extras.weights for segment in self.segments]
        present = [part for part in parts if part is not None]
        return (
            SparseEngine(present, everyone.mask) if present and len(present) == len(parts) else None
        )

    def open_tokens(self, everyone: PassageRows) -> TokenEngine | None:
        """Return a search engine over the token vectors, or None where there are none."""
        parts = [segment.extras.tokens for segment in self.segments]
        present = [part for part in parts if part is not None]
        return (
            TokenEngine(present, everyone.mask) if present and len(present) == len(parts) else None
        )

    def get_setting(self, name: str) -> Any:
        """Return the setting stored under a name, or None."""
        return self.catalog.get_setting(name)

    def vectors_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors by their rows in the concatenation of segments, (N, D) float32."""
        width = self.segments[0].vectors.shape[1] if self.segments else 0
        vectors = np.empty((len(positions), width), dtype=np.float32)
        for segment, first in zip(self.segments, self.offsets.values(), strict=True):
            is_inside = (positions >= first) & (positions < first + len(segment.vectors))
            vectors[is_inside] = segment.vectors[positions[is_inside] - first]
        return vectors

    def list_deleted(self, newer: FolderSnapshot) -> list[int] | None:
        """Return the documents deleted since this snapshot, or None if there were other changes."""
        if [segment.number for segment in self.segments] != [
            segment.number for segment in newer.segments
        ]:
            return None
        return self.catalog.list_deleted(self.snapshot.number, newer.snapshot.number)

    def is_newest(self) -> bool:
        """Return whether no newer snapshot was committed."""
        return self.catalog.find_snapshot().number == self.snapshot.number

    def follow(self) -> FolderSnapshot:
        """Return the newest snapshot, opened beside this one; open segments are shared.

        Raises:
            IntegrityError: If a new file is missing or incomplete.
        """
        lease, snapshot = _lease_snapshot(self.folder, self.catalog, None)
        try:
            known = {segment.number: segment for segment in self.segments}
            segments = tuple(
                known.get(entry.number) or open_segment(self.folder, entry, verify=False)
                for entry in self.catalog.segments(snapshot.number)
            )
        except BaseException:
            lease.release()
            raise
        return FolderSnapshot(self.folder, self.catalog, snapshot, lease, segments)

    def passage(self, content: int, position: int) -> bytes:
        """Return a passage as JSON, by its content's key and its position from 0."""
        return self.catalog.passage(content, position)

    def locate_passage(self, passage_id: str) -> tuple[int, int] | None:
        """Return the content's key and the position of a passage, or None."""
        return self.catalog.locate_passage(passage_id)

    def document(self, content: int) -> bytes:
        """Return a parsed document as JSON."""
        return self.catalog.document(content)

    def locate_document(self, document_id: str) -> int | None:
        """Return the key of a document's content, or None."""
        return self.catalog.locate_document(document_id)

    def close(self) -> None:
        """Close the catalog and release the snapshot."""
        self.catalog.close()
        self.lease.release()


@dataclass(frozen=True, slots=True)
class SegmentDenseSearch:
    """Vector search over segments; filters by masks and ignores conditions."""

    exact: DenseEngine
    near: ApproximateEngine

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: SqlCondition,
        is_near: bool = False,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the best ``k`` positions and their scores, best first."""
        engine = self.near if is_near else self.exact
        return engine.search(vector, k, mask=mask)

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure recall of approximate search, and use the smallest sufficient oversampling."""
        return self.near.calibrate(queries, k=k, least=least)


def open_folder_snapshot(
    folder: Path, selector: int | str | None = None, *, verify: bool
) -> FolderSnapshot:
    """Open a snapshot of the index in ``folder``, by default the newest.

    Without ``verify`` only the files' sizes are compared.

    Raises:
        DataError: If there is no such snapshot, or it was removed.
        IntegrityError: If a file is missing, incomplete or changed.
    """
    catalog = Catalog(folder)
    lease: SnapshotLease | None = None
    try:
        lease, snapshot = _lease_snapshot(folder, catalog, selector)
        if verify:
            _check_catalog(folder, catalog.find_snapshot())
        segments = tuple(
            open_segment(folder, entry, verify=verify)
            for entry in catalog.segments(snapshot.number)
        )
    except BaseException:
        catalog.close()
        if lease is not None:
            lease.release()
        raise
    return FolderSnapshot(folder, catalog, snapshot, lease, segments)


def _lease_snapshot(
    folder: Path, catalog: Catalog, selector: int | str | None
) -> tuple[SnapshotLease, Snapshot]:
    """Return a locked snapshot; retry if it is removed meanwhile."""
    for _ in range(_ATTEMPTS):
        snapshot = catalog.find_snapshot(selector)
        lease = SnapshotLease.take(folder, snapshot.number)
        if lease is None:
            continue
        if any(known.number == snapshot.number for known in catalog.snapshots()):
            return lease, snapshot
        lease.release()
    raise make_damage_error(get_snapshot_file(folder, snapshot.number), "it is missing")


def _look_up_starts(segments: NDArray[np.int64], opened: FolderSnapshot) -> NDArray[np.int64]:
    """Return the first row of each document's segment."""
    known = opened.offsets
    missing = set(segments.tolist()) - known.keys()
    if missing:
        raise make_damage_error(
            opened.catalog.path, f"it names segments that are missing: {missing}"
        )
    numbers = sorted(known)
    if not numbers:
        return np.zeros(0, dtype=np.int64)
    firsts = np.array([known[number] for number in numbers], dtype=np.int64)
    starts: NDArray[np.int64] = firsts[np.searchsorted(np.array(numbers), segments)]
    return starts


def _check_catalog(folder: Path, snapshot: Snapshot) -> None:
    """Check the catalog's bytes against artifact.json, if that describes the same snapshot.

    The check is skipped where a writer is active or was interrupted, and for a folder without
    artifact.json: then only SQLite's own checks apply.
    """
    path = folder / LEDGER
    for _ in range(_ATTEMPTS):
        recorded = _read_recorded_digest(folder, snapshot)
        if recorded is None:
            return
        before = path.stat()
        size, digest = before.st_size, digest_like(path, recorded[1])
        if (size, digest) == recorded:
            return
        after = path.stat()
        is_still = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if (
            is_still
            and _read_recorded_digest(folder, snapshot) == recorded
            and not is_being_written(folder)
        ):
            break
    else:
        return
    if path.with_name(f"{LEDGER}-journal").exists() or _is_staged(folder):
        return
    if size != recorded[0]:
        raise make_damage_error(path, f"it has {size} bytes instead of {recorded[0]}")
    raise make_damage_error(path, "its bytes have changed")


def _read_recorded_digest(folder: Path, snapshot: Snapshot) -> tuple[int, str] | None:
    """Return size and digest of the catalog in artifact.json at this snapshot, or None."""
    if not (folder.parent / ARTIFACT_FILE).is_file():
        return None
    try:
        artifact = read_artifact(folder.parent)
        if artifact.details.get("snapshot") != snapshot.number:
            return None
        entries = (*artifact.files, *artifact.timed_files)
        matching = [entry for entry in entries if entry.path == f"{folder.name}/{LEDGER}"]
        return (matching[0].size_bytes, matching[0].digest) if matching else None
    except DataError:
        return None


def _is_staged(folder: Path) -> bool:
    """Return whether a writer was interrupted while it staged documents."""
    catalog = Catalog(folder)
    try:
        return bool(catalog.query("SELECT 1 FROM settings WHERE name = 'staged'"))
    finally:
        catalog.close()


@dataclass(frozen=True, slots=True)
class FolderDocument:
    """A document of an index, read from its catalog and segments."""

    entry: DocumentEntry
    content: int
    reusable: FolderReusableContent

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.reusable.catalog.document(self.content)

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return read_passages(self.reusable.catalog, self.content)

    def marks(self) -> Sequence[EmbeddingDigest]:
        """Return the digest of each passage's embedded text."""
        return read_embedding_digests(self.reusable.catalog, self.content)

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        return self.reusable.vectors_of(self.content, self.entry.passages)

    def extras(self) -> AuxiliaryVectors:
        """Return the auxiliary vectors of the passages."""
        return self.reusable.extras_of(self.content, self.entry.passages)


class FolderReusableContent:
    """Documents and vectors of an index: the newest snapshot's, and others still on disk."""

    def __init__(self, opened: FolderSnapshot) -> None:
        self.opened = opened
        self.catalog = opened.catalog
        self.segments: dict[int, Segment] = {segment.number: segment for segment in opened.segments}

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""
        return self.catalog.description

    def list_parts(self) -> list[tuple[FolderDocument, DocumentMetadata]]:
        """Return every document of the newest snapshot with its metadata, in order of path."""
        rows = self.catalog.query(
            "SELECT d.path, c.digest, c.key, c.passages, c.truncated, d.tenant, d.labels, d.fields "
            "FROM documents d JOIN contents c ON c.key = d.content WHERE d.died = ? "
            "ORDER BY d.path",
            (FOREVER,),
        )
        return [
            (
                self._recall(*row),
                DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels))),
            )
            for *row, tenant, labels, fields in rows
        ]

    def take(self, path: str, digest: str) -> FolderDocument | None:
        """Return the newest snapshot's document of a path and digest, or None."""
        rows = self.catalog.query(
            "SELECT c.key, c.passages, c.truncated FROM documents d JOIN contents c "
            "ON c.key = d.content WHERE d.path = ? AND d.died = ? AND c.digest = ?",
            (path, FOREVER, digest),
        )
        return self._recall(path, digest, *rows[0]) if rows else None

    def find_same(self, digest: str) -> list[FolderDocument]:
        """Return the newest snapshot's documents with the same bytes, in order of path."""
        rows = self.catalog.query(
            "SELECT d.path, c.digest, c.key, c.passages, c.truncated FROM contents c "
            "JOIN documents d ON d.content = c.key "
            "WHERE c.digest = ? AND d.died = ? ORDER BY d.path",
            (digest, FOREVER),
        )
        return [self._recall(*row) for row in rows]

    def vector_of(self, embedded: bytes) -> tuple[NDArray[Any], bool] | None:
        """Return the vector of a text, and whether the text was truncated, or None."""
        for segment, row, is_truncated in self._places_of(embedded):
            return segment.vectors[row], is_truncated
        return None

    def extras_of_text(self, embedded: bytes) -> AuxiliaryVectors | None:
        """Return the auxiliary vectors of a passage by the digest of its text, or None."""
        for segment, row, _ in self._places_of(embedded):
            return segment.extras.span(row, row + 1)
        return None

    def _places_of(self, embedded: bytes) -> Iterator[tuple[Segment, int, bool]]:
        """Yield segment and row of passages with a text, and whether it was truncated."""
        rows = self.catalog.query(
            "SELECT a.key, a.truncated, p.segment, p.start FROM passages a "  # noqa: S608
            f"JOIN documents d ON d.content = a.key >> {PASSAGE_BITS} "
            "JOIN placements p ON p.document = d.key WHERE a.embedded = ?",
            (embedded,),
        )
        for key, truncated, segment, start in rows:
            if segment in self.segments:
                row = start + (key & ((1 << PASSAGE_BITS) - 1))
                yield self.segments[segment], row, bool(truncated)

    def vectors_of(self, content: int, count: int) -> NDArray[Any]:
        """Return the vectors of a content's passages, (N, D)."""
        segment, start = self._find(content)
        matrix: NDArray[Any] = np.asarray(segment.vectors[start : start + count])
        return matrix

    def extras_of(self, content: int, count: int) -> AuxiliaryVectors:
        """Return the auxiliary vectors of a content's passages."""
        segment, start = self._find(content)
        return segment.extras.span(start, start + count)

    def _find(self, content: int) -> tuple[Segment, int]:
        rows = self.catalog.query(
            "SELECT p.segment, p.start FROM documents d JOIN placements p "
            "ON p.document = d.key WHERE d.content = ? ORDER BY p.died DESC",
            (content,),
        )
        for segment, start in rows:
            if segment in self.segments:
                return self.segments[segment], int(start)
        raise KeyError(content)

    def close(self) -> None:
        """Close the index."""
        self.opened.close()

    def _recall(
        self, path: str, digest: str, content: int, passages: int, truncated: int
    ) -> FolderDocument:
        return FolderDocument(DocumentEntry(path, digest, passages, truncated), content, self)


_PASSAGES = "SELECT {} FROM passages WHERE key >= ? AND key < ? ORDER BY key"


def read_passages(catalog: Catalog, content: int) -> list[bytes]:
    """Return the passages of a content as lines of JSON, in order."""
    return [bytes(body) for (body,) in catalog.query(_PASSAGES.format("body"), _key_range(content))]


def read_embedding_digests(catalog: Catalog, content: int) -> list[EmbeddingDigest]:
    """Return the digests of the embedded texts of a content's passages, in order."""
    rows = catalog.query(_PASSAGES.format("embedded, truncated"), _key_range(content))
    return [EmbeddingDigest(bytes(embedded), bool(truncated)) for embedded, truncated in rows]


def _key_range(content: int) -> tuple[int, int]:
    return content << PASSAGE_BITS, (content + 1) << PASSAGE_BITS
