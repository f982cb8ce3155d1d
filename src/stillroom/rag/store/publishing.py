"""Publishing: the one transaction that makes a change visible, statement by statement.

All of it runs within a transaction that the writer has begun: what it does is seen at once, by
readers that open or refresh after the commit, or not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from stillroom.rag.store.digests import bucket_of, digest_bucket, digest_snapshot, mark_document
from stillroom.rag.store.fields import list_values
from stillroom.rag.store.ledger import SegmentEntry
from stillroom.rag.store.merging import merge_starts
from stillroom.rag.store.parts import Facts, Part
from stillroom.rag.store.schema import FOREVER
from stillroom.rag.store.segments import Merged

__all__ = ["Change", "Publication"]


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does.

    ``puts`` are new or changed documents; ``moves`` are documents whose bytes another document
    (by its key) had, whose rows they take over; ``facts`` changes by key what is said of documents;
    ``removes`` are keys. A put or a move replaces the document of the same path. ``failures`` are
    all files that could not be used; None leaves them as they were.
    """

    puts: Sequence[tuple[Part, Facts]] = ()
    moves: Sequence[tuple[Part, Facts, int]] = ()
    facts: Mapping[int, Facts] = field(default_factory=dict)
    removes: Sequence[int] = ()
    failures: Sequence[Mapping[str, str]] | None = None

    @property
    def parts(self) -> list[Part]:
        """The documents of the puts, then those of the moves."""
        return [part for part, _ in self.puts] + [part for part, _, _ in self.moves]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A new version of a document: its content's key, its part's path, its facts and its rows."""

    content: int
    path: str
    facts: Facts
    segment: int
    start: int


class Publication:
    """One change on its way to be seen, as the snapshot of a number."""

    def __init__(self, connection: sqlite3.Connection, change: Change, number: int) -> None:
        """Publish through a connection that is open for writing."""
        self.connection, self.change, self.number = connection, change, number

    def list_gone(self) -> set[int]:
        """Return the keys of documents whose rows nobody needs after the change."""
        return (self._list_replaced() | set(self.change.removes)) - {
            key for *_, key in self.change.moves
        }

    def publish(
        self,
        contents: Sequence[int],
        entry: SegmentEntry | None,
        merged: Sequence[Merged],
        description: Mapping[str, Any],
        reason: str,
    ) -> str:
        """Do the change, within a transaction; return the new snapshot's digest.

        Args:
            contents: Keys of what the puts and the moves became, in order.
            entry: The new segment, if rows were written.
            merged: The older segments that it takes in.
            description: What shaped the index.
            reason: What the log says.
        """
        self._replace()
        start = sum(int(one.kept.sum()) for one in merged)
        for placed in list(self._place(contents, start)):
            self._insert(placed)
        if entry is not None:
            self._register(entry, merged)
        self._retire_empty()
        if self.change.failures is not None:
            self._note_failures(self.change.failures)
        return self._finish(description, reason)

    def _list_replaced(self) -> set[int]:
        return {key for part in self.change.parts for key in self._keys_at(part.entry.path)}

    def _keys_at(self, path: str) -> list[int]:
        rows = self.connection.execute(
            "SELECT key FROM documents WHERE path = ? AND died = ?", (path, FOREVER)
        )
        return [int(key) for (key,) in rows]

    def _replace(self) -> None:
        """End the versions that the change replaces or removes."""
        moved = {key for *_, key in self.change.moves}
        keys = self._list_replaced() | {*self.change.removes, *self.change.facts} | moved
        self.connection.executemany(
            "UPDATE documents SET died = ? WHERE key = ? AND died = ?",
            [(self.number, key, FOREVER) for key in sorted(keys)],
        )

    def _place(self, contents: Sequence[int], start: int) -> Iterator[_Placed]:
        """Yield the new versions of documents with their rows."""
        places = iter(contents)
        for part, facts in self.change.puts:
            yield _Placed(next(places), part.entry.path, facts, self.number, start)
            start += part.entry.passages
        for part, facts, key in self.change.moves:
            segment, row = self._placement(key)
            yield _Placed(next(places), part.entry.path, facts, segment, row)
        for key, facts in sorted(self.change.facts.items()):
            content, path = self.connection.execute(
                "SELECT content, path FROM documents WHERE key = ?", (key,)
            ).fetchone()
            segment, row = self._placement(key)
            yield _Placed(int(content), str(path), facts, segment, row)

    def _placement(self, key: int) -> tuple[int, int]:
        segment, start = self.connection.execute(
            "SELECT segment, start FROM placements WHERE document = ? AND died = ?", (key, FOREVER)
        ).fetchone()
        return int(segment), int(start)

    def _insert(self, one: _Placed) -> None:
        count, truncated, mark, derived = self.connection.execute(
            "SELECT passages, truncated, mark, fields FROM contents WHERE key = ?", (one.content,)
        ).fetchone()
        cursor = self.connection.execute(
            "INSERT INTO documents(content, path, passages, truncated, bucket, mark, tenant, "
            "labels, fields, born) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                one.content,
                one.path,
                count,
                truncated,
                bucket_of(one.path),
                mark_document(one.path, mark, one.facts),
                one.facts.tenant,
                json.dumps(sorted(one.facts.labels)),
                json.dumps(dict(one.facts.fields), ensure_ascii=False, sort_keys=True),
                self.number,
            ),
        )
        key = cursor.lastrowid
        self.connection.execute(
            "INSERT INTO placements(document, segment, start, born) VALUES (?, ?, ?, ?)",
            (key, one.segment, one.start, self.number),
        )
        fields = {**json.loads(derived), **one.facts.fields}
        self.connection.executemany(
            "INSERT INTO fields VALUES (?, ?, ?, ?)",
            [(key, name, kind, value) for name, kind, value in list_values(fields)],
        )
        self.connection.executemany(
            "INSERT INTO labels VALUES (?, ?)",
            [(key, label) for label in sorted(set(one.facts.labels))],
        )

    def _register(self, entry: SegmentEntry, merged: Sequence[Merged]) -> None:
        """Name a new segment, and move the rows of merged ones into it."""
        files = json.dumps({name: list(told) for name, told in entry.files.items()})
        self.connection.execute(
            "INSERT INTO segments(number, rows, files, born) VALUES (?, ?, ?, ?)",
            (entry.number, entry.rows, files, self.number),
        )
        for old, starts in merge_starts(merged):
            rows = self.connection.execute(
                "SELECT p.document, p.start FROM placements p JOIN documents d "
                "ON d.key = p.document WHERE p.segment = ? AND p.died = ? AND d.died = ?",
                (old, FOREVER, FOREVER),
            ).fetchall()
            moved = [row for row in rows if starts[row[1]] >= 0]
            self.connection.executemany(
                "UPDATE placements SET died = ? WHERE document = ? AND died = ?",
                [(self.number, document, FOREVER) for document, _ in moved],
            )
            self.connection.executemany(
                "INSERT OR REPLACE INTO placements(document, segment, start, born) "
                "VALUES (?, ?, ?, ?)",
                [
                    (document, entry.number, int(starts[row]), self.number)
                    for document, row in moved
                ],
            )

    def _retire_empty(self) -> None:
        """End the segments in which no document of the new snapshot has rows."""
        self.connection.execute(
            "UPDATE segments SET died = ? WHERE died = ? AND NOT EXISTS ("
            "SELECT 1 FROM placements p JOIN documents d ON d.key = p.document "
            "WHERE p.segment = segments.number AND p.died = ? AND d.died = ?)",
            (self.number, FOREVER, FOREVER, FOREVER),
        )

    def _note_failures(self, failures: Sequence[Mapping[str, str]]) -> None:
        self.connection.execute(
            "UPDATE failures SET died = ? WHERE died = ?", (self.number, FOREVER)
        )
        self.connection.executemany(
            "INSERT INTO failures(path, code, reason, born) VALUES (?, ?, ?, ?)",
            [(one["path"], one["code"], one["reason"], self.number) for one in failures],
        )

    def _finish(self, description: Mapping[str, Any], reason: str) -> str:
        """Renew the digests of the buckets that changed, and name the snapshot."""
        touched = self.connection.execute(
            "SELECT DISTINCT bucket FROM documents WHERE born = ? OR died = ?",
            (self.number, self.number),
        ).fetchall()
        for (bucket,) in touched:
            marks = self.connection.execute(
                "SELECT mark FROM documents WHERE bucket = ? AND died = ? ORDER BY path",
                (bucket, FOREVER),
            ).fetchall()
            self.connection.execute(
                "INSERT OR REPLACE INTO buckets VALUES (?, ?)",
                (bucket, digest_bucket([mark for (mark,) in marks])),
            )
        buckets = dict(self.connection.execute("SELECT number, digest FROM buckets"))
        digest = digest_snapshot(description, buckets)
        made = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.connection.execute(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.number, digest, self.number - 1, reason, *self._count(), made),
        )
        self.connection.execute("DELETE FROM settings WHERE name = 'staged'")
        return digest

    def _count(self) -> list[int]:
        """Return how many documents, passages and cut ones there are: as before, and the change."""
        before = self.connection.execute(
            "SELECT documents, passages, truncated FROM snapshots WHERE number = ?",
            (self.number - 1,),
        ).fetchone() or (0, 0, 0)
        changes = [
            self.connection.execute(
                "SELECT count(*), coalesce(sum(passages), 0), "  # noqa: S608
                "coalesce(sum(truncated), 0) "
                f"FROM documents WHERE {column} = ?",
                (self.number,),
            ).fetchone()
            for column in ("born", "died")
        ]
        return [int(n + more - less) for n, more, less in zip(before, *changes, strict=True)]
