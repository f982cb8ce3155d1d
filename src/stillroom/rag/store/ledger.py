"""Ledger: what an index holds, as one snapshot of it sees it; read only.

Every statement is short and on its own, so that a reader never makes a writer wait; what a snapshot
sees is said by its number in each. Does not know who asks: a view says which documents count.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import IntegrityError
from stillroom.provenance.ledger import LEDGER, connect_ledger
from stillroom.rag.store.schema import FORMAT, PASSAGE_BITS
from stillroom.rag.store.snapshots import Snapshot, damaged, pick_snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ledger", "SegmentEntry"]

_ALIVE = "{0}.born <= :snapshot AND {0}.died > :snapshot"
_SNAPSHOT = "SELECT number, digest, parent, reason, documents, passages, truncated, made"


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment: how many rows, and each file's size and digest by its name."""

    number: int
    rows: int
    files: Mapping[str, tuple[int, str]]


class Ledger:
    """Reads a ledger; every thread has its own connection."""

    def __init__(self, folder: Path) -> None:
        """Open the ledger in ``folder``.

        Raises:
            IntegrityError: If there is none, or it is damaged or of another format.
        """
        self.path = folder / LEDGER
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        if not self.path.is_file():
            raise _missing(folder)
        self._identity = _identify(self.path)
        try:
            found = int(self.query("PRAGMA user_version")[0][0])
            if found != FORMAT:
                raise damaged(self.path, f"it has format {found}, expected {FORMAT}")
            told = dict(self.query("SELECT name, value FROM settings"))
            self.description: dict[str, Any] = json.loads(told["description"])
        except IntegrityError:
            self.close()
            raise
        except (ValueError, KeyError) as error:
            self.close()
            raise damaged(self.path, f"its settings cannot be read: {error}") from error

    def query(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Return all rows of one statement.

        Raises:
            IntegrityError: If the ledger is damaged.
        """
        try:
            return self._connect().execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise damaged(self.path, str(error)) from error

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""
        rows = self.query(f"{_SNAPSHOT} FROM snapshots ORDER BY number")
        return [Snapshot(*row) for row in rows]

    def find_snapshot(self, wanted: int | str | None = None) -> Snapshot:
        """Return a snapshot by its number or by its digest's beginning; by default the newest.

        Raises:
            DataError: If there is none, or none any more.
        """
        return pick_snapshot(self.snapshots(), wanted, self.path)

    def segments(self, snapshot: int) -> list[SegmentEntry]:
        """Return the segments that a snapshot reads, in order."""
        rows = self.query(
            "SELECT number, rows, files FROM segments s "  # noqa: S608
            f"WHERE {_ALIVE.format('s')} ORDER BY number",
            {"snapshot": snapshot},
        )
        return [SegmentEntry(number, count, _files(files)) for number, count, files in rows]

    def load(
        self, snapshot: int, where: str = "1 = 1", values: Mapping[str, Any] | None = None
    ) -> NDArray[np.int64]:
        """Return the documents that a snapshot sees and that meet a condition, (5, N).

        Key, content, number of passages, segment and first row there; in order of path.

        Args:
            snapshot: Its number.
            where: A condition on ``d``, a row of documents, that this package has compiled.
            values: What the condition's names stand for.
        """
        rows = self.query(
            "SELECT d.key, d.content, d.passages, p.segment, p.start "  # noqa: S608
            "FROM documents d "
            f"JOIN placements p ON p.document = d.key AND {_ALIVE.format('p')} "
            f"WHERE {_ALIVE.format('d')} AND ({where}) ORDER BY d.path",
            {"snapshot": snapshot, **(values or {})},
        )
        return np.array(rows, dtype=np.int64).reshape(-1, 5).T

    def list_deleted(self, before: int, after: int) -> list[int] | None:
        """Return the keys of documents that ended between two snapshots.

        None where that is not all that happened: where documents came, or their rows were moved.
        """
        span = {"before": before, "after": after}
        for table in ("documents", "placements"):
            sql = f"SELECT 1 FROM {table} WHERE born > :before AND born <= :after LIMIT 1"  # noqa: S608
            if self.query(sql, span):
                return None
        rows = self.query("SELECT key FROM documents WHERE died > :before AND died <= :after", span)
        return [int(key) for (key,) in rows]

    def list_fields(self, snapshot: int, where: str, values: Mapping[str, Any]) -> list[Any]:
        """Return names and kinds of the fields of documents that meet a condition; see ``load``."""
        return self.query(
            "SELECT DISTINCT f.name, f.kind FROM fields f "  # noqa: S608
            "JOIN documents d ON d.key = f.document "
            f"WHERE {_ALIVE.format('d')} AND ({where})",
            {"snapshot": snapshot, **values},
        )

    def list_values(self, name: str, keys: Sequence[int]) -> list[Any]:
        """Return document and value of every value that some documents have of a field."""
        return self.query(
            "SELECT document, value FROM fields "
            "WHERE name = :name AND document IN (SELECT value FROM json_each(:keys))",
            {"name": name, "keys": json.dumps(list(keys))},
        )

    def passage(self, content: int, position: int) -> bytes:
        """Return a passage as JSON, by its content's key and its place from 0."""
        key = (content << PASSAGE_BITS) + position
        rows = self.query("SELECT body FROM passages WHERE key = ?", (key,))
        if not rows:
            raise damaged(self.path, f"passage {position} of content {content} is missing")
        return bytes(rows[0][0])

    def locate_passage(self, passage_id: str) -> tuple[int, int] | None:
        """Return the content's key and the place of a passage, or None where there is none."""
        rows = self.query("SELECT key FROM passages WHERE id = ?", (passage_id,))
        return divmod(int(rows[0][0]), 1 << PASSAGE_BITS) if rows else None

    def locate_document(self, document_id: str) -> int | None:
        """Return the key of a document's content, or None where there is none."""
        rows = self.query("SELECT key FROM contents WHERE id = ?", (document_id,))
        return int(rows[0][0]) if rows else None

    def document(self, content: int) -> bytes:
        """Return a parsed document as JSON."""
        rows = self.query("SELECT body FROM contents WHERE key = ?", (content,))
        try:
            return zlib.decompress(rows[0][0])
        except (IndexError, zlib.error) as error:
            raise damaged(self.path, f"content {content} cannot be read: {error}") from error

    def recall(self, name: str) -> Any:
        """Return what was measured under a name, or None."""
        rows = self.query("SELECT value FROM settings WHERE name = ?", (f"measured {name}",))
        return json.loads(rows[0][0]) if rows else None

    def close(self) -> None:
        """Close every thread's connection."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._local = threading.local()

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect_ledger(self.path)
            if _identify(self.path) != self._identity:  # another index, whose keys mean other rows
                connection.close()
                raise _replaced(self.path)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection


def _identify(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


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


def _missing(folder: Path) -> IntegrityError:
    is_old = (folder / "passages.jsonl").is_file() and (folder / "vectors.npy").is_file()
    what = "an index of an older format" if is_old else "no index, or a half-written one"
    return IntegrityError(
        f"{folder} holds no {LEDGER}: it is {what}",
        code="rag.index-unfinished",
        where=str(folder),
        expected=f"{LEDGER} beside its segments",
        next="build the index again with --overwrite"
        if is_old
        else "finish the job with --resume, or give the folder of a finished one",
    )
