"""Features of a claim checker: alignment of a claim with a passage (words, order, negations).

The window is the run of at most three sentences that shares most with the claim. Claim and window
are aligned by their longest common subsequence of words, where synonyms count as equal; the numbers
below tell what is left over on either side, and are the input of a logistic model.

Source: Banerjee and Lavie 2005, "METEOR" (words matched by form, stem and synonym; the number of
chunks as a measure of order); Kryscinski et al. 2020, "FactCC", arXiv:1910.12840 (which edits to
expect). Differs: words that negate, limit or quantify are counted apart, as are opposites.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stillroom.rag.claim_checking.word_groups import (
    find_opposites,
    find_strangers,
    find_synonyms,
)
from stillroom.rag.groundedness.claims import extract_names
from stillroom.rag.groundedness.substitutions import NUMBER_WORDS
from stillroom.text.language import split_sentences

__all__ = ["FEATURES", "AlignedPassage", "describe_claim"]

_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’_-][^\W\d_]+)*|[^\W_]+")
_MAX_SENTENCES = 3
_RARE = 6.0  # idf of a word that is not in the index
_NEGATIONS = frozenset(
    "not no never none nobody nothing neither nor cannot without".split()  # noqa: SIM905
)
_LIMITS = frozenset(
    "only all every each any some most many few several both half at least always often"  # noqa: SIM905
    " sometimes usually rarely seldom never unless except must may can should might could before"
    " after until more less than because if".split()
)
_PRONOUNS = frozenset("it this they he she these that its their his her".split())  # noqa: SIM905
_OPENINGS = re.compile(
    r"\A(?:According to [^,]{3,40}, |As (?:described|stated)[^,]{0,30}, "
    r"|The (?:passage|text|document(?:ation)?) (?:says|states) that )",
    re.IGNORECASE,
)
Stem = Callable[[str], str]
Weigh = Callable[[str], float]


@dataclass(frozen=True, slots=True)
class AlignedPassage:
    """A passage as words, to be aligned with several claims.

    Args:
        words: Its words, case folded.
        stems: Their terms in the index; empty for stop words.
        sentences: The range of words of each sentence.
        heading: Terms of its title and headings.
    """

    words: list[str]
    stems: list[str]
    sentences: list[tuple[int, int]]
    heading: frozenset[str]

    @classmethod
    def of(cls, text: str, heading: str, stem: Stem) -> AlignedPassage:
        """Read a passage."""
        words: list[str] = []
        sentences = []
        for start, end in split_sentences(text):
            first = len(words)
            words += _list_words(text[start:end])
            sentences.append((first, len(words)))
        known = frozenset(stem(word) for word in _list_words(heading)) - {""}
        return cls(words, [stem(word) for word in words], sentences, known)


FEATURES = (
    "novel",
    "novel_share",
    "synonyms",
    "names",
    "numbers",
    "unaligned",
    "chunks",
    "inverted",
    "negation",
    "added_limits",
    "lost_limits",
    "opposites",
    "strangers",
    "gap",
    "verbatim",
    "short",
)


def describe_claim(
    claim: str, passage: AlignedPassage, *, stem: Stem, weigh: Weigh
) -> dict[str, float]:
    """Return ``FEATURES`` of a claim and the window of a passage that it is about.

    Args:
        claim: The claim.
        passage: The passage.
        stem: Returns the term of a word; empty for stop words.
        weigh: Returns the idf of a term.
    """
    text = _OPENINGS.sub("", claim)
    words = _list_words(text)
    stems = [stem(word) for word in words]
    names = {word.casefold() for name in extract_names(text) for word in _list_words(name)}
    weights = [min(weigh(term), _RARE) if term else 0.0 for term in stems]
    first, last = _find_window(stems, weights, passage)
    there, terms = passage.words[first:last], passage.stems[first:last]
    known, plain = {*terms, *passage.heading} - {""}, set(there)
    novel = [
        place
        for place, term in enumerate(stems)
        if term and term not in known and words[place] not in plain
    ]
    synonyms = [place for place in novel if plain & set(find_synonyms(words[place]))]
    strange = [place for place in novel if place not in synonyms]
    matched = _align(words, stems, there, terms)
    places = [there_at for _, there_at in matched]
    low, high = (min(places), max(places) + 1) if places else (0, 0)
    said, span = set(words), there[low:high]
    content = [place for place, term in enumerate(stems) if term]
    aligned = {here for here, _ in matched}
    loose = [place for place in content if place not in aligned and place not in novel]
    total = sum(weights) or 1.0
    size = max(len(content), 1)
    opposite = sum(bool(plain & set(find_opposites(words[place]))) for place in strange)
    opposite += sum(
        bool(set(find_opposites(word)) & set(span)) and word not in span for word in said - plain
    )
    return {
        "novel": float(min(len(strange), 6)),
        "novel_share": sum(weights[place] for place in strange) / total,
        "synonyms": float(min(len(synonyms), 4)),
        "names": float(sum(words[place] in names for place in strange)),
        "numbers": float(sum(_is_number(word) and word not in plain for word in words)),
        "unaligned": len(loose) / size,
        "chunks": (_count_chunks(matched) - 1) / size if matched else 1.0,
        "inverted": float(bool(loose)),
        "negation": float(abs(sum(map(_is_negation, words)) - sum(map(_is_negation, span)))),
        "added_limits": float(len((said & _LIMITS) - set(span))),
        "lost_limits": float(len((set(span) & _LIMITS) - said)),
        "opposites": float(opposite),
        "strangers": float(
            sum(bool(plain & set(find_strangers(words[place]))) for place in strange)
        ),
        "gap": math.log1p(max(high - low - len(matched), 0)),
        "verbatim": float(not novel and not loose and high - low <= len(words)),
        "short": 1 / size,
    }


def _list_words(text: str) -> list[str]:
    words = (match.group().casefold().replace("’", "'") for match in _TOKEN.finditer(text))
    parts = (
        part
        for word in words
        for part in (
            (word[:-3], "not")
            if word.endswith("n't") and word != "can't"
            else ("can", "not")
            if word in {"can't", "cannot"}
            else (word,)
        )
    )
    return [NUMBER_WORDS.get(part, part) for part in parts]


def _is_number(word: str) -> bool:
    return word[0].isdigit()


def _is_negation(word: str) -> bool:
    return word in _NEGATIONS


def _find_window(
    stems: Sequence[str], weights: Sequence[float], passage: AlignedPassage
) -> tuple[int, int]:
    """Return the range of words of the sentences that share most with a claim."""
    weight_of = dict(zip(stems, weights, strict=True))
    best, found = -1.0, (0, 0)
    for place, (first, _) in enumerate(passage.sentences):
        for count, (_, end) in enumerate(passage.sentences[place : place + _MAX_SENTENCES]):
            shared = set(passage.stems[first:end])
            weight = sum(value for term, value in weight_of.items() if term in shared)
            weight *= 1 - 0.02 * count  # of equal windows the shortest
            if weight > best:
                best, found = weight, (first, end)
    return found


def _align(
    here: Sequence[str], stems: Sequence[str], there: Sequence[str], terms: Sequence[str]
) -> list[tuple[int, int]]:
    """Return the pairs of positions of the longest common subsequence; content words count 2."""
    alike = [{word, *find_synonyms(word)} for word in here]
    rows, columns = len(here), len(there)
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]

    def gain(row: int, column: int) -> float:
        if stems[row] and stems[row] == terms[column]:
            return 2.0
        return (2.0 if stems[row] else 1.0) if there[column] in alike[row] else 0.0

    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            value = gain(row, column)
            taken = value + best[row + 1][column + 1] if value else 0.0
            best[row][column] = max(taken, best[row + 1][column], best[row][column + 1])
    pairs, row, column = [], 0, 0
    while row < rows and column < columns:
        value = gain(row, column)
        if value and best[row][column] == value + best[row + 1][column + 1]:
            pairs.append((row, column))
            row, column = row + 1, column + 1
        elif best[row][column] == best[row + 1][column]:
            row += 1
        else:
            column += 1
    return pairs


def _count_chunks(matched: Sequence[tuple[int, int]]) -> int:
    """Return the number of runs of neighbors on both sides."""
    return 1 + sum(
        (next_ - here, after - there) != (1, 1)
        for (here, there), (next_, after) in pairwise(matched)
    )
