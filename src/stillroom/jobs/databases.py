"""Opening a SQLite file that several processes read and write at once."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

__all__ = ["open_shared_database"]

_RETRY_S = 0.01


def open_shared_database(
    path: Path | str, schema: str = "", wait_s: float = 60.0
) -> sqlite3.Connection:
    """Open or create the database at ``path`` with a write-ahead log; statements commit at once.

    The connection may be used from any thread, by one at a time.

    Args:
        path: The file, or ``:memory:``.
        schema: A statement that makes what is not there yet.
        wait_s: How many seconds a statement, or the opening, waits for other processes.

    Raises:
        sqlite3.DatabaseError: If the file is no database, or stays locked.
    """
    connection = sqlite3.connect(
        path, timeout=wait_s, isolation_level=None, check_same_thread=False
    )
    try:
        _begin_log(connection, time.monotonic() + wait_s)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _begin_log(connection: sqlite3.Connection, until: float) -> None:
    """Switch to the write-ahead log.

    SQLite does not wait here: where two processes open a new file at once, one is told at once that
    the database is locked, however long its timeout.
    """
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(_RETRY_S)
        else:
            return
