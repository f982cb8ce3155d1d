"""Publishing: versions of documents begin and end, and the snapshot is named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from stillroom.rag.postgres.connecting import clean, rows_of
from stillroom.rag.store.digests import bucket_of, digest_bucket, digest_snapshot, mark_document
from stillroom.rag.store.fields import list_values
from stillroom.rag.store.parts import Facts
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.schema import FOREVER

if TYPE_CHECKING:
    import psycopg

__all__ = ["publish"]


@dataclass(frozen=True, slots=True)
class _Version:
    """A new version of a document: its key, its content's, its path and facts."""

    key: int
    content: int
    path: str
    facts: Facts


def publish(
    connection: psycopg.Connection[Any],
    change: Change,
    contents: Sequence[int],
    number: int,
    description: Mapping[str, Any],
    reason: str,
) -> str:
    """Do a change, within the writer's transaction; return the new snapshot's digest.

    Args:
        connection: The writer's.
        change: What to do.
        contents: Keys of what its puts and moves became, in order.
        number: The new snapshot's.
        description: What shaped the index.
        reason: What the log says.
    """
    versions = _list_versions(connection, change, contents)
    _end_versions(connection, change, number)
    _insert(connection, versions, number)
    if change.failures is not None:
        _note_failures(connection, change.failures, number)
    digest = _renew_digest(connection, number, description)
    made = datetime.now(UTC).isoformat(timespec="milliseconds")
    connection.execute(
        "INSERT INTO snapshots VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (number, digest, number - 1, clean(reason), *_count(connection, number), made),
    )
    return digest


def _list_versions(
    connection: psycopg.Connection[Any], change: Change, contents: Sequence[int]
) -> list[_Version]:
    top = int(rows_of(connection, "SELECT coalesce(max(key), 0) FROM documents")[0][0])
    facts = [facts for _, facts in change.puts] + [facts for _, facts, _ in change.moves]
    told = [
        (content, part.entry.path, own)
        for content, part, own in zip(contents, change.parts, facts, strict=True)
    ]
    rows = rows_of(
        connection,
        "SELECT key, content, path FROM documents WHERE key = ANY(:keys) ORDER BY key",
        {"keys": sorted(change.facts)},
    )
    told += [(int(content), str(path), change.facts[int(key)]) for key, content, path in rows]
    return [_Version(top + at, *one) for at, one in enumerate(told, 1)]


def _end_versions(connection: psycopg.Connection[Any], change: Change, number: int) -> None:
    keys = {*change.removes, *change.facts, *(key for *_, key in change.moves)}
    connection.execute(
        "UPDATE documents SET died = %s WHERE died = %s AND (key = ANY(%s) OR path = ANY(%s))",
        (
            number,
            FOREVER,
            sorted(keys),
            [clean(part.entry.path) for part in change.parts],
        ),
    )


def _insert(connection: psycopg.Connection[Any], versions: Sequence[_Version], number: int) -> None:
    if not versions:
        return
    held = {
        int(key): row
        for key, *row in rows_of(
            connection,
            "SELECT key, passages, truncated, mark, fields FROM contents WHERE key = ANY(:keys)",
            {"keys": sorted({one.content for one in versions})},
        )
    }
    with connection.cursor() as cursor:
        with cursor.copy(
            "COPY documents(key, content, path, passages, truncated, bucket, mark, tenant, "
            "labels, fields, born) FROM STDIN"
        ) as copy:
            for one in versions:
                passages, truncated, mark, _ = held[one.content]
                copy.write_row(
                    (
                        one.key,
                        one.content,
                        clean(one.path),
                        passages,
                        truncated,
                        bucket_of(one.path),
                        mark_document(one.path, mark, one.facts),
                        clean(one.facts.tenant),
                        json.dumps(sorted(one.facts.labels)),
                        json.dumps(dict(one.facts.fields), sort_keys=True),
                        number,
                    )
                )
        with cursor.copy("COPY labels(document, label) FROM STDIN") as copy:
            for one in versions:
                for label in sorted({clean(label) for label in one.facts.labels}):
                    copy.write_row((one.key, label))
        with cursor.copy("COPY fields(document, name, kind, words, number) FROM STDIN") as copy:
            for one in versions:
                fields = {**json.loads(held[one.content][3]), **one.facts.fields}
                for name, kind, value in list_values(fields):
                    is_text = isinstance(value, str)
                    words = clean(str(value)) if is_text else None
                    copy.write_row((one.key, name, kind, words, None if is_text else value))


def _note_failures(
    connection: psycopg.Connection[Any], failures: Sequence[Mapping[str, str]], number: int
) -> None:
    connection.execute("UPDATE failures SET died = %s WHERE died = %s", (number, FOREVER))
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO failures(path, code, reason, born) VALUES (%s, %s, %s, %s)",
            [(clean(one["path"]), one["code"], clean(one["reason"]), number) for one in failures],
        )


def _renew_digest(
    connection: psycopg.Connection[Any], number: int, description: Mapping[str, Any]
) -> str:
    """Renew the digests of the buckets that changed; return the snapshot's."""
    touched = [
        int(bucket)
        for (bucket,) in rows_of(
            connection,
            "SELECT DISTINCT bucket FROM documents WHERE born = :number OR died = :number",
            {"number": number},
        )
    ]
    rows = rows_of(
        connection,
        "SELECT bucket, mark FROM documents WHERE bucket = ANY(:buckets) AND died = :now "
        "ORDER BY bucket, path",
        {"buckets": touched, "now": FOREVER},
    )
    marks = {
        int(bucket): [str(mark) for _, mark in own]
        for bucket, own in groupby(rows, key=lambda row: row[0])
    }
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO buckets VALUES (%s, %s) "
            "ON CONFLICT (number) DO UPDATE SET digest = excluded.digest",
            [(bucket, digest_bucket(marks.get(bucket, []))) for bucket in touched],
        )
    buckets = dict(rows_of(connection, "SELECT number, digest FROM buckets"))
    return digest_snapshot(description, buckets)


def _count(connection: psycopg.Connection[Any], number: int) -> list[int]:
    """Return how many documents, passages and cut ones there are: as before, and the change."""
    before = rows_of(
        connection,
        "SELECT documents, passages, truncated FROM snapshots WHERE number = :before",
        {"before": number - 1},
    )
    counts = [int(one) for one in (before[0] if before else (0, 0, 0))]
    for column, sign in (("born", 1), ("died", -1)):
        found = rows_of(
            connection,
            "SELECT count(*), coalesce(sum(passages), 0), coalesce(sum(truncated), 0) "  # noqa: S608
            f"FROM documents WHERE {column} = :number",
            {"number": number},
        )
        counts = [own + sign * int(more) for own, more in zip(counts, found[0], strict=True)]
    return counts
