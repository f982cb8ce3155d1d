"""Open snapshots in PostgreSQL, and the content that a new index can reuse.

A snapshot is held by an advisory lock that ends with its session: its data are not removed while
anybody reads it. Every thread has its own connection, none of which keeps a transaction open
between two statements.

Positions are the rows of the population: the first statement of a view numbers the documents that
its user may see, and no other document has a position.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.storage.filters import SqlCondition, SqlDialect
from stillroom.rag.storage.postgres.connection import (
    FORMAT,
    POSTGRES_DIALECT,
    PostgresSchema,
    compute_lock_id,
    fetch_rows,
)
from stillroom.rag.storage.postgres.engines import PostgresKeywords, PostgresVectors, decode_vectors
from stillroom.rag.storage.snapshots import (
    FOREVER,
    PASSAGE_BITS,
    DocumentTable,
    PassageRows,
    Snapshot,
    pick_snapshot,
)
from stillroom.rag.types import AuxiliaryVectors, DocumentEntry, DocumentMetadata, EmbeddingDigest

if TYPE_CHECKING:
    import psycopg
    from numpy.typing import NDArray

__all__ = [
    "PostgresDocument",
    "PostgresReusableContent",
    "PostgresSession",
    "PostgresSnapshot",
    "read_settings",
    "read_snapshots",
]


_ATTEMPTS = 5
_ALIVE = "d.born <= :snapshot AND d.died > :snapshot"


def read_snapshots(connection: psycopg.Connection[Any]) -> list[Snapshot]:
    """Return the existing snapshots, oldest first."""
    rows = fetch_rows(
        connection,
        "SELECT number, digest, parent, reason, documents, passages, truncated, made "
        "FROM snapshots ORDER BY number",
    )
    return [Snapshot(*row) for row in rows]


def read_settings(server: PostgresSchema, connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return the description of an index.

    Raises:
        IntegrityError: If there is none, or it has another format.
    """
    if not server.has_schema(connection):
        raise server.damaged(f"the server has no schema {server.schema}")
    with server.errors():
        settings = dict(fetch_rows(connection, "SELECT name, value FROM settings"))
    try:
        if int(settings["format"]) != FORMAT:
            raise server.damaged(f"it has format {settings['format']}, expected {FORMAT}")
        description: dict[str, Any] = json.loads(settings["description"])
    except (KeyError, ValueError) as error:
        raise server.damaged(f"its settings cannot be read: {error}") from error
    return description


class PostgresSession:
    """Connections of one process to one index, one per reading thread."""

    def __init__(self, server: PostgresSchema) -> None:
        """Open the first connection.

        Raises:
            ResourceError: If the server cannot be reached.
            IntegrityError: If it does not have the index.
        """
        self.server = server
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[psycopg.Connection[Any]] = []
        self.released: deque[int] = deque()
        """Snapshots to release: held, but not read any more."""
        try:
            self._lease_connection = self.connection
            self.description = read_settings(server, self.connection)
        except BaseException:
            self.close()
            raise

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """Connection of the current thread."""
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = self.server.connect("reader")
            connection.execute("SET default_transaction_read_only = on")
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """Return all rows of one statement with named parameters (``:name``).

        Raises:
            ResourceError: If the server does not answer.
            IntegrityError: If its data have changed.
        """
        connection = self.connection
        with self.server.errors():
            return fetch_rows(connection, sql, values)

    def lock(self, number: int) -> None:
        """Hold a snapshot, and release those that are not read any more."""
        lock = compute_lock_id(self.server.schema)
        with self.server.errors():
            self._lease_connection.execute("SELECT pg_advisory_lock_shared(%s, %s)", (lock, number))
            while self.released:
                values = (lock, self.released.popleft())
                self._lease_connection.execute("SELECT pg_advisory_unlock_shared(%s, %s)", values)

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""
        with self.server.errors():
            return read_snapshots(self.connection)

    def close(self) -> None:
        """Close every thread's connection."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._local = threading.local()


class _SnapshotLease:
    """Advisory lock of a session on a snapshot; released with its last reader."""

    def __init__(self, session: PostgresSession, number: int) -> None:
        self._session, self._number = session, number
        session.lock(number)

    def __del__(self) -> None:
        """Queue the release, since another statement may be running on the connection."""
        self._session.released.append(self._number)


class PostgresSnapshot:
    """One snapshot; see ``stillroom.rag.storage.protocol.SnapshotReader``."""

    def __init__(self, session: PostgresSession, snapshot: Snapshot, lease: _SnapshotLease) -> None:
        self.session, self.snapshot, self._lease = session, snapshot, lease
        self._size = 0

    @classmethod
    def open(cls, server: PostgresSchema, selector: int | str | None = None) -> PostgresSnapshot:
        """Open a snapshot, by default the newest.

        Raises:
            DataError: If there is no such snapshot, or it was removed.
            ResourceError: If the server cannot be reached.
            IntegrityError: If it does not have the index.
        """
        session = PostgresSession(server)
        try:
            return cls(session, *_lease_snapshot(session, selector))
        except BaseException:
            session.close()
            raise

    @property
    def where(self) -> Path:
        """Path of the schema, for errors."""
        return self.session.server.where

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""
        return self.session.description

    @property
    def dialect(self) -> SqlDialect:
        """SQL dialect of conditions."""
        return POSTGRES_DIALECT

    @property
    def size(self) -> int:
        """Number of positions: the passages of the population."""
        return self._size

    def is_newest(self) -> bool:
        """Return whether no newer snapshot was committed."""
        rows = self.session.query("SELECT max(number) FROM snapshots")
        return int(rows[0][0]) == self.snapshot.number

    def follow(self) -> PostgresSnapshot:
        """Return the newest snapshot, opened beside this one."""
        return PostgresSnapshot(self.session, *_lease_snapshot(self.session, None))

    def load(self, condition: SqlCondition, within: DocumentTable | None = None) -> DocumentTable:
        """Return the documents that match a condition, in order of path.

        The first call, without ``within``, assigns the positions.
        """
        rows = self.query(
            "SELECT d.key, d.content, d.passages FROM documents d "  # noqa: S608
            f"WHERE {_ALIVE} AND ({condition.sql}) ORDER BY d.path",
            condition,
        )
        columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        keys, contents, counts = (np.ascontiguousarray(column) for column in columns)
        if within is None:
            self._size = int(counts.sum())
            table = DocumentTable(keys, contents, counts, np.cumsum(counts) - counts)
            self._number_by(table)
            return table
        order = np.argsort(within.contents, kind="stable")
        matches = np.searchsorted(within.contents, contents, sorter=order)
        return DocumentTable(keys, contents, counts, within.starts[order[matches]])

    def list_fields(self, condition: SqlCondition) -> Sequence[tuple[str, str]]:
        """Return name and type of every field of documents that match a condition."""
        return self.query(
            "SELECT DISTINCT f.name, f.kind FROM fields f "  # noqa: S608
            f"JOIN documents d ON d.key = f.document WHERE {_ALIVE} AND ({condition.sql})",
            condition,
        )

    def list_values(self, name: str, keys: Sequence[int]) -> Sequence[tuple[int, str | float]]:
        """Return the values of a field among documents, each with its document's key."""
        rows = self.session.query(
            "SELECT document, words, number FROM fields "
            "WHERE name = :name AND document = ANY(:keys)",
            {"name": name, "keys": list(keys)},
        )
        return [(key, number if words is None else words) for key, words, number in rows]

    def list_deleted(self, newer: PostgresSnapshot) -> list[int] | None:
        """Return None: positions depend on the population, so a newer snapshot is reloaded."""
        return None

    def get_setting(self, name: str) -> Any:
        """Return the setting stored under a name, or None."""
        rows = self.session.query(
            "SELECT value FROM settings WHERE name = :name", {"name": f"measured {name}"}
        )
        return json.loads(rows[0][0]) if rows else None

    def open_keywords(self, everyone: PassageRows, population: SqlCondition) -> PostgresKeywords:
        """Return a keyword search engine over a population."""
        return PostgresKeywords(self, everyone, population)

    def open_dense(self, everyone: PassageRows, population: SqlCondition) -> PostgresVectors:
        """Return a vector search engine over a population."""
        return PostgresVectors(self, everyone, population)

    def open_sparse(self, everyone: PassageRows) -> None:
        """Return no search engine: the store keeps no term weights."""

    def open_tokens(self, everyone: PassageRows) -> None:
        """Return no search engine: the store keeps no token vectors."""

    def vectors_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors by positions in the population, (N, D) float32."""
        return self.vectors_of(self.keys_at(positions))

    def vectors_of(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of passages by their keys, (N, D) float32."""
        rows = self.session.query(
            "SELECT key, vector_send(vector::vector) FROM vectors WHERE key = ANY(:keys)",
            {"keys": [int(key) for key in keys]},
        )
        numbers = {int(key): number for number, (key, _) in enumerate(rows)}
        matrix = decode_vectors([data for _, data in rows], self.dimensions)
        return matrix[[numbers[int(key)] for key in keys]]

    @property
    def dimensions(self) -> int:
        """Dimensions of a vector."""
        return int(self.description["embedder"]["dimensions"])

    def _number_by(self, table: DocumentTable) -> None:
        """Store the population's table, which maps positions to passages and back."""
        self._order = np.argsort(table.contents, kind="stable")
        self._contents = table.contents[self._order]
        self._starts = table.starts[self._order]
        self._table = table

    def positions_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of passages of the population by their keys."""
        contents, positions = keys >> PASSAGE_BITS, keys & ((1 << PASSAGE_BITS) - 1)
        return self._starts[np.searchsorted(self._contents, contents)] + positions

    def keys_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the keys of passages by their positions."""
        starts = self._table.starts
        documents = np.searchsorted(starts, positions, side="right") - 1
        keys: NDArray[np.int64] = (self._table.contents[documents] << PASSAGE_BITS) + (
            positions - starts[documents]
        )
        return keys

    def query(
        self, sql: str, condition: SqlCondition, values: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Return the rows of a statement with a condition on the snapshot's documents."""
        bound = {**dict(condition.values), **(values or {}), "snapshot": self.snapshot.number}
        return self.session.query(sql, bound)

    def passage(self, content: int, position: int) -> bytes:
        """Return a passage as JSON, by its content's key and its position from 0."""
        key = (content << PASSAGE_BITS) + position
        rows = self.session.query("SELECT body FROM passages WHERE key = :key", {"key": key})
        if not rows:
            raise self.session.server.damaged(f"passage {position} of content {content} is missing")
        return bytes(rows[0][0])

    def locate_passage(self, passage_id: str) -> tuple[int, int] | None:
        """Return the content's key and the position of a passage, or None."""
        rows = self.session.query("SELECT key FROM passages WHERE id = :id", {"id": passage_id})
        return divmod(int(rows[0][0]), 1 << PASSAGE_BITS) if rows else None

    def document(self, content: int) -> bytes:
        """Return a parsed document as JSON."""
        rows = self.session.query("SELECT body FROM contents WHERE key = :key", {"key": content})
        try:
            return zlib.decompress(rows[0][0])
        except (IndexError, zlib.error) as error:
            raise self.session.server.damaged(f"content {content} cannot be read") from error

    def locate_document(self, document_id: str) -> int | None:
        """Return the key of a document's content, or None."""
        rows = self.session.query("SELECT key FROM contents WHERE id = :id", {"id": document_id})
        return int(rows[0][0]) if rows else None

    def close(self) -> None:
        """Close the session with all its snapshots."""
        self.session.close()


def _lease_snapshot(
    session: PostgresSession, selector: int | str | None
) -> tuple[Snapshot, _SnapshotLease]:
    """Return a held snapshot; retry if it is removed meanwhile."""
    for _ in range(_ATTEMPTS):
        snapshot = pick_snapshot(session.snapshots(), selector, session.server.where)
        lease = _SnapshotLease(session, snapshot.number)
        if any(known.number == snapshot.number for known in session.snapshots()):
            return snapshot, lease
    raise session.server.damaged(f"snapshot {snapshot.number} is missing")


_CONTENT = "SELECT {} FROM {} WHERE key >= :first AND key < :last ORDER BY key"


@dataclass(frozen=True, slots=True)
class PostgresDocument:
    """A document of an index on the server, read when needed."""

    entry: DocumentEntry
    content: int
    reusable: PostgresReusableContent

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.reusable.reading.document(self.content)

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return [bytes(body) for (body,) in self._fetch("body", "passages")]

    def marks(self) -> Sequence[EmbeddingDigest]:
        """Return the digest of each passage's embedded text."""
        rows = self._fetch("embedded, truncated", "passages")
        return [EmbeddingDigest(bytes(embedded), bool(truncated)) for embedded, truncated in rows]

    def vectors(self) -> NDArray[np.float32]:
        """Return the passages' vectors, (N, D) float32."""
        rows = self._fetch("vector_send(vector::vector)", "vectors")
        return decode_vectors([data for (data,) in rows], self.reusable.reading.dimensions)

    def extras(self) -> AuxiliaryVectors:
        """Return no auxiliary vectors: the store keeps none."""
        return AuxiliaryVectors()

    def _fetch(self, columns: str, table: str) -> list[Any]:
        span = {
            "first": self.content << PASSAGE_BITS,
            "last": (self.content + 1) << PASSAGE_BITS,
        }
        return self.reusable.reading.session.query(_CONTENT.format(columns, table), span)


class PostgresReusableContent:
    """Reusable content; see ``stillroom.rag.storage.protocol.ReusableContent``."""

    def __init__(self, reading: PostgresSnapshot) -> None:
        self.reading = reading

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""
        return self.reading.description

    def take(self, path: str, digest: str) -> PostgresDocument | None:
        """Return the document of a path and digest, or None."""
        parts = self._list("d.path = :path AND c.digest = :digest", path=path, digest=digest)
        return parts[0][0] if parts else None

    def find_same(self, digest: str) -> list[PostgresDocument]:
        """Return the documents with the same bytes, in order of path."""
        return [part for part, _ in self._list("c.digest = :digest", digest=digest)]

    def list_parts(self) -> list[tuple[PostgresDocument, DocumentMetadata]]:
        """Return every document with its metadata, in order of path."""
        return self._list("1 = 1")

    def vector_of(self, embedded: bytes) -> tuple[NDArray[np.float32], bool] | None:
        """Return the vector of a text, by its digest, and whether the text was truncated."""
        rows = self.reading.session.query(
            "SELECT vector_send(v.vector::vector), a.truncated FROM passages a "
            "JOIN vectors v ON v.key = a.key WHERE a.embedded = :embedded ORDER BY a.key LIMIT 1",
            {"embedded": embedded},
        )
        if not rows:
            return None
        data, truncated = rows[0]
        return decode_vectors([data], self.reading.dimensions)[0], bool(truncated)

    def extras_of_text(self, embedded: bytes) -> None:
        """Return no auxiliary vectors: the store keeps none."""

    def close(self) -> None:
        """Close the session and release the snapshot."""
        self.reading.close()

    def _list(
        self, condition: str, **values: str
    ) -> list[tuple[PostgresDocument, DocumentMetadata]]:
        rows = self.reading.session.query(
            "SELECT d.path, c.digest, c.passages, c.truncated, c.key, d.fields, d.tenant, "  # noqa: S608
            "d.labels FROM documents d JOIN contents c ON c.key = d.content "
            f"WHERE d.died = :now AND ({condition}) ORDER BY d.path",
            {"now": FOREVER, **values},
        )
        return [
            (
                PostgresDocument(
                    DocumentEntry(path, digest, int(passages), int(truncated)), int(key), self
                ),
                DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels))),
            )
            for path, digest, passages, truncated, key, fields, tenant, labels in rows
        ]
