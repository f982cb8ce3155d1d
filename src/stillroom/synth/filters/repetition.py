"""Repetition: no degenerate repetition within a message.

Source: Rae et al. 2021, arXiv:2112.11446, table A1. The paper's thirteen rules are applied to
messages long enough for them; to shorter ones a bound on the share of repeated n-grams. Loops of a
few characters without a space are found as such. Both of these are the room's own.

Shares of characters count the words' own characters, so that neither spaces nor punctuation move
them. Knows words, lines and paragraphs, no language.

Source: Rae et al. 2021, arXiv:2112.11446, table A1.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterResult
from stillroom.text.unicode import split_words

__all__ = [
    "GOPHER_LIMITS",
    "Repetition",
    "measure_repetition",
]


_SIZES = (2, 3, 4)
_MIN_WORDS = 8
_LONG_PIECE = 40
_MOST_LOOKED = 20_000
_LOOP = re.compile(r"(\S{1,12}?)\1{7,}")


class Repetition(Filter):
    """Drops looping messages, and answers that only repeat the question."""

    paper: ClassVar[str] = "arXiv:2112.11446"

    max_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="largest share of a short message's n-grams that are repeats",
    )
    long_words: int = Field(
        100, ge=20, description="words from which a message is judged by Gopher's rules"
    )
    strictness: float = Field(
        1.0, gt=0, le=10, description="Gopher's bounds are divided by this; above 1 drops more"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        worst = 0.0
        for message in record.messages:
            if loop := _find_loop(message.content):
                return FilterResult(False, "repeats itself", 1.0, told={"loop": loop})
            found = split_words(message.content)
            if len(found) >= self.long_words:
                verdict = self._apply_rules(message.content)
                if not verdict.keep:
                    return verdict
            elif len(found) >= _MIN_WORDS:
                worst = max(worst, *(_repeated(found, size) for size in _SIZES))
        if worst > self.max_share:
            return FilterResult(False, "repeats itself", worst, self.max_share)
        if len(record.messages) > 1:
            asked, said = (split_words(message.content) for message in record.messages[-2:])
            if asked == said:
                return FilterResult(False, "answer is the question", 1.0)
        return FilterResult(True, score=worst)

    def _apply_rules(self, text: str) -> FilterResult:
        measured = measure_repetition(text)
        for rule, bound in GOPHER_LIMITS.items():
            if measured[rule] > bound / self.strictness:
                told = {"rule": rule}
                limit = bound / self.strictness
                return FilterResult(False, "repeats itself", measured[rule], limit, told=told)
        return FilterResult(True)


def _find_loop(text: str) -> str:
    """Return what goes on and on within a piece without spaces; rules of dashes are none."""
    for piece in text.split():
        if len(piece) < _LONG_PIECE:
            continue
        for match in _LOOP.finditer(piece[:_MOST_LOOKED]):
            unit = match[1]
            is_said = any(one.isalnum() or unicodedata.category(one) == "So" for one in unit)
            if is_said and match.end() - match.start() >= _LONG_PIECE:
                return unit
    return ""


def _repeated(found: list[str], size: int) -> float:
    grams = Counter(zip(*(found[start:] for start in range(size)), strict=False))
    total = sum(grams.values())
    return (total - len(grams)) / total if total else 0.0


GOPHER_LIMITS = {
    "duplicate lines": 0.30,
    "duplicate paragraphs": 0.30,
    "characters in duplicate lines": 0.20,
    "characters in duplicate paragraphs": 0.20,
    "characters in the commonest 2-gram": 0.20,
    "characters in the commonest 3-gram": 0.18,
    "characters in the commonest 4-gram": 0.16,
    "characters in duplicate 5-grams": 0.15,
    "characters in duplicate 6-grams": 0.14,
    "characters in duplicate 7-grams": 0.13,
    "characters in duplicate 8-grams": 0.12,
    "characters in duplicate 9-grams": 0.11,
    "characters in duplicate 10-grams": 0.10,
}
"""The paper's bounds, by what is measured."""

_TOP_NGRAMS, _DUPLICATE_NGRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)


def measure_repetition(text: str) -> dict[str, float]:
    """Return every measure of ``GOPHER_LIMITS`` for a text, from 0 to 1."""
    found: dict[str, float] = {}
    for name, mark in (("lines", "\n"), ("paragraphs", "\n\n")):
        parts = [part.strip() for part in text.split(mark) if part.strip()]
        repeats = _find_repeats(parts)
        found[f"duplicate {name}"] = len(repeats) / max(len(parts), 1)
        size = max(sum(map(len, parts)), 1)
        found[f"characters in duplicate {name}"] = sum(map(len, repeats)) / size
    told = split_words(text)
    total = max(sum(map(len, told)), 1)
    for n in _TOP_NGRAMS:
        grams = Counter(zip(*(told[at:] for at in range(n)), strict=False))
        most = max(
            (sum(map(len, gram)) * count for gram, count in grams.items() if count > 1), default=0
        )
        found[f"characters in the commonest {n}-gram"] = min(most / total, 1.0)
    for n in _DUPLICATE_NGRAMS:
        found[f"characters in duplicate {n}-grams"] = _count_covered(told, n) / total
    return found


def _find_repeats(parts: Sequence[str]) -> list[str]:
    """Return every part that stood before already."""
    seen: set[str] = set()
    again = []
    for part in parts:
        if part in seen:
            again.append(part)
        seen.add(part)
    return again


def _count_covered(told: Sequence[str], n: int) -> int:
    """Return how many characters lie in n-grams that stood before; none is counted twice."""
    seen: set[tuple[str, ...]] = set()
    covered, at = 0, 0
    while at + n <= len(told):
        gram = tuple(told[at : at + n])
        if gram in seen:
            covered += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return covered
