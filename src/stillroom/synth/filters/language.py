"""Language: question and answer are in the language of the passage.

Own method, over the floor's detector, which judges every message by itself: a question outweighs an
answer of another language where both are judged as one text. Where no passage and no setting says
which language it is, that of the question counts. Where the detector is unsure, the record is kept.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.text.language import detect_language

__all__ = ["Language"]


_SPOKEN = frozenset({"user", "assistant"})


class Language(Filter):
    """Drops records that drifted into another language."""

    paper: ClassVar[str] = ""

    languages: tuple[str, ...] = Field(
        (), description="ISO 639-1 codes to keep; empty means that of the passage, or question"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._compare(record, "")

    @override
    def begin(self, context: FilterContext) -> FilterState:
        return _LanguageState(self, context)

    def _compare(self, record: Record, expected: str) -> FilterResult:
        said = [one.content for one in record.messages if one.role in _SPOKEN]
        found = [language for text in said if (language := detect_language(text))]
        wanted = self.languages or ((expected,) if expected else tuple(found[:1]))
        if any(language not in wanted for language in found):
            return FilterResult(False, "another language", 0.0)
        return FilterResult(True)


class _LanguageState:
    def __init__(self, chosen: Language, context: FilterContext) -> None:
        self._chosen, self._context = chosen, context
        self._known: dict[str, str] = {}

    def judge(self, record: Record) -> FilterResult:
        return self._chosen._compare(record, self._language_of(record))

    def admit(self, record: Record) -> None:
        """Remember nothing: languages do not depend on what was kept."""

    def _language_of(self, record: Record) -> str:
        evidence = record.fields.get("evidence")
        name = str(evidence.get("passage_id", "")) if isinstance(evidence, dict) else ""
        passage = self._context.passages.get(name)
        if passage is None:
            return ""
        if name not in self._known:
            self._known[name] = passage.language or detect_language(passage.text)
        return self._known[name]
