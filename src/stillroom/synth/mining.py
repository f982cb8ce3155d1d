"""Mining: the passages nearest to a query, by embedding or by BM25, in a collection that fits here.

The BM25 is the house's (``stillroom.text.bm25``), as Lucene has it, k1 1.2 and b 0.75. Exact:
every passage is compared. For collections of millions, mine with an index and give the file as
candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.records import Passage
from stillroom.synth.wording import content_stems
from stillroom.text.bm25 import Weighing, weigh_term
from stillroom.text.impacts import Impacts, rank_rows

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["Mine", "Near"]

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
        self._keywords = _Keywords(texts) if by != "dense" else None

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
        if self._keywords is not None:
            orders["words"] = self._keywords.nearest(query, depth)
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


class _Keywords:
    """BM25 over texts in memory; a term is the stem of a word that carries meaning."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(content_stems(text)) for text in texts]
        self._size = len(texts)
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        lengths /= max(lengths.sum() / max(self._size, 1), 1.0)
        held: dict[str, list[tuple[int, int]]] = {}
        for row, count in enumerate(counts):
            for stem, number in count.items():
                held.setdefault(stem, []).append((row, number))
        self._impacts: dict[str, Impacts] = {}
        for stem, pairs in held.items():
            rows = np.array([row for row, _ in pairs], dtype=np.int64)
            frequency = np.array([number for _, number in pairs], dtype=np.float64)
            self._impacts[stem] = weigh_term(Weighing(), rows, frequency, lengths[rows], self._size)

    def nearest(self, query: str, depth: int) -> NDArray[np.int64]:
        """Return the best rows, best first, ties by row; those without a term of it never."""
        terms = Counter(content_stems(query)).items()
        known = self._impacts
        weighted = [(stem, float(times), known[stem]) for stem, times in terms if stem in known]
        return rank_rows(weighted, self._size, depth, None)[0]


def _best(scores: NDArray[Any], depth: int) -> NDArray[Any]:
    """Return the places of the highest scores above zero, ties by place."""
    order = np.lexsort((np.arange(len(scores)), -scores))[:depth]
    return order[scores[order] > 0]


def _is_same(one: Passage, other: Passage) -> bool:
    overlaps = (
        one.document_id == other.document_id and one.start < other.end and other.start < one.end
    )
    return one.id == other.id or overlaps or one.text.split() == other.text.split()
