"""Instruction reversal: what a user might have asked in three voices, for a text as the answer.

Source: Köksal et al. 2023 (LongForm), arXiv:2304.08460, section 3.1 (instruction, chatbot and
search-engine style; a hint of length added to some) and Abdin et al. 2024 (Phi-4),
arXiv:2412.08905, section 2.2 (the text is written anew from its instruction; only a close one
proves the instruction). Differs: closeness is the F1 of words, off by default.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.synth.asking import fence
from stillroom.synth.evidence import Quote
from stillroom.synth.method import RECORD_FILTERS, SeedKind
from stillroom.synth.steps import Steps, Stepwise, Unit
from stillroom.synth.structured import object_of, text_of
from stillroom.synth.tasks import leans_on_text, pair
from stillroom.synth.templates import Template
from stillroom.text.normalize import token_f1
from stillroom.text.sentences import split_sentences

__all__ = ["InstructionReversal"]

Voice = Literal["instruction", "chat", "search"]
_VOICES: dict[Voice, str] = {
    "instruction": "the instruction that a user gave to an assistant",
    "chat": "the message that a user typed into a chat, in an informal voice, maybe not as a "
    "question",
    "search": "the short query that a user typed into a search engine",
}


class InstructionReversal(Stepwise):
    """Asks for the instruction of a text."""

    paper: ClassVar[str] = "arXiv:2304.08460"
    takes: ClassVar[tuple[SeedKind, ...]] = ("passages",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "instruction": Template(
            "{text}\n\nThe text above is the answer. Write {voice} to which it is the answer."
        ),
        "length": Template("{instruction}\n\nAnswer in {number} sentences."),
        "again": Template("{instruction}"),
    }

    voices: tuple[Voice, ...] = Field(
        ("instruction", "chat", "search"), min_length=1, description="drawn from, alike often"
    )
    length_share: float = Field(
        0.3, ge=0, le=1, description="share of instructions that say how long the answer is"
    )
    min_closeness: float = Field(
        0, ge=0, le=1,
        description="word F1 that an answer written anew must reach; 0 writes none",
    )  # fmt: skip
    max_instruction_characters: int = Field(400, ge=40, le=4000, description="longest instruction")
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="longest answer written anew")

    @property
    @override
    def asks(self) -> int:
        return 2 if self.min_closeness else 1

    @property
    @override
    def longest(self) -> int:
        return self.max_answer_tokens if self.min_closeness else self.max_instruction_characters

    @override
    def write(self, unit: Unit) -> Steps[None]:
        passage, rng = unit.seed.passage, unit.rng("voice")
        voice = rng.choice(self.voices)
        found = yield from unit.fill(
            unit.words("instruction", text=fence(passage.text), voice=_VOICES[voice]),
            object_of(instruction=text_of(self.max_instruction_characters, 4)),
            what="instruction",
        )
        if found is None:
            return
        instruction = str(found["instruction"]).strip()
        if leans_on_text(instruction):
            unit.fail("instruction that speaks of its text", instruction)
            return
        told: dict[str, object] = {
            "question": instruction,
            "answer": passage.text,
            "voice": voice,
        }
        if self.min_closeness:
            again = yield from unit.say(
                unit.words("again", instruction=instruction), tokens=self.max_answer_tokens
            )
            if again is None:
                return
            closeness = token_f1(again, passage.text)
            if closeness < self.min_closeness:
                unit.fail("what is written anew is another text", f"{instruction} | {again}")
                return
            told["closeness"] = round(closeness, 4)
        asked = instruction
        if rng.random() < self.length_share:
            count = len(split_sentences(passage.text))
            asked = unit.words("length", instruction=instruction, number=str(count))
        quote = Quote(passage.id, passage.start, passage.end, passage.text)
        unit.keep(pair(asked, passage.text), {**told, "evidence": quote.to_json()})
