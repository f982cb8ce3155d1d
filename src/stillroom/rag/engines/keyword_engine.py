"""Keyword engine: exact BM25 top-k over several files of postings.

The idf of a term and the average length come from the allowed rows alone, so that no statistic of
a row that must not be seen shows in a score. What a term adds to every row is computed when it is
first asked for, and kept while memory allows. Scores do not depend on how rows are spread over
files, on the mask or on what was asked before: a row's score is one sum in one order.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019; the variants as Kamphuis et al. 2020
("Which BM25 Do You Mean?", ECIR) and the library bm25s state them (``stillroom.text.bm25``).

Does not know: passages, documents, queries' syntax, who asks.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillroom.rag.engines.phrases import PhraseWord
from stillroom.rag.engines.postings import Field, Postings
from stillroom.text.bm25 import Bm25Variant, Weighing, default_delta, idf_of, weigh_term
from stillroom.text.impacts import Impacts, TermCache, rank_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KeywordEngine"]

_CACHED_LENGTHS = 4
_CACHED_FREQUENCIES = 1 << 16


class KeywordEngine:
    """Searches a view: files of postings one after another, and which of their rows are allowed."""

    def __init__(
        self,
        postings: Sequence[Postings],
        alive: NDArray[np.bool_] | None = None,
        *,
        cache: TermCache | None = None,
    ) -> None:
        """Make a view; cheap until it is asked.

        Args:
            postings: Files of postings; the rows of the second follow those of the first.
            alive: Which rows there are as far as anybody who uses this view may know, (N,) bool;
                None for all. Document frequencies and lengths are counted over these.
            cache: Where to keep what terms add; by default one of its own.
        """
        self._postings = tuple(postings)
        self._offsets = np.cumsum([0, *map(len, self._postings)]).tolist()
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)
        self._cache = cache if cache is not None else TermCache()
        self._frequencies: dict[str, int] = {}
        self._lengths: dict[tuple[float, float], tuple[NDArray[np.float64], float]] = {}
        self._lock = threading.Lock()
        self._mark = object()  # unlike id(), never another view's

    def __len__(self) -> int:
        """Return how many rows the view spans, those that are not allowed included."""
        return int(self._offsets[-1])

    @property
    def population(self) -> int:
        """How many rows are allowed."""
        return len(self) if self._alive is None else int(np.count_nonzero(self._alive))

    def document_frequency(self, term: str) -> int:
        """Return how many allowed rows hold the term in any field."""
        known = self._frequencies.get(term)
        if known is None:
            known = len(self._gather(term)[0])
            with self._lock:
                if len(self._frequencies) >= _CACHED_FREQUENCIES:
                    self._frequencies.clear()
                self._frequencies[term] = known
        return known

    def idf(self, term: str) -> float:
        """Return the term's inverse document frequency as Lucene has it, in nats; above 0."""
        return idf_of("lucene", self.document_frequency(term), self.population)

    def search(
        self,
        terms: Mapping[str, float],
        k: int,
        *,
        k1: float = 1.2,
        b: float = 0.75,
        heading_weight: float = 1.0,
        variant: Bm25Variant = "lucene",
        delta: float | None = None,
        field: Field | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the best ``k`` rows and their scores, best first, ties by row.

        Exact: the same as scoring every row and sorting. Rows that hold none of the terms, or only
        terms whose idf is 0 (Robertson's, of terms in more than half of the rows), are never found.

        Args:
            terms: Each term's weight, above 0; a plain query gives each term its count.
            k: How many rows; 1 or more.
            k1: How soon more occurrences stop counting; 0 or more.
            b: How much a row's length counts; 0 to 1.
            heading_weight: How many occurrences in the text one in a heading is worth.
            variant: Which BM25.
            delta: The lower bound that BM25L and BM25+ put under an occurrence; None for what their
                papers have, 0.5 and 1.
            field: Search one field alone, by its own lengths and frequencies; None for both.
            mask: Which rows may be found, (N,) bool; unlike ``alive`` it changes no score.
        """
        headings = 0.0 if field == "body" else 1.0 if field == "headings" else heading_weight
        body = 0.0 if field == "headings" else 1.0
        lower = default_delta(variant) if delta is None else delta
        weighing = Weighing(k1, b, headings, body, variant, lower)
        weighted = [
            (term, weight, one)
            for term, weight in terms.items()
            if len((one := self._impacts(term, weighing)).rows)
        ]
        rows, scores = rank_rows(weighted, len(self), k, mask)
        return rows, scores + sum(weight * one.absent for _, weight, one in weighted)

    def phrase(
        self, words: Sequence[PhraseWord | str], *, field: Field = "body"
    ) -> NDArray[np.int64]:
        """Return the allowed rows that hold words one after another in a field, ascending.

        Args:
            words: As the analyzer cuts the phrase, stop words included; none find nothing.
            field: Where to look.
        """
        kept: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        for part, offset in zip(self._postings, self._offsets, strict=False):
            kept.append(part.phrase(words, field) + offset)
        rows = np.concatenate(kept)
        return rows if self._alive is None else rows[self._alive[rows]]

    def _gather(self, term: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the allowed rows that hold a term, and its counts in headings and in text."""
        found = []
        for part, offset in zip(self._postings, self._offsets, strict=False):
            number = part.find(term)
            if number is not None:
                held, *counts = part.look_up(number)
                found.append((held.astype(np.int64) + offset, *counts))
        if not found:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        rows, headings, body = (
            np.concatenate(each, dtype=np.int64) for each in zip(*found, strict=True)
        )
        if self._alive is not None:
            keep = self._alive[rows]
            rows, headings, body = rows[keep], headings[keep], body[keep]
        return rows, headings, body

    def _impacts(self, term: str, weighing: Weighing) -> Impacts:
        key = (self._mark, term, weighing)
        known = self._cache.get(key)
        if known is None:
            known = self._weigh(term, weighing)
            self._cache.put(key, known)
        return known

    def _weigh(self, term: str, how: Weighing) -> Impacts:
        rows, headings, body = self._gather(term)
        frequency = headings * how.headings + body * how.body
        if not (how.headings > 0 and how.body > 0):
            rows, frequency = rows[frequency > 0], frequency[frequency > 0]
        lengths, mean = self._relative_lengths(how)
        return weigh_term(how, rows, frequency, lengths[rows] / mean, self.population)

    def _count_terms(self) -> NDArray[np.int64]:
        """Return how many terms each row has in headings and in text, (N, 2)."""
        none = np.zeros((0, 2), dtype=np.int64)
        return np.concatenate([none, *(part.lengths for part in self._postings)])

    def _relative_lengths(self, how: Weighing) -> tuple[NDArray[np.float64], float]:
        key = (how.headings, how.body)
        with self._lock:
            if key not in self._lengths:
                if len(self._lengths) >= _CACHED_LENGTHS:
                    self._lengths.clear()
                lengths = self._count_terms() @ np.array(key)
                counted = lengths if self._alive is None else lengths[self._alive]
                mean = float(counted.mean()) if len(counted) else 1.0
                self._lengths[key] = lengths, mean or 1.0
            return self._lengths[key]
