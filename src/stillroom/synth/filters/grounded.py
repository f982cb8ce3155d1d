"""Grounded: the answer is supported by its passage, by shared words.

Source: Honovich et al. 2022, arXiv:2204.04991 (consistency with a source). Differs: lexical, since
no second model is assumed: most content words, and all names and numbers, must occur in the
passage.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Passage, Record
from stillroom.synth.interfaces import BoundFilter, Filter, FilterContext, FilterResult
from stillroom.synth.lexical_overlap import (
    collapse_whitespace,
    compute_support,
    extract_content_stems,
    extract_names_and_numbers,
)
from stillroom.synth.prompting.conversation import (
    get_evidence_passage,
    get_evidence_quote,
    get_text_field,
)
from stillroom.text.unicode import split_words

__all__ = ["Grounded"]


class Grounded(Filter):
    """Drop answers that their passage does not support."""

    paper: ClassVar[str] = "arXiv:2204.04991"

    min_support: float = Field(
        0.85,
        ge=0,
        le=1,
        description="share of the answer's content words that must occur in the passage",
    )
    min_words: int = Field(3, ge=1, description="minimum content words of an answer")

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._weigh(record, None)

    @override
    def start(self, context: FilterContext) -> BoundFilter:
        return BoundFilter(
            lambda record: self._weigh(record, get_evidence_passage(record, context))
        )

    def _weigh(self, record: Record, passage: Passage | None) -> FilterResult:
        answer = get_text_field(record, "answer")
        quote = get_evidence_quote(record)
        if not answer and "evidence" not in record.fields:
            return FilterResult(True)
        if not quote.strip():
            return FilterResult(False, "names no evidence", 0.0)
        if passage is not None and not _stands_in(record, quote, passage):
            return FilterResult(False, "evidence is not in its passage", 0.0)
        source = passage.text if passage is not None else quote
        language = passage.language if passage is not None else ""
        stems = extract_content_stems(answer, language=language)
        if len(set(stems)) < self.min_words:
            return FilterResult(False, "answer says too little", 0.0)
        known = set(split_words(source))
        if any(token not in known for token in extract_names_and_numbers(answer)):
            return FilterResult(False, "a name or number is not in the passage", 0.0)
        support = compute_support(stems, set(extract_content_stems(source, language=language)))
        if support < self.min_support:
            return FilterResult(False, "not supported by the passage", support)
        return FilterResult(True, score=support)


def _stands_in(record: Record, quote: str, passage: Passage) -> bool:
    evidence = record.fields["evidence"]
    start, end = evidence.get("start"), evidence.get("end")
    if isinstance(start, int) and isinstance(end, int) and passage.start <= start <= end:
        return passage.text[start - passage.start : end - passage.start] == quote
    return collapse_whitespace(quote) in collapse_whitespace(passage.text)
