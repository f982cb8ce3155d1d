"""Repetition: no degenerate repetition within a message.

The paper's thirteen rules apply to messages long enough for them; shorter ones have a bound on the
share of repeated n-grams, and loops of a few characters without a space are detected separately.
Both of these are Stillroom's own.

Shares of characters count the words' characters only, so that neither spaces nor punctuation affect
them. Works on words, lines and paragraphs of any language.

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

__all__ = ["GOPHER_LIMITS", "Repetition", "measure_repetition"]

_SIZES = (2, 3, 4)
_MIN_WORDS = 8
_LONG_PIECE = 40
_MOST_LOOKED = 20_000
_LOOP = re.compile(r"(\S{1,12}?)\1{7,}")


class Repetition(Filter):
    """Drop looping messages, and answers that only repeat the question."""

    paper: ClassVar[str] = "arXiv:2112.11446"

    max_share: float = Field(
        0.25, ge=0, le=1, description="maximum share of repeated n-grams in a short message"
    )
    long_words: int = Field(
        100, ge=20, description="words from which Gopher's rules apply to a message"
    )
    strictness: float = Field(
        1.0, gt=0, le=10, description="divisor of Gopher's bounds; above 1 drops more"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        worst = 0.0
        for message in record.messages:
            if loop := _find_loop(message.content):
                return FilterResult(False, "repeats itself", 1.0, details={"loop": loop})
            words = split_words(message.content)
            if len(words) >= self.long_words:
                verdict = self._apply_rules(message.content)
                if not verdict.keep:
                    return verdict
            elif len(words) >= _MIN_WORDS:
                worst = max(worst, *(_repeated(words, size) for size in _SIZES))
        if worst > self.max_share:
            return FilterResult(False, "repeats itself", worst, self.max_share)
        if len(record.messages) > 1:
            question_words, answer_words = (
                split_words(message.content) for message in record.messages[-2:]
            )
            if question_words == answer_words:
                return FilterResult(False, "answer is the question", 1.0)
        return FilterResult(True, score=worst)

    def _apply_rules(self, text: str) -> FilterResult:
        measured = measure_repetition(text)
        for rule, bound in GOPHER_LIMITS.items():
            if measured[rule] > bound / self.strictness:
                details = {"rule": rule}
                limit = bound / self.strictness
                return FilterResult(False, "repeats itself", measured[rule], limit, details=details)
        return FilterResult(True)


def _find_loop(text: str) -> str:
    """Return the repeated unit of a piece without spaces; rules of dashes are not loops."""
    for piece in text.split():
        if len(piece) < _LONG_PIECE:
            continue
        for match in _LOOP.finditer(piece[:_MOST_LOOKED]):
            unit = match[1]
            has_content = any(
                character.isalnum() or unicodedata.category(character) == "So" for character in unit
            )
            if has_content and match.end() - match.start() >= _LONG_PIECE:
                return unit
    return ""


def _repeated(words: list[str], size: int) -> float:
    grams = Counter(zip(*(words[start:] for start in range(size)), strict=False))
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
"""The paper's bounds by measure."""

_TOP_NGRAMS, _DUPLICATE_NGRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)


def measure_repetition(text: str) -> dict[str, float]:
    """Return every measure of ``GOPHER_LIMITS`` for a text, from 0 to 1."""
    values: dict[str, float] = {}
    for name, mark in (("lines", "\n"), ("paragraphs", "\n\n")):
        parts = [part.strip() for part in text.split(mark) if part.strip()]
        repeats = _find_repeats(parts)
        values[f"duplicate {name}"] = len(repeats) / max(len(parts), 1)
        size = max(sum(map(len, parts)), 1)
        values[f"characters in duplicate {name}"] = sum(map(len, repeats)) / size
    words = split_words(text)
    total = max(sum(map(len, words)), 1)
    for n in _TOP_NGRAMS:
        grams = Counter(zip(*(words[start:] for start in range(n)), strict=False))
        most = max(
            (sum(map(len, gram)) * count for gram, count in grams.items() if count > 1), default=0
        )
        values[f"characters in the commonest {n}-gram"] = min(most / total, 1.0)
    for n in _DUPLICATE_NGRAMS:
        values[f"characters in duplicate {n}-grams"] = _count_covered(words, n) / total
    return values


def _find_repeats(parts: Sequence[str]) -> list[str]:
    """Return every part that is equal to an earlier one."""
    known: set[str] = set()
    repeats = []
    for part in parts:
        if part in known:
            repeats.append(part)
        known.add(part)
    return repeats


def _count_covered(words: Sequence[str], n: int) -> int:
    """Return the number of characters in n-grams that occurred before; none is counted twice."""
    known: set[tuple[str, ...]] = set()
    covered, position = 0, 0
    while position + n <= len(words):
        gram = tuple(words[position : position + n])
        if gram in known:
            covered += sum(map(len, gram))
            position += n
        else:
            known.add(gram)
            position += 1
    return covered
