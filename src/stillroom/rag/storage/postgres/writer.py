"""Index writer for PostgreSQL: one transaction a commit, and merges of posting batches.

Changes become visible only at the commit; an interrupted writer leaves nothing behind. One session
at a time holds the index's advisory lock; the error of a second writer names it.

Batches are merged like the folder's segments: the smallest first, and only as many as needed to
limit their number. The server merges in one statement, without postings of deleted passages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from stillroom.errors import StillroomError
from stillroom.provenance import FileEntry
from stillroom.rag.storage.postgres.commit import (
    insert_batch,
    publish_update,
    rebuild_postings,
    stage_documents,
)
from stillroom.rag.storage.postgres.connection import (
    FORMAT,
    PostgresSchema,
    compute_lock_id,
    fetch_rows,
    list_create_statements,
    translate_parameters,
)
from stillroom.rag.storage.postgres.snapshot import (
    PostgresReusableContent,
    PostgresTables,
    read_settings,
)
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import (
    PASSAGE_BITS,
    STORE_FILE,
    Snapshot,
    build_file_entry,
    is_approximate,
    make_busy_error,
)
from stillroom.rag.storage.tables import ReusedDocument
from stillroom.rag.types import DocumentEntry

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresIndexWriter"]


_WRITER_LOCK = -1
_NOTICED_WITHIN_S = 5.0
"""Number of the writer's advisory lock; snapshots are numbered from 1."""
_PURGE = (
    "DELETE FROM labels WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM fields WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM documents WHERE died <= :oldest",
    "DELETE FROM failures WHERE died <= :oldest",
    "DELETE FROM snapshots WHERE number < :oldest",
)


class PostgresIndexWriter(PostgresTables):
    """Index writer; see ``stillroom.rag.storage.protocol.IndexWriter``."""

    def __init__(
        self,
        server: PostgresSchema,
        connection: psycopg.Connection[Any],
        description: Mapping[str, Any],
        graph: Mapping[str, int],
    ) -> None:
        self.server, self.connection = server, connection
        self.description, self._graph = description, graph

    @classmethod
    def create(
        cls, server: PostgresSchema, description: Mapping[str, Any], graph: Mapping[str, int]
    ) -> Self:
        """Create an index that exists once its first change is committed.

        Raises:
            ResourceError: If the server cannot be reached, or has no pgvector.
        """
        connection = server.connect("writer")
        try:
            server.create_extension(connection)
            kind = "halfvec" if description["settings"]["vectors"] == "float16" else "vector"
            with server.errors():
                connection.execute("BEGIN")
                connection.execute(f'CREATE SCHEMA "{server.schema}"'.encode())
                width = int(description["embedder"]["dimensions"])
                connection.execute(list_create_statements(kind, width).encode())
                for name, value in (
                    ("format", str(FORMAT)),
                    ("description", json.dumps(description)),
                ):
                    connection.execute("INSERT INTO settings VALUES (%s, %s)", (name, value))
        except BaseException:
            connection.close()
            raise
        return cls(server, connection, description, graph)

    @classmethod
    def open(cls, server: PostgresSchema, graph: Mapping[str, int]) -> Self:
        """Open an index for writing.

        Raises:
            ResourceError: If another process writes it, or the server cannot be reached.
            IntegrityError: If the server does not have the index.
        """
        connection = server.connect("writer")
        try:
            description = read_settings(server, connection)
            with server.errors():
                _take_lock(server, connection)
            return cls(server, connection, description, graph)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Folder of the artifact."""
        return self.server.folder

    @override
    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        with self.server.errors():
            return fetch_rows(self.connection, sql, values)

    def set_setting(self, name: str, value: Any) -> None:
        """Store a setting as JSON; it is not part of the index's content."""
        with self.server.errors():
            self.connection.execute(
                "INSERT INTO settings VALUES (%s, %s) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (f"measured {name}", json.dumps(value)),
            )

    def list_files(self, root: Path) -> list[FileEntry]:
        """Return the entry of the file that refers to the schema."""
        return [build_file_entry(root, self.folder / STORE_FILE)]

    def commit(
        self,
        change: IndexUpdate,
        *,
        reason: str,
        keep: int,
        check: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Publish a change as the next snapshot.

        Raises:
            ResourceError: If the server fails; the index is then unchanged.
        """
        with self._transaction():
            number = self._next_number()
            contents = stage_documents(
                self.server, self.connection, change.parts, self.description, number, check
            )
            publish_update(self.connection, change, contents, number, self.description, reason)
            _merge_batches(self.connection, _choose_batches(self.connection), number)
            self._index_vectors(number)
            check()
        with self.server.errors():
            self._remove_unneeded(number, keep)
        return self.find_snapshot(number)

    def compact(self) -> Snapshot:
        """Merge all postings into one batch, and remove older snapshots without readers.

        Raises:
            ResourceError: If the server fails; the index is then unchanged.
        """
        with self._transaction():
            number = self._next_number()
            publish_update(
                self.connection, IndexUpdate(), [], number, self.description, "compacted"
            )
        with self.server.errors():
            self._remove_unneeded(number, 1)
        with self._transaction():
            batches = self.query("SELECT number FROM batches ORDER BY number")
            _merge_batches(self.connection, [int(batch) for (batch,) in batches], number)
        with self.server.errors():
            tables = ("passages", "contents", "vectors", "documents", "fields", "postings")
            for table in tables:
                self.connection.execute(f"VACUUM ANALYZE {table}".encode())
        return self.find_snapshot(number)

    def renew_postings(self, reusable: PostgresReusableContent) -> None:
        """Rebuild the postings of all batches from the passages, as one batch.

        ``reusable`` is closed at the end.
        """
        rows = self.query(
            "SELECT path, digest, passages, truncated, key FROM contents ORDER BY key"
        )
        parts = [
            (int(key), ReusedDocument(DocumentEntry(*entry), int(key), reusable))
            for *entry, key in rows
        ]
        try:
            with self._transaction():
                number = self._next_number() - 1
                rebuild_postings(self.connection, parts, self.description, -number)
        finally:
            reusable.close()

    def close(self) -> None:
        """Close the session, and return once its lock is free.

        A command that still runs, as a COPY, would be waited for: it ends with the connection, and
        the lock when the server notices, for which some seconds are waited.
        """
        info = self.connection.info
        if info.transaction_status.name != "ACTIVE":
            with suppress(StillroomError), self.server.errors():
                self.connection.rollback()
                self.connection.execute("SELECT pg_advisory_unlock_all()")
            self.connection.close()
            return
        process = info.backend_pid
        self.connection.close()
        is_open = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        with suppress(StillroomError), self.server.errors(), self.server.connect("writer") as other:
            ends = time.monotonic() + _NOTICED_WITHIN_S
            while other.execute(is_open, (process,)).fetchone() and time.monotonic() < ends:
                time.sleep(0.02)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit at the end of the body, or roll back on any exception.

        A transaction that ``create`` has opened is continued.
        """
        with self.server.errors():
            if not self.connection.info.transaction_status:
                self.connection.execute("BEGIN")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if not self.connection.closed:
                    self.connection.execute("ROLLBACK")
                raise

    def _next_number(self) -> int:
        return int(self.query("SELECT coalesce(max(number), 0) + 1 FROM snapshots")[0][0])

    def _index_vectors(self, number: int) -> None:
        """Create the HNSW index if the settings ask for it and it is missing."""
        passages = self.query(
            "SELECT passages FROM snapshots WHERE number = :number", {"number": number}
        )
        if not is_approximate(self.description["settings"], int(passages[0][0])):
            return
        half = self.description["settings"]["vectors"] == "float16"
        kind = "halfvec_ip_ops" if half else "vector_ip_ops"
        self.connection.execute(
            f"CREATE INDEX IF NOT EXISTS vectors_by_nearness ON vectors "
            f"USING hnsw (vector {kind}) WITH (m = {int(self._graph['m'])}, "
            f"ef_construction = {int(self._graph['ef_construction'])})".encode()
        )

    def _remove_unneeded(self, newest: int, keep: int) -> None:
        """Remove the data of snapshots that are not kept; snapshots with readers are kept."""
        known = [snapshot.number for snapshot in self.snapshots()]
        lock = compute_lock_id(self.server.schema)
        oldest, locked = newest, []
        try:
            for number in known:
                oldest = number
                if number > newest - keep:
                    break
                values = {"lock": lock, "number": number}
                if not self.query("SELECT pg_try_advisory_lock(:lock, :number)", values)[0][0]:
                    break
                locked.append(values)
            if oldest != known[0]:
                self._purge(oldest)
        finally:
            for values in locked:
                self.query("SELECT pg_advisory_unlock(:lock, :number)", values)

    def _purge(self, oldest: int) -> None:
        values = {"oldest": oldest, "bits": PASSAGE_BITS}
        expired = (
            "SELECT content FROM documents a WHERE died <= :oldest AND NOT EXISTS ("
            "SELECT 1 FROM documents b WHERE b.content = a.content AND b.died > :oldest)"
        )
        with self._transaction():
            keys = sorted({int(key) for (key,) in self.query(expired, values)})
            for sql in (
                "DELETE FROM passages p USING unnest(%s::bigint[]) g "  # noqa: S608
                f"WHERE p.key >= g << {PASSAGE_BITS} AND p.key < (g + 1) << {PASSAGE_BITS}",
                "DELETE FROM vectors WHERE content = ANY(%s)",
                "DELETE FROM contents WHERE key = ANY(%s)",
            ):
                self.connection.execute(sql.encode(), (keys,))
            for sql in _PURGE:
                self._run(sql, values)
            empty = (
                "SELECT number FROM batches b WHERE NOT EXISTS ("
                "SELECT 1 FROM contents c WHERE c.batch = b.number)"
            )
            self._run(f"DELETE FROM postings WHERE batch IN ({empty})")  # noqa: S608
            self._run(f"DELETE FROM batches WHERE number IN ({empty})")  # noqa: S608

    def _run(self, sql: str, values: Mapping[str, Any] | None = None) -> None:
        self.connection.execute(translate_parameters(sql), values or {})


def _take_lock(server: PostgresSchema, connection: psycopg.Connection[Any]) -> None:
    values = {"lock": compute_lock_id(server.schema), "writer": _WRITER_LOCK}
    if fetch_rows(connection, "SELECT pg_try_advisory_lock(:lock, :writer)", values)[0][0]:
        return
    rows = fetch_rows(
        connection,
        "SELECT a.pid, a.application_name, a.backend_start, coalesce(a.client_addr::text, 'here') "
        "FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 "
        "AND l.classid::bigint = (:lock::bigint & 4294967295) "
        "AND l.objid::bigint = (:writer::bigint & 4294967295)",
        values,
    )
    holder = "; ".join(
        f"{name} (session {pid} from {address}, since {since:%Y-%m-%dT%H:%M:%S})"
        for pid, name, since, address in rows
    )
    raise make_busy_error(server.where, holder)


_MAX_BATCHES = 24
_REMAINING_BATCHES = 8
_MERGE = (
    "INSERT INTO postings SELECT p.term, :batch, array_agg(u.key ORDER BY u.key), "  # noqa: S608
    "array_agg(u.headings ORDER BY u.key), array_agg(u.words ORDER BY u.key), "
    "array_agg(u.spots ORDER BY u.key) FROM postings p CROSS JOIN LATERAL "
    "unnest(p.keys, p.headings, p.words, p.spots) AS u(key, headings, words, spots) "
    f"JOIN contents c ON c.key = (u.key >> {PASSAGE_BITS}) "
    "WHERE p.batch = ANY(:old) GROUP BY p.term"
)
_STEPS = (
    "DELETE FROM postings WHERE batch = ANY(:old)",
    "DELETE FROM batches WHERE number = ANY(:old)",
    "UPDATE contents SET batch = :batch WHERE batch = ANY(:old)",
)


def _choose_batches(connection: psycopg.Connection[Any]) -> list[int]:
    """Return the batches to merge now; empty while there are few."""
    rows = fetch_rows(connection, "SELECT number FROM batches ORDER BY postings, number")
    return (
        [int(number) for (number,) in rows[: len(rows) - _REMAINING_BATCHES]]
        if len(rows) > _MAX_BATCHES
        else []
    )


def _merge_batches(
    connection: psycopg.Connection[Any], batches: Sequence[int], number: int
) -> None:
    """Merge several batches into one, within the writer's transaction.

    The new batch has the negative number of the snapshot, which is unused.
    """
    if not batches:
        return
    batch = -number
    connection.execute(translate_parameters(_MERGE), {"batch": batch, "old": list(batches)})
    for sql in _STEPS:
        connection.execute(translate_parameters(sql), {"batch": batch, "old": list(batches)})
    insert_batch(connection, batch)
