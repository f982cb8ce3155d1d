"""SQLite catalog of an index folder (ledger): schema, read access, writer and snapshot locks.

A row of ``documents`` is one version of one document, visible in the snapshots from ``born`` up to
but not including ``died``. The parsed text and its passages are in ``contents`` and ``passages``,
shared by versions that differ only in fields, tenant or labels. A row of ``placements`` gives the
segment and rows of a version's passages, so that merging segments moves rows without changing
documents.

The journal is a rollback journal, not a write-ahead log: readers then never create or change a
file, a catalog on a read-only disk can be read, and its bytes between two commits stay those
recorded in artifact.json. Long writes are staged in short transactions that no snapshot shows, so
readers wait for milliseconds at most.

Statements are short and independent, so that a reader never makes a writer wait; each is limited
to a snapshot by its number. Access control is not part of the catalog: a view passes a condition.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from stillroom.errors import IntegrityError, ResourceError
from stillroom.jobs import atomic_write
from stillroom.objects.disk import sync_path
from stillroom.provenance import ARTIFACT_FILE
from stillroom.provenance.digests import load_json
from stillroom.provenance.sources import LEDGER, connect_ledger
from stillroom.rag.storage.protocol import IntegrityIssue
from stillroom.rag.storage.snapshots import (
    FOREVER,
    INDEX_FORMAT,
    PASSAGE_BITS,
    make_busy_error,
    make_damage_error,
    make_format_error,
)
from stillroom.rag.storage.tables import ALIVE, IndexTables, ThreadConnections

__all__ = [
    "SNAPSHOTS",
    "Catalog",
    "CatalogTables",
    "SegmentEntry",
    "SnapshotLease",
    "WriterLock",
    "create_catalog",
    "get_snapshot_file",
    "is_being_written",
    "open_catalog",
    "sync_snapshot_file",
    "write_snapshot_file",
]

_SCHEMA = f"""
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE snapshots(
  number INTEGER PRIMARY KEY, digest TEXT NOT NULL, parent INTEGER NOT NULL, reason TEXT NOT NULL,
  documents INTEGER NOT NULL, passages INTEGER NOT NULL, truncated INTEGER NOT NULL,
  made TEXT NOT NULL);
CREATE TABLE segments(
  number INTEGER PRIMARY KEY, rows INTEGER NOT NULL, files TEXT NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER});
CREATE TABLE contents(
  key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, digest TEXT NOT NULL,
  mark TEXT NOT NULL, passages INTEGER NOT NULL, truncated INTEGER NOT NULL,
  fields TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX contents_by_digest ON contents(digest);
CREATE TABLE passages(
  key INTEGER PRIMARY KEY, id TEXT NOT NULL, embedded BLOB NOT NULL, truncated INTEGER NOT NULL,
  body BLOB NOT NULL);
CREATE UNIQUE INDEX passages_by_id ON passages(id);
CREATE INDEX passages_by_text ON passages(embedded);
CREATE TABLE documents(
  key INTEGER PRIMARY KEY, content INTEGER NOT NULL, path TEXT NOT NULL,
  passages INTEGER NOT NULL, truncated INTEGER NOT NULL,
  bucket INTEGER NOT NULL, mark TEXT NOT NULL,
  tenant TEXT NOT NULL, labels TEXT NOT NULL, fields TEXT NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER});
CREATE INDEX documents_by_path ON documents(path, died);
CREATE INDEX documents_by_bucket ON documents(bucket, died);
CREATE INDEX documents_by_content ON documents(content);
CREATE INDEX documents_by_birth ON documents(born);
CREATE INDEX documents_by_death ON documents(died);
CREATE TABLE labels(document INTEGER NOT NULL, label TEXT NOT NULL,
  PRIMARY KEY(document, label)) WITHOUT ROWID;
CREATE INDEX labels_by_label ON labels(label, document);
CREATE TABLE fields(document INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, value);
CREATE INDEX fields_by_value ON fields(name, value, document);
CREATE INDEX fields_by_document ON fields(document);
CREATE TABLE placements(
  document INTEGER NOT NULL, segment INTEGER NOT NULL, start INTEGER NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER},
  PRIMARY KEY(document, born)) WITHOUT ROWID;
CREATE INDEX placements_by_segment ON placements(segment);
CREATE INDEX placements_by_birth ON placements(born);
CREATE INDEX placements_by_death ON placements(died);
CREATE TABLE failures(
  path TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER});
CREATE TABLE buckets(number INTEGER PRIMARY KEY, digest TEXT NOT NULL);
CREATE VIEW current_documents AS
  SELECT d.key, c.id, d.path, c.digest, c.body FROM documents d JOIN contents c
  ON c.key = d.content
  WHERE d.died = {FOREVER} AND d.born <= (SELECT max(number) FROM snapshots) ORDER BY d.path;
CREATE VIEW current_passages AS
  SELECT p.id, d.path, p.key & {2**PASSAGE_BITS - 1} AS position, p.body
  FROM documents d JOIN passages p
  ON p.key >= d.content << {PASSAGE_BITS} AND p.key < (d.content + 1) << {PASSAGE_BITS}
  WHERE d.died = {FOREVER} AND d.born <= (SELECT max(number) FROM snapshots)
  ORDER BY d.path, p.key;
PRAGMA user_version = {INDEX_FORMAT};
"""  # noqa: S608


def create_catalog(path: Path) -> sqlite3.Connection:
    """Create an empty catalog, replacing an existing file, and open it for writing."""
    path.unlink(missing_ok=True)
    path.touch()
    connection = open_catalog(path)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.executescript(_SCHEMA)
    return connection


def open_catalog(path: Path) -> sqlite3.Connection:
    """Open a catalog for writing, with commits that are on disk before they return."""
    connection = connect_ledger(path, write=True)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-65536")
    return connection


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment: number of rows, and each file's size and digest by its name."""

    number: int
    rows: int
    files: Mapping[str, tuple[int, str]]


class Catalog(IndexTables):
    """Read access to a catalog, with one connection per thread."""

    description: dict[str, Any]

    def __init__(self, folder: Path) -> None:
        """Open the catalog in ``folder``.

        Raises:
            IntegrityError: If it is missing, damaged or of another format.
        """
        self.path = folder / LEDGER
        self._connections = ThreadConnections[sqlite3.Connection]()
        if not self.path.is_file():
            raise _make_missing_error(folder)
        self._identity = _identify_file(self.path)
        try:
            version = int(self.query("PRAGMA user_version")[0][0])
            if version != INDEX_FORMAT:
                raise make_format_error(self.path, version, INDEX_FORMAT)
            settings = dict(self.query("SELECT name, value FROM settings"))
            self.description = load_json(settings["description"])
        except IntegrityError:
            self.close()
            raise
        except (ValueError, KeyError) as error:
            self.close()
            raise self.damaged(f"its settings cannot be read: {error}") from error

    @property
    @override
    def where(self) -> Path:
        return self.path

    @override
    def query(self, sql: str, values: Sequence[Any] | Mapping[str, Any] | None = None) -> list[Any]:
        try:
            with self._connections.use(self._connect) as connection:
                return connection.execute(sql, values or ()).fetchall()
        except sqlite3.Error as error:
            raise self.damaged(str(error)) from error

    @override
    def damaged(self, reason: str) -> IntegrityError:
        return make_damage_error(self.path, reason)

    @override
    def issue(self, table: str, problem: str) -> IntegrityIssue:
        return super().issue(self.path.name, problem)

    def segments(self, snapshot: int) -> list[SegmentEntry]:
        """Return the segments of a snapshot, in order."""
        rows = self.query(
            "SELECT number, rows, files FROM segments s "  # noqa: S608
            f"WHERE {ALIVE.format('s')} ORDER BY number",
            {"snapshot": snapshot},
        )
        return [SegmentEntry(number, count, _files(files)) for number, count, files in rows]

    def list_deleted(self, before: int, after: int) -> list[int] | None:
        """Return the keys of documents that were deleted between two snapshots.

        None if there were other changes: new documents, or moved rows.
        """
        span = {"before": before, "after": after}
        for table in ("documents", "placements"):
            sql = f"SELECT 1 FROM {table} WHERE born > :before AND born <= :after LIMIT 1"  # noqa: S608
            if self.query(sql, span):
                return None
        rows = self.query("SELECT key FROM documents WHERE died > :before AND died <= :after", span)
        return [int(key) for (key,) in rows]

    def close(self) -> None:
        """Close every thread's connection."""
        self._connections.close()

    def _connect(self) -> sqlite3.Connection:
        connection = connect_ledger(self.path)
        if _identify_file(self.path) != self._identity:  # another index: its keys have other rows
            connection.close()
            raise _replaced(self.path)
        return connection


class CatalogTables(IndexTables):
    """Reads the tables of the index whose catalog it holds."""

    catalog: Catalog

    @property
    @override
    def where(self) -> Path:
        return self.catalog.path

    @override
    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        return self.catalog.query(sql, values)

    @override
    def damaged(self, reason: str) -> IntegrityError:
        return self.catalog.damaged(reason)


def _identify_file(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _replaced(path: Path) -> IntegrityError:
    return IntegrityError(
        "another index was built in the place of the one that is open",
        code="rag.index-replaced",
        where=str(path.parent),
        expected="the index that was opened; 'stillroom rag update' changes one in place",
        next="open the index again",
    )


def _files(text: str) -> dict[str, tuple[int, str]]:
    return {name: (int(size), str(digest)) for name, (size, digest) in json.loads(text).items()}


def _make_missing_error(folder: Path) -> IntegrityError:
    is_old = (folder / "passages.jsonl").is_file() and (folder / "vectors.npy").is_file()
    label = "an index of an older format" if is_old else "no index, or a half-written one"
    return IntegrityError(
        f"{folder} has no {LEDGER}: it is {label}",
        code="rag.index-unfinished",
        where=str(folder),
        expected=f"{LEDGER} next to its segments",
        next="build the index again with --overwrite"
        if is_old
        else "finish the job with --resume, or give the folder of a finished one",
    )


SNAPSHOTS = "snapshots"
_LOCK_FILE = ".writer"
_ATTEMPTS = 5
_PAUSE_S = 0.02


class WriterLock:
    """Exclusive lock of an index for writing, with information on its holder.

    The locks of this module are not those of ``filelock``, which has no shared ``flock``: readers
    probe this one (``is_being_written``) and hold ``SnapshotLease`` on files they cannot write.
    """

    def __init__(self, folder: Path) -> None:
        """Acquire the lock of the index in ``folder``.

        Raises:
            ResourceError: If another process holds it, or the folder cannot be written.
        """
        path = _get_lock_path(folder)
        try:
            self._file: IO[str] = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise ResourceError(
                f"the index cannot be written: {error.strerror or error}",
                code="rag.read-only",
                where=str(folder),
                expected="a folder that may be written",
                next="check its permissions, or copy the index to where you may write",
            ) from error
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                holder = _read_holder(self._file)
                if holder or attempt == _ATTEMPTS - 1:
                    self._file.close()
                    raise make_busy_error(folder, holder) from error
                time.sleep(_PAUSE_S)  # readers that check for a writer hold it briefly
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._tell({"process": os.getpid(), "command": sys.argv[:3], "since": since})

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock; the file stays, so that nobody locks a deleted file."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()

    def _tell(self, holder: dict[str, object]) -> None:
        self._file.truncate(0)
        self._file.write(json.dumps(holder))
        self._file.flush()


class SnapshotLease:
    """Shared lock of a reader on a snapshot, whose data are kept until it is released."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @classmethod
    def take(cls, folder: Path, number: int, *, exclusive: bool = False) -> SnapshotLease | None:
        """Lock a snapshot, or return None if it is removed or being removed.

        With ``exclusive``, to remove the snapshot, it is refused while a reader holds one.
        """
        try:
            file = get_snapshot_file(folder, number).open("rb")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return cls(file)

    def release(self) -> None:
        """Release the snapshot."""
        self._file.close()

    def __del__(self) -> None:
        """Release the snapshot with its last view: a refreshed index may still read it."""
        self._file.close()


def get_snapshot_file(folder: Path, number: int) -> Path:
    """Return the file that describes a snapshot and that its readers lock."""
    return folder / SNAPSHOTS / f"{number:06d}.json"


def write_snapshot_file(folder: Path, number: int, digest: str, *, is_synced: bool = True) -> None:
    """Write the file of a snapshot.

    Before a snapshot is published, ``is_synced=False`` saves two disk syncs until readers see it,
    and ``sync_snapshot_file`` follows. If the power fails between commit and sync the file may be
    missing; the next writer or a repair restores it from the catalog.
    """
    with atomic_write(get_snapshot_file(folder, number), is_synced=is_synced) as file:
        file.write(json.dumps({"snapshot": number, "digest": digest}))


def sync_snapshot_file(folder: Path, number: int) -> None:
    """Sync a snapshot's file and its folder to disk."""
    path = get_snapshot_file(folder, number)
    for synced in (path, path.parent):
        sync_path(synced)


def is_being_written(folder: Path) -> bool:
    """Return whether a writer holds the lock of the index."""
    try:
        with _get_lock_path(folder).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _get_lock_path(folder: Path) -> Path:
    """Return the lock file, outside the artifact's output, in which all files are listed."""
    is_output = folder.name == "output" or (folder.parent / ARTIFACT_FILE).is_file()
    return (folder.parent if is_output else folder) / _LOCK_FILE


def _read_holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        holder = load_json(file.read())
        command = " ".join(str(part) for part in holder["command"])
        return f"process {holder['process']} since {holder['since']} ({command})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
