"""How much each token of a query counts: by how rare its word is in the index.

An embedder gives a vector for every token, the ones of ``the`` and of the question mark too. Here
each takes the idf of the word that it is a piece of; stop words and marks take 0. Which token is a
piece of which word follows from counting the tokens of each word alone, which holds for tokenizers
that cut at spaces and marks first (WordPiece); where the counts do not add up to the tokens there
are, nothing is known, and all count alike.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.index import Index

__all__ = ["weigh_tokens"]

_PIECES = re.compile(r"\w+|[^\w\s]")


def weigh_tokens(text: str, count: int, index: Index) -> NDArray[np.float32]:
    """Return the weight of each token of a query, (Q,), 0 or more, with a mean of 1.

    Args:
        text: The query.
        count: How many tokens its embedder gave vectors for.
        index: Whose words tell what is rare, and whose embedder's tokens are counted.
    """
    alike = np.ones(count, dtype=np.float32)
    weights: list[float] = []
    for piece in _PIECES.findall(text):
        weights += [_rarity(piece, index)] * index.embedder.count_tokens(piece)
        if len(weights) > count:
            return alike
    total = sum(weights)
    if len(weights) != count or total <= 0:
        return alike
    return np.asarray(weights, dtype=np.float32) * np.float32(count / total)


def _rarity(piece: str, index: Index) -> float:
    terms = (term for term in index.analyzer.terms(piece) if term not in index.analyzer.stop_words)
    return max((index.lexicon.idf(term) for term in terms), default=0.0)
