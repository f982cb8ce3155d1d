"""Question form: a single question of suitable length with a question mark.

Own method; the list of opening words is English, and questions in other scripts are checked for
their question mark only.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterResult
from stillroom.text.unicode import split_words

__all__ = ["QuestionForm"]

_MARKS = ("?", "？", "؟")
_OPENING = re.compile(
    r"^(?:(?:in|on|at|to|for|from|by|with|under|into|of|during|through) )?(?:what|which|who|whom|"
    r"whose|when|where|why|how|is|are|was|were|do|does|did|can|could|may|must|should|will|would|"
    r"has|have|had|if|name)\b",
    re.IGNORECASE,
)
_OPENS_ANOTHER = (
    "that|which|who|what|when|where|if|because|how|and|say|think|believe|note|report|assume|feel|"
    "prove|suggest|announce|claim|argue|know|hear|find|show|state"
)
_DONE_TWICE = re.compile(
    r"^(?:what|when|where|why|how|who)? ?(?:do|does|did) "
    rf"(?:(?!(?:{_OPENS_ANOTHER})\b)[\w'’-]+ )*?(?:is|are|was|were|has|had)\b",
    re.IGNORECASE,
)


class QuestionForm(Filter):
    """Drop texts that are not one complete question."""

    paper: ClassVar[str] = ""

    min_words: int = Field(4, ge=1, description="minimum words of a question")
    max_words: int = Field(30, ge=2, description="maximum words of a question")

    @override
    def judge(self, record: Record) -> FilterResult:
        question = record.fields.get("question")
        if not isinstance(question, str):
            return FilterResult(True)
        text = question.strip()
        count = len(split_words(text))
        if not text.endswith(_MARKS):
            return FilterResult(False, "no question mark", 0.0)
        if not self.min_words <= count <= self.max_words:
            return FilterResult(False, "too short or too long a question", float(count))
        if text.isascii() and not _OPENING.match(text.lstrip("\"'(`")):
            return FilterResult(False, "does not open as a question", 0.0)
        if _DONE_TWICE.match(text):
            return FilterResult(False, "two verbs for one subject", 0.0)
        if text.count('"') % 2 or text.count("(") != text.count(")"):
            return FilterResult(False, "unbalanced quotes or brackets", 0.0)
        return FilterResult(True)
