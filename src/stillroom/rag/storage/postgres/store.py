"""PostgreSQL store: one index in a schema, with its integrity check.

The check cuts every passage's text from its document again and recomputes every digest: of
documents and metadata here, of vectors and postings by the server's SHA-256 over its tables.
Postings can be rebuilt from the passages; other damage is only reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from stillroom.rag.storage.postgres.commit import digest_batch
from stillroom.rag.storage.postgres.connection import PostgresSchema
from stillroom.rag.storage.postgres.snapshot import (
    PostgresReusableContent,
    PostgresSession,
    PostgresSnapshot,
)
from stillroom.rag.storage.postgres.writer import PostgresIndexWriter
from stillroom.rag.storage.protocol import (
    IndexStorage,
    IntegrityIssue,
    StoreSize,
    check_manifest,
)
from stillroom.rag.storage.snapshots import PASSAGE_BITS, Snapshot, update_manifest
from stillroom.rag.storage.tables import check_digest, check_documents, check_facts, check_texts

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["PostgresStore"]


_SIZE = (
    "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relkind = 'r'"
)


@dataclass(frozen=True, slots=True)
class PostgresStore(IndexStorage):
    """Store of an index in PostgreSQL; ``graph`` has the settings of an HNSW index."""

    server: PostgresSchema
    graph: Mapping[str, int]

    @override
    def read(self, selector: int | str | None = None, *, verify: bool) -> PostgresSnapshot:
        """Open a snapshot, by default the newest.

        With ``verify`` the newest digest is recomputed from the digests of documents, and these
        from their fields, tenants and labels; texts, vectors and postings are only verified by
        ``check``.
        """
        reading = PostgresSnapshot.open(self.server, selector)
        try:
            if verify:
                for issue in (
                    *check_digest(reading, reading.description),
                    *check_documents(reading),
                ):
                    raise self.server.damaged(issue.what)
        except BaseException:
            reading.close()
            raise
        return reading

    def hold(self) -> PostgresReusableContent:
        """Open the newest snapshot to reuse its content."""
        return PostgresReusableContent(PostgresSnapshot.open(self.server))

    @override
    def write(self) -> PostgresIndexWriter:
        return PostgresIndexWriter.open(self.server, self.graph)

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""
        with closing(PostgresSession(self.server)) as session:
            return session.snapshots()

    def check(self) -> list[IntegrityIssue]:
        """Return all integrity issues; an empty list means that the index is intact."""
        with closing(PostgresSnapshot.open(self.server)) as reading:
            return _check_tables(reading)

    @override
    def repair(self, issues: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        with self.write() as writer:
            if any(issue.path == "postings" for issue in issues):
                writer.renew_postings(PostgresReusableContent(PostgresSnapshot.open(self.server)))
            update_manifest(writer)

    def measure(self) -> StoreSize:
        """Return the size of the tables and their indexes, and the number of batches."""
        with closing(PostgresSession(self.server)) as session:
            size = session.query(_SIZE, {"schema": self.server.schema})
            pieces = session.query("SELECT count(*) FROM batches")
            return StoreSize(int(size[0][0]), int(pieces[0][0]), is_remote=True)

    @override
    def discard(self) -> None:
        with closing(self.server.connect("writer")) as connection, self.server.errors():
            self.server.drop(connection)


_MATRICES = (
    "SELECT c.path FROM contents c LEFT JOIN (SELECT content, count(*) AS rows, "
    "encode(sha256(string_agg(vector_send(vector::vector), ''::bytea ORDER BY key)), 'hex') "
    "AS digest FROM vectors GROUP BY content) v ON v.content = c.key "
    "WHERE v.digest IS DISTINCT FROM c.matrix OR v.rows IS DISTINCT FROM c.passages ORDER BY c.path"
)


def _check_tables(reading: PostgresSnapshot) -> list[IntegrityIssue]:
    """Return all integrity issues of an index's tables; an empty list means that it is intact."""
    issues = [*check_texts(reading), *check_documents(reading), *check_facts(reading)]
    issues += [*check_digest(reading, reading.description), *_check_searched(reading)]
    return [*issues, *check_manifest(reading.session.server.folder, reading.snapshot)]


def _check_searched(reading: PostgresSnapshot) -> Iterator[IntegrityIssue]:
    """Recompute the digests of vectors and postings, and report rows without an owner."""
    for (path,) in reading.query(_MATRICES):
        yield reading.issue("vectors", f"{path}: its vectors have changed")
    for number, count, digest in reading.query(
        "SELECT number, postings, digest FROM batches ORDER BY number"
    ):
        with reading.session.connection as connection:
            is_intact = digest_batch(connection, number) == (count, digest)
        if not is_intact:
            problem = f"the rows of batch {number} have changed"
            yield IntegrityIssue("postings", problem, is_derived=True)
    for table, sql in (
        (
            "passages",
            "SELECT count(*) FROM passages a WHERE NOT EXISTS (SELECT 1 FROM contents c "  # noqa: S608
            f"WHERE c.key = a.key >> {PASSAGE_BITS})",
        ),
        (
            "vectors",
            "SELECT count(*) FROM vectors v WHERE NOT EXISTS ("
            "SELECT 1 FROM passages a WHERE a.key = v.key)",
        ),
        (
            "contents",
            "SELECT count(*) FROM contents c WHERE NOT EXISTS ("
            "SELECT 1 FROM batches b WHERE b.number = c.batch)",
        ),
        (
            "postings",
            "SELECT count(*) FROM (SELECT DISTINCT batch FROM postings) p "
            "WHERE NOT EXISTS (SELECT 1 FROM batches b WHERE b.number = p.batch)",
        ),
    ):
        count = int(reading.query(sql)[0][0])
        if count:
            yield reading.issue(table, f"{count} rows have no owner")
