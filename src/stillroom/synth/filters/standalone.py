"""Standalone: the question is understandable without its passage.

Own method: no words that refer to an unseen text, no pronoun before its noun, no bare noun phrase
that only the passage before it explains ("the settlement"), no past event without a name, and words
that occur together in few passages and documents only. The words are English, German, French,
Spanish and Chinese, and those for noun phrases and events English only; questions in other
languages are judged by the rarity of their words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Passage, Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    extract_content_stems,
    extract_names_and_numbers,
    stem,
    word_set,
)
from stillroom.synth.prompting.conversation import get_evidence_passage, get_text_field
from stillroom.synth.prompting.general_forms import refers_back
from stillroom.synth.prompting.question_topics import strip_topic
from stillroom.text.unicode import split_words

__all__ = ["Standalone"]

_POINTING = re.compile(
    r"\b(?:th(?:is|ese|at|ose)|the (?:above|following|given|previous|preceding|same|provided|"
    r"current|author(?:'|’)?s?)|the (?:text|passage|statement|document|article|paragraph|section|"
    r"sentence|excerpt|context|example|question|answer|topic|author|code)|mentioned|described|"
    r"(?:do|does|did|are|is|were|was|have|has) (?:others?|another|(?:some )?examples?|some|"
    r"many|most|"
    r"several|certain)|stated|shown|discussed|above|below|according to|"
    r"(?:an?|the|what) (?:similar|equivalent|corresponding|respective|resulting|remaining))\b",
    re.IGNORECASE,
)
_PRONOUNS = word_set("it its they them their he she him her his hers we our you your i my")
_MARKED = re.compile(r"[\"“‘`']([^\"”’`']{2,})[\"”’`']|(\w*[_.]\w+|\w+\(\))")
_ASKS_MEANING = re.compile(r"^what do(?:es)? .+ mean\?$", re.IGNORECASE)
_AFTER_OPENING = re.compile(
    r"^(?:que (?:se passe-t-il|faut-il faire)|was (?:gilt|geschieht|ist zu tun))", re.IGNORECASE
)
_PAST = re.compile(r"\b(?:was|were|did|had|happened)\b", re.IGNORECASE)
_DEFINES = re.compile(
    r"^(?:was (?:ist|sind)|qu['’]est-ce|que sont|¿qué (?:es|son))\b|是什么"
    r"|^what (?:is|are) (?:an? )?[\w -]{3,30}\?$",
    re.IGNORECASE,
)
_DEFINITE = re.compile(r"\bthe (?=\w)")
_CONDITION = re.compile(r"\b(?:if|when|once|whenever|unless) ")
_ORDINALS = word_set("first second third fourth next other last new old original latter former")
"""Words that tell one of several that the passage names."""

_COMPLEMENTS = word_set("of for in to from between on with by about")
_MIN_DOCUMENTS, _MIN_PASSAGES = 2, 3


class Standalone(Filter):
    """Drop questions that depend on a text the reader does not see."""

    paper: ClassVar[str] = ""

    common_share: float = Field(
        0.03,
        gt=0,
        le=1,
        description="share of passages, and of documents, that may hold all words of a question",
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return _StandaloneState(self, FilterContext()).judge(record)

    @override
    def start(self, context: FilterContext) -> FilterState:
        return _StandaloneState(self, context)


class _WordIndex:
    """Passages of each word stem, and the document of each passage."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self.stems: dict[str, set[int]] = {}
        self.documents: list[str] = []
        for number, passage in enumerate(passages):
            self.documents.append(passage.document_id)
            for token in set(extract_content_stems(passage.text)):
                self.stems.setdefault(token, set()).add(number)

    def find(self, stems: Iterable[str]) -> set[int]:
        """Return the passages that hold all of the stems that any passage holds."""
        found = [self.stems[token] for token in set(stems) if token in self.stems]
        return set.intersection(*found) if found else set()


class _StandaloneState(FilterState):
    def __init__(self, settings: Standalone, context: FilterContext) -> None:
        self._settings, self._context = settings, context

    @cached_property
    def _index(self) -> _WordIndex:
        return _WordIndex(self._context.passages.values())

    def judge(self, record: Record) -> FilterResult:
        question = get_text_field(record, "question")
        if not question:
            return FilterResult(True)
        passage = get_evidence_passage(record, self._context)
        language = passage.language if passage is not None else ""
        if _POINTING.search(question):
            return FilterResult(False, "points at a text the reader does not see", 0.0)
        stems = extract_content_stems(question, frames=False, language=language)
        if not stems:
            return FilterResult(False, "names no subject", 0.0)
        if language in {"", "en"}:
            if _leads_with_pronoun(question, stems):
                return FilterResult(False, "a pronoun stands for the subject", 0.0)
            if passage is not None and (reason := self._explain_reference(question, passage)):
                return FilterResult(False, reason, 0.0)
        elif refers_back(_AFTER_OPENING.sub("", question), language):
            return FilterResult(False, "a word refers to another sentence", 0.0)
        if _ASKS_MEANING.match(strip_topic(question)):
            return FilterResult(True)
        return self._weigh(stems, bool(_DEFINES.search(question)))

    def _weigh(self, stems: list[str], is_term: bool) -> FilterResult:
        """Compare how many passages and documents hold all words with the share allowed."""
        share, index = self._settings.common_share, self._index
        found = index.find(stems)
        documents = {index.documents[number] for number in found}
        most = max(_MIN_PASSAGES, int(share * len(index.documents)))
        most_documents = max(_MIN_DOCUMENTS, int(share * len(set(index.documents))))
        if (len(found) > most and not is_term) or len(documents) > most_documents:
            return FilterResult(False, "names nothing specific", 1 / len(found))
        return FilterResult(True, score=1 / max(len(found), 1))

    def _explain_reference(self, question: str, passage: Passage) -> str:
        """Return why an English question points into its passage; empty if it does not."""
        marked = " ".join(part for match in _MARKED.findall(question) for part in match)
        names = {*split_words(marked), *extract_names_and_numbers(question)}
        title = set(extract_content_stems(" ".join((*passage.headings, passage.title))))
        plain = set(split_words(question)) - FUNCTION_WORDS - names
        is_told = bool(names) and (len(plain) > 1 or not question.startswith("What did"))
        bare, is_past = strip_topic(question), _PAST.search(question) is not None
        if (is_past or bare.startswith("Who ")) and not is_told:
            return "a past event that names too little"
        # in a license the definite articles are those of its defined terms
        is_law, is_case = question.startswith("Under "), _CONDITION.search(bare) is not None
        has_topic = bare != question and not (is_past or bare.startswith("Who "))
        has_topic = has_topic and (is_law or not is_case)
        for match in _DEFINITE.finditer(bare):
            phrase, rest = _split_phrase(bare[match.end() :])
            is_bound = rest[:1] and rest[0] in _COMPLEMENTS and len(rest) > 1
            stems = [stem(token.casefold()) for token in phrase]
            is_named = any(token.strip("'’") != token.lower().strip("'’") for token in phrase)
            is_named = is_named or bool(names.intersection(map(str.casefold, (*phrase, *rest))))
            is_known = has_topic or is_named or bool(title.intersection(stems))
            if not is_bound and (not is_known or _tells_one(phrase)):
                return "a noun phrase that only its passage explains"
        return ""


def _tells_one(phrase: list[str]) -> bool:
    """Return whether a noun phrase tells one of several: "the second part", "the selected part"."""
    return bool(phrase[:1]) and (phrase[0] in _ORDINALS or phrase[0].endswith("ed"))


def _split_phrase(text: str) -> tuple[list[str], list[str]]:
    """Return the words of a noun phrase, to the first function word, and those after it."""
    words = text.rstrip("?").split()
    end = next((n for n, word in enumerate(words) if word in FUNCTION_WORDS), len(words))
    return words[:end], words[end:]


def _leads_with_pronoun(question: str, stems: list[str]) -> bool:
    for token in split_words(question):
        if token in _PRONOUNS:
            return True
        if stem(token) in stems:
            return False
    return False
