"""PostgreSQL store: one index in a schema, with its integrity check.

The check cuts every passage's text from its document again and recomputes every digest: of
documents and metadata here, of vectors and postings by the server's SHA-256 over its tables.
Postings can be rebuilt from the passages; other damage is only reported.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.rag.storage.filters import derive_fields, list_values
from stillroom.rag.storage.postgres.commit import digest_batch
from stillroom.rag.storage.postgres.connection import PostgresSchema, sanitize_column_text
from stillroom.rag.storage.postgres.snapshot import (
    PostgresReusableContent,
    PostgresSession,
    PostgresSnapshot,
)
from stillroom.rag.storage.postgres.writer import PostgresIndexWriter
from stillroom.rag.storage.protocol import IntegrityIssue, StoreSize, check_manifest
from stillroom.rag.storage.snapshots import (
    FOREVER,
    PASSAGE_BITS,
    Snapshot,
    digest_bucket,
    digest_document,
    digest_snapshot,
    get_bucket,
    update_manifest,
)
from stillroom.rag.types import DocumentMetadata, digest_content

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = [
    "PostgresStore",
    "check_digest",
    "check_documents",
    "check_tables",
]


_SIZE = (
    "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relkind = 'r'"
)


@dataclass(frozen=True, slots=True)
class PostgresStore:
    """Store of an index in PostgreSQL; see ``stillroom.rag.storage.protocol.IndexStorage``.

    ``graph`` has the settings of an HNSW index.
    """

    server: PostgresSchema
    graph: Mapping[str, int]

    def read(self, selector: int | str | None = None, *, verify: bool) -> PostgresSnapshot:
        """Open a snapshot, by default the newest.

        With ``verify`` the newest digest is recomputed from the digests of documents, and these
        from their fields, tenants and labels; texts, vectors and postings are only verified by
        ``check``.

        Raises:
            DataError: If there is no such snapshot, or it was removed.
            ResourceError: If the server cannot be reached.
            IntegrityError: If it does not have the index, or has another one.
        """
        reading = PostgresSnapshot.open(self.server, selector)
        try:
            if verify:
                for issue in (*check_digest(reading), *check_documents(reading)):
                    raise self.server.damaged(issue.what)
        except BaseException:
            reading.close()
            raise
        return reading

    def hold(self) -> PostgresReusableContent:
        """Open the newest snapshot to reuse its content."""
        return PostgresReusableContent(PostgresSnapshot.open(self.server))

    def write(self) -> PostgresIndexWriter:
        """Open the index for writing; an interrupted writer leaves nothing to remove.

        Raises:
            ResourceError: If another process writes it, or the server cannot be reached.
        """
        return PostgresIndexWriter.open(self.server, self.graph)

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""
        session = PostgresSession(self.server)
        try:
            return session.snapshots()
        finally:
            session.close()

    def check(self) -> list[IntegrityIssue]:
        """Return all integrity issues; an empty list means that the index is intact."""
        reading = PostgresSnapshot.open(self.server)
        try:
            return check_tables(reading)
        finally:
            reading.close()

    def repair(self, issues: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        """Rebuild damaged postings from passages, and the derived files.

        Raises:
            ResourceError: If another process writes it, or the server cannot be reached.
        """
        with self.write() as writer:
            if any(issue.path == "postings" for issue in issues):
                writer.renew_postings(PostgresReusableContent(PostgresSnapshot.open(self.server)))
            update_manifest(writer)

    def measure(self) -> StoreSize:
        """Return the size of the tables and their indexes, and the number of batches."""
        session = PostgresSession(self.server)
        try:
            size = session.query(_SIZE, {"schema": self.server.schema})
            pieces = session.query("SELECT count(*) FROM batches")
            return StoreSize(int(size[0][0]), int(pieces[0][0]), is_remote=True)
        finally:
            session.close()

    def discard(self) -> None:
        """Remove the schema with all its tables.

        Raises:
            ResourceError: If the server cannot be reached.
        """
        connection = self.server.connect("writer")
        try:
            with self.server.errors():
                self.server.drop(connection)
        finally:
            connection.close()


_MATRICES = (
    "SELECT c.path FROM contents c LEFT JOIN (SELECT content, count(*) AS rows, "
    "encode(sha256(string_agg(vector_send(vector::vector), ''::bytea ORDER BY key)), 'hex') "
    "AS digest FROM vectors GROUP BY content) v ON v.content = c.key "
    "WHERE v.digest IS DISTINCT FROM c.matrix OR v.rows IS DISTINCT FROM c.passages ORDER BY c.path"
)


def check_tables(reading: PostgresSnapshot) -> list[IntegrityIssue]:
    """Return all integrity issues of an index's tables; an empty list means that it is intact."""
    issues = [*_check_contents(reading), *check_documents(reading), *_check_facts(reading)]
    issues += [*check_digest(reading), *_check_searched(reading)]
    return [*issues, *check_manifest(reading.session.server.folder, reading.snapshot)]


def check_digest(reading: PostgresSnapshot) -> Iterator[IntegrityIssue]:
    """Recompute digest and counts of the newest snapshot from its documents."""
    marks: dict[int, list[str]] = {}
    passages = 0
    rows = reading.session.query(
        "SELECT bucket, mark, passages FROM documents WHERE died = :now ORDER BY path",
        {"now": FOREVER},
    )
    for bucket, mark, count in rows:
        marks.setdefault(bucket, []).append(mark)
        passages += count
    buckets = {number: digest_bucket(bucket_marks) for number, bucket_marks in marks.items()}
    recorded = dict(reading.session.query("SELECT number, digest FROM buckets WHERE digest <> ''"))
    if recorded != buckets:
        yield _make_issue("buckets", "the digests of buckets do not match their documents")
    latest = reading.session.snapshots()[-1]
    if digest_snapshot(reading.description, buckets) != latest.digest:
        yield _make_issue("snapshots", f"snapshot {latest.number} has another digest")
    if (latest.documents, latest.passages) != (len(rows), passages):
        yield _make_issue(
            "snapshots",
            f"snapshot {latest.number} counts {latest.documents} documents and "
            f"{latest.passages} passages, there are {len(rows)} and {passages}",
        )


def _make_issue(table: str, problem: str, *, is_derived: bool = False) -> IntegrityIssue:
    return IntegrityIssue(table, problem, is_derived=is_derived)


def _check_contents(reading: PostgresSnapshot) -> Iterator[IntegrityIssue]:
    """Recompute the spans, ids and digests of each document's content."""
    rows = reading.session.query(
        "SELECT key, path, mark, passages, fields FROM contents ORDER BY key"
    )
    for key, path, mark, count, fields in rows:
        bodies = reading.session.query(
            "SELECT id, body FROM passages WHERE key >= :first AND key < :last ORDER BY key",
            {"first": key << PASSAGE_BITS, "last": (key + 1) << PASSAGE_BITS},
        )
        try:
            line = zlib.decompress(
                reading.session.query("SELECT body FROM contents WHERE key = :key", {"key": key})[
                    0
                ][0]
            )
            document = json.loads(line)
            passages = [json.loads(body) for _, body in bodies]
            has_same_fields = derive_fields(document) == json.loads(fields)
            has_same_text = all(
                document["text"][passage["start"] : passage["end"]] == passage["text"]
                for passage in passages
            )
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            yield _make_issue("contents", f"{path}: cannot be read: {error}".split("\n", 1)[0])
            continue
        if not has_same_fields:
            yield _make_issue("contents", f"{path}: has other fields than its document")
        if not has_same_text:
            yield _make_issue("passages", f"{path}: a passage is not the document's own text")
        if len(bodies) != count or [passage["id"] for passage in passages] != [
            name for name, _ in bodies
        ]:
            yield _make_issue("passages", f"{path}: has other passages than recorded")
        if digest_content(line, [bytes(body) for _, body in bodies]) != mark:
            yield _make_issue("passages", f"{path}: its bytes have changed")


def check_documents(reading: PostgresSnapshot) -> Iterator[IntegrityIssue]:
    """Compare versions of documents, tenants and labels with their digests."""
    rows = reading.session.query(
        "SELECT d.path, d.bucket, d.mark, d.tenant, d.labels, d.fields, d.passages, c.path, "
        "c.mark, c.passages FROM documents d LEFT JOIN contents c ON c.key = d.content "
        "ORDER BY d.key"
    )
    for path, bucket, mark, tenant, labels, fields, count, content_path, content, passages in rows:
        if content is None or content_path != path or count != passages:
            yield _make_issue("documents", f"{path}: has no content of its own")
            continue
        facts = DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels)))
        if digest_document(path, content, facts) != mark or get_bucket(path) != bucket:
            yield _make_issue("documents", f"{path}: its fields, tenant or labels were changed")


def _check_facts(reading: PostgresSnapshot) -> Iterator[IntegrityIssue]:
    """Compare the rows that filters and access conditions read with the recorded metadata."""
    labels: dict[int, set[str]] = {}
    for key, label in reading.session.query("SELECT document, label FROM labels"):
        labels.setdefault(key, set()).add(label)
    values: dict[int, list[Any]] = {}
    for key, *value in reading.session.query(
        "SELECT document, name, kind, words, number FROM fields"
    ):
        values.setdefault(key, []).append(tuple(value))
    rows = reading.session.query(
        "SELECT d.key, d.path, d.labels, d.fields, c.fields FROM documents d "
        "JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    for key, path, recorded_labels, fields, derived in rows:
        merged = {**json.loads(derived), **json.loads(fields)}
        expected = Counter(
            (name, kind, sanitize_column_text(value), None)
            if isinstance(value, str)
            else (name, kind, None, value)
            for name, kind, value in list_values(merged)
        )
        is_labelled = labels.pop(key, set()) == {
            sanitize_column_text(label) for label in json.loads(recorded_labels)
        }
        if Counter(values.pop(key, [])) != expected or not is_labelled:
            yield _make_issue("fields", f"{path}: its rows of labels or fields were changed")
    if labels or values:
        yield _make_issue("fields", "there are labels or fields without a document")


def _check_searched(reading: PostgresSnapshot) -> Iterator[IntegrityIssue]:
    """Recompute the digests of vectors and postings, and report rows without an owner."""
    for (path,) in reading.session.query(_MATRICES):
        yield _make_issue("vectors", f"{path}: its vectors have changed")
    for number, count, digest in reading.session.query(
        "SELECT number, postings, digest FROM batches ORDER BY number"
    ):
        if digest_batch(reading.session.connection, number) != (count, digest):
            yield _make_issue(
                "postings", f"the rows of batch {number} have changed", is_derived=True
            )
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
        count = int(reading.session.query(sql)[0][0])
        if count:
            yield _make_issue(table, f"{count} rows have no owner")
