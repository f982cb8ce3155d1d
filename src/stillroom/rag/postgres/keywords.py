"""Keywords: occurrences of terms by SQL, under the asker's condition; scores by the house's BM25.

One statement a term gives which of the population's passages hold it and how often; it is kept for
as long as the snapshot is shown, so that a term is asked for once. Weights, frequencies and lengths
are then those of ``KeywordEngine``, number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from stillroom.rag.engines.keyword_engine import KeywordEngine
from stillroom.rag.engines.phrases import PhraseWord, find_phrase
from stillroom.rag.engines.postings import Field
from stillroom.rag.postgres.connecting import term_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.filters import Condition
    from stillroom.rag.postgres.reading import PostgresReading
    from stillroom.rag.store.rows import Rows

__all__ = ["PostgresKeywords"]

_SEEN = (
    "JOIN documents d ON d.content = (u.key >> 24) "
    "WHERE p.term = :term AND d.born <= :snapshot AND d.died > :snapshot AND ({})"
)
_OCCURRENCES = (
    "SELECT string_agg(int8send(u.key) || int4send(u.headings) || int4send(u.words), ''::bytea) "
    "FROM postings p CROSS JOIN LATERAL "
    "unnest(p.keys, p.headings, p.words) AS u(key, headings, words) " + _SEEN
)
_SPOTS = (
    "SELECT u.key, u.headings, u.spots FROM postings p CROSS JOIN LATERAL "  # noqa: S608
    "unnest(p.keys, p.headings, p.spots) AS u(key, headings, spots) " + _SEEN
)
_LENGTHS = (
    "SELECT string_agg(int8send(a.key) || int4send(a.headings) || int4send(a.words), ''::bytea) "
    "FROM passages a JOIN documents d ON d.content = (a.key >> 24) "
    "WHERE d.born <= :snapshot AND d.died > :snapshot AND ({})"
)
_ROW = np.dtype([("key", ">i8"), ("headings", ">i4"), ("words", ">i4")])


class PostgresKeywords(KeywordEngine):
    """BM25 over the population of one snapshot."""

    def __init__(self, reading: PostgresReading, everyone: Rows, population: Condition) -> None:
        """Make a view; nothing is asked yet.

        Args:
            reading: The snapshot.
            everyone: The passages of the population.
            population: What its documents meet.
        """
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
        return find_phrase(words, lambda term: self._spots(term, field))

    @override
    def _gather(self, term: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        found = self._ask(_OCCURRENCES, {"term": term_key(term)})
        places = self._reading.places_of(found["key"].astype(np.int64))
        order = np.argsort(places)
        headings, words = (found[name].astype(np.int64)[order] for name in ("headings", "words"))
        return places[order], headings, words

    @override
    def _count_terms(self) -> NDArray[np.int64]:
        found = self._ask(_LENGTHS, {})
        lengths = np.zeros((self._count, 2), dtype=np.int64)
        places = self._reading.places_of(found["key"].astype(np.int64))
        lengths[places, 0], lengths[places, 1] = found["headings"], found["words"]
        return lengths

    def _ask(self, sql: str, values: dict[str, str]) -> NDArray[np.void]:
        rows = self._reading.query(sql.format(self._condition.sql), self._condition, values)
        return np.frombuffer(rows[0][0] or b"", dtype=_ROW)

    def _spots(self, term: str, field: Field) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return places and positions of every occurrence of a term in a field, both ascending."""
        rows = self._reading.query(
            _SPOTS.format(self._condition.sql), self._condition, {"term": term_key(term)}
        )
        places, spots = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        keys = self._reading.places_of(np.array([key for key, *_ in rows], dtype=np.int64))
        for at in np.argsort(keys):
            _, headings, data = rows[at]
            every = np.frombuffer(data, dtype="<i4")
            own = every[:headings] if field == "headings" else every[headings:]
            spots.append(own.astype(np.int64))
            places.append(np.full(len(own), keys[at], dtype=np.int64))
        return np.concatenate(places), np.concatenate(spots)
