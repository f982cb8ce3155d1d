"""Magpie: sample the user turn from an aligned model given only the pre-query template.

Source: Xu et al. 2024, arXiv:2406.08464 (the pre-query template alone, temperature 1; then the
answer as usual; further turns by opening the user's turn again). Differs: where the recipe names
documents, a system turn holds the passage, so that questions are about it; the engine renders the
teacher's own chat template up to the user's text, so any template works.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models.interfaces import TemplatedModel
from stillroom.records import Completion, Message
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.prompting.conversation import find_best_quote, make_qa_messages
from stillroom.synth.prompting.requests import fence_text, is_truncated
from stillroom.synth.prompting.stepwise import (
    CoroutineBatch,
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
)
from stillroom.synth.types import WorkItem

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Magpie"]

_MARK = "stillroom-user-words"
_ROLE = re.compile(r"^(?:assistant|user|system)\s*:?\s*$", re.IGNORECASE | re.MULTILINE)


class Magpie(StepwiseGenerator):
    """Sample a user message after the bare template, then answer it."""

    paper: ClassVar[str] = "arXiv:2406.08464"
    seed_kinds: ClassVar = ("nothing", "passages")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {"system": "You answer questions about this text.\n{text}"}

    questions: int = Field(1, ge=1, le=20, description="conversations per unit")
    turns: int = Field(1, ge=1, le=8, description="questions per conversation")
    system: str = Field("", description="system message that steers the subject")
    one_line: bool = Field(True, description="end the user message at the end of the line")
    max_question_tokens: int = Field(128, ge=8, le=2048, description="maximum tokens of a question")
    max_answer_tokens: int = Field(512, ge=8, le=8192, description="maximum tokens of an answer")
    temperature: float = Field(
        1.0, gt=0, le=2, description="sampling temperature of the question; answers are greedy"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: cumulative probability")

    @property
    @override
    def max_requests(self) -> int:
        return 2 * self.questions * self.turns

    @override
    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        if not isinstance(model, TemplatedModel):
            raise BackendError(
                f"{model.name} does not expose its chat template",
                code="backend.no-template",
                expected="a model with an accessible chat template (backend llamacpp, "
                "transformers)",
                next="open the checkpoint itself, or choose another generator",
            )
        return super().open(seeds, model)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        for _ in range(self.questions):
            yield from self._converse(unit)

    def _converse(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        turns: list[Message] = []
        for number in range(self.turns):
            question = yield from self._ask_user(unit, turns)
            if question is None:
                break
            answer = yield from unit.ask(
                [*self._before(unit), *turns, Message("user", question)],
                tokens=self.max_answer_tokens,
                temperature=0.0,
            )
            if answer is None:
                break
            turns += make_qa_messages(question, answer)
            if number == 0 and question.casefold() == answer.casefold():
                unit.fail("an answer that repeats the question", question)
                return
        if turns:
            self._keep(unit, turns)

    def _ask_user(
        self, unit: GenerationUnit, turns: Sequence[Message]
    ) -> RequestCoroutine[str | None]:
        opening, end = self._opening(unit, turns)
        stop = (end, "\n") if self.one_line else (end,)
        request = unit.make_raw_request(opening, tokens=self.max_question_tokens, stop=stop)
        (completion,) = yield [request]
        if not isinstance(completion, Completion):
            unit.fail(completion.reason, completion.text)
            return None
        text = completion.text.strip()
        if is_truncated(completion):
            unit.fail("question cut at the token limit", text)
        elif not any(letter.isalpha() for letter in text):
            unit.fail("no question", completion.text)
        elif _ROLE.search(text) or text.endswith(":"):
            unit.fail("a header or a beginning in place of a question", text)
        else:
            return text
        return None

    def _opening(self, unit: GenerationUnit, turns: Sequence[Message]) -> tuple[str, str]:
        """Return the template's text before the user's message, and its end marker."""
        model = unit.model
        if not isinstance(model, TemplatedModel):  # checked in open
            raise TypeError(f"{model.name} has no template")
        rendered = model.render([*self._before(unit), *turns, Message("user", _MARK)])
        before, _, after = rendered.rpartition(_MARK)
        return before, after.strip().split("\n", 1)[0] or "\n"

    def _before(self, unit: GenerationUnit) -> list[Message]:
        if unit.seed.kind == "passages":
            text = unit.render("system", text=fence_text(unit.seed.passage.text))
            return [Message("system", f"{self.system}\n{text}".strip())]
        return [Message("system", self.system)] if self.system else []

    def _keep(self, unit: GenerationUnit, turns: Sequence[Message]) -> None:
        question, answer = turns[0].content, turns[1].content
        fields: dict[str, object] = {"question": question, "answer": answer}
        if unit.seed.kind == "passages":
            fields["evidence"] = find_best_quote(unit.seed.passage, answer).to_json()
        unit.add_record(turns, fields)
