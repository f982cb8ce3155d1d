"""Staging: what documents became is written to the ledger before any snapshot shows it.

In short transactions, so that readers of the snapshots before never wait long. What a killed writer
staged is known by the ``staged`` row of the settings, and goes when the next writer comes.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stillroom.rag.store.fields import derive_fields
from stillroom.rag.store.parts import Part, mark_of
from stillroom.rag.store.schema import PASSAGE_BITS
from stillroom.rag.store.snapshots import damaged

__all__ = ["stage_parts", "transaction"]

_STAGED_BYTES = 8_000_000
_BYTES_PER_PASSAGE = 2048
_LEVEL = 1


def stage_parts(
    connection: sqlite3.Connection,
    parts: Sequence[Part],
    check: Callable[[], None],
    where: Path,
) -> list[int]:
    """Write what documents became, unseen; return their contents' keys, in order.

    Args:
        connection: Open for writing, in no transaction.
        parts: The documents.
        check: Called between transactions; raises to stop.
        where: The ledger's file, for errors.

    Raises:
        IntegrityError: If the ledger holds other passages under a document's id.
    """
    if not parts:
        return []
    top = connection.execute("SELECT max(key) FROM contents").fetchone()[0] or 0
    connection.execute("INSERT OR REPLACE INTO settings VALUES ('staged', ?)", (str(top),))
    keys: list[int] = []
    waiting: list[Part] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += _BYTES_PER_PASSAGE * part.entry.passages
        if size > _STAGED_BYTES:
            check()
            keys += _stage_some(connection, waiting, where)
            waiting, size = [], 0
    return keys + _stage_some(connection, waiting, where)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end of the body; on any exception, as a full disk, nothing has happened."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _stage_some(connection: sqlite3.Connection, parts: Sequence[Part], where: Path) -> list[int]:
    with transaction(connection):
        return [_stage_one(connection, part, where) for part in parts]


def _stage_one(connection: sqlite3.Connection, part: Part, where: Path) -> int:
    line, passages, entry = part.document_line(), part.passage_lines(), part.entry
    document = json.loads(line)
    document_id = document["id"]
    mark = mark_of(line, passages)
    known = connection.execute(
        "SELECT key, mark FROM contents WHERE id = ?", (document_id,)
    ).fetchone()
    if known is not None and known[1] == mark:
        return int(known[0])
    if known is not None:
        raise damaged(where, f"{entry.path} gives other passages than before")
    cursor = connection.execute(
        "INSERT INTO contents(id, path, digest, mark, passages, truncated, fields, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            document_id,
            entry.path,
            entry.digest,
            mark,
            len(passages),
            entry.truncated,
            json.dumps(derive_fields(document), ensure_ascii=False),
            zlib.compress(line, _LEVEL),
        ),
    )
    key = int(cursor.lastrowid or 0)
    told = enumerate(zip(passages, part.marks(), strict=True))
    connection.executemany(
        "INSERT INTO passages VALUES (?, ?, ?, ?, ?)",
        (
            (
                (key << PASSAGE_BITS) + position,
                json.loads(body)["id"],
                one.embedded,
                int(one.is_truncated),
                body,
            )
            for position, (body, one) in told
        ),
    )
    return key
