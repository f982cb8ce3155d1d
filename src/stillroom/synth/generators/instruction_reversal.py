"""Instruction reversal: write the user message, in one of three voices, that a text answers.

Source: Köksal et al. 2023 (LongForm), arXiv:2304.08460, section 3.1 (instruction, chatbot and
search-engine style; a length hint added to some) and Abdin et al. 2024 (Phi-4), arXiv:2412.08905,
section 2.2 (the text is regenerated from its instruction; only a close match confirms the
instruction). Differs: closeness is the word F1, off by default.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import DISTINCT
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.prompting.conversation import Quote, make_qa_messages
from stillroom.synth.prompting.requests import (
    fence_text,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator
from stillroom.text.language import split_sentences
from stillroom.text.unicode import token_f1

__all__ = ["InstructionReversal"]

Voice = Literal["instruction", "chat", "search"]
_VOICES: dict[Voice, str] = {
    "instruction": "the instruction that a user gave to an assistant",
    "chat": "the message that a user typed into a chat, in an informal voice, maybe not as a "
    "question",
    "search": "the short query that a user typed into a search engine",
}


class InstructionReversal(StepwiseGenerator):
    """Generate the instruction that a text answers."""

    paper: ClassVar[str] = "arXiv:2304.08460"
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "instruction": "{text}\n\nThe text above is the answer. Write {voice} to which it is the "
        "answer.",
        "length": "{instruction}\n\nAnswer in {number} sentences.",
        "again": "{instruction}",
    }

    voices: Annotated[tuple[Voice, ...], DISTINCT] = Field(
        ("instruction", "chat", "search"),
        min_length=1,
        description="voices to sample from, uniformly",
    )
    length_share: float = Field(
        0.3, ge=0, le=1, description="share of instructions with a length hint"
    )
    min_closeness: float = Field(
        0, ge=0, le=1,
        description="minimum word F1 of a regenerated answer; 0 skips this check",
    )  # fmt: skip
    max_instruction_characters: int = Field(
        400, ge=40, le=4000, description="maximum characters of an instruction"
    )
    max_answer_tokens: int = Field(
        512, ge=16, le=8192, description="maximum tokens of a regenerated answer"
    )

    @property
    @override
    def max_requests(self) -> int:
        return 2 if self.min_closeness else 1

    @property
    @override
    def max_tokens(self) -> int:
        return self.max_answer_tokens if self.min_closeness else self.max_instruction_characters

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        passage, rng = unit.seed.passage, unit.rng("voice")
        voice = rng.choice(self.voices)
        text = unit.render("instruction", text=fence_text(passage.text), voice=_VOICES[voice])
        instruction = yield from unit.ask_instruction(text, 4, self.max_instruction_characters)
        if instruction is None:
            return
        fields: dict[str, object] = {
            "question": instruction,
            "answer": passage.text,
            "voice": voice,
        }
        if self.min_closeness:
            rewritten = yield from unit.ask(
                unit.render("again", instruction=instruction), tokens=self.max_answer_tokens
            )
            if rewritten is None:
                return
            closeness = token_f1(rewritten, passage.text)
            if closeness < self.min_closeness:
                unit.fail("what is written anew is another text", f"{instruction} | {rewritten}")
                return
            fields["closeness"] = round(closeness, 4)
        prompted = instruction
        if rng.random() < self.length_share:
            count = len(split_sentences(passage.text))
            prompted = unit.render("length", instruction=instruction, number=str(count))
        quote = Quote(passage.id, passage.start, passage.end, passage.text)
        unit.add_record(
            make_qa_messages(prompted, passage.text), {**fields, "evidence": quote.to_json()}
        )
