"""Commit of a change: staged documents, the publishing transaction, and segment merges.

A commit runs in a transaction of the writer: readers that open or refresh after it see all of its
changes, others none.

Documents are staged in short transactions before, so that readers never wait long. A ``staged`` row
in the settings marks documents staged by an interrupted writer; the next writer removes them.

A search costs a little per segment, and rewriting rows costs more: the smallest segments are merged
first, and only as many as needed to limit their number, with those that are small compared to the
rows gathered so far. Every row is rewritten a logarithmic number of times as the index grows.

Source: the log-structured merge tree, O'Neil et al. 1996, doi:10.1007/s002360050048; as Lucene
merges segments by tiers.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.storage.filters import derive_fields, list_values
from stillroom.rag.storage.folder.catalog import Catalog, SegmentEntry
from stillroom.rag.storage.folder.segments import MergedSegment, open_segment
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import (
    FOREVER,
    PASSAGE_BITS,
    digest_document,
    get_bucket,
    make_damage_error,
)
from stillroom.rag.storage.tables import describe_snapshot, digest_changed_buckets
from stillroom.rag.types import DocumentMetadata, StagedDocument, digest_content

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SnapshotCommit", "choose_merged_segments", "open_transaction", "stage_documents"]


@dataclass(frozen=True, slots=True)
class _PlacedDocument:
    """A new version of a document: content, path of the staged document, metadata and rows."""

    content: int
    path: str
    facts: DocumentMetadata
    segment: int
    start: int


class SnapshotCommit:
    """A change of the index that becomes the snapshot of a number."""

    def __init__(self, connection: sqlite3.Connection, change: IndexUpdate, number: int) -> None:
        self.connection, self.change, self.number = connection, change, number

    def list_expired(self) -> set[int]:
        """Return the keys of documents whose rows are not needed after the change."""
        return (self._list_replaced() | set(self.change.removes)) - {
            key for *_, key in self.change.moves
        }

    def publish(
        self,
        contents: Sequence[int],
        entry: SegmentEntry | None,
        merged: Sequence[MergedSegment],
        description: Mapping[str, Any],
        reason: str,
    ) -> str:
        """Apply the change within a transaction; return the new snapshot's digest."""
        self._replace()
        start = sum(int(segment.kept.sum()) for segment in merged)
        for document in list(self._place(contents, start)):
            self._insert(document)
        if entry is not None:
            self._register(entry, merged)
        self._retire_empty()
        if self.change.failures is not None:
            self._note_failures(self.change.failures)
        return self._finish(description, reason)

    def _list_replaced(self) -> set[int]:
        current = "SELECT key FROM documents WHERE path = ? AND died = ?"
        return {
            int(key)
            for part in self.change.parts
            for (key,) in self.connection.execute(current, (part.entry.path, FOREVER))
        }

    def _replace(self) -> None:
        """End the versions that the change replaces or removes."""
        moved_keys = {key for *_, key in self.change.moves}
        keys = self._list_replaced() | {*self.change.removes, *self.change.facts} | moved_keys
        self.connection.executemany(
            "UPDATE documents SET died = ? WHERE key = ? AND died = ?",
            [(self.number, key, FOREVER) for key in sorted(keys)],
        )

    def _place(self, contents: Sequence[int], start: int) -> Iterator[_PlacedDocument]:
        """Yield the new versions of documents with their rows."""
        content_keys = iter(contents)
        for part, facts in self.change.puts:
            yield _PlacedDocument(next(content_keys), part.entry.path, facts, self.number, start)
            start += part.entry.passages
        for part, facts, key in self.change.moves:
            segment, row = self._placement(key)
            yield _PlacedDocument(next(content_keys), part.entry.path, facts, segment, row)
        for key, facts in sorted(self.change.facts.items()):
            content, path = self.connection.execute(
                "SELECT content, path FROM documents WHERE key = ?", (key,)
            ).fetchone()
            segment, row = self._placement(key)
            yield _PlacedDocument(int(content), str(path), facts, segment, row)

    def _placement(self, key: int) -> tuple[int, int]:
        segment, start = self.connection.execute(
            "SELECT segment, start FROM placements WHERE document = ? AND died = ?", (key, FOREVER)
        ).fetchone()
        return int(segment), int(start)

    def _insert(self, document: _PlacedDocument) -> None:
        count, truncated, mark, derived = self.connection.execute(
            "SELECT passages, truncated, mark, fields FROM contents WHERE key = ?",
            (document.content,),
        ).fetchone()
        cursor = self.connection.execute(
            "INSERT INTO documents(content, path, passages, truncated, bucket, mark, tenant, "
            "labels, fields, born) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                document.content,
                document.path,
                count,
                truncated,
                get_bucket(document.path),
                digest_document(document.path, mark, document.facts),
                document.facts.tenant,
                json.dumps(sorted(document.facts.labels)),
                json.dumps(dict(document.facts.fields), ensure_ascii=False, sort_keys=True),
                self.number,
            ),
        )
        key = cursor.lastrowid
        self.connection.execute(
            "INSERT INTO placements(document, segment, start, born) VALUES (?, ?, ?, ?)",
            (key, document.segment, document.start, self.number),
        )
        fields = {**json.loads(derived), **document.facts.fields}
        self.connection.executemany(
            "INSERT INTO fields VALUES (?, ?, ?, ?)",
            [(key, name, kind, value) for name, kind, value in list_values(fields)],
        )
        self.connection.executemany(
            "INSERT INTO labels VALUES (?, ?)",
            [(key, label) for label in sorted(set(document.facts.labels))],
        )

    def _register(self, entry: SegmentEntry, merged: Sequence[MergedSegment]) -> None:
        """Insert a new segment, and move the rows of merged ones into it."""
        files = json.dumps({name: list(entry_data) for name, entry_data in entry.files.items()})
        self.connection.execute(
            "INSERT INTO segments(number, rows, files, born) VALUES (?, ?, ?, ?)",
            (entry.number, entry.rows, files, self.number),
        )
        for old_segment, starts in _map_merged_rows(merged):
            rows = self.connection.execute(
                "SELECT p.document, p.start FROM placements p JOIN documents d "
                "ON d.key = p.document WHERE p.segment = ? AND p.died = ? AND d.died = ?",
                (old_segment, FOREVER, FOREVER),
            ).fetchall()
            moved_rows = [row for row in rows if starts[row[1]] >= 0]
            self.connection.executemany(
                "UPDATE placements SET died = ? WHERE document = ? AND died = ?",
                [(self.number, document, FOREVER) for document, _ in moved_rows],
            )
            self.connection.executemany(
                "INSERT OR REPLACE INTO placements(document, segment, start, born) "
                "VALUES (?, ?, ?, ?)",
                [
                    (document, entry.number, int(starts[row]), self.number)
                    for document, row in moved_rows
                ],
            )

    def _retire_empty(self) -> None:
        """End the segments without rows of a document of the new snapshot."""
        self.connection.execute(
            "UPDATE segments SET died = ? WHERE died = ? AND NOT EXISTS ("
            "SELECT 1 FROM placements p JOIN documents d ON d.key = p.document "
            "WHERE p.segment = segments.number AND p.died = ? AND d.died = ?)",
            (self.number, FOREVER, FOREVER, FOREVER),
        )

    def _note_failures(self, failures: Sequence[Mapping[str, str]]) -> None:
        self.connection.execute(
            "UPDATE failures SET died = ? WHERE died = ?", (self.number, FOREVER)
        )
        self.connection.executemany(
            "INSERT INTO failures(path, code, reason, born) VALUES (?, ?, ?, ?)",
            [
                (failure["path"], failure["code"], failure["reason"], self.number)
                for failure in failures
            ],
        )

    def _finish(self, description: Mapping[str, Any], reason: str) -> str:
        """Update the digests of the changed buckets, and insert the snapshot."""
        digests = digest_changed_buckets(self._query, self.number)
        self.connection.executemany("INSERT OR REPLACE INTO buckets VALUES (?, ?)", digests.items())
        row = describe_snapshot(self._query, self.number, description, reason)
        self.connection.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.connection.execute("DELETE FROM settings WHERE name = 'staged'")
        return str(row[1])

    def _query(self, sql: str, values: Mapping[str, Any]) -> list[Any]:
        return self.connection.execute(sql, values).fetchall()


_STAGED_BYTES = 8_000_000
_BYTES_PER_PASSAGE = 2048
_COMPRESSION_LEVEL = 1


def stage_documents(
    connection: sqlite3.Connection,
    parts: Sequence[StagedDocument],
    check: Callable[[], None],
    where: Path,
) -> list[int]:
    """Write documents without showing them; return their contents' keys, in order.

    ``check`` is called between transactions, and raises to stop.

    Raises:
        IntegrityError: If the catalog has other passages under a document's id.
    """
    if not parts:
        return []
    top = connection.execute("SELECT max(key) FROM contents").fetchone()[0] or 0
    connection.execute("INSERT OR REPLACE INTO settings VALUES ('staged', ?)", (str(top),))
    keys: list[int] = []
    waiting: list[StagedDocument] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += _BYTES_PER_PASSAGE * part.entry.passages
        if size > _STAGED_BYTES:
            check()
            keys += _stage_batch(connection, waiting, where)
            waiting, size = [], 0
    return keys + _stage_batch(connection, waiting, where)


@contextmanager
def open_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end of the body, or roll back on any exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _stage_batch(
    connection: sqlite3.Connection, parts: Sequence[StagedDocument], where: Path
) -> list[int]:
    with open_transaction(connection):
        return [_stage_document(connection, part, where) for part in parts]


def _stage_document(connection: sqlite3.Connection, part: StagedDocument, where: Path) -> int:
    line, passages, entry = part.document_line(), part.passage_lines(), part.entry
    document = json.loads(line)
    document_id = document["id"]
    mark = digest_content(line, passages)
    known = connection.execute(
        "SELECT key, mark FROM contents WHERE id = ?", (document_id,)
    ).fetchone()
    if known is not None and known[1] == mark:
        return int(known[0])
    if known is not None:
        raise make_damage_error(where, f"{entry.path} has other passages than before")
    cursor = connection.execute(
        "INSERT INTO contents(id, path, digest, mark, passages, truncated, fields, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            document_id,
            entry.path,
            entry.digest,
            mark,
            len(passages),
            entry.truncated,
            json.dumps(derive_fields(document), ensure_ascii=False),
            zlib.compress(line, _COMPRESSION_LEVEL),
        ),
    )
    key = int(cursor.lastrowid or 0)
    numbered = enumerate(zip(passages, part.marks(), strict=True))
    connection.executemany(
        "INSERT INTO passages VALUES (?, ?, ?, ?, ?)",
        (
            (
                (key << PASSAGE_BITS) + position,
                json.loads(body)["id"],
                embedding.embedded,
                int(embedding.is_truncated),
                body,
            )
            for position, (body, embedding) in numbered
        ),
    )
    return key


_MAX_SEGMENTS = 8
_SMALL_FACTOR = 2


def choose_merged_segments(
    folder: Path,
    catalog: Catalog,
    deleted: Collection[int],
    rows: int,
    *,
    most: int = _MAX_SEGMENTS,
) -> list[MergedSegment]:
    """Return the segments to merge into a new one, with masks of the rows that are still needed.

    ``deleted`` documents are not in the new snapshot; it has at most ``most`` segments.
    """
    if not catalog.snapshots():
        return []
    masks = {
        number: rows for number, rows in _mask_kept_rows(catalog, deleted).items() if rows.any()
    }
    latest = catalog.find_snapshot().number
    entries = {entry.number: entry for entry in catalog.segments(latest) if entry.number in masks}
    order = sorted(entries, key=lambda number: (int(masks[number].sum()), number))
    spare = len(order) + 1 - most
    if spare <= 0:
        return []
    selected: list[int] = []
    gathered = rows
    for number in order:
        size = int(masks[number].sum())
        if len(selected) >= spare and size > _SMALL_FACTOR * gathered:
            break
        selected.append(number)
        gathered += size
    return [
        MergedSegment(open_segment(folder, entries[number], verify=False), masks[number])
        for number in sorted(selected)
    ]


def _mask_kept_rows(catalog: Catalog, deleted: Collection[int]) -> dict[int, NDArray[np.bool_]]:
    """Return masks of the rows of each segment that the newest snapshot needs."""
    sizes = {
        int(number): int(rows)
        for number, rows in catalog.query(
            "SELECT number, rows FROM segments WHERE died = ?", (FOREVER,)
        )
    }
    masks = {number: np.zeros(rows, dtype=bool) for number, rows in sizes.items()}
    for key, segment, start, count in catalog.query(
        "SELECT d.key, p.segment, p.start, d.passages FROM documents d JOIN placements p "
        "ON p.document = d.key WHERE d.died = ? AND p.died = ?",
        (FOREVER, FOREVER),
    ):
        if key not in deleted:
            masks[segment][start : start + count] = True
    return masks


def _map_merged_rows(merged: Sequence[MergedSegment]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the number of each merged segment, and the new row of each old one, or -1."""
    offset = 0
    for segment in merged:
        starts = offset + np.cumsum(segment.kept) - 1
        starts[~segment.kept] = -1
        yield segment.segment.number, starts.astype(np.int64)
        offset += int(segment.kept.sum())
