"""Translation: text translated into another language, scored by back-translation.

Source: Sennrich et al. 2016, arXiv:1511.06709 (back-translation) and Popović 2015 (chrF), which
compares the back-translation with the original. Differs: one teacher translates both ways; language
mix-ups are caught by the language detector.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import DISTINCT
from stillroom.records import Message, Record
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.lexical_overlap import chrf
from stillroom.synth.prompting.conversation import Quote, get_question, get_solution
from stillroom.synth.prompting.requests import fence_text
from stillroom.synth.prompting.stepwise import (
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)
from stillroom.text.language import is_other_language

__all__ = ["Translation"]

_NAMES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


class Translation(StepwiseGenerator):
    """Translate passages, or the question and answer of records, and back."""

    paper: ClassVar[str] = "arXiv:1511.06709"
    seed_kinds: ClassVar = ("passages", "records")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "translate": "{text}\n\nTranslate the text above into {language}. Write the translation "
        "alone."
    }

    languages: Annotated[tuple[str, ...], DISTINCT] = Field(
        ("de",), min_length=1, description="ISO 639-1 codes to translate into"
    )
    back_to: str = Field("en", description="language of the seeds, to translate back into")
    min_chrf: float = Field(
        0.4, ge=0, le=1, description="minimum chrF of the back-translation; 0 skips it"
    )
    max_new_tokens: int = Field(768, ge=16, le=8192, description="maximum tokens of a translation")
    temperature: float = Field(0.2, ge=0, le=2, description="sampling temperature; 0 is greedy")

    @property
    @override
    def max_requests(self) -> int:
        return len(self.languages) * (4 if self.min_chrf else 2)

    @property
    @override
    def max_records(self) -> int:
        return len(self.languages)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        item = unit.seed.item
        if isinstance(item, Record):
            texts = [text for text in (get_question(item), get_solution(item)) if text]
        else:
            texts = [unit.seed.passage.text]
        if not texts:
            unit.fail("a record without a text")
            return
        yield from run_concurrently(
            [self._into(unit, texts, language) for language in self.languages]
        )

    def _into(
        self, unit: GenerationUnit, texts: list[str], language: str
    ) -> RequestCoroutine[None]:
        translations: list[str] = []
        worst = 1.0
        for text in texts:
            translated = yield from self._translate(unit, text, language)
            if translated is None:
                return
            if is_other_language(translated, (language,)):
                unit.fail("a translation in another language", translated)
                return
            if self.min_chrf:
                back = yield from self._translate(unit, translated, self.back_to)
                if back is None:
                    return
                worst = min(worst, chrf(back, text))
                if worst < self.min_chrf:
                    unit.fail("comes back as another text", f"{worst:.3f}: {translated} | {back}")
                    return
            translations.append(translated)
        fields: dict[str, object] = {
            "answer": translations[-1],
            "language": language,
            "chrf": round(worst, 4) if self.min_chrf else None,
        }
        if len(translations) == 2:
            turns = [Message("user", translations[0]), Message("assistant", translations[1])]
            unit.add_record(turns, {"question": translations[0], **fields})
            return
        if unit.seed.kind == "passages":
            passage = unit.seed.passage
            quote = Quote(passage.id, passage.start, passage.end, passage.text)
            fields["translation_of"] = quote.to_json()
        unit.add_record([Message("assistant", translations[0])], fields)

    def _translate(
        self, unit: GenerationUnit, text: str, language: str
    ) -> RequestCoroutine[str | None]:
        prompt_text = unit.render(
            "translate", text=fence_text(text), language=_NAMES.get(language, language)
        )
        reply = yield from unit.ask(prompt_text, tokens=self.max_new_tokens, label="translation")
        return reply.replace("<text>", "").replace("</text>", "").strip() if reply else None
