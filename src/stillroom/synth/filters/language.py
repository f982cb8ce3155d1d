"""Language: question and answer are in the language of the passage.

Own method, using the shared identifier on every message by itself: as one text, the question would
outweigh an answer in another language. Where neither a passage nor a setting gives the language,
that of the first message that has a likely one counts. A record is dropped where a message is far
more likely in another language, whichever that is; where that is unsure, it is kept. A short answer
in the passage's own words, such as "Rio de Janeiro", is in its language.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.prompting.conversation import get_evidence_passage
from stillroom.text.language import detect_language, guess_language, is_other_language

__all__ = ["Language"]
_MAX_NAME_WORDS = 6
_SPOKEN = frozenset({"user", "assistant"})


class Language(Filter):
    """Drop records with messages in another language."""

    paper: ClassVar[str] = ""

    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2}$")], ...] = Field(
        (), description="ISO 639-1 codes to keep; empty: that of the passage, or of the question"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._compare(record, "", "")

    @override
    def start(self, context: FilterContext) -> FilterState:
        return _LanguageState(self, context)

    def _compare(self, record: Record, expected: str, passage: str) -> FilterResult:
        if self.languages and expected not in self.languages:
            passage = ""  # its own words are not wanted
        texts = [
            message.content
            for message in record.messages
            if message.role in _SPOKEN and not _is_quoted(message.content, passage)
        ]
        expected = expected or next(filter(None, map(guess_language, texts)), "")
        allowed = self.languages or ((expected,) if expected else ())
        if allowed and any(is_other_language(text, allowed) for text in texts):
            return FilterResult(False, "another language", 0.0)
        return FilterResult(True)


def _is_quoted(text: str, passage: str) -> bool:
    """Return whether a short text is the passage's, as a name in another language may be."""
    words = text.casefold().strip(" .\n").split()
    return 0 < len(words) <= _MAX_NAME_WORDS and " ".join(words) in " ".join(
        passage.casefold().split()
    )


class _LanguageState(FilterState):
    def __init__(self, settings: Language, context: FilterContext) -> None:
        self._settings, self._context = settings, context
        self._known: dict[str, str] = {}

    def judge(self, record: Record) -> FilterResult:
        passage = get_evidence_passage(record, self._context)
        if passage is None:
            return self._settings.judge(record)
        if passage.id not in self._known:
            self._known[passage.id] = passage.language or detect_language(passage.text)
        return self._settings._compare(record, self._known[passage.id], passage.text)
