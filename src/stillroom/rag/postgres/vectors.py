"""Vectors: pgvector finds candidates under the asker's condition, and the exact scores order them.

pgvector adds in float32, in an order of its own, so its products differ from the house's in the
last digits. It is therefore asked for a few more than are wanted, and for more again until no row
that it left out could belong among them: |x.q - fl(x.q)| <= D u |x||q|, with the greatest |x| that
was ever written. The scores are then those of ``DenseEngine``, number by number.

Search that ``is_near`` goes by the HNSW index that such an index keeps (Malkov and Yashunin 2016,
arXiv:1603.09320). Where the condition leaves few rows, or too few are found, it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.engines.sketches import (
    DEFAULT_OVERSAMPLING,
    MeasuredRecall,
    calibrate_oversampling,
)
from stillroom.rag.engines.vectors import DenseEngine, is_narrow
from stillroom.rag.store.protocol import MEASURED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.filters import Condition
    from stillroom.rag.postgres.reading import PostgresReading
    from stillroom.rag.store.rows import Rows

__all__ = ["PostgresVectors", "read_matrix"]

_EXACT = (
    "SELECT v.key, v.vector::vector <#> :query::vector, vector_send(v.vector::vector) "
    "FROM vectors v JOIN documents d ON d.content = v.content "
    "WHERE d.born <= :snapshot AND d.died > :snapshot AND ({condition}) "
    # + 0: the order is not the index's, so that the planner cannot take it
    "ORDER BY (v.vector::vector <#> :query::vector) + 0 LIMIT :many"
)
_NEAR = (
    "WITH near AS MATERIALIZED ("
    "SELECT key, content, vector FROM vectors ORDER BY vector <#> :query::{kind} LIMIT :many) "
    "SELECT v.key, 0.0, vector_send(v.vector::vector) "
    "FROM near v JOIN documents d ON d.content = v.content "
    "WHERE d.born <= :snapshot AND d.died > :snapshot AND ({condition})"
)
_MOST_SEARCHED = 1_000
_SLACK = 16
Found = tuple["NDArray[np.int64]", "NDArray[np.float32]"]


def read_matrix(rows: Sequence[bytes], dimensions: int) -> NDArray[np.float32]:
    """Return vectors, (N, D) float32, from what ``vector_send`` gives."""
    data = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)
    if not len(rows):
        return np.zeros((0, dimensions), dtype=np.float32)
    return np.ascontiguousarray(data[:, 4:]).view(">f4").astype(np.float32)


class PostgresVectors:
    """The vectors of one population; see ``stillroom.rag.store.protocol.DenseSearch``."""

    def __init__(self, reading: PostgresReading, everyone: Rows, population: Condition) -> None:
        """Make a view; nothing is asked yet."""
        self._reading, self._everyone, self._population = reading, everyone, population
        measured = reading.recall(MEASURED)
        self._oversampling: int | None = (
            measured["oversampling"] if measured else DEFAULT_OVERSAMPLING
        )
        self._kind = "halfvec" if _is_half(reading) else "vector"
        rows = reading.session.query("SELECT value FROM settings WHERE name = 'longest'")
        self._longest = float(rows[0][0]) if rows else 1.0

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: Condition,
        is_near: bool = False,
    ) -> Found:
        """Return the best ``k`` places and their scores, best first."""
        query = np.asarray(vector, dtype=np.float32)
        allowed = len(self._everyone) if mask is None else int(np.count_nonzero(mask))
        if not allowed:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        if is_near and self._oversampling is not None:
            found = self._search_near(query, k, allowed, self._oversampling, mask, condition)
            if found is not None:
                return found
        return self._search_exact(query, k, allowed, mask, condition)

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure what HNSW finds of the best ``k``, and search so from here."""
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
        condition: Condition,
    ) -> Found:
        many = k + _SLACK
        width = len(query)
        off = self._longest * float(np.linalg.norm(query)) * width * 2.0**-22
        while True:
            rows = self._ask(_EXACT, query, many, condition)
            places, scores = self._score(query, rows, mask)
            is_all = len(rows) < many
            least = -float(rows[-1][1]) + off if rows else 0.0
            if is_all or (len(places) >= min(k, allowed) and least < scores[min(k, allowed) - 1]):
                return places[:k], scores[:k]
            many *= 4

    def _search_near(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: int,
        oversampling: int,
        mask: NDArray[Any] | None,
        condition: Condition,
    ) -> Found | None:
        """Return about the best, or None where exact search is surer."""
        total = self._reading.snapshot.passages
        wanted = k * oversampling
        if is_narrow(allowed, total, wanted):
            return None
        many = min(_MOST_SEARCHED, max(wanted, -(-wanted * total // max(1, allowed))))
        connection = self._reading.session.connection
        with self._reading.session.server.errors(), connection.transaction():
            connection.execute(f"SET LOCAL hnsw.ef_search = {max(40, many)}".encode())
            connection.execute(b"SET LOCAL enable_seqscan = off")
            rows = self._ask(_NEAR, query, many, condition)
        places, scores = self._score(query, rows, mask)
        return (places[:k], scores[:k]) if len(places) >= min(k, allowed) else None

    def _ask(
        self, sql: str, query: NDArray[np.float32], many: int, condition: Condition
    ) -> list[Any]:
        text = "[" + ",".join(repr(float(one)) for one in query) + "]"
        return self._reading.query(
            sql.format(kind=self._kind, condition=condition.sql),
            condition,
            {"query": text, "many": many},
        )

    def _score(
        self, query: NDArray[np.float32], rows: Sequence[Any], mask: NDArray[Any] | None
    ) -> Found:
        """Return the places of rows and their exact scores, best first."""
        places = self._reading.places_of(np.array([key for key, *_ in rows], dtype=np.int64))
        matrix = read_matrix([data for *_, data in rows], len(query))
        scores = DenseEngine([matrix]).score(query, np.arange(len(rows)))
        if mask is not None:
            stays = np.asarray(mask, dtype=bool)[places]
            places, scores = places[stays], scores[stays]
        order = np.lexsort((places, -scores))
        return places[order], scores[order]


def _is_half(reading: PostgresReading) -> bool:
    return str(reading.description["settings"]["vectors"]) == "float16"
