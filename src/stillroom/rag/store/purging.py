"""Removing what nobody can see any more: what a killed writer left, and what old snapshots needed.

Removed rows are overwritten in the file (SQLite's ``secure_delete``): a deleted document's text is
not on the disk once no snapshot that is kept shows it.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from stillroom.rag.store.locking import SNAPSHOTS, Pin, snapshot_file, write_snapshot_file
from stillroom.rag.store.schema import PASSAGE_BITS
from stillroom.rag.store.segments import list_segment_folders, segment_folder

__all__ = [
    "remove_orphans",
    "remove_staged",
    "remove_unneeded",
    "restore_snapshot_files",
]

_PURGE = (
    "DELETE FROM placements WHERE died <= :oldest",
    "DELETE FROM placements WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM labels WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM fields WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM documents WHERE died <= :oldest",
    "DELETE FROM failures WHERE died <= :oldest",
    "DELETE FROM segments WHERE died <= :oldest",
    "DELETE FROM snapshots WHERE number < :oldest",
)


def remove_staged(connection: sqlite3.Connection) -> None:
    """Remove the passages and parsed documents that a killed writer staged; in a transaction."""
    found = connection.execute("SELECT value FROM settings WHERE name = 'staged'").fetchone()
    if found is None:
        return
    top = int(found[0])
    connection.execute("DELETE FROM passages WHERE key >= ?", ((top + 1) << PASSAGE_BITS,))
    connection.execute("DELETE FROM contents WHERE key > ?", (top,))
    connection.execute("DELETE FROM settings WHERE name = 'staged'")


def remove_orphans(folder: Path, connection: sqlite3.Connection) -> list[Path]:
    """Remove and return segments and snapshots' files that the ledger does not name."""
    named = {
        segment_folder(folder, number)
        for (number,) in connection.execute("SELECT number FROM segments")
    }
    named |= {
        snapshot_file(folder, number)
        for (number,) in connection.execute("SELECT number FROM snapshots")
    }
    place = folder / SNAPSHOTS
    files = sorted(place.iterdir()) if place.is_dir() else []
    orphans = [path for path in [*list_segment_folders(folder), *files] if path not in named]
    for path in orphans:
        _remove(path)
    return orphans


def restore_snapshot_files(folder: Path, connection: sqlite3.Connection) -> None:
    """Make the files of snapshots again that a power failure after their commit took."""
    for number, digest in connection.execute("SELECT number, digest FROM snapshots").fetchall():
        path = snapshot_file(folder, number)
        if not path.is_file() or not path.stat().st_size:
            write_snapshot_file(folder, number, digest)


def remove_unneeded(folder: Path, connection: sqlite3.Connection, newest: int, keep: int) -> int:
    """Remove what only snapshots need that are not kept; return the oldest that stays.

    A snapshot that a reader pins stays, and all that are newer.

    Args:
        folder: The index's.
        connection: Open for writing, in no transaction.
        newest: The newest snapshot.
        keep: How many stay; 1 or more.
    """
    known = [n for (n,) in connection.execute("SELECT number FROM snapshots ORDER BY number")]
    pins: list[Pin] = []
    oldest = newest
    try:
        for number in known:
            oldest = number
            if number > newest - keep:
                break
            pin = Pin.take(folder, number, alone=True)
            if pin is None and snapshot_file(folder, number).exists():
                break
            pins.extend([pin] if pin is not None else [])
        if oldest != known[0]:
            _purge(folder, connection, oldest)
    finally:
        for pin in pins:
            pin.release()
    return oldest


def _purge(folder: Path, connection: sqlite3.Connection, oldest: int) -> None:
    values = {"oldest": oldest}
    gone = connection.execute("SELECT number FROM segments WHERE died <= :oldest", values)
    folders = [segment_folder(folder, number) for (number,) in gone]
    old = connection.execute("SELECT number FROM snapshots WHERE number < :oldest", values)
    files = [snapshot_file(folder, number) for (number,) in old]
    connection.execute("PRAGMA secure_delete=ON")
    connection.execute("BEGIN IMMEDIATE")
    try:
        contents = connection.execute(
            "SELECT content FROM documents a WHERE died <= :oldest AND NOT EXISTS ("
            "SELECT 1 FROM documents b WHERE b.content = a.content AND b.died > :oldest)",
            values,
        ).fetchall()
        for (key,) in {*contents}:
            span = (key << PASSAGE_BITS, (key + 1) << PASSAGE_BITS)
            connection.execute("DELETE FROM passages WHERE key >= ? AND key < ?", span)
            connection.execute("DELETE FROM contents WHERE key = ?", (key,))
        for sql in _PURGE:
            connection.execute(sql, values)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    for path in [*folders, *files]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
