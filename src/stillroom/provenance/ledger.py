"""The ledger of an index: one SQLite file, read here for what its newest snapshot holds.

Two views are promised to whoever opens the file, with Stillroom or without: ``current_passages``
(id, path, position, body) and ``current_documents`` (id, path, digest, body). A passage's body is
JSON; a document's is JSON compressed by zlib. What else the file holds belongs to the room that
writes it. Nothing is written here.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError

__all__ = ["LEDGER", "connect_ledger", "read_ledger"]

LEDGER = "ledger.sqlite"
_TIMEOUT_S = 30.0
_AT_ONCE = 500
_BY_ID = {
    "passages": "SELECT p.body FROM passages p WHERE p.id IN ({}) AND EXISTS ("
    "SELECT 1 FROM documents d JOIN current_documents c ON c.key = d.key "
    "WHERE d.content = p.key >> 24)",
    "documents": "SELECT body FROM current_documents WHERE id IN ({})",
}


def connect_ledger(path: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open a ledger that exists; without ``write`` no statement can change it.

    A reader may still roll back what a killed writer left half-done, as SQLite does; where the
    disk is read-only it does not.

    Raises:
        sqlite3.Error: If there is no such file, or it is no database.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_TIMEOUT_S,
        check_same_thread=False,
        isolation_level=None,
    )
    if not write:
        connection.execute("PRAGMA query_only=ON")
    return connection


def read_ledger(
    output: Path, view: Literal["passages", "documents"], ids: Iterable[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the newest passages in order, or documents, as plain JSON values.

    Args:
        output: The folder that holds ledger.sqlite.
        view: Which of the two.
        ids: Only these; by default all.

    Raises:
        DataError: If the ledger is damaged, or has tenants: it is then read through an index that
            knows who asks.
    """
    path = output / LEDGER
    try:
        connection = connect_ledger(path)
        try:
            _refuse_tenants(connection, path)
            for body in _read_bodies(connection, view, None if ids is None else sorted(set(ids))):
                row = json.loads(zlib.decompress(body) if view == "documents" else body)
                if not isinstance(row, dict):
                    raise TypeError("a row is not an object")
                yield row
        finally:
            connection.close()
    except DataError:
        raise
    except (sqlite3.Error, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: {error}",
            code="data.damaged",
            where=str(path),
            expected="what a finished job wrote",
            next=f"stillroom verify {output.parent}",
        ) from error


def _refuse_tenants(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("SELECT value FROM settings WHERE name = 'description'").fetchone()
    if json.loads(found[0])["settings"].get("access", "open") != "open":
        raise DataError(
            "the index has tenants: its passages are not read without saying who asks",
            code="data.restricted",
            where=str(path),
            expected="an index that is open to all",
            next="open it by stillroom.rag.Index with an Access",
        )


def _read_bodies(
    connection: sqlite3.Connection, view: str, ids: Sequence[str] | None
) -> Iterator[bytes]:
    """Yield bodies; the view is one of two names, never a user's text."""
    if ids is None:
        for (body,) in connection.execute(f"SELECT body FROM current_{view}"):  # noqa: S608
            yield body
        return
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        marks = ",".join("?" * len(some))
        for (body,) in connection.execute(_BY_ID[view].format(marks), some):
            yield body
