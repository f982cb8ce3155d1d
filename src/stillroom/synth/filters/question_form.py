"""Question form: a single question of suitable length with a question mark.

Own method; opening words are listed for English, German, French and Spanish, by the language of the
passage. Questions in other languages are checked for length and question mark only.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import BoundFilter, Filter, FilterContext, FilterResult
from stillroom.synth.prompting.conversation import get_evidence_passage
from stillroom.synth.prompting.question_topics import strip_topic
from stillroom.text.unicode import split_words

__all__ = ["QuestionForm"]

_CHARACTERS_A_WORD = 2
"""In scripts without spaces every character counts as a word."""

_MARKS = ("?", "？", "؟")
_OPENING = re.compile(
    r"^(?:(?:in|on|at|to|for|from|by|with|under|into|of|during|through) )?(?:what|which|who|whom|"
    r"whose|when|where|why|how|is|are|was|were|do|does|did|can|could|may|must|should|will|would|"
    r"has|have|had|if|name)\b",
    re.IGNORECASE,
)
_OPENINGS = {
    "de": re.compile(
        r"^(?:(?:in|an|auf|aus|bei|für|mit|nach|seit|unter|von|vor|zu|als|um|wenn|falls) )?(?:was|"
        r"wer|wem|wen|wessen|wie\w*|wo\w*|wann|warum|weshalb|welche[mnrs]?|ist|sind|kann|können|"
        r"muss|darf|gibt|hat|haben|wird|werden|nenne)\b",
        re.IGNORECASE,
    ),
    "fr": re.compile(
        r"^(?:(?:à|a|de|en|dans|par|pour|sur|avec|depuis|sous) )?(?:qu['’e]|qui|quoi|quel\w*|où|"
        r"quand|comment|combien|pourquoi|lequel|est-ce|est|peut|d['’]où|si)",
        re.IGNORECASE,
    ),
    "es": re.compile("^¿"),
}
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
        return self._weigh(record, "")

    @override
    def start(self, context: FilterContext) -> BoundFilter:
        def judge(record: Record) -> FilterResult:
            passage = get_evidence_passage(record, context)
            return self._weigh(record, passage.language if passage is not None else "")

        return BoundFilter(judge)

    def _weigh(self, record: Record, language: str) -> FilterResult:
        question = record.fields.get("question")
        if not isinstance(question, str):
            return FilterResult(True)
        text = question.strip()
        bare = strip_topic(text)
        count, asked = len(split_words(text)), len(split_words(bare))
        if not text.endswith(_MARKS):
            return FilterResult(False, "no question mark", 0.0)
        most = self.max_words * (_CHARACTERS_A_WORD if language in {"zh", "ja"} else 1)
        if count < self.min_words or asked > most:
            return FilterResult(False, "too short or too long a question", float(count))
        opening = _OPENINGS.get(language)
        if opening is None and language in {"", "en"} and text.isascii():
            opening = _OPENING
        if opening is not None and not opening.match(bare.lstrip("\"'(`„«")):
            return FilterResult(False, "does not open as a question", 0.0)
        if _DONE_TWICE.match(bare):
            return FilterResult(False, "two verbs for one subject", 0.0)
        if text.count('"') % 2 or text.count("(") != text.count(")"):
            return FilterResult(False, "unbalanced quotes or brackets", 0.0)
        return FilterResult(True)
