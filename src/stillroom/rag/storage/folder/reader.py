"""Open snapshots of a folder, and the content that a new index can reuse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

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
    CatalogTables,
    SnapshotLease,
    get_snapshot_file,
    is_being_written,
)
from stillroom.rag.storage.folder.segments import Segment, open_segment
from stillroom.rag.storage.protocol import MEASURED_RECALL
from stillroom.rag.storage.snapshots import (
    PASSAGE_BITS,
    DocumentTable,
    PassageRows,
    Snapshot,
    make_damage_error,
)
from stillroom.rag.storage.tables import ALIVE, ReusableTables, ReusedDocument, SnapshotTables
from stillroom.rag.types import AuxiliaryVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FolderReusableContent",
    "FolderSnapshot",
    "SegmentDenseSearch",
    "check_catalog_bytes",
    "open_folder_snapshot",
]


_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class FolderSnapshot(CatalogTables, SnapshotTables):
    """An open snapshot, kept from removal, with its segments."""

    folder: Path
    catalog: Catalog
    snapshot: Snapshot
    lease: SnapshotLease
    segments: tuple[Segment, ...]

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
        rows = self.select(
            "SELECT d.key, d.content, d.passages, p.segment, p.start "  # noqa: S608
            "FROM documents d "
            f"JOIN placements p ON p.document = d.key AND {ALIVE.format('p')} "
            f"WHERE {ALIVE.format('d')} AND ({condition.sql}) ORDER BY d.path",
            condition,
        )
        columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        keys, contents, counts, segments, starts = (
            np.ascontiguousarray(column) for column in columns
        )
        return DocumentTable(keys, contents, counts, starts + _look_up_starts(segments, self))

    def list_values(self, name: str, keys: Sequence[int]) -> Sequence[tuple[int, str | float]]:
        """Return the values of a field among documents, each with its document's key."""
        return self.query(
            "SELECT document, value FROM fields "
            "WHERE name = :name AND document IN (SELECT value FROM json_each(:keys))",
            {"name": name, "keys": json.dumps(list(keys))},
        )

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
            check_catalog_bytes(folder, catalog.find_snapshot())
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
        raise opened.damaged(f"it names segments that are missing: {missing}")
    numbers = sorted(known)
    if not numbers:
        return np.zeros(0, dtype=np.int64)
    firsts = np.array([known[number] for number in numbers], dtype=np.int64)
    starts: NDArray[np.int64] = firsts[np.searchsorted(np.array(numbers), segments)]
    return starts


def check_catalog_bytes(folder: Path, snapshot: Snapshot) -> None:
    """Check the catalog's bytes against artifact.json, if that describes the same snapshot.

    The check is skipped where a writer is active or was interrupted, and for a folder without
    artifact.json: then only SQLite's own checks apply.

    Raises:
        IntegrityError: If they are not those recorded.
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
    with closing(Catalog(folder)) as catalog:
        return bool(catalog.query("SELECT 1 FROM settings WHERE name = 'staged'"))


class FolderReusableContent(ReusableTables):
    """Documents and vectors of an index: the newest snapshot's, and others still on disk."""

    def __init__(self, opened: FolderSnapshot) -> None:
        super().__init__(opened)
        self.opened = opened
        self.catalog = opened.catalog
        self.segments: dict[int, Segment] = {segment.number: segment for segment in opened.segments}

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""
        return self.catalog.description

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

    @override
    def vectors_of(self, part: ReusedDocument) -> NDArray[Any]:
        segment, start = self._find(part.content)
        matrix: NDArray[Any] = np.asarray(segment.vectors[start : start + part.entry.passages])
        return matrix

    @override
    def extras_of(self, part: ReusedDocument) -> AuxiliaryVectors:
        segment, start = self._find(part.content)
        return segment.extras.span(start, start + part.entry.passages)

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
