"""Grounded: the answer is supported by the passage it names.

Source: Honovich et al. 2022, arXiv:2204.04991 (consistency with a source). Differs: lexical, since
no second model is assumed: content words must mostly, names and numbers must all, be in it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Passage, Record
from stillroom.synth.evidence import passage_of, quote_of, text_of
from stillroom.synth.method import Context, Filter, Judge, Verdict
from stillroom.synth.wording import collapse, content_stems, names_and_numbers, share_supported
from stillroom.text.normalize import words

__all__ = ["Grounded"]


class Grounded(Filter):
    """Drops answers that say what their passage does not."""

    paper: ClassVar[str] = "arXiv:2204.04991"

    min_support: float = Field(
        0.85, ge=0, le=1, description="share of the answer's content words found in the passage"
    )
    min_words: int = Field(3, ge=1, description="fewest content words of an answer")

    @override
    def judge(self, record: Record) -> Verdict:
        return self._weigh(record, None)

    @override
    def begin(self, context: Context) -> Judge:
        return _InContext(self, context)

    def _weigh(self, record: Record, passage: Passage | None) -> Verdict:
        answer = text_of(record, "answer")
        quote = quote_of(record)
        if not answer and "evidence" not in record.fields:
            return Verdict(True)
        if not quote.strip():
            return Verdict(False, "names no evidence", 0.0)
        if passage is not None and not _stands_in(record, quote, passage):
            return Verdict(False, "evidence is not in its passage", 0.0)
        source = passage.text if passage is not None else quote
        stems = content_stems(answer)
        if len(set(stems)) < self.min_words:
            return Verdict(False, "answer says too little", 0.0)
        known = set(words(source))
        if any(word not in known for word in names_and_numbers(answer)):
            return Verdict(False, "a name or number is not in the passage", 0.0)
        support = share_supported(stems, set(content_stems(source)))
        if support < self.min_support:
            return Verdict(False, "not supported by the passage", support)
        return Verdict(True, score=support)


class _InContext:
    def __init__(self, chosen: Grounded, context: Context) -> None:
        self._chosen, self._context = chosen, context

    def judge(self, record: Record) -> Verdict:
        return self._chosen._weigh(record, passage_of(record, self._context))

    def admit(self, record: Record) -> None:
        """Remember nothing: support does not depend on what was kept."""


def _stands_in(record: Record, quote: str, passage: Passage) -> bool:
    evidence = record.fields["evidence"]
    start, end = evidence.get("start"), evidence.get("end")
    if isinstance(start, int) and isinstance(end, int) and passage.start <= start <= end:
        return passage.text[start - passage.start : end - passage.start] == quote
    return collapse(quote) in collapse(passage.text)
