"""Repetition: a message that says the same again and again.

Source: Rae et al. 2021, arXiv:2112.11446, table A1 (duplicate n-grams). Differs: shares count
words, not characters, and thresholds are for short answers.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.method import Filter, Verdict
from stillroom.text.normalize import words

__all__ = ["Repetition"]

_SIZES = (2, 3, 4)
_MIN_WORDS = 8


class Repetition(Filter):
    """Drops looping messages, and answers that only repeat the question."""

    paper: ClassVar[str] = "arXiv:2112.11446"

    max_share: float = Field(
        0.25, ge=0, le=1, description="largest share of a message's n-grams that are repeats"
    )

    @override
    def judge(self, record: Record) -> Verdict:
        worst = 0.0
        for message in record.messages:
            found = words(message.content)
            if len(found) >= _MIN_WORDS:
                worst = max(worst, *(_repeated(found, size) for size in _SIZES))
        if worst > self.max_share:
            return Verdict(False, "repeats itself", worst)
        if len(record.messages) > 1:
            asked, said = (words(message.content) for message in record.messages[-2:])
            if asked == said:
                return Verdict(False, "answer is the question", 1.0)
        return Verdict(True, score=worst)


def _repeated(found: list[str], size: int) -> float:
    grams = Counter(zip(*(found[start:] for start in range(size)), strict=False))
    total = sum(grams.values())
    return (total - len(grams)) / total if total else 0.0
