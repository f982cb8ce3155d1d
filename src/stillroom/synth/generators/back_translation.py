"""Instruction back-translation: write and grade the instruction that a document answers.

Source: Li et al. 2023 (Humpback), arXiv:2308.06259, sections 2.2 and 2.3 (predict the instruction
of a human-written text; keep pairs that score 5 of 5). Differs: the teacher is prompted for the
instruction, where the paper fine-tunes a backward model; the score is the one it generates, or
(``grade: expected``, where the engine can score) the mean of the five scores weighted by their
probabilities.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.records import Message, Prompt
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.prompting.conversation import Quote, make_qa_messages
from stillroom.synth.prompting.requests import (
    fence_text,
    make_enum_schema,
    make_object_schema,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["BackTranslation"]

_SCORES = ("1", "2", "3", "4", "5")


class BackTranslation(StepwiseGenerator):
    """Predict the instruction that a document answers, and keep pairs with a high score."""

    paper: ClassVar[str] = "arXiv:2308.06259"
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "instruction": "{text}\n\nThe text above is a good answer of an assistant. Write the "
        "user's instruction or question that it answers, so that it is understood by itself.",
        "score": "User: {instruction}\n\nAnswer:\n{text}\n\nHow good an example is this of how an "
        "assistant should answer? 5: perfect, to the point, complete, well written. 4: clear and "
        "complete, with room for small improvement. 3: helpful, but not as an assistant would "
        "write. 2: answers part of it. 1: off the topic, vague or incomplete. Answer with the "
        "score.",
    }

    min_score: float = Field(5, ge=1, le=5, description="minimum score; the default is the paper's")
    grade: Literal["written", "expected"] = Field(
        "written",
        description="written: the generated score; expected: the mean weighted by probability",
    )
    max_instruction_characters: int = Field(
        400, ge=40, le=4000, description="maximum characters of an instruction"
    )

    @property
    @override
    def max_requests(self) -> int:
        return 2

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        passage = unit.seed.passage
        text = unit.render("instruction", text=fence_text(passage.text))
        instruction = yield from unit.ask_instruction(text, 8, self.max_instruction_characters)
        if instruction is None:
            return
        score = yield from self._score(unit, instruction)
        if score is None:
            return
        if score < self.min_score:
            unit.fail("curation score below the least", f"{score:g}: {instruction}")
            return
        fields = {
            "question": instruction,
            "answer": passage.text,
            "evidence": Quote(passage.id, passage.start, passage.end, passage.text).to_json(),
            "curation_score": round(score, 4),
        }
        unit.add_record(make_qa_messages(instruction, passage.text), fields)

    def _score(self, unit: GenerationUnit, instruction: str) -> RequestCoroutine[float | None]:
        prompt_text = unit.render(
            "score", instruction=instruction, text=fence_text(unit.seed.passage.text)
        )
        if self.grade == "expected":
            return self._expect(unit, prompt_text)
        schema = make_object_schema(score=make_enum_schema(1, 2, 3, 4, 5))
        reply = yield from unit.ask_json(
            prompt_text, schema, label="curation score", temperature=0.0
        )
        return float(reply["score"]) if reply else None

    def _expect(self, unit: GenerationUnit, prompt_text: str) -> float | None:
        prompt = Prompt((Message("user", prompt_text),))
        try:
            scores = unit.model.score([prompt] * len(_SCORES), list(_SCORES))
        except BackendError as error:
            if error.code != "backend.context":
                raise
            unit.fail("longer than the teacher's context", error.problems[0].what)
            return None
        best = max(score.total for score in scores)
        weights = [math.exp(score.total - best) for score in scores]
        return sum(weight * int(name) for weight, name in zip(weights, _SCORES, strict=True)) / sum(
            weights
        )
