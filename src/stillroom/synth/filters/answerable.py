"""Answerable: the evidence quote answers the question and adds to the question's own words.

Own method, lexical: the subject of the question must come first in the evidence, the question may
name nothing that the evidence does not name, and the kind of question (when, why, how many ...)
must fit it. The table of question kinds is English; function words are those of the passage's
language (English, German, French, Spanish, Chinese).
"""

from __future__ import annotations

import re
from functools import partial
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Passage, Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.lexical_overlap import (
    collapse_whitespace,
    compute_support,
    extract_content_stems,
)
from stillroom.synth.prompting.conversation import (
    get_evidence_passage,
    get_evidence_quote,
    get_text_field,
)
from stillroom.synth.prompting.question_topics import strip_topic

__all__ = ["Answerable"]

_KINDS = tuple(
    (re.compile(question, re.IGNORECASE), re.compile(evidence, re.IGNORECASE))
    for question, evidence in (
        (
            r"^how (?:many|much|often|long|far|old|big|large|fast)|"
            r"\b(?:number|maximum|minimum) of\b",
            r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|single|once|twice|no|none|"
            r"all|every|any|each|both|most|least|maximum|minimum|unlimited)\b",
        ),
        (
            r"^when\b",
            r"\d|\b(?:when|whenever|if|after|before|during|while|until|once|as soon as|unless|only|"
            r"at (?:compile|run|import|load|start|the)|first|last|year|time)\b",
        ),
        (
            r"^why\b",
            r"\b(?:because|since|so (?:that|as)|in order|due to|to \w+|therefore|for|as|avoid|"
            r"reason|cause[sd]?|prevent\w*)\b",
        ),
        (
            r"^who(?:m|se)?\b",
            r"(?-i:(?<=[a-z,] )[A-Z]\w+|^[A-Z])|\b(?:people|person|author|user|developer)s?\b",
        ),
        (
            r"\bdifferences?\b",
            r"\b(?:while|whereas|unlike|but|than|differ\w*|both|rather|however)\b|;",
        ),
        (
            r"\bpurpose\b|^what (?:is|are) .{1,60} (?:used )?for\?",
            r"\b(?:purpose|used (?:to|for|as|by|in)|in order|so (?:that|as)|(?:designed|intended|"
            r"meant|made|built|provided|needed|required) (?:to|for)|aims?|serves?|allows?|enables?|"
            r"lets?|helps?|provides?|supports?|ensures?|controls?|determines?|specif\w+|defines?|"
            r"represents?|returns?|creates?)\b",
        ),
        (
            r"^what happens\b|^what would happen\b",
            r"\b(?:if|when|whenever|after|once|unless|will|is|are|then|raises?|causes?|becomes?)\b",
        ),
    )
)
_BE_DEFINED = re.compile(
    r"^what (?:is|are) (?:(?:an?|the) )?(?P<term>[^?]{2,60})\?$|"
    r"^what does (?:(?:an?|the) )?(?P<meant>[^?]{2,60}) mean\?$",
    re.IGNORECASE,
)
_ASKS_NAME = re.compile(r"(?:who|wer|qui|¿quién)\b", re.IGNORECASE)
_DEFINES = re.compile(
    r"^(?:was (?:ist|sind)|qu['’]est-ce qu|que sont|¿qué (?:es|son))\b|.*(?:是什么|指的是什么)？$",
    re.IGNORECASE,
)
_DOING = r"\s+(?:is|are)\s+(?:(?:now|also|still|currently|\w+ly)\s+)*(?!\w*thing\b)\w{2,}ing\b"


class Answerable(Filter):
    """Drop questions that their own evidence does not answer."""

    paper: ClassVar[str] = ""

    min_known: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the question's words that must occur in the evidence or title",
    )
    min_shared: float = Field(
        0.1, ge=0, le=1, description="share of the evidence's words that the question must repeat"
    )
    min_alone: float = Field(
        0.25, ge=0, le=1, description="that share, where the question repeats a single word"
    )
    min_new: int = Field(
        2, ge=0, description="content words that the answer must add to the question"
    )
    lead: float = Field(
        0.6,
        gt=0,
        le=1,
        description="first part of the evidence that must contain the subject of the question",
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._weigh(record, None)

    @override
    def start(self, context: FilterContext) -> FilterState:
        return _AnswerableState(self, context)

    def _weigh(self, record: Record, passage: Passage | None) -> FilterResult:
        question, quote = (
            strip_topic(get_text_field(record, "question")),
            collapse_whitespace(get_evidence_quote(record)),
        )
        if not question or not quote:
            return FilterResult(True)
        heading = " ".join((*passage.headings, passage.title)) if passage is not None else ""
        language = passage.language if passage is not None else ""
        stems_of = partial(extract_content_stems, language=language)
        question_stems, quote_stems = stems_of(question, frames=False), stems_of(quote)
        known = compute_support(question_stems, {*quote_stems, *stems_of(heading)})
        if known < self.min_known:
            return FilterResult(False, "asks about what the evidence does not name", known)
        shared = set(question_stems).intersection(quote_stems)
        coverage = len(shared) / max(len(set(quote_stems)), 1)
        is_term = bool(_DEFINES.match(question))  # one word may be all that is defined
        least = self.min_shared
        if len(shared) == 1:
            least = 0.0 if is_term else max(self.min_shared, self.min_alone)
        if not shared or coverage < least:
            return FilterResult(False, "question and evidence hardly share a word", coverage)
        new = set(stems_of(get_text_field(record, "answer"))) - set(question_stems)
        # a name may be all that is asked for
        if len(new) < (min(self.min_new, 1) if _ASKS_NAME.match(question) else self.min_new):
            return FilterResult(False, "answer says nothing beyond the question", float(len(new)))
        lead = max(1, round(self.lead * len(quote_stems)))
        if not shared.intersection(quote_stems[:lead]) or not _fits_definition(
            question, quote, quote_stems, self.lead
        ):
            return FilterResult(False, "evidence is about something else first", coverage)
        if not _fits_kind(question, quote):
            return FilterResult(False, "evidence does not fit the kind of question", coverage)
        return FilterResult(True, score=coverage)


class _AnswerableState(FilterState):
    def __init__(self, settings: Answerable, context: FilterContext) -> None:
        self._settings, self._context = settings, context

    def judge(self, record: Record) -> FilterResult:
        return self._settings._weigh(record, get_evidence_passage(record, self._context))


def _fits_kind(question: str, quote: str) -> bool:
    return all(
        evidence_form.search(quote)
        for question_form, evidence_form in _KINDS
        if question_form.search(question)
    )


def _fits_definition(question: str, quote: str, quote_stems: list[str], lead: float) -> bool:
    """Return whether the evidence of a definition opens with its term and describes no activity."""
    match = _BE_DEFINED.match(question)
    if match is None:
        return True
    if re.search(re.escape(match["term"] or match["meant"]) + _DOING, quote, re.IGNORECASE):
        return False
    term = extract_content_stems(match["term"] or match["meant"], frames=False)
    present = [stem for stem in term if stem in quote_stems]
    if not present:
        return False
    return max(quote_stems.index(stem) for stem in present) < max(
        len(present) + 1, lead * len(quote_stems) * 0.7
    )
