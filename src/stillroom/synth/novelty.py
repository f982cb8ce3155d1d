"""Novelty: how like a text is to the nearest of a growing pool, by ROUGE-L.

Source: Lin 2004 (ROUGE-L, F1 of the longest common subsequence of words). Decisions are those of a
comparison with every text of the pool, but most pairs are never compared: F1 is at most
2 min(shared words) / (all words), which an inverted index gives for the whole pool at once. Words
of scripts without spaces are characters.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from stillroom.text.normalize import words

__all__ = ["Pool", "rouge_l"]

_ASCII_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(one: str, other: str) -> float:
    """Return the F1 of the longest common subsequence of two texts' words, from 0 to 1."""
    left, right = _tokens(one), _tokens(other)
    total = len(left) + len(right)
    return 2 * _common(left, right) / total if left and right else 0.0


class Pool:
    """Texts, and how near the nearest of them is to another."""

    def __init__(self, limit: float = 0.7) -> None:
        """Begin empty; likeness up to ``limit`` is of no interest and given as 0."""
        self.limit = limit
        self._texts: list[list[str]] = []
        self._lengths = array("l")
        self._places: dict[str, array[int]] = {}
        self._counts: dict[str, array[int]] = {}

    def __len__(self) -> int:
        """Return how many texts it holds."""
        return len(self._texts)

    def add(self, text: str) -> None:
        """Put a text into the pool."""
        tokens = _tokens(text)
        for token, count in Counter(tokens).items():
            self._places.setdefault(token, array("l")).append(len(self._texts))
            self._counts.setdefault(token, array("l")).append(count)
        self._texts.append(tokens)
        self._lengths.append(len(tokens))

    def likeness(self, text: str) -> float:
        """Return the greatest F1 with any text of the pool if above the limit, else 0."""
        tokens = _tokens(text)
        if not tokens or not self._texts:
            return 0.0
        shared = np.zeros(len(self._texts), dtype=np.int64)
        for token, count in Counter(tokens).items():
            if token in self._places:
                places = np.frombuffer(self._places[token], dtype=np.int_)
                shared[places] += np.minimum(np.frombuffer(self._counts[token], np.int_), count)
        totals = np.frombuffer(self._lengths, dtype=np.int_) + len(tokens)
        bounds = 2 * shared / totals
        best = 0.0
        for place in np.argsort(-bounds, kind="stable"):
            if bounds[place] <= max(self.limit, best):
                break
            common = _common(tokens, self._texts[place])
            best = max(best, 2 * common / int(totals[place]))
        return best if best > self.limit else 0.0


def _tokens(text: str) -> list[str]:
    return _ASCII_WORD.findall(text.lower()) if text.isascii() else words(text)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence (Hyyrö 2004, bits of one number)."""
    places: dict[str, int] = {}
    for bit, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << bit
    whole = (1 << len(one)) - 1
    row = whole
    for token in other:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & whole
    return len(one) - row.bit_count()
