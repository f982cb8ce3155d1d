"""Standalone: the question is understandable without its passage.

Own method: no words that refer to an unseen text, no pronoun before its noun, and at least one word
specific enough to identify the subject.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.lexical_overlap import extract_content_stems, extract_names_and_numbers, stem
from stillroom.synth.prompting.conversation import get_evidence_passage, get_text_field
from stillroom.text.unicode import split_words

__all__ = ["Standalone"]

_POINTING = re.compile(
    r"\b(?:th(?:is|ese|at|ose)|the (?:above|following|given|previous|preceding|same|provided|"
    r"current|author(?:'|’)?s?)|the (?:text|passage|statement|document|article|paragraph|section|"
    r"sentence|excerpt|context|example|question|answer|topic|author|code)|mentioned|described|"
    r"stated|shown|discussed|above|below|according to|"
    r"(?:an?|the|what) (?:similar|equivalent|corresponding|respective|resulting|remaining))\b",
    re.IGNORECASE,
)
_PRONOUNS = frozenset(
    str.split("it its they them their he she him her his hers we our you your i my")
)
_MARKED = re.compile(r"[\"“‘`']([^\"”’`']{2,})[\"”’`']|(\w*[_.]\w+|\w+\(\))")
_RARE_FLOOR = 3


class Standalone(Filter):
    """Drop questions that depend on a text the reader does not see."""

    paper: ClassVar[str] = ""

    common_share: float = Field(
        0.03, gt=0, le=1, description="share of passages above which a word is not specific"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._weigh(record, FilterContext())

    @override
    def start(self, context: FilterContext) -> FilterState:
        return _StandaloneState(self, context)

    def _weigh(self, record: Record, context: FilterContext) -> FilterResult:
        question = get_text_field(record, "question")
        if not question:
            return FilterResult(True)
        if _POINTING.search(question):
            return FilterResult(False, "points at a text the reader does not see", 0.0)
        stems = extract_content_stems(question, frames=False)
        if not stems:
            return FilterResult(False, "names no subject", 0.0)
        if _leads_with_pronoun(question, stems):
            return FilterResult(False, "a pronoun stands for the subject", 0.0)
        specific = self._specific(record, question, stems, context)
        if not specific:
            return FilterResult(False, "names nothing specific", 0.0)
        return FilterResult(True, score=len(specific) / len(stems))

    def _specific(
        self, record: Record, question: str, stems: list[str], context: FilterContext
    ) -> set[str]:
        marked = " ".join(part for match in _MARKED.findall(question) for part in match)
        named = {
            stem(token) for token in [*split_words(marked), *extract_names_and_numbers(question)]
        }
        passage = get_evidence_passage(record, context)
        if passage is not None:
            named.update(extract_content_stems(" ".join((*passage.headings, passage.title))))
        limit = max(_RARE_FLOOR, int(self.common_share * len(context.passages)))
        return {
            token for token in stems if token in named or context.frequency.get(token, 0) <= limit
        }


class _StandaloneState:
    def __init__(self, settings: Standalone, context: FilterContext) -> None:
        self._settings, self._context = settings, context

    def judge(self, record: Record) -> FilterResult:
        return self._settings._weigh(record, self._context)

    def on_accept(self, record: Record) -> None:
        """Do nothing: the verdict does not depend on accepted records."""


def _leads_with_pronoun(question: str, stems: list[str]) -> bool:
    for token in split_words(question):
        if token in _PRONOUNS:
            return True
        if stem(token) in stems:
            return False
    return False
