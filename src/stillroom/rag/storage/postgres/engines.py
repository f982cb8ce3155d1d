"""Keyword and vector search in PostgreSQL, scored exactly.

pgvector sums in float32 in its own order, so its products differ from exact ones in the last
digits. More rows than requested are therefore fetched, until no row that is missing can be among
the best:
|x.q - fl(x.q)| <= D u |x||q|, with the largest |x| that was ever written. The scores are then
recomputed and equal those of ``DenseEngine`` exactly.

Approximate search uses the HNSW index (Malkov and Yashunin 2016, arXiv:1603.09320). Where the
condition matches few rows, or too few rows are found, search is exact.

One statement per term returns the passages of the population that contain it, and its counts; the
result is cached while the snapshot is open. Weights, frequencies and lengths equal those of
``KeywordEngine`` exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from stillroom.rag.analysis.phrases import PhraseWord, find_phrase_rows
from stillroom.rag.search_engines.dense import (
    DEFAULT_OVERSAMPLING,
    DenseEngine,
    MeasuredRecall,
    calibrate_oversampling,
    is_selective,
)
from stillroom.rag.search_engines.keyword import Field, KeywordEngine
from stillroom.rag.storage.postgres.connection import build_term_key
from stillroom.rag.storage.protocol import MEASURED_RECALL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.storage.filters import SqlCondition
    from stillroom.rag.storage.postgres.snapshot import PostgresSnapshot
    from stillroom.rag.storage.snapshots import PassageRows

__all__ = ["PostgresKeywords", "PostgresVectors", "decode_vectors"]


_EXACT = (
    "SELECT v.key, v.vector::vector <#> :query::vector, vector_send(v.vector::vector) "
    "FROM vectors v JOIN documents d ON d.content = v.content "
    "WHERE d.born <= :snapshot AND d.died > :snapshot AND ({condition}) "
    # + 0: the order is not the index's, so that the planner cannot take it
    "ORDER BY (v.vector::vector <#> :query::vector) + 0 LIMIT :many"
)
_NEAREST = (
    "WITH near AS MATERIALIZED ("
    "SELECT key, content, vector FROM vectors ORDER BY vector <#> :query::{kind} LIMIT :many) "
    "SELECT v.key, 0.0, vector_send(v.vector::vector) "
    "FROM near v JOIN documents d ON d.content = v.content "
    "WHERE d.born <= :snapshot AND d.died > :snapshot AND ({condition})"
)
_MAX_CANDIDATES = 1_000
_SLACK = 16
Matches = tuple["NDArray[np.int64]", "NDArray[np.float32]"]


def decode_vectors(rows: Sequence[bytes], dimensions: int) -> NDArray[np.float32]:
    """Return vectors, (N, D) float32, from the output of ``vector_send``."""
    data = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)
    if not len(rows):
        return np.zeros((0, dimensions), dtype=np.float32)
    return np.ascontiguousarray(data[:, 4:]).view(">f4").astype(np.float32)


class PostgresVectors:
    """Vectors of one population; see ``stillroom.rag.storage.protocol.DenseSearch``."""

    def __init__(
        self, reading: PostgresSnapshot, everyone: PassageRows, population: SqlCondition
    ) -> None:
        self._reading, self._everyone, self._population = reading, everyone, population
        measured = reading.get_setting(MEASURED_RECALL)
        self._oversampling: int | None = (
            measured["oversampling"] if measured else DEFAULT_OVERSAMPLING
        )
        is_half = reading.description["settings"]["vectors"] == "float16"
        self._kind = "halfvec" if is_half else "vector"
        rows = reading.session.query("SELECT value FROM settings WHERE name = 'longest'")
        self._longest = float(rows[0][0]) if rows else 1.0

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: SqlCondition,
        is_near: bool = False,
    ) -> Matches:
        """Return the best ``k`` positions and their scores, best first."""
        query = np.asarray(vector, dtype=np.float32)
        allowed = len(self._everyone) if mask is None else int(np.count_nonzero(mask))
        if not allowed:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        if is_near and self._oversampling is not None:
            matches = self._search_near(query, k, allowed, self._oversampling, mask, condition)
            if matches is not None:
                return matches
        return self._search_exact(query, k, allowed, mask, condition)

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure recall of HNSW search, and use the smallest sufficient oversampling."""
        total, everyone = len(self._everyone), self._population
        measured = calibrate_oversampling(
            queries,
            lambda query: self._search_exact(query, k, total, None, everyone)[1],
            lambda query, oversampling: self._search_near(
                query, k, total, oversampling, None, everyone
            ),
            k=k,
            least=least,
        )
        self._oversampling = measured.oversampling
        return measured

    def _search_exact(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: int,
        mask: NDArray[Any] | None,
        condition: SqlCondition,
    ) -> Matches:
        limit = k + _SLACK
        width = len(query)
        max_error = self._longest * float(np.linalg.norm(query)) * width * 2.0**-22
        while True:
            rows = self._fetch(_EXACT, query, limit, condition)
            positions, scores = self._score(query, rows, mask)
            is_all = len(rows) < limit
            least = -float(rows[-1][1]) + max_error if rows else 0.0
            if is_all or (
                len(positions) >= min(k, allowed) and least < scores[min(k, allowed) - 1]
            ):
                return positions[:k], scores[:k]
            limit *= 4

    def _search_near(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: int,
        oversampling: int,
        mask: NDArray[Any] | None,
        condition: SqlCondition,
    ) -> Matches | None:
        """Return approximately the best rows, or None where exact search is preferable."""
        total = self._reading.snapshot.passages
        depth = k * oversampling
        if is_selective(allowed, total, depth):
            return None
        limit = min(_MAX_CANDIDATES, max(depth, -(-depth * total // max(1, allowed))))
        session = self._reading.session
        with session.connection as connection, session.server.errors(), connection.transaction():
            connection.execute(f"SET LOCAL hnsw.ef_search = {max(40, limit)}".encode())
            connection.execute(b"SET LOCAL enable_seqscan = off")
            rows = self._fetch(_NEAREST, query, limit, condition)
        positions, scores = self._score(query, rows, mask)
        return (positions[:k], scores[:k]) if len(positions) >= min(k, allowed) else None

    def _fetch(
        self, sql: str, query: NDArray[np.float32], limit: int, condition: SqlCondition
    ) -> list[Any]:
        text = "[" + ",".join(repr(float(value)) for value in query) + "]"
        return self._reading.select(
            sql.format(kind=self._kind, condition=condition.sql),
            condition,
            {"query": text, "many": limit},
        )

    def _score(
        self, query: NDArray[np.float32], rows: Sequence[Any], mask: NDArray[Any] | None
    ) -> Matches:
        """Return the positions of rows and their exact scores, best first."""
        positions = self._reading.positions_of(np.array([key for key, *_ in rows], dtype=np.int64))
        matrix = decode_vectors([data for *_, data in rows], len(query))
        scores = DenseEngine([matrix]).score(query, np.arange(len(rows)))
        if mask is not None:
            is_allowed = np.asarray(mask, dtype=bool)[positions]
            positions, scores = positions[is_allowed], scores[is_allowed]
        order = np.lexsort((positions, -scores))
        return positions[order], scores[order]


_VISIBLE = (
    "JOIN documents d ON d.content = (u.key >> 24) "
    "WHERE p.term = :term AND d.born <= :snapshot AND d.died > :snapshot AND ({})"
)
_OCCURRENCES = (
    "SELECT string_agg(int8send(u.key) || int4send(u.headings) || int4send(u.words), ''::bytea) "
    "FROM postings p CROSS JOIN LATERAL "
    "unnest(p.keys, p.headings, p.words) AS u(key, headings, words) " + _VISIBLE
)
_POSITIONS = (
    "SELECT u.key, u.headings, u.spots FROM postings p CROSS JOIN LATERAL "  # noqa: S608
    "unnest(p.keys, p.headings, p.spots) AS u(key, headings, spots) " + _VISIBLE
)
_LENGTHS = (
    "SELECT string_agg(int8send(a.key) || int4send(a.headings) || int4send(a.words), ''::bytea) "
    "FROM passages a JOIN documents d ON d.content = (a.key >> 24) "
    "WHERE d.born <= :snapshot AND d.died > :snapshot AND ({})"
)
_ROW = np.dtype([("key", ">i8"), ("headings", ">i4"), ("words", ">i4")])


class PostgresKeywords(KeywordEngine):
    """BM25 search over the population of one snapshot."""

    def __init__(
        self, reading: PostgresSnapshot, everyone: PassageRows, population: SqlCondition
    ) -> None:
        super().__init__([])
        self._reading, self._condition, self._count = reading, population, len(everyone)

    @override
    def __len__(self) -> int:
        return self._count

    @property
    @override
    def population(self) -> int:
        return self._count

    @override
    def phrase(
        self, words: Sequence[PhraseWord | str], *, field: Field = "body"
    ) -> NDArray[np.int64]:
        return find_phrase_rows(words, lambda term: self._list_occurrences(term, field))

    @override
    def _gather(self, term: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        occurrences = self._fetch(_OCCURRENCES, {"term": build_term_key(term)})
        rows = self._reading.positions_of(occurrences["key"].astype(np.int64))
        order = np.argsort(rows)
        headings, words = (
            occurrences[name].astype(np.int64)[order] for name in ("headings", "words")
        )
        return rows[order], headings, words

    @override
    def _count_terms(self) -> NDArray[np.int64]:
        counts = self._fetch(_LENGTHS, {})
        lengths = np.zeros((self._count, 2), dtype=np.int64)
        rows = self._reading.positions_of(counts["key"].astype(np.int64))
        lengths[rows, 0], lengths[rows, 1] = counts["headings"], counts["words"]
        return lengths

    def _fetch(self, sql: str, values: dict[str, str]) -> NDArray[np.void]:
        rows = self._reading.select(sql.format(self._condition.sql), self._condition, values)
        return np.frombuffer(rows[0][0] or b"", dtype=_ROW)

    def _list_occurrences(
        self, term: str, field: Field
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and positions of every occurrence of a term in a field, both ascending."""
        rows = self._reading.select(
            _POSITIONS.format(self._condition.sql), self._condition, {"term": build_term_key(term)}
        )
        row_parts, position_parts = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        keys = self._reading.positions_of(np.array([key for key, *_ in rows], dtype=np.int64))
        for number in np.argsort(keys):
            _, headings, data = rows[number]
            positions = np.frombuffer(data, dtype="<i4")
            field_positions = positions[:headings] if field == "headings" else positions[headings:]
            position_parts.append(field_positions.astype(np.int64))
            row_parts.append(np.full(len(field_positions), keys[number], dtype=np.int64))
        return np.concatenate(row_parts), np.concatenate(position_parts)
