"""Semantic cache: stored answers for equivalent questions, by cosine and equal content words.

A stored answer is returned if the normalized question is identical, or if the cosine of the vectors
is at least 0.95 *and* content words, numbers, negations and options (-v is not -V) are the same, in
the same order: cosine alone does not distinguish "enable" from "disable", 2022 from 2023, or who
bites whom. What may differ is inflection, stop words and punctuation.

Answers are stored under everything they depend on: the state of the index, its reader, the model,
the prompt and all settings. An answer is returned only while every passage it was generated from is
still in the index, unchanged. Cached answers are marked in their details. The file holds questions,
answers and passages unencrypted: protect it like the documents.

Source: Bang 2023, "GPTCache", doi:10.18653/v1/2023.nlposs-1.24 (the idea). Differs: the check of
words, and entries expire with their sources.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from stillroom.errors import DataError
from stillroom.jobs.files import open_shared_database
from stillroom.provenance import digest_json
from stillroom.rag.groundedness.claims import extract_numbers, is_negated
from stillroom.rag.interfaces import Query
from stillroom.records import Answer, Passage
from stillroom.text.unicode import find_options, fold_case

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.index.searcher import Index

__all__ = ["SemanticCache", "build_cache_scope"]

_SEMANTIC_VERSION = 1
_MIN_SIMILARITY = 0.95
_LARGEST = 1.01  # of the numbers of a unit vector, rounded
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  scope TEXT NOT NULL, text TEXT NOT NULL, gate TEXT NOT NULL,
  question TEXT NOT NULL, vector BLOB NOT NULL, answer TEXT NOT NULL, used INTEGER NOT NULL,
  UNIQUE(scope, text)
);
CREATE INDEX IF NOT EXISTS by_gate ON answers(scope, gate);
"""
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class _QuestionKey:
    """Keys by which questions are compared."""

    text: str
    gate: str


class SemanticCache:
    """Answers by question, in memory or in one SQLite file; thread-safe.

    ``hits`` and ``misses`` count since it was opened.
    """

    def __init__(self, path: Path | None = None, *, capacity: int = 10_000) -> None:
        """Open a cache.

        A missing file is created; without a path answers are kept in memory. Beyond ``capacity``
        answers the least recently used are evicted.

        Raises:
            DataError: If the file is not a cache of this version, or the capacity is below 1.
        """
        if capacity < 1:
            raise _make_unusable_error(
                f"a capacity of {capacity}", "1 or more answers", "raise capacity"
            )
        self.capacity = capacity
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self._path = path
        with self._damage_as_error(), ExitStack() as undo:
            self._database = open_shared_database(path or ":memory:", wait_s=10)
            undo.callback(self._database.close)  # a file of another kind or version
            self._prepare()
            undo.pop_all()

    def _prepare(self) -> None:
        with self._lock:
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and version != _SEMANTIC_VERSION:
                raise sqlite3.DatabaseError(f"its version is {version}, not {_SEMANTIC_VERSION}")
            self._database.executescript(_SCHEMA)
            self._database.execute(f"PRAGMA user_version={_SEMANTIC_VERSION}")

    def __len__(self) -> int:
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def find(self, index: Index, scope: str, question: str) -> Answer | None:
        """Return the stored answer to a question, or None.

        Every passage of the answer must still be in ``index``; ``scope`` is ``build_cache_scope``
        of everything else that it depends on.

        Raises:
            DataError: If the file is damaged, or stays locked.
        """
        key = _build_key(question, index)
        with self._damage_as_error():
            row, kind, cosine = self._find_exact(scope, key.text), "exact", 1.0
            if row is None and key.gate:
                row, cosine = self._find_near(index, scope, key, question)
                kind = "near"
            answer = None if row is None else _parse_answer(row[1])
            if row is None or answer is None or not _is_current(answer, index):
                if row is not None:
                    self._forget(row[0])
                self.misses += 1
                return None
            self._touch(row[0])
        self.hits += 1
        cached = {"kind": kind, "cosine": round(cosine, 4), "question": row[2]}
        return replace(answer, details={**answer.details, "cached": cached})

    def keep(self, index: Index, scope: str, question: str, answer: Answer) -> None:
        """Store an answer, unless it has no passages or was cut off.

        Raises:
            DataError: If the file is damaged, cannot be written, or stays locked.
        """
        if answer.completion.finish_reason != "stop" or not answer.hits:
            return
        key = _build_key(question, index)
        vector = np.asarray(index.embed_query(Query(question)), dtype="<f4").tobytes()
        text = _adapter().dump_json(answer).decode()
        values = (scope, key.text, key.gate, question, vector, text)
        with self._damage_as_error(), self._lock, self._database:  # commits, or rolls back
            self._database.execute("BEGIN IMMEDIATE")
            (last,) = self._database.execute(
                "SELECT coalesce(max(used), 0) FROM answers"
            ).fetchone()
            self._database.execute(
                "INSERT OR REPLACE INTO answers(scope, text, gate, question, vector, answer, used)"
                " VALUES(?, ?, ?, ?, ?, ?, ?)",
                (*values, last + 1),
            )
            self._database.execute(
                "DELETE FROM answers WHERE id NOT IN"
                " (SELECT id FROM answers ORDER BY used DESC, id DESC LIMIT ?)",
                (self.capacity,),
            )

    def clear(self) -> None:
        """Delete all answers."""
        with self._lock:
            self._database.execute("DELETE FROM answers")

    def close(self) -> None:
        """Close the file; may be called repeatedly."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _damage_as_error(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _make_unusable_error(
                f"{self._path} cannot be used: {error}",
                "a semantic cache of this version, or a path that does not exist",
                "choose another path",
            ) from error

    def _find_exact(self, scope: str, text: str) -> tuple[int, str, str] | None:
        with self._lock:
            row: tuple[int, str, str] | None = self._database.execute(
                "SELECT id, answer, question FROM answers WHERE scope = ? AND text = ?",
                (scope, text),
            ).fetchone()
        return row

    def _find_near(
        self, index: Index, scope: str, key: _QuestionKey, question: str
    ) -> tuple[tuple[int, str, str] | None, float]:
        """Return the most similar row with the same words, if similar enough, and its cosine."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, answer, question, vector FROM answers WHERE scope = ? AND gate = ?"
                " AND typeof(vector) = 'blob' ORDER BY id",
                (scope, key.gate),
            ).fetchall()
        if not rows:
            return None, 0.0
        vector: NDArray[np.float32] = index.embed_query(Query(question))
        rows = [row for row in rows if len(row[3]) == 4 * len(vector)]  # another length is damage
        if not rows:
            return None, 0.0
        vectors = np.stack([np.frombuffer(row[3], dtype="<f4") for row in rows])
        vectors[~(np.abs(vectors) <= _LARGEST)] = 0.0  # not of a unit vector: damage
        likeness = vectors @ vector
        best = int(likeness.argmax())
        if likeness[best] < _MIN_SIMILARITY:
            return None, float(likeness[best])
        return rows[best][:3], float(likeness[best])

    def _touch(self, row: int) -> None:
        with self._lock:
            self._database.execute(
                "UPDATE answers SET used = (SELECT max(used) + 1 FROM answers) WHERE id = ?", (row,)
            )

    def _forget(self, row: int) -> None:
        with self._lock:
            self._database.execute("DELETE FROM answers WHERE id = ?", (row,))


def build_cache_scope(**parts: Any) -> str:
    """Return the digest of everything an answer depends on except the question."""
    return digest_json(parts)


def _build_key(question: str, index: Index) -> _QuestionKey:
    """Return the normalized text, and a digest of the words that must be equal."""
    text = _SPACE.sub(" ", fold_case(question)).strip()
    terms = list(index.analyzer.content_terms(question))
    if not terms:
        return _QuestionKey(text, "")
    numbers, options = sorted(extract_numbers(question)), find_options(question)
    gate = digest_json([terms, numbers, is_negated(question), options])
    return _QuestionKey(text, gate)


def _is_current(answer: Answer, index: Index) -> bool:
    """Return whether every passage of an answer is unchanged in the index."""
    return all(_is_passage_current(hit.passage, index) for hit in answer.hits)


def _is_passage_current(passage: Passage, index: Index) -> bool:
    try:
        document = index.document(passage.document_id)
    except DataError:
        return False
    return document.text[passage.start : passage.end] == passage.text


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Answer]:
    return TypeAdapter(Answer)  # takes tens of milliseconds


def _parse_answer(text: str) -> Answer | None:
    try:
        return _adapter().validate_json(text)
    except ValidationError:  # another version wrote it
        return None


def _make_unusable_error(problem: str, expected: str, next_step: str) -> DataError:
    return DataError(problem, code="rag.semantic-cache", expected=expected, next=next_step)
