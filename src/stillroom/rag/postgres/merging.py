"""Merging batches of postings, so that a term is never spread over many of them.

As the folder's segments are merged: the smallest first, and only as many as keep their number
bounded. The server does it by one statement; postings of passages that are gone are left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillroom.rag.postgres.connecting import rows_of, translate
from stillroom.rag.postgres.staging import digest_batch
from stillroom.rag.store.schema import PASSAGE_BITS

if TYPE_CHECKING:
    import psycopg

__all__ = ["choose_batches", "merge_batches"]

_MOST = 24
_LEFT = 8
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


def choose_batches(connection: psycopg.Connection[Any]) -> list[int]:
    """Return the batches to be merged now; none while there are few."""
    rows = rows_of(connection, "SELECT number FROM batches ORDER BY postings, number")
    return [int(number) for (number,) in rows[: len(rows) - _LEFT]] if len(rows) > _MOST else []


def merge_batches(connection: psycopg.Connection[Any], old: Sequence[int], number: int) -> None:
    """Make one batch of several, within the writer's transaction.

    Args:
        connection: The writer's.
        old: Their numbers; fewer than two are left as they are unless ``number`` is another.
        number: Of the snapshot at work; the new batch takes its place below zero, so that it is
            nobody else's.
    """
    if not old:
        return
    batch = -number
    connection.execute(translate(_MERGE), {"batch": batch, "old": list(old)})
    for sql in _STEPS:
        connection.execute(translate(sql), {"batch": batch, "old": list(old)})
    count, digest = digest_batch(connection, batch)
    connection.execute("INSERT INTO batches VALUES (%s, %s, %s)", (batch, count, digest))
