"""Checking an index in PostgreSQL against itself; nothing is taken on the server's word.

Every passage's text is cut from its document again and every digest recomputed: of documents and
facts here, of vectors and postings by the server's SHA-256 over what its tables hold. Postings can
be made again from the passages; what else is damaged is only named.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from stillroom.rag.postgres.connecting import clean
from stillroom.rag.postgres.reading import PostgresReading
from stillroom.rag.postgres.staging import digest_batch
from stillroom.rag.store.checking import Damage, check_manifest
from stillroom.rag.store.digests import bucket_of, digest_bucket, digest_snapshot, mark_document
from stillroom.rag.store.fields import derive_fields, list_values
from stillroom.rag.store.parts import Facts, mark_of
from stillroom.rag.store.schema import FOREVER, PASSAGE_BITS

__all__ = ["check_digest", "check_documents", "check_tables"]

_MATRICES = (
    "SELECT c.path FROM contents c LEFT JOIN (SELECT content, count(*) AS rows, "
    "encode(sha256(string_agg(vector_send(vector::vector), ''::bytea ORDER BY key)), 'hex') "
    "AS digest FROM vectors GROUP BY content) v ON v.content = c.key "
    "WHERE v.digest IS DISTINCT FROM c.matrix OR v.rows IS DISTINCT FROM c.passages ORDER BY c.path"
)


def check_tables(reading: PostgresReading) -> list[Damage]:
    """Return everything in an index's tables that does not agree; none means sound."""
    found = [*_check_contents(reading), *check_documents(reading), *_check_facts(reading)]
    found += [*check_digest(reading), *_check_searched(reading)]
    return [*found, *check_manifest(reading.session.server.folder, reading.snapshot)]


def check_digest(reading: PostgresReading) -> Iterator[Damage]:
    """Recompute digest and counts of the newest snapshot from the marks of its documents."""
    marks: dict[int, list[str]] = {}
    passages = 0
    rows = reading.session.query(
        "SELECT bucket, mark, passages FROM documents WHERE died = :now ORDER BY path",
        {"now": FOREVER},
    )
    for bucket, mark, count in rows:
        marks.setdefault(bucket, []).append(mark)
        passages += count
    buckets = {number: digest_bucket(own) for number, own in marks.items()}
    kept = dict(reading.session.query("SELECT number, digest FROM buckets WHERE digest <> ''"))
    if kept != buckets:
        yield _damage("buckets", "the digests of buckets are not those of their documents")
    latest = reading.session.snapshots()[-1]
    if digest_snapshot(reading.description, buckets) != latest.digest:
        yield _damage("snapshots", f"snapshot {latest.number} has another digest")
    if (latest.documents, latest.passages) != (len(rows), passages):
        yield _damage(
            "snapshots",
            f"snapshot {latest.number} counts {latest.documents} documents and "
            f"{latest.passages} passages, there are {len(rows)} and {passages}",
        )


def _damage(table: str, what: str, *, is_derived: bool = False) -> Damage:
    return Damage(table, what, is_derived=is_derived)


def _check_contents(reading: PostgresReading) -> Iterator[Damage]:
    """Recompute what each document became: spans, ids, digests."""
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
            is_told = derive_fields(document) == json.loads(fields)
            is_cut = all(
                document["text"][one["start"] : one["end"]] == one["text"] for one in passages
            )
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            yield _damage("contents", f"{path}: cannot be read: {error}".split("\n", 1)[0])
            continue
        if not is_told:
            yield _damage("contents", f"{path}: has other fields than its document gives")
        if not is_cut:
            yield _damage("passages", f"{path}: a passage is not the document's own text")
        if len(bodies) != count or [one["id"] for one in passages] != [name for name, _ in bodies]:
            yield _damage("passages", f"{path}: has other passages than it says")
        if mark_of(line, [bytes(body) for _, body in bodies]) != mark:
            yield _damage("passages", f"{path}: is not what was written")


def check_documents(reading: PostgresReading) -> Iterator[Damage]:
    """Hold versions of documents, their tenants and labels, against their marks."""
    rows = reading.session.query(
        "SELECT d.path, d.bucket, d.mark, d.tenant, d.labels, d.fields, d.passages, c.path, "
        "c.mark, c.passages FROM documents d LEFT JOIN contents c ON c.key = d.content "
        "ORDER BY d.key"
    )
    for path, bucket, mark, tenant, labels, fields, count, named, content, passages in rows:
        if content is None or named != path or count != passages:
            yield _damage("documents", f"{path}: has no content of its own")
            continue
        facts = Facts(json.loads(fields), tenant, tuple(json.loads(labels)))
        if mark_document(path, content, facts) != mark or bucket_of(path) != bucket:
            yield _damage("documents", f"{path}: its fields, tenant or labels were changed")


def _check_facts(reading: PostgresReading) -> Iterator[Damage]:
    """Hold what filters and access read against what each document's mark covers."""
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
    for key, path, own, fields, derived in rows:
        merged = {**json.loads(derived), **json.loads(fields)}
        wanted = Counter(
            (name, kind, clean(value), None)
            if isinstance(value, str)
            else (name, kind, None, value)
            for name, kind, value in list_values(merged)
        )
        is_labelled = labels.pop(key, set()) == {clean(one) for one in json.loads(own)}
        if Counter(values.pop(key, [])) != wanted or not is_labelled:
            yield _damage("fields", f"{path}: its rows of labels or fields were changed")
    if labels or values:
        yield _damage("fields", "there are labels or fields of no document")


def _check_searched(reading: PostgresReading) -> Iterator[Damage]:
    """Recompute the digests of vectors and postings, and name what belongs to nothing."""
    for (path,) in reading.session.query(_MATRICES):
        yield _damage("vectors", f"{path}: its vectors are not those that were written")
    for number, count, digest in reading.session.query(
        "SELECT number, postings, digest FROM batches ORDER BY number"
    ):
        if digest_batch(reading.session.connection, number) != (count, digest):
            yield _damage("postings", f"batch {number} is not what was written", is_derived=True)
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
            yield _damage(table, f"{count} rows belong to nothing")
