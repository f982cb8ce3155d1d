"""Repetition: a message that says the same again and again.

Source: Rae et al. 2021, arXiv:2112.11446, table A1. The paper's thirteen rules are applied to
messages long enough for them; to shorter ones a bound on the share of repeated n-grams. Loops of a
few characters without a space are found as such. Both of these are the room's own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.looping import GOPHER_LIMITS, measure_loops
from stillroom.synth.method import Filter, Verdict
from stillroom.text.normalize import words

__all__ = ["Repetition"]

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
    def judge(self, record: Record) -> Verdict:
        worst = 0.0
        for message in record.messages:
            if loop := _find_loop(message.content):
                return Verdict(False, "repeats itself", 1.0, told={"loop": loop})
            found = words(message.content)
            if len(found) >= self.long_words:
                verdict = self._apply_rules(message.content)
                if not verdict.keep:
                    return verdict
            elif len(found) >= _MIN_WORDS:
                worst = max(worst, *(_repeated(found, size) for size in _SIZES))
        if worst > self.max_share:
            return Verdict(False, "repeats itself", worst, self.max_share)
        if len(record.messages) > 1:
            asked, said = (words(message.content) for message in record.messages[-2:])
            if asked == said:
                return Verdict(False, "answer is the question", 1.0)
        return Verdict(True, score=worst)

    def _apply_rules(self, text: str) -> Verdict:
        measured = measure_loops(text)
        for rule, bound in GOPHER_LIMITS.items():
            if measured[rule] > bound / self.strictness:
                told = {"rule": rule}
                limit = bound / self.strictness
                return Verdict(False, "repeats itself", measured[rule], limit, told=told)
        return Verdict(True)


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
