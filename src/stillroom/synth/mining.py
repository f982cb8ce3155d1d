"""Mining: the passages nearest to a query, by embedding or by BM25, in a collection that fits here.

Source: Robertson and Zaragoza 2009 (BM25; k1 1.2, b 0.75, as Lucene has it). Exact: every passage
is compared. For collections of millions, mine with an index and give the file as candidates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.records import Passage
from stillroom.synth.wording import content_stems

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["Mine", "Near"]

_K1, _B = 1.2, 0.75
_CHARACTERS = 4000


class Near(NamedTuple):
    """A passage, how near it is to the query by embedding (cosine), and what found it."""

    passage: Passage
    score: float
    by: str


class Mine:
    """A collection to find hard negatives in."""

    def __init__(
        self,
        passages: Sequence[Passage],
        embedder: str,
        by: Literal["dense", "words", "both"] = "dense",
    ) -> None:
        """Embed the passages once.

        Args:
            passages: The collection.
            embedder: A reference.
            by: What finds candidates; their scores are cosines in any case.

        Raises:
            CheckpointError: If the reference leads to no embedder.
        """
        from stillroom.models import open_embedder

        self._passages = list(passages)
        self._embedder: Embedder = open_embedder(embedder)
        self._by = by
        texts = [passage.text[:_CHARACTERS] for passage in self._passages]
        self._vectors: Any = self._embedder.embed(texts, kind="passage")
        self._bm25 = _Bm25(texts) if by != "dense" else None

    def nearest(self, query: str, positive: Passage, depth: int) -> tuple[float, int, list[Near]]:
        """Return cosine and rank (from 1) of the positive, and the nearest others, nearest first.

        Left out are the positive, other passages with its text, and passages that overlap it.
        """
        vector = self._embedder.embed([query], kind="query")[0]
        own = self._embedder.embed([positive.text[:_CHARACTERS]], kind="passage")[0]
        cosines = self._vectors @ vector
        orders = {}
        if self._by != "words":
            orders["dense"] = _best(cosines, depth)
        if self._bm25 is not None:
            orders["words"] = _best(self._bm25.score(query), depth)
        found: dict[int, str] = {}
        for rank in range(depth):
            for by, order in orders.items():
                if rank < len(order):
                    found.setdefault(int(order[rank]), by)
        near = [
            Near(self._passages[place], float(cosines[place]), by)
            for place, by in found.items()
            if not _is_same(self._passages[place], positive)
        ]
        score = float(own @ vector)
        others = [not _is_same(passage, positive) for passage in self._passages]
        return score, 1 + int((cosines[others] > score).sum()), near


class _Bm25:
    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(content_stems(text)) for text in texts]
        self._size = len(texts)
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        norms = _K1 * (1 - _B + _B * lengths / max(lengths.mean() if self._size else 1.0, 1.0))
        places: dict[str, list[tuple[int, int]]] = {}
        for place, count in enumerate(counts):
            for stem, number in count.items():
                places.setdefault(stem, []).append((place, number))
        self._weights: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for stem, rows in places.items():
            at = np.array([place for place, _ in rows])
            frequency = np.array([number for _, number in rows], dtype=np.float64)
            rarity = math.log(1 + (self._size - len(rows) + 0.5) / (len(rows) + 0.5))
            self._weights[stem] = at, rarity * frequency / (frequency + norms[at])

    def score(self, query: str) -> NDArray[Any]:
        scores = np.zeros(self._size)
        for stem in content_stems(query):
            if stem in self._weights:
                at, weights = self._weights[stem]
                scores[at] += weights
        return scores


def _best(scores: NDArray[Any], depth: int) -> NDArray[Any]:
    """Return the places of the highest scores above zero, ties by place."""
    order = np.lexsort((np.arange(len(scores)), -scores))[:depth]
    return order[scores[order] > 0]


def _is_same(one: Passage, other: Passage) -> bool:
    overlaps = (
        one.document_id == other.document_id and one.start < other.end and other.start < one.end
    )
    return one.id == other.id or overlaps or one.text.split() == other.text.split()
