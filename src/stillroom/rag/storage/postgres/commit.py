"""Commit of a change to PostgreSQL: staging by COPY, and publishing of document versions.

All changes run in the writer's one transaction, so that readers never see a part of them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.search_engines.keyword import FIELDS, Postings, write_postings
from stillroom.rag.storage.filters import derive_fields, list_values
from stillroom.rag.storage.postgres.connection import (
    PostgresSchema,
    build_term_key,
    encode_copy_row,
    fetch_rows,
    sanitize_column_text,
)
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import (
    FOREVER,
    PASSAGE_BITS,
    IndexConfig,
    digest_document,
    get_bucket,
    open_analyzer,
)
from stillroom.rag.storage.tables import describe_snapshot, digest_changed_buckets
from stillroom.rag.types import DocumentMetadata, StagedDocument, digest_content, iter_postings_rows

if TYPE_CHECKING:
    import psycopg
    from numpy.typing import NDArray

__all__ = ["digest_batch", "insert_batch", "publish_update", "rebuild_postings", "stage_documents"]


_COMPRESSION_LEVEL = 1
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_INT4, _INT8, _BYTEA = 23, 20, 17
_BATCH_DIGEST = (
    "SELECT count(*), encode(sha256(coalesce(string_agg(sha256(convert_to(term, 'UTF8') "
    "|| array_send(keys) || array_send(headings) || array_send(words) || array_send(spots)), "
    "''::bytea ORDER BY term), ''::bytea)), 'hex') FROM postings WHERE batch = :batch"
)


@dataclass(frozen=True, slots=True)
class _NewDocument:
    """A staged document that the server does not have yet, with the key of its content."""

    key: int
    part: StagedDocument
    id: str
    mark: str


def stage_documents(
    server: PostgresSchema,
    connection: psycopg.Connection[Any],
    parts: Sequence[StagedDocument],
    description: Mapping[str, Any],
    batch: int,
    check: Callable[[], None],
) -> list[int]:
    """Write documents; return their contents' keys, in order.

    ``check`` is called regularly, and raises to stop.

    Raises:
        IntegrityError: If the server has other passages under a document's id.
    """
    if not parts:
        return []
    keys, new_documents = _find_new(server, connection, parts, check)
    if new_documents:
        analyzer = open_analyzer(IndexConfig.from_json(description), "the index in PostgreSQL")
        with tempfile.TemporaryDirectory(prefix="stillroom-") as folder:
            lines = (line for document in new_documents for line in document.part.passage_lines())
            write_postings(Path(folder), iter_postings_rows(lines, analyzer, check))
            postings = Postings.open(Path(folder))
            columns = "passages(key, id, embedded, truncated, body, headings, words)"
            _copy_rows(connection, columns, _list_passages(new_documents, postings, check))
            check()
            _copy_postings(connection, new_documents, postings, batch)
        kind = "halfvec" if description["settings"]["vectors"] == "float16" else "vector"
        matrices = _copy_vectors(connection, new_documents, kind, check)
        columns = "key, id, path, digest, mark, passages, truncated, fields, body, matrix, batch"
        rows = _list_contents(new_documents, matrices, batch)
        _copy_rows(connection, f"contents({columns})", rows)
        insert_batch(connection, batch)
    return keys


def rebuild_postings(
    connection: psycopg.Connection[Any],
    parts: Sequence[tuple[int, StagedDocument]],
    description: Mapping[str, Any],
    batch: int,
) -> None:
    """Rebuild all postings as one batch, within the writer's transaction."""
    documents = [_NewDocument(key, part, "", "") for key, part in parts]
    for sql in ("DELETE FROM postings", "DELETE FROM batches"):
        connection.execute(sql.encode())
    connection.execute("UPDATE contents SET batch = %s", (batch,))
    analyzer = open_analyzer(IndexConfig.from_json(description), "the index in PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="stillroom-") as folder:
        lines = (line for document in documents for line in document.part.passage_lines())
        write_postings(Path(folder), iter_postings_rows(lines, analyzer))
        _copy_postings(connection, documents, Postings.open(Path(folder)), batch)
    insert_batch(connection, batch)


def insert_batch(connection: psycopg.Connection[Any], batch: int) -> None:
    """Record a batch whose postings are written, with their number and digest."""
    count, digest = digest_batch(connection, batch)
    connection.execute("INSERT INTO batches VALUES (%s, %s, %s)", (batch, count, digest))


def digest_batch(connection: psycopg.Connection[Any], batch: int) -> tuple[int, str]:
    """Return the number of postings rows of a batch, and their digest."""
    rows = fetch_rows(connection, _BATCH_DIGEST, {"batch": batch})
    return int(rows[0][0]), str(rows[0][1])


def _copy_rows(
    connection: psycopg.Connection[Any], target: str, rows: Iterable[Sequence[Any]]
) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)


def _copy_binary(
    connection: psycopg.Connection[Any], target: str, rows: Iterable[Sequence[bytes]]
) -> None:
    """Copy rows of values in the binary format."""
    statement = f"COPY {target} FROM STDIN (FORMAT binary)".encode()
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(_HEADER)
        for row in rows:
            copy.write(encode_copy_row(row))
        copy.write(b"\xff\xff")


def _find_new(
    server: PostgresSchema,
    connection: psycopg.Connection[Any],
    parts: Sequence[StagedDocument],
    check: Callable[[], None],
) -> tuple[list[int], list[_NewDocument]]:
    """Return the content key of every staged document, and the new documents."""
    identified = []
    for number, part in enumerate(parts):
        if number % 64 == 0:
            check()
        line = part.document_line()
        identified.append((json.loads(line)["id"], digest_content(line, part.passage_lines())))
    existing = {
        name: (int(key), str(mark))
        for name, key, mark in fetch_rows(
            connection,
            "SELECT id, key, mark FROM contents WHERE id = ANY(:ids)",
            {"ids": [name for name, _ in identified]},
        )
    }
    top = int(fetch_rows(connection, "SELECT coalesce(max(key), 0) FROM contents")[0][0])
    keys, new_documents = [], []
    for (name, mark), part in zip(identified, parts, strict=True):
        if name in existing and existing[name][1] != mark:
            raise server.damaged(f"{part.entry.path} has other passages than before")
        if name not in existing:
            top += 1
            existing[name] = (top, mark)
            new_documents.append(_NewDocument(top, part, name, mark))
        keys.append(existing[name][0])
    return keys, new_documents


def _list_passages(
    documents: Sequence[_NewDocument], postings: Postings, check: Callable[[], None]
) -> Iterator[tuple[Any, ...]]:
    lengths = iter(postings.lengths)
    for document in documents:
        check()
        marks, lines = document.part.marks(), document.part.passage_lines()
        for position, (body, mark) in enumerate(zip(lines, marks, strict=True)):
            key = (document.key << PASSAGE_BITS) + position
            headings, words = map(int, next(lengths))
            truncated = int(mark.is_truncated)
            yield key, json.loads(body)["id"], mark.embedded, truncated, body, headings, words


def _list_contents(
    documents: Sequence[_NewDocument], matrices: Sequence[str], batch: int
) -> Iterator[tuple[Any, ...]]:
    for document, matrix in zip(documents, matrices, strict=True):
        line, entry = document.part.document_line(), document.part.entry
        yield (
            document.key,
            document.id,
            sanitize_column_text(entry.path),
            entry.digest,
            document.mark,
            entry.passages,
            entry.truncated,
            json.dumps(derive_fields(json.loads(line))),
            zlib.compress(line, _COMPRESSION_LEVEL),
            matrix,
            batch,
        )


def _copy_vectors(
    connection: psycopg.Connection[Any],
    documents: Sequence[_NewDocument],
    kind: str,
    check: Callable[[], None],
) -> list[str]:
    """Write vectors in pgvector's binary format; return the digest of each content's vectors."""
    digests: list[str] = []
    longest = 0.0

    def list_vectors() -> Iterator[tuple[bytes, ...]]:
        nonlocal longest
        for document in documents:
            check()
            matrix = np.asarray(document.part.vectors())
            stored = matrix.astype(">f2" if kind == "halfvec" else ">f4")
            full = stored.astype(">f4")
            head = matrix.shape[1].to_bytes(2, "big") + bytes(2)
            content = document.key.to_bytes(8, "big")
            for position, row in enumerate(stored):
                key = ((document.key << PASSAGE_BITS) + position).to_bytes(8, "big")
                yield key, content, head + row.tobytes()
            digests.append(
                hashlib.sha256(b"".join(head + row.tobytes() for row in full)).hexdigest()
            )
            norms = np.linalg.norm(full.astype(np.float64), axis=1)
            longest = max(longest, float(norms.max(initial=0.0)))

    _copy_binary(connection, "vectors(key, content, vector)", list_vectors())
    connection.execute(
        "INSERT INTO settings VALUES ('longest', %s) ON CONFLICT (name) DO UPDATE "
        "SET value = greatest(settings.value::float8, excluded.value::float8)::text",
        (repr(longest),),
    )
    return digests


def _copy_postings(
    connection: psycopg.Connection[Any],
    documents: Sequence[_NewDocument],
    postings: Postings,
    batch: int,
) -> None:
    counts = [document.part.entry.passages for document in documents]
    starts = np.repeat(np.array([document.key << PASSAGE_BITS for document in documents]), counts)
    steps = np.concatenate([np.arange(count) for count in counts])
    keys = (starts + steps).astype(np.int64)
    number = batch.to_bytes(8, "big", signed=True)
    rows = ((term, number, *arrays) for term, *arrays in _pack_postings(postings, keys))
    _copy_binary(connection, "postings(term, batch, keys, headings, words, spots)", rows)


def _pack_postings(
    postings: Postings, keys: NDArray[np.int64]
) -> Iterator[tuple[bytes, bytes, bytes, bytes, bytes]]:
    """Yield each term with its arrays in the binary format."""
    for number, term in enumerate(postings.terms()):
        rows, headings, words = postings.look_up(number)
        positions = _encode_positions(postings, number, headings, words)
        yield (
            build_term_key(term.decode("utf-8", "surrogatepass")).encode(),
            _encode_array(keys[rows], ">i8", _INT8),
            _encode_array(headings, ">i4", _INT4),
            _encode_array(words, ">i4", _INT4),
            _encode_bytes_array(positions),
        )


def _encode_positions(
    postings: Postings, number: int, headings: NDArray[Any], words: NDArray[Any]
) -> list[bytes]:
    """Return the positions of each row of a term, those in headings first."""
    parts = []
    for field, counts in zip(FIELDS, (headings, words), strict=True):
        _, positions = postings.occurrences(number, field)
        ends = np.cumsum(counts, dtype=np.int64)
        data = positions.astype("<i4").tobytes()
        starts = ends - counts
        parts.append(
            [data[4 * a : 4 * b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        )
    return [a + b for a, b in zip(*parts, strict=True)]


def _encode_array(values: NDArray[Any], dtype: str, kind: int) -> bytes:
    """Return a one-dimensional array of numbers in the binary format."""
    size = np.dtype(dtype).itemsize
    packed = np.empty(len(values), dtype=[("size", ">i4"), ("value", dtype)])
    packed["size"], packed["value"] = size, values
    return _encode_array_header(len(values), kind) + packed.tobytes()


def _encode_bytes_array(values: Sequence[bytes]) -> bytes:
    body = b"".join(part for value in values for part in (len(value).to_bytes(4, "big"), value))
    return _encode_array_header(len(values), _BYTEA) + body


def _encode_array_header(count: int, kind: int) -> bytes:
    numbers = [1, 0, kind, count, 1]
    return b"".join(number.to_bytes(4, "big") for number in numbers)


@dataclass(frozen=True, slots=True)
class _DocumentVersion:
    """A new version of a document: its key, its content's key, path and metadata."""

    key: int
    content: int
    path: str
    facts: DocumentMetadata


def publish_update(
    connection: psycopg.Connection[Any],
    change: IndexUpdate,
    contents: Sequence[int],
    number: int,
    description: Mapping[str, Any],
    reason: str,
) -> None:
    """Apply a change within the writer's transaction."""
    versions = _list_versions(connection, change, contents)
    _end_versions(connection, change, number)
    _insert_versions(connection, versions, number)
    if change.failures is not None:
        _record_failures(connection, change.failures, number)
    query = partial(fetch_rows, connection)
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO buckets VALUES (%s, %s) "
            "ON CONFLICT (number) DO UPDATE SET digest = excluded.digest",
            list(digest_changed_buckets(query, number).items()),
        )
    row = describe_snapshot(query, number, description, sanitize_column_text(reason))
    connection.execute("INSERT INTO snapshots VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", row)


def _list_versions(
    connection: psycopg.Connection[Any], change: IndexUpdate, contents: Sequence[int]
) -> list[_DocumentVersion]:
    top = int(fetch_rows(connection, "SELECT coalesce(max(key), 0) FROM documents")[0][0])
    facts = [facts for _, facts in change.puts] + [facts for _, facts, _ in change.moves]
    rows_of_versions = [
        (content, part.entry.path, metadata)
        for content, part, metadata in zip(contents, change.parts, facts, strict=True)
    ]
    rows = fetch_rows(
        connection,
        "SELECT key, content, path FROM documents WHERE key = ANY(:keys) ORDER BY key",
        {"keys": sorted(change.facts)},
    )
    rows_of_versions += [
        (int(content), str(path), change.facts[int(key)]) for key, content, path in rows
    ]
    return [
        _DocumentVersion(top + offset, *version)
        for offset, version in enumerate(rows_of_versions, 1)
    ]


def _end_versions(connection: psycopg.Connection[Any], change: IndexUpdate, number: int) -> None:
    keys = sorted({*change.removes, *change.facts, *(key for *_, key in change.moves)})
    paths = [sanitize_column_text(part.entry.path) for part in change.parts]
    connection.execute(
        "UPDATE documents SET died = %s WHERE died = %s AND (key = ANY(%s) OR path = ANY(%s))",
        (number, FOREVER, keys, paths),
    )


def _insert_versions(
    connection: psycopg.Connection[Any], versions: Sequence[_DocumentVersion], number: int
) -> None:
    if not versions:
        return
    contents = {
        int(key): row
        for key, *row in fetch_rows(
            connection,
            "SELECT key, passages, truncated, mark, fields FROM contents WHERE key = ANY(:keys)",
            {"keys": sorted({version.content for version in versions})},
        )
    }
    documents, labels = [], []
    field_rows: list[tuple[Any, ...]] = []
    for version in versions:
        passages, truncated, mark, derived = contents[version.content]
        facts = version.facts
        documents.append(
            (
                version.key,
                version.content,
                sanitize_column_text(version.path),
                passages,
                truncated,
                get_bucket(version.path),
                digest_document(version.path, mark, facts),
                sanitize_column_text(facts.tenant),
                json.dumps(sorted(facts.labels)),
                json.dumps(dict(facts.fields), sort_keys=True),
                number,
            )
        )
        named = sorted({sanitize_column_text(label) for label in facts.labels})
        labels += [(version.key, label) for label in named]
        for name, kind, value in list_values({**json.loads(derived), **facts.fields}):
            if isinstance(value, str):
                field_rows.append((version.key, name, kind, sanitize_column_text(value), None))
            else:
                field_rows.append((version.key, name, kind, None, value))
    columns = "key, content, path, passages, truncated, bucket, mark, tenant, labels, fields, born"
    _copy_rows(connection, f"documents({columns})", documents)
    _copy_rows(connection, "labels(document, label)", labels)
    _copy_rows(connection, "fields(document, name, kind, words, number)", field_rows)


def _record_failures(
    connection: psycopg.Connection[Any], failures: Sequence[Mapping[str, str]], number: int
) -> None:
    connection.execute("UPDATE failures SET died = %s WHERE died = %s", (number, FOREVER))
    rows = (
        [*(sanitize_column_text(failure[name]) for name in ("path", "code", "reason")), number]
        for failure in failures
    )
    _copy_rows(connection, "failures(path, code, reason, born)", rows)
