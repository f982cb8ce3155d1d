"""Open snapshots in PostgreSQL, and the content that a new index can reuse.

A snapshot is held by an advisory lock that ends with its session: its data are not removed while
anybody reads it. Every thread has its own connection, none of which keeps a transaction open
between two statements.

A restart of the server ends these locks. The first thread that connects again takes them again; if
a writer has removed a snapshot before that, its readers get an error, and not a part of it.

Positions are the rows of the population: the first statement of a view numbers the documents that
its user may see, and no other document has a position.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from stillroom.errors import DataError, IntegrityError, StillroomError
from stillroom.provenance.digests import load_json
from stillroom.rag.storage.filters import SqlCondition
from stillroom.rag.storage.postgres.connection import (
    FORMAT,
    POSTGRES_DIALECT,
    PostgresSchema,
    compute_lock_id,
    fetch_rows,
    sanitize_column_text,
)
from stillroom.rag.storage.postgres.engines import PostgresKeywords, PostgresVectors, decode_vectors
from stillroom.rag.storage.snapshots import (
    PASSAGE_BITS,
    DocumentTable,
    PassageRows,
    Snapshot,
    make_format_error,
)
from stillroom.rag.storage.tables import (
    ALIVE,
    IndexTables,
    ReusableTables,
    ReusedDocument,
    SnapshotTables,
    ThreadConnections,
)
from stillroom.rag.types import AuxiliaryVectors

if TYPE_CHECKING:
    import psycopg
    from numpy.typing import NDArray

__all__ = [
    "PostgresReusableContent",
    "PostgresSession",
    "PostgresSnapshot",
    "PostgresTables",
    "read_settings",
]


_ATTEMPTS = 5
_HOLD = "SELECT pg_advisory_lock_shared(%s, %s)"
_RELEASE = "SELECT pg_advisory_unlock_shared(%s, %s)"


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
            raise make_format_error(server.where, settings["format"], FORMAT)
        description: dict[str, Any] = load_json(settings["description"])
    except (KeyError, ValueError) as error:
        raise server.damaged(f"its settings cannot be read: {error}") from error
    return description


class PostgresTables(IndexTables):
    """Tables of one schema."""

    server: PostgresSchema

    @property
    @override
    def where(self) -> Path:
        return self.server.where

    @override
    def damaged(self, reason: str) -> IntegrityError:
        return self.server.damaged(reason)


class PostgresSession(PostgresTables):
    """Connections of one process to one index: one per reading thread, and one that holds."""

    def __init__(self, server: PostgresSchema) -> None:
        """Open the connection that holds snapshots.

        Raises:
            ResourceError: If the server cannot be reached.
            IntegrityError: If it does not have the index.
        """
        self.server = server
        self._connections = ThreadConnections["psycopg.Connection[Any]"]()
        self.released: deque[int] = deque()
        """Snapshots to release: held, but not read any more."""
        self._held = Counter[int]()
        self.lost: set[int] = set()
        """Snapshots that were removed while a restart of the server had ended their locks."""
        self._renewing = threading.Lock()
        self._lease_connection = self._connect()
        try:
            self.description = read_settings(server, self._lease_connection)
        except BaseException:
            self.close()
            raise

    @property
    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Connection of the current thread, which stays open until the body ends."""
        return self._connections.use(self._connect_reader)

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self.server.connect("reader")
        connection.execute("SET default_transaction_read_only = on")
        return connection

    def _connect_reader(self) -> psycopg.Connection[Any]:
        self._renew()
        return self._connect()

    def _renew(self) -> None:
        """Hold again what is read, if the connection that holds it was ended."""
        with self._renewing:
            with suppress(StillroomError), self.server.errors():
                self._lease_connection.execute("SELECT 1")
                return
            self._lease_connection = self._connect()
            with self.server.errors():
                for number in self._held.elements():
                    self._lease_connection.execute(_HOLD, self._name_lock(number))
                rows = fetch_rows(self._lease_connection, "SELECT number FROM snapshots")
            self.lost |= (+self._held).keys() - {number for (number,) in rows}

    def _name_lock(self, number: int) -> tuple[int, int]:
        return compute_lock_id(self.server.schema), number

    @override
    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        with self.connection as connection, self.server.errors():
            return fetch_rows(connection, sql, values)

    def lock(self, number: int) -> None:
        """Hold a snapshot, and release those that are not read any more."""
        self._renew()
        with self.server.errors():
            self._lease_connection.execute(_HOLD, self._name_lock(number))
            self._held[number] += 1
            while self.released:
                unread = self.released.popleft()
                self._held[unread] -= 1
                self._lease_connection.execute(_RELEASE, self._name_lock(unread))

    def close(self) -> None:
        """Close every connection; what is held is free at once, not when the server notices."""
        self._connections.close()
        with suppress(StillroomError), self.server.errors():
            self._lease_connection.execute("SELECT pg_advisory_unlock_all()")
        self._lease_connection.close()


class _SnapshotLease:
    """Advisory lock of a session on a snapshot; released with its last reader."""

    def __init__(self, session: PostgresSession, number: int) -> None:
        self._session, self._number = session, number
        session.lock(number)

    def __del__(self) -> None:
        """Queue the release, since another statement may be running on the connection."""
        self._session.released.append(self._number)


class PostgresSnapshot(PostgresTables, SnapshotTables):
    """One snapshot; see ``stillroom.rag.storage.protocol.SnapshotReader``."""

    dialect = POSTGRES_DIALECT

    def __init__(self, session: PostgresSession, snapshot: Snapshot, lease: _SnapshotLease) -> None:
        self.session, self.snapshot, self._lease = session, snapshot, lease
        self.server, self.description = session.server, session.description
        self.size = 0
        """Number of positions: the passages of the population."""

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

    @override
    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        rows = self.session.query(sql, values)
        if self.snapshot.number in self.session.lost:
            raise DataError(
                f"snapshot {self.snapshot.number} was removed while the server restarted",
                code="rag.no-such-snapshot",
                where=str(self.where),
                expected="a snapshot that is held by its readers",
                next="open the index again, which then shows its newest snapshot",
            )
        return rows

    @override
    def is_newest(self) -> bool:  # also of a snapshot that was removed
        return self.session.find_snapshot().number == self.snapshot.number

    @override
    def sanitize(self, text: str) -> str:
        return sanitize_column_text(text)

    @override
    def list_field_values(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        rows = self.query("SELECT document, name, kind, words, number FROM fields")
        for key, name, kind, words, number in rows:
            value = words if number is None else number if words is None else (words, number)
            yield key, (name, kind, value)

    def follow(self) -> PostgresSnapshot:
        """Return the newest snapshot, opened beside this one."""
        return PostgresSnapshot(self.session, *_lease_snapshot(self.session, None))

    def load(self, condition: SqlCondition, within: DocumentTable | None = None) -> DocumentTable:
        """Return the documents that match a condition, in order of path.

        The first call, without ``within``, assigns the positions.
        """
        rows = self.select(
            "SELECT d.key, d.content, d.passages FROM documents d "  # noqa: S608
            f"WHERE {ALIVE.format('d')} AND ({condition.sql}) ORDER BY d.path",
            condition,
        )
        columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        keys, contents, counts = (np.ascontiguousarray(column) for column in columns)
        if within is None:
            self.size = int(counts.sum())
            table = DocumentTable(keys, contents, counts, np.cumsum(counts) - counts)
            self._number_by(table)
            return table
        order = np.argsort(within.contents, kind="stable")
        matches = np.searchsorted(within.contents, contents, sorter=order)
        return DocumentTable(keys, contents, counts, within.starts[order[matches]])

    def list_values(self, name: str, keys: Sequence[int]) -> Sequence[tuple[int, str | float]]:
        """Return the values of a field among documents, each with its document's key."""
        rows = self.query(
            "SELECT document, words, number FROM fields "
            "WHERE name = :name AND document = ANY(:keys)",
            {"name": name, "keys": list(keys)},
        )
        return [(key, number if words is None else words) for key, words, number in rows]

    def list_deleted(self, newer: PostgresSnapshot) -> list[int] | None:
        """Return None: positions depend on the population, so a newer snapshot is reloaded."""
        return None

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
        rows = self.query(
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

    def close(self) -> None:
        """Close the session with all its snapshots."""
        self.session.close()


def _lease_snapshot(
    session: PostgresSession, selector: int | str | None
) -> tuple[Snapshot, _SnapshotLease]:
    """Return a held snapshot; retry if it is removed meanwhile."""
    for _ in range(_ATTEMPTS):
        snapshot = session.find_snapshot(selector)
        lease = _SnapshotLease(session, snapshot.number)
        if any(known.number == snapshot.number for known in session.snapshots()):
            return snapshot, lease
    raise session.server.damaged(f"snapshot {snapshot.number} is missing")


class PostgresReusableContent(ReusableTables):
    """Reusable content; see ``stillroom.rag.storage.protocol.ReusableContent``."""

    def __init__(self, reading: PostgresSnapshot) -> None:
        super().__init__(reading)
        self.reading, self.description = reading, reading.description

    @override
    def vectors_of(self, part: ReusedDocument) -> NDArray[np.float32]:
        rows = self.reading.read_parts(part.content, "vector_send(vector::vector)", "vectors")
        return decode_vectors([data for (data,) in rows], self.reading.dimensions)

    @override
    def extras_of(self, part: ReusedDocument) -> AuxiliaryVectors:
        return AuxiliaryVectors()

    def vector_of(self, embedded: bytes) -> tuple[NDArray[np.float32], bool] | None:
        """Return the vector of a text, by its digest, and whether the text was truncated."""
        rows = self.reading.query(
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
