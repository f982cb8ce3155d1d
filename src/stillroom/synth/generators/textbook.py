"""Textbook: educational text for an audience and style, about a topic or a seed text.

Source: Ben Allal et al. 2024 (Cosmopedia: audience and style crossed with web seeds) and Gunasekar
et al. 2023 (Phi-1), arXiv:2306.11644, section 2.2 (diversity by audience and topic). Differs: each
attempt of a seed takes the next pair of audience and style, in random order, so that no pair is
repeated before all were used.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.records import Message
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.prompting.requests import fence_text, get_topic, to_one_line
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["Textbook"]

Style = Literal["textbook", "lecture", "blog", "guide", "story", "dialogue", "faq"]
Audience = Literal["child", "pupil", "student", "researcher", "general"]
_STYLES: dict[Style, str] = {
    "textbook": "a section of a textbook, with definitions, an explanation and a worked example",
    "lecture": "a lecture, as it is spoken, that leads from a question to its answer",
    "blog": "a blog post that begins with something known and ends with something new",
    "guide": "a guide in numbered steps, with the reason for each",
    "story": "a short story in which people learn it by doing",
    "dialogue": "a conversation between a teacher and a learner who asks good questions",
    "faq": "a list of questions and answers",
}
_AUDIENCES: dict[Audience, str] = {
    "child": "a child of ten: short words, everyday comparisons, no symbols",
    "pupil": "a pupil of fifteen: plain words, each new term explained",
    "student": "a student of the field: precise terms, reasons, limits",
    "researcher": "an expert: concise, with assumptions and open questions",
    "general": "a curious reader without training in the field",
}

_LEANS = re.compile(
    r"\b(?:the|this|given|above|provided) (?:text|passage|excerpt)\b", re.IGNORECASE
)
_BEGINNING = 400
"""Characters in which a text may refer to its source; later such words may be its subject."""


class Textbook(StepwiseGenerator):
    """Write educational text; the record is one assistant message."""

    paper: ClassVar[str] = "arXiv:2306.11644"
    seed_kinds: ClassVar = ("passages", "topics")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "after_text": "{text}\n\nWrite {style} on the subject of the text above{topic}, for "
        "{audience}. Use the text for what it is about, but do not copy or mention it. Begin at "
        "once.",
        "on_topic": "Write {style} on this subject: {topic}. It is for {audience}. Begin at once.",
    }

    styles: tuple[Style, ...] = Field(
        ("textbook", "blog", "story"), min_length=1, description="styles to write in"
    )
    audiences: tuple[Audience, ...] = Field(
        ("pupil", "student", "general"), min_length=1, description="readers to write for"
    )
    max_new_tokens: int = Field(1024, ge=32, le=8192, description="maximum tokens of a text")
    max_seed_characters: int = Field(
        1500,
        ge=100,
        le=20_000,
        description="characters of a seed text in the prompt (Cosmopedia: 1000)",
    )

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        seed = unit.seed
        pairs = [(style, audience) for style in self.styles for audience in self.audiences]
        seed.make_rng("pairs").shuffle(pairs)
        style, audience = pairs[seed.attempt % len(pairs)]
        descriptions = {"style": _STYLES[style], "audience": _AUDIENCES[audience]}
        if seed.kind == "topics":
            name = " > ".join(to_one_line(part) for part in seed.topic.path)
            described_name = (
                f"{name} ({to_one_line(seed.topic.description)})" if seed.topic.description else ""
            )
            prompt_text = unit.render("on_topic", topic=described_name or name, **descriptions)
        else:
            shown, topic = seed.passage.text[: self.max_seed_characters], get_topic(seed)
            prompt_text = unit.render(
                "after_text",
                text=fence_text(shown),
                topic=f" ({topic})" if topic else "",
                **descriptions,
            )
        text = yield from unit.ask(prompt_text, tokens=self.max_new_tokens, label="text")
        if text is not None and seed.kind == "passages" and _LEANS.search(text[:_BEGINNING]):
            unit.fail("a text that speaks of the one it was made from", text)
        elif text is not None:
            fields = {"answer": text, "style": style, "audience": audience}
            unit.add_record([Message("assistant", text)], fields)
