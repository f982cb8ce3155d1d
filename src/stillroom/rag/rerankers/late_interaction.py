"""Rerank by late interaction (MaxSim of ColBERT) with the token states of the index's embedder.

Source: Khattab and Zaharia 2020, "ColBERT: Efficient and Effective Passage Search via
Contextualized Late Interaction over BERT", arXiv:2004.12832: the mean over the query's tokens of
the highest cosine with a token of the passage (MaxSim). Differs from the paper: the token states
are those of an embedder that was trained for one vector per text, no mask tokens are added to the
query, its tokens are weighted by the rarity of their words, and the first retriever's min-max
scores are added to keep its order. A passage is read as it was embedded, with its title and
headings. An index with token vectors (``tokens``) uses those, for example a ColBERT's.

An embedder has a vector for every token, stop words and punctuation included. Each token is
weighted by the idf of its word; stop words and punctuation have weight 0. The word of a token is
found by counting the tokens of each word alone, which is exact for tokenizers that split at spaces
and punctuation first (WordPiece); where the counts do not add up, all weights are equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.models.encoders.retrieval import EMBEDDER_REFERENCE
from stillroom.models.interfaces import TokenEmbedder
from stillroom.rag.interfaces import PassageReranker, Query
from stillroom.rag.retrieval.ranking import normalize_scores, sort_hits
from stillroom.rag.types import build_embedding_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import TextModel
    from stillroom.models.interfaces import Vectors
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Hit

__all__ = ["LateInteraction", "weigh_tokens"]


_WORD_PIECES = re.compile(r"\w+|[^\w\s]")


def weigh_tokens(text: str, count: int, index: Index) -> NDArray[np.float32]:
    """Return the weight of each token of a query, (Q,), 0 or more, with a mean of 1.

    The index's lexicon gives the idf, its embedder counts the tokens.
    """
    equal = np.ones(count, dtype=np.float32)
    weights: list[float] = []
    for piece in _WORD_PIECES.findall(text):
        weights += [_compute_rarity(piece, index)] * index.embedder.count_tokens(piece)
        if len(weights) > count:
            return equal
    total = sum(weights)
    if len(weights) != count or total <= 0:
        return equal
    return np.asarray(weights, dtype=np.float32) * np.float32(count / total)


def _compute_rarity(piece: str, index: Index) -> float:
    terms = (term for term in index.analyzer.terms(piece) if term not in index.analyzer.stop_words)
    return max((index.lexicon.idf(term) for term in terms), default=0.0)


class LateInteraction(PassageReranker):
    """MaxSim over token states, combined with the first scores."""

    paper: ClassVar[str] = "arXiv:2004.12832"

    weight: float = Field(0.5, ge=0, le=1, description="weight of MaxSim against the first scores")
    depth: int = Field(20, ge=1, le=1000, description="number of first hits that are scored")
    by_rarity: bool = Field(
        True,
        description="weight each query token by the idf of its word in the index; false weights "
        "all equally, as ColBERT does and as its checkpoints always do here",
    )

    @override
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        head = list(hits[: self.depth])
        if index.has_tokens and head:
            return self._rerank_by_stored(query, hits, head, index)
        embedder = index.embedder
        if not isinstance(embedder, TokenEmbedder):
            raise DataError(
                "the index's embedder gives no token states",
                code="rag.no-token-states",
                where=str(index.description.embedder["reference"]),
                expected="an index built with a sentence-transformers folder",
                next="use another reranker, such as mmr",
            )
        if not head:
            return []
        (query_states,) = embedder.embed_tokens([query.text], kind="query")
        passages = [hit.passage for hit in head]
        with_headings = bool(index.description.settings.get("with_headings", True))
        texts = build_embedding_texts(passages, index.embedder, with_headings=with_headings)
        passage_states = embedder.embed_tokens(texts, kind="passage")
        if self.by_rarity:
            query_states = (
                query_states * weigh_tokens(query.text, len(query_states), index)[:, None]
            )
        return self._order(
            hits, head, [_max_sim(query_states, states) for states in passage_states]
        )

    def _rerank_by_stored(
        self, query: Query, hits: Sequence[Hit], head: Sequence[Hit], index: Index
    ) -> list[Hit]:
        """Order by the token vectors of the index, without encoding passages again."""
        rows = [index.row_of(hit.passage.id) for hit in head]
        weigh = None
        if self.by_rarity and index.description.settings["tokens"]["model"] == EMBEDDER_REFERENCE:
            weigh = partial(weigh_tokens, query.text, index=index)
        known = dict(index.search_tokens(query, len(rows), rows, weigh=weigh))
        return self._order(hits, head, [known.get(row, 0.0) for row in rows])

    def _order(
        self, hits: Sequence[Hit], head: Sequence[Hit], similarities: Sequence[float]
    ) -> list[Hit]:
        similarities = normalize_scores(similarities)
        first = normalize_scores([hit.score for hit in head])
        scores = [
            self.weight * similarity + (1 - self.weight) * score
            for similarity, score in zip(similarities, first, strict=True)
        ]
        return sort_hits(hits, scores)


def _max_sim(query: Vectors, passage: Vectors) -> float:
    """Return the mean over the query's tokens of the largest product with a passage token, or 0."""
    if not len(query) or not len(passage):
        return 0.0
    return float((query @ passage.T).max(axis=1).mean())
