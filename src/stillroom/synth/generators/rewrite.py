"""Rewrite: documents rephrased in a chosen style as pretraining text.

Source: Maini et al. 2024 (WRAP), arXiv:2401.16380, section 3.1 (easy, like an encyclopedia, hard,
questions and answers) and Su et al. 2024 (Nemotron-CC), arXiv:2412.02595, section 2.3 (diverse
questions, distilled, knowledge extracted, knowledge listed). Differs: one passage at a time, in its
own language; the ``grounded`` filter rejects new names and numbers. Requires a larger teacher: of
16 rewrites by SmolLM2-135M none passed that filter.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.records import Message
from stillroom.synth.prompting.conversation import Quote
from stillroom.synth.prompting.requests import fence_text, get_topic
from stillroom.synth.prompting.stepwise import (
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)

__all__ = ["Rewrite"]

Style = Literal[
    "plain",
    "brief",
    "encyclopedia",
    "scholarly",
    "qa",
    "diverse_qa",
    "distill",
    "knowledge",
    "knowledge_list",
]
_STYLES: dict[Style, str] = {
    "plain": "Rewrite this text in plain words that a beginner understands.",
    "brief": "Rewrite this text as a summary of two or three sentences.",
    "encyclopedia": "Rewrite this text in the sober style of an encyclopedia.",
    "scholarly": "Rewrite this text in terse, scholarly language for experts.",
    "qa": "Rewrite this text as a list of questions and answers, each on lines that begin with "
    "Question: and Answer:",
    "diverse_qa": "Write up to eight questions about this text with their answers: yes or no, "
    "open, multiple choice, comparison, cause, counting. Begin lines with Question: and Answer:",
    "distill": "Rewrite this text shorter and clearer, with everything that matters and nothing "
    "else, as flowing prose.",
    "knowledge": "Rewrite what can be learned from this text as a passage of a textbook: facts, "
    "terms and relations. Leave out what teaches nothing.",
    "knowledge_list": "List what can be learned from this text, one fact a line, each understood "
    "by itself.",
}
_SYSTEM = "You rewrite texts and add nothing to them."


class Rewrite(StepwiseGenerator):
    """Rephrase a passage in another style; the record is one assistant message."""

    paper: ClassVar[str] = "arXiv:2401.16380"
    status: ClassVar[str] = "experimental"
    templates: ClassVar = {"rewrite": "{topic}{text}\n\n{style}"}

    styles: tuple[Style, ...] = Field(
        ("plain",), min_length=1, description="styles to write each passage in"
    )
    max_new_tokens: int = Field(256, ge=16, le=4096, description="maximum tokens of a rewrite")
    temperature: float = Field(0.3, ge=0, le=2, description="sampling temperature; 0 is greedy")
    repetition_penalty: float = Field(1.1, gt=0, description="above 1 discourages repetition")

    @property
    @override
    def max_requests(self) -> int:
        return len(self.styles)

    @property
    @override
    def max_records(self) -> int:
        return len(self.styles)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        yield from run_concurrently([self._into(unit, style) for style in self.styles])

    def _into(self, unit: GenerationUnit, style: Style) -> RequestCoroutine[None]:
        passage, topic = unit.seed.passage, get_topic(unit.seed)
        prompt_text = unit.render(
            "rewrite",
            topic=f"Topic: {topic}\n\n" if topic else "",
            text=fence_text(passage.text),
            style=_STYLES[style],
        )
        text = yield from unit.ask(
            prompt_text, tokens=self.max_new_tokens, label="rewriting", system=_SYSTEM
        )
        if text is None:
            return
        quote = Quote(passage.id, passage.start, passage.end, passage.text)
        fields = {"answer": text, "style": style, "evidence": quote.to_json()}
        unit.add_record([Message("assistant", text)], fields)
