"""Tables that the folder's catalog and a PostgreSQL schema have alike, and what is read from them.

The statements have named parameters (``:name``), which both databases understand. What a store has
of its own (segments, postings, vectors) is not here.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from stillroom.errors import IntegrityError, count_noun
from stillroom.provenance.digests import load_json
from stillroom.rag.storage.filters import SqlCondition, derive_fields, list_values
from stillroom.rag.storage.protocol import IntegrityIssue, StoredDocument
from stillroom.rag.storage.snapshots import (
    FOREVER,
    PASSAGE_BITS,
    Snapshot,
    digest_bucket,
    digest_document,
    digest_snapshot,
    get_bucket,
    pick_snapshot,
)
from stillroom.rag.types import (
    AuxiliaryVectors,
    DocumentEntry,
    DocumentMetadata,
    EmbeddingDigest,
    digest_content,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ALIVE",
    "IndexTables",
    "ReusableTables",
    "ReusedDocument",
    "SnapshotTables",
    "ThreadConnections",
    "check_digest",
    "check_documents",
    "check_facts",
    "check_texts",
    "describe_snapshot",
    "digest_changed_buckets",
]

ALIVE = "{0}.born <= :snapshot AND {0}.died > :snapshot"
"""Condition on a row that a snapshot shows."""


class _Connection(Protocol):
    def close(self) -> None: ...


ConnectionT = TypeVar("ConnectionT", bound=_Connection)


class _HeldConnection(Generic[ConnectionT]):
    """A connection that is closed with its last reference, but not by a forked process."""

    def __init__(self, connection: ConnectionT) -> None:
        self.connection, self._process = connection, os.getpid()

    def __del__(self) -> None:
        if self._process == os.getpid():  # else it would end the parent's connection, too
            self.connection.close()


class ThreadConnections(Generic[ConnectionT]):
    """A connection to one database for each thread that reads, closed when the thread has ended.

    A server starts a thread for each request; connections that outlive it would use up the file
    descriptors, or the connections that a database allows.
    """

    def __init__(self) -> None:
        """Open no connection yet."""
        self.close()

    @contextmanager
    def use(self, connect: Callable[[], ConnectionT]) -> Iterator[ConnectionT]:
        """Give the connection of the current thread, which stays open until the body ends.

        ``connect`` opens it; it is not stored, so that its owner is closed with the last reference.
        """
        held: _HeldConnection[ConnectionT] | None = getattr(self._local, "held", None)
        if held is None or getattr(held.connection, "closed", False):
            held = self._local.held = _HeldConnection(connect())
        yield held.connection

    def close(self) -> None:
        """Close every thread's connection: one in use, when it is not in use any more."""
        self._local = threading.local()  # holds the only reference to idle ones


class IndexTables(ABC):
    """Reads the tables of one index."""

    @property
    @abstractmethod
    def where(self) -> Path:
        """Path that identifies the store in errors."""

    @abstractmethod
    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """Return all rows of one statement.

        Raises:
            IntegrityError: If the data are damaged.
            ResourceError: If the server does not answer.
        """

    @abstractmethod
    def damaged(self, reason: str) -> IntegrityError:
        """Return an error for a damaged index."""

    def issue(self, table: str, problem: str) -> IntegrityIssue:
        """Return an issue of a table."""
        return IntegrityIssue(table, problem, is_derived=False)

    def sanitize(self, text: str) -> str:
        """Return a text in the form that a column stores."""
        return text

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""
        rows = self.query(
            "SELECT number, digest, parent, reason, documents, passages, truncated, made "
            "FROM snapshots ORDER BY number"
        )
        return [Snapshot(*row) for row in rows]

    def find_snapshot(self, selector: int | str | None = None) -> Snapshot:
        """Return a snapshot by its number or the start of its digest; by default the newest.

        Raises:
            DataError: If there is none, or it was removed.
        """
        return pick_snapshot(self.snapshots(), selector, self.where)

    def get_setting(self, name: str) -> Any:
        """Return the setting stored under a name, or None."""
        rows = self.query(
            "SELECT value FROM settings WHERE name = :name", {"name": f"measured {name}"}
        )
        return json.loads(rows[0][0]) if rows else None

    def list_documents(self) -> dict[str, StoredDocument]:
        """Return every document of the newest snapshot, by path, in order."""
        rows = self.query(
            "SELECT d.path, d.key, c.digest, d.fields, d.tenant, d.labels FROM documents d "
            "JOIN contents c ON c.key = d.content WHERE d.died = :now ORDER BY d.path",
            {"now": FOREVER},
        )
        return {
            path: StoredDocument(int(key), str(digest), _read_metadata(*metadata))
            for path, key, digest, *metadata in rows
        }

    def list_keys(self) -> dict[str, int]:
        """Return the key of every document of the newest snapshot, by path, in order."""
        rows = self.query(
            "SELECT path, key FROM documents WHERE died = :now ORDER BY path", {"now": FOREVER}
        )
        return {path: int(key) for path, key in rows}

    def list_failures(self) -> list[tuple[str, str, str]]:
        """Return path, code and reason of every file that failed, in order."""
        return self.query(
            "SELECT path, code, reason FROM failures WHERE died = :now ORDER BY path",
            {"now": FOREVER},
        )

    def passage(self, content: int, position: int) -> bytes:
        """Return a passage as JSON, by its content's key and its position from 0."""
        key = (content << PASSAGE_BITS) + position
        rows = self.query("SELECT body FROM passages WHERE key = :key", {"key": key})
        if not rows:
            raise self.damaged(f"passage {position} of content {content} is missing")
        return bytes(rows[0][0])

    def locate_passage(self, passage_id: str) -> tuple[int, int] | None:
        """Return the content's key and the position of a passage, or None."""
        rows = self.query("SELECT key FROM passages WHERE id = :id", {"id": passage_id})
        return divmod(int(rows[0][0]), 1 << PASSAGE_BITS) if rows else None

    def document(self, content: int) -> bytes:
        """Return a parsed document as JSON."""
        rows = self.query("SELECT body FROM contents WHERE key = :key", {"key": content})
        try:
            return zlib.decompress(rows[0][0])
        except (IndexError, zlib.error) as error:
            raise self.damaged(f"content {content} cannot be read: {error}") from error

    def locate_document(self, document_id: str) -> int | None:
        """Return the key of a document's content, or None."""
        rows = self.query("SELECT key FROM contents WHERE id = :id", {"id": document_id})
        return int(rows[0][0]) if rows else None

    def read_parts(self, content: int, columns: str, table: str = "passages") -> list[Any]:
        """Return columns of the rows of a content's passages, in order."""
        return self.query(
            f"SELECT {columns} FROM {table} WHERE key >= :first AND key < :last ORDER BY key",  # noqa: S608
            {"first": content << PASSAGE_BITS, "last": (content + 1) << PASSAGE_BITS},
        )

    def list_field_values(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield the document, and name, type and value of every row of a field."""
        for key, *value in self.query("SELECT document, name, kind, value FROM fields"):
            yield key, tuple(value)


class SnapshotTables(IndexTables):
    """Reads the tables as one snapshot shows them."""

    snapshot: Snapshot

    def select(
        self, sql: str, condition: SqlCondition, values: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Return the rows of a statement with a condition on the snapshot's documents."""
        bound = {**dict(condition.values), **(values or {}), "snapshot": self.snapshot.number}
        return self.query(sql, bound)

    def list_fields(self, condition: SqlCondition) -> Sequence[tuple[str, str]]:
        """Return name and type of every field of documents that match a condition."""
        return self.select(
            "SELECT DISTINCT f.name, f.kind FROM fields f "  # noqa: S608
            "JOIN documents d ON d.key = f.document "
            f"WHERE {ALIVE.format('d')} AND ({condition.sql})",
            condition,
        )

    def is_newest(self) -> bool:
        """Return whether no newer snapshot was committed."""
        rows = self.query("SELECT max(number) FROM snapshots")
        return bool(rows[0][0] == self.snapshot.number)


def _read_metadata(fields: str, tenant: str, labels: str) -> DocumentMetadata:
    return DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels)))


@dataclass(frozen=True, slots=True)
class ReusedDocument:
    """A document of an index, read when needed; see ``StagedDocument``."""

    entry: DocumentEntry
    content: int
    reusable: ReusableTables

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.reusable.tables.document(self.content)

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        rows = self.reusable.tables.read_parts(self.content, "body")
        return [bytes(body) for (body,) in rows]

    def marks(self) -> Sequence[EmbeddingDigest]:
        """Return the digest of each passage's embedded text."""
        rows = self.reusable.tables.read_parts(self.content, "embedded, truncated")
        return [EmbeddingDigest(bytes(embedded), bool(truncated)) for embedded, truncated in rows]

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        return self.reusable.vectors_of(self)

    def extras(self) -> AuxiliaryVectors:
        """Return the auxiliary vectors of the passages."""
        return self.reusable.extras_of(self)


class ReusableTables(ABC):
    """Documents of an index by its tables; its vectors by the store."""

    def __init__(self, tables: IndexTables) -> None:
        self.tables = tables

    @abstractmethod
    def vectors_of(self, part: ReusedDocument) -> NDArray[Any]:
        """Return the vectors of a document's passages, (N, D)."""

    @abstractmethod
    def extras_of(self, part: ReusedDocument) -> AuxiliaryVectors:
        """Return the auxiliary vectors of a document's passages."""

    def take(self, path: str, digest: str) -> ReusedDocument | None:
        """Return the newest snapshot's document of a path and digest, or None."""
        parts = self._list("d.path = :path AND c.digest = :digest", path=path, digest=digest)
        return parts[0][0] if parts else None

    def find_same(self, digest: str) -> list[ReusedDocument]:
        """Return the newest snapshot's documents with the same bytes, in order of path."""
        return [part for part, _ in self._list("c.digest = :digest", digest=digest)]

    def list_parts(self) -> list[tuple[ReusedDocument, DocumentMetadata]]:
        """Return every document of the newest snapshot with its metadata, in order of path."""
        return self._list("1 = 1")

    def _list(self, condition: str, **values: str) -> list[tuple[ReusedDocument, DocumentMetadata]]:
        rows = self.tables.query(
            "SELECT d.path, c.digest, c.passages, c.truncated, c.key, d.fields, d.tenant, "  # noqa: S608
            "d.labels FROM documents d JOIN contents c ON c.key = d.content "
            f"WHERE d.died = :now AND ({condition}) ORDER BY d.path",
            {"now": FOREVER, **values},
        )
        return [
            (
                ReusedDocument(DocumentEntry(path, digest, passages, truncated), int(key), self),
                _read_metadata(*metadata),
            )
            for path, digest, passages, truncated, key, *metadata in rows
        ]


RowQuery = Callable[[str, Mapping[str, Any]], list[Any]]
"""Returns the rows of a statement on a writer's own connection."""


def digest_changed_buckets(query: RowQuery, number: int) -> dict[int, str]:
    """Return the new digests of the buckets in which a snapshot differs from the one before."""
    rows = query(
        "SELECT c.bucket, d.mark FROM (SELECT DISTINCT bucket FROM documents "
        "WHERE born = :number OR died = :number) c "
        "LEFT JOIN documents d ON d.bucket = c.bucket AND d.died = :now ORDER BY c.bucket, d.path",
        {"number": number, "now": FOREVER},
    )
    marks: dict[int, list[str]] = {}
    for bucket, mark in rows:
        marks.setdefault(int(bucket), []).extend([] if mark is None else [mark])
    return {bucket: digest_bucket(bucket_marks) for bucket, bucket_marks in marks.items()}


def describe_snapshot(
    query: RowQuery, number: int, description: Mapping[str, Any], reason: str
) -> tuple[Any, ...]:
    """Return the row of a new snapshot, once documents and buckets are those of it."""
    digest = digest_snapshot(description, dict(query("SELECT number, digest FROM buckets", {})))
    before = query(
        "SELECT documents, passages, truncated FROM snapshots WHERE number = :before",
        {"before": number - 1},
    )
    born, died = (
        query(
            "SELECT count(*), coalesce(sum(passages), 0), coalesce(sum(truncated), 0) "  # noqa: S608
            f"FROM documents WHERE {column} = :number",
            {"number": number},
        )[0]
        for column in ("born", "died")
    )
    counts = zip(before[0] if before else (0, 0, 0), born, died, strict=True)
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    changed = (int(count + more - less) for count, more, less in counts)
    return (number, digest, number - 1, reason, *changed, created)


def check_texts(tables: IndexTables) -> Iterator[IntegrityIssue]:
    """Cut every passage from its document again, and recompute the digests of the contents."""
    rows = tables.query("SELECT key, path, mark, passages, fields FROM contents ORDER BY key")
    for key, path, mark, count, fields in rows:
        parts = tables.read_parts(key, "id, body")
        try:
            line = tables.document(key)
            document = load_json(line)
            text = document["text"]
            has_same_fields = derive_fields(document) == load_json(fields)
            passages = [load_json(body) for _, body in parts]
            has_same_text = all(
                text[passage["start"] : passage["end"]] == passage["text"] for passage in passages
            )
        except (IntegrityError, ValueError, KeyError, TypeError) as error:
            problem = f"{path}: cannot be read: {error}".split("\n", 1)[0]
            yield tables.issue("contents", problem)
            continue
        if not has_same_fields:
            yield tables.issue("contents", f"{path}: has other fields than its document")
        if not has_same_text:
            yield tables.issue("passages", f"{path}: a passage is not the document's own text")
        if len(parts) != count or [passage["id"] for passage in passages] != [
            name for name, _ in parts
        ]:
            yield tables.issue("passages", f"{path}: has other passages than recorded")
        if digest_content(line, [bytes(body) for _, body in parts]) != mark:
            yield tables.issue("passages", f"{path}: its bytes have changed")


def check_documents(tables: IndexTables) -> Iterator[IntegrityIssue]:
    """Compare versions of documents with their contents, and their metadata with their digests."""
    rows = tables.query(
        "SELECT d.path, d.bucket, d.mark, d.passages, c.path, c.mark, c.passages, "
        "d.fields, d.tenant, d.labels "
        "FROM documents d LEFT JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    for path, bucket, mark, count, content_path, content, passages, *metadata in rows:
        if content is None or content_path != path or count != passages:
            yield tables.issue("documents", f"{path}: has no content of its own")
            continue
        expected = digest_document(path, content, _read_metadata(*metadata)), get_bucket(path)
        if (mark, bucket) != expected:
            yield tables.issue("documents", f"{path}: its fields, tenant or labels were changed")


def check_facts(tables: IndexTables) -> Iterator[IntegrityIssue]:
    """Compare the rows that filters and access conditions read with the recorded metadata."""
    labels: dict[int, set[str]] = {}
    for key, label in tables.query("SELECT document, label FROM labels"):
        labels.setdefault(key, set()).add(label)
    values: dict[int, list[Any]] = {}
    for key, value in tables.list_field_values():
        values.setdefault(key, []).append(value)
    rows = tables.query(
        "SELECT d.key, d.path, d.labels, d.fields, c.fields FROM documents d "
        "JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    for key, path, recorded_labels, fields, derived in rows:
        merged, found = {**json.loads(derived), **json.loads(fields)}, Counter(values.pop(key, []))
        expected_labels = {tables.sanitize(label) for label in json.loads(recorded_labels)}
        is_same = any(
            found
            == Counter(
                (name, kind, tables.sanitize(value) if isinstance(value, str) else value)
                for name, kind, value in list_values(merged, rounded=rounded)
            )
            for rounded in (False, True)  # of an earlier version
        )
        if labels.pop(key, set()) != expected_labels or not is_same:
            yield tables.issue("fields", f"{path}: its rows of labels or fields were changed")
    if labels or values:
        yield tables.issue("fields", "there are labels or fields without a document")


def check_digest(tables: IndexTables, description: Mapping[str, Any]) -> Iterator[IntegrityIssue]:
    """Recompute the buckets' digests, and digest and counts of the newest snapshot."""
    marks: dict[int, list[str]] = {}
    passages = 0
    rows = tables.query(
        "SELECT bucket, mark, passages FROM documents WHERE died = :now ORDER BY path",
        {"now": FOREVER},
    )
    for bucket, mark, count in rows:
        marks.setdefault(bucket, []).append(mark)
        passages += count
    buckets = {number: digest_bucket(bucket_marks) for number, bucket_marks in marks.items()}
    if dict(tables.query("SELECT number, digest FROM buckets WHERE digest <> ''")) != buckets:
        yield tables.issue("buckets", "the digests of buckets do not match their documents")
    latest = tables.find_snapshot()
    if digest_snapshot(description, buckets) != latest.digest:
        yield tables.issue("snapshots", f"snapshot {latest.number} has another digest")
    if (latest.documents, latest.passages) != (len(rows), passages):
        yield tables.issue(
            "snapshots",
            f"snapshot {latest.number} counts {count_noun(latest.documents, 'document')} and "
            f"{count_noun(latest.passages, 'passage')}, there are {len(rows)} and {passages}",
        )
