"""Lexical overlap of texts: content words, support, ROUGE-L novelty and chrF.

Lexical only: it knows which words occur where, not what they mean. The word lists are English; in
other languages every word counts as content, which makes the filters stricter, not looser.

Source: Lin 2004 (ROUGE-L, F1 of the longest common subsequence of words). Decisions are those of a
comparison with every text of the pool, but most pairs are never compared: F1 is at most
2 min(shared words) / (all words), which an inverted index gives for the whole pool at once. Words
of scripts without spaces are characters.

Source: Popović 2015 (character n-grams to 6, beta 2, spaces left out), averaged over the orders
that both texts have.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from stillroom.text.unicode import split_words

__all__ = [
    "FUNCTION_WORDS",
    "QUESTION_FRAMES",
    "NoveltyPool",
    "chrf",
    "collapse_whitespace",
    "compute_support",
    "extract_content_stems",
    "extract_content_words",
    "extract_names_and_numbers",
    "rouge_l",
    "stem",
]


FUNCTION_WORDS = frozenset(
    str.split(
        """a about above after again against all also although always am an and any are as at be
        because been before being below between both but by can cannot could did do does doing
        done down during each either else etc even ever every few for from further get gets give
        given gives had has have having he her here hers him his how however i if in instead
        into is it its itself just like made make makes many may me might more most much must my
        neither no nor not now of off often on once one only onto or other others our out over
        own per rather same shall she should since so some such than that the their them then
        there therefore these they this those though through thus to too under unless until up
        upon us use used uses using very via was we well were what when where whether which
        while who whom whose why will with within without would yes yet you your"""
    )
)

QUESTION_FRAMES = frozenset(
    str.split(
        """called difference differ explain happen happens mean meaning means name purpose role
        describe type kind way work works main following"""
    )
)
"""Words that frame a question and need not stand in the text that answers it."""

_SUFFIXES = (
    "ations",
    "ation",
    "ions",
    "ion",
    "ings",
    "ing",
    "ied",
    "ies",
    "ed",
    "es",
    "ly",
    "e",
    "y",
    "s",
)

_MIN_STEM = 4
_NAME = re.compile(r"(?<=[^.!?:\n]\s)[“‘\"'(]?([A-Z][\w.'’-]*\w)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d.,:/]*\d|\d)(?:(?:st|nd|rd|th|s)\b)?")
_SPACE = re.compile(r"\s+")


def collapse_whitespace(text: str) -> str:
    """Return the text on one line, with single spaces."""
    return _SPACE.sub(" ", text).strip()


def stem(word: str) -> str:
    """Return a word without its commonest English endings, so that forms of it compare equal."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _MIN_STEM:
            return word[: -len(suffix)]
    return word[:-1] if word.endswith("s") and len(word) > _MIN_STEM - 1 else word


def extract_content_words(text: str, *, frames: bool = True) -> list[str]:
    """Return the words that carry meaning, in order, question ``frames`` included."""
    return [
        word
        for word in split_words(text)
        if word not in FUNCTION_WORDS
        and not (len(word) == 1 and word.isascii() and word.isalpha())
        and (frames or word not in QUESTION_FRAMES)
    ]


def extract_content_stems(text: str, *, frames: bool = True) -> list[str]:
    """Return the stems of ``extract_content_words``, in order."""
    return [stem(word) for word in extract_content_words(text, frames=frames)]


def compute_support(stems: Iterable[str], source: Collection[str]) -> float:
    """Return which share of the distinct stems is in the source; 1.0 when there are none."""
    wanted = set(stems)
    return len(wanted.intersection(source)) / len(wanted) if wanted else 1.0


def extract_names_and_numbers(text: str) -> list[str]:
    """Return names (capitalized within a sentence) and numbers, as normalized words.

    These must be in a passage word for word for an answer to be supported by it.
    """
    found = [*_NAME.findall(text), *_NUMBER.findall(text)]
    return [word for item in found for word in split_words(item) if word not in FUNCTION_WORDS]


_ASCII_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(one: str, other: str) -> float:
    """Return the F1 of the longest common subsequence of two texts' words, from 0 to 1."""
    left, right = _tokens(one), _tokens(other)
    total = len(left) + len(right)
    return 2 * _lcs_length(left, right) / total if left and right else 0.0


class NoveltyPool:
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
            common = _lcs_length(tokens, self._texts[place])
            best = max(best, 2 * common / int(totals[place]))
        return best if best > self.limit else 0.0


def _tokens(text: str) -> list[str]:
    return _ASCII_WORD.findall(text.lower()) if text.isascii() else split_words(text)


def _lcs_length(one: Sequence[str], other: Sequence[str]) -> int:
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


_ORDERS = 6
_BETA = 2.0


def chrf(text: str, reference: str) -> float:
    """Return chrF of a text against a reference, from 0 to 1; two empty texts are equal."""
    one, other = "".join(text.split()), "".join(reference.split())
    if not one or not other:
        return float(one == other)
    precisions, recalls = [], []
    for order in range(1, _ORDERS + 1):
        left, right = _count_ngrams(one, order), _count_ngrams(other, order)
        if not left or not right:
            continue
        same = sum((left & right).values())
        precisions.append(same / left.total())
        recalls.append(same / right.total())
    precision = sum(precisions) / len(precisions)
    recall = sum(recalls) / len(recalls)
    if not precision or not recall:
        return 0.0
    weight = _BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _count_ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
