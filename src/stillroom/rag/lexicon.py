"""Lexicon: the keyword half of an index, an SQLite FTS5 table scored by BM25.

FTS5 keeps the inverted index; terms are looked up in it as bound values (through ``fts5vocab``), so
no text of a user ever reaches FTS5's query parser. Scores are computed here, because FTS5's own
``bm25()`` fixes k1 and b and lets common terms score nothing.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", with
Lucene's idf, ln(1 + (N - n + 0.5) / (n + 0.5)), which is never negative.

Equal rows give equal bytes: rows go in by order, the table is optimized, and ``VACUUM INTO`` writes
the file anew.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import IntegrityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Lexicon", "LexiconRow", "build_lexicon"]

LexiconRow = tuple[str, Sequence[str], Sequence[str], int, int]
"""Passage id, terms of its headings, terms of its text, and both counts without stop words."""

_SCHEMA = """
CREATE VIRTUAL TABLE terms USING fts5(
  headings, body, content='', columnsize=0, tokenize="ascii tokenchars '._-@:/+#&'''"
);
CREATE TABLE passages(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE numbers(name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
_POSTINGS = """
SELECT group_concat(doc), group_concat(headings), group_concat(body) FROM (
  SELECT doc, sum(col = 'headings') AS headings, sum(col = 'body') AS body
  FROM occurrences WHERE term = ? GROUP BY doc ORDER BY doc)
"""
_CACHED_TERMS = 4096


def build_lexicon(path: Path, rows: Iterable[LexiconRow], scratch: Path) -> int:
    """Write the lexicon of passages in their order; return how many there are.

    Args:
        path: The file to write; replaced whole.
        rows: One for each passage, in order; ids must differ.
        scratch: A folder for the file before it is vacuumed.
    """
    draft = scratch / "keyword.draft"
    fresh = scratch / "keyword.fresh"
    for old in (draft, fresh):
        old.unlink(missing_ok=True)
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size=4096")
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.executescript(_SCHEMA)
        connection.execute("BEGIN")
        count = _insert(connection, rows)
        connection.execute("COMMIT")
        connection.execute("INSERT INTO terms(terms) VALUES ('optimize')")
        connection.execute("VACUUM INTO ?", (str(fresh),))
    finally:
        connection.close()
    draft.unlink()
    fresh.replace(path)
    return count


def _insert(connection: sqlite3.Connection, rows: Iterable[LexiconRow]) -> int:
    lengths: list[tuple[int, int]] = []
    for row, (passage_id, headings, body, heading_count, body_count) in enumerate(rows):
        connection.execute("INSERT INTO passages VALUES (?, ?)", (row, passage_id))
        connection.execute(
            "INSERT INTO terms(rowid, headings, body) VALUES (?, ?, ?)",
            (row, " ".join(headings), " ".join(body)),
        )
        lengths.append((heading_count, body_count))
    blob = np.asarray(lengths, dtype="<i4").reshape(-1, 2).tobytes()
    connection.execute("INSERT INTO numbers VALUES ('lengths', ?)", (blob,))
    return len(lengths)


class Lexicon:
    """Reads a finished lexicon; every thread gets its own connection to the immutable file."""

    def __init__(self, path: Path) -> None:
        """Open the lexicon at ``path``.

        Raises:
            IntegrityError: If the file is no lexicon, or a damaged one.
        """
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._postings: OrderedDict[str, tuple[NDArray[np.int64], NDArray[np.int32]]] = (
            OrderedDict()
        )
        try:
            found = self._connect().execute("SELECT value FROM numbers WHERE name = 'lengths'")
            self._lengths = np.frombuffer(found.fetchone()[0], dtype="<i4").reshape(-1, 2)
        except (sqlite3.Error, TypeError, ValueError) as error:
            self.close()
            raise self._broken(error) from error

    def __len__(self) -> int:
        """Return how many passages the lexicon holds."""
        return len(self._lengths)

    def row_of(self, passage_id: str) -> int | None:
        """Return the row of a passage, or None where there is no such passage."""
        found = self._query("SELECT row FROM passages WHERE id = ?", passage_id)
        return int(found[0]) if found else None

    def document_frequency(self, term: str) -> int:
        """Return how many passages hold the term."""
        return len(self._look_up(term)[0])

    def idf(self, term: str) -> float:
        """Return the term's inverse document frequency, in nats; never negative."""
        frequency = self.document_frequency(term)
        return float(np.log1p((len(self) - frequency + 0.5) / (frequency + 0.5)))

    def score(
        self, terms: Mapping[str, float], *, k1: float, b: float, heading_weight: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the rows that hold any of the terms, ascending, with their BM25 scores.

        Args:
            terms: Each term's weight; a plain query gives each term its count.
            k1: How soon more occurrences stop counting; 0 or more.
            b: How much a passage's length counts; 0 to 1.
            heading_weight: How many occurrences in the text one in a heading is worth.
        """
        weights = np.array([heading_weight, 1.0])
        lengths = self._lengths @ weights
        mean = float(lengths.mean()) if len(lengths) else 1.0
        penalty = k1 * (1 - b + b * lengths / (mean or 1.0))
        scores = np.zeros(len(self))
        held = np.zeros(len(self), dtype=bool)
        for term in sorted(terms):
            rows, counts = self._look_up(term)
            if len(rows):
                frequency = counts @ weights
                scores[rows] += (
                    terms[term] * self.idf(term) * frequency / (frequency + penalty[rows] + 1e-12)
                )
                held[rows] |= frequency > 0
        found = np.flatnonzero(held)
        return found, scores[found]

    def close(self) -> None:
        """Close every thread's connection."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _look_up(self, term: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        with self._lock:
            known = self._postings.get(term)
            if known is not None:
                self._postings.move_to_end(term)
                return known
        found = self._query(_POSTINGS, term)
        if not found or found[0] is None:
            known = np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.int32)
        else:
            rows = np.array(found[0].split(","), dtype=np.int64)
            counts = np.array([column.split(",") for column in found[1:]], dtype=np.int32).T
            known = rows, counts
        with self._lock:
            self._postings[term] = known
            if len(self._postings) > _CACHED_TERMS:
                self._postings.popitem(last=False)
        return known

    def _query(self, sql: str, value: str) -> tuple[str, ...] | None:
        try:
            row: tuple[str, ...] | None = self._connect().execute(sql, (value,)).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return row

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            address = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(
                address, uri=True, check_same_thread=False, isolation_level=None
            )
            connection.execute(
                "CREATE VIRTUAL TABLE temp.occurrences USING fts5vocab(main, 'terms', 'instance')"
            )
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def _broken(self, error: Exception) -> IntegrityError:
        return IntegrityError(
            f"the keyword index cannot be read: {error}",
            code="rag.index-damaged",
            where=str(self.path),
            expected="the keyword.sqlite that the job wrote",
            next="build the index again with --overwrite",
        )
