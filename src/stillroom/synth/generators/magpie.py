"""Magpie: sample the user turn from an aligned model given only the pre-query template.

Source: Xu et al. 2024, arXiv:2406.08464 (the pre-query template alone, temperature 1; then the
answer as usual; further turns by opening the user's turn again). Differs: where the recipe names
documents, a system turn holds the passage, so that questions are about it; what the teacher's own
chat template writes before a user's words is asked of the engine, so any template will do.
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
from stillroom.synth.prompting.coroutines import (
    CoroutineBatch,
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
)
from stillroom.synth.prompting.requests import PromptTemplate, fence_text, is_truncated
from stillroom.synth.types import SeedKind, WorkItem

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Magpie"]

_MARK = "stillroom-user-words"
_ROLE = re.compile(r"^(?:assistant|user|system)\s*:?\s*$", re.IGNORECASE | re.MULTILINE)


class Magpie(StepwiseGenerator):
    """Lets the teacher write a user's words after the bare template, then answers them."""

    paper: ClassVar[str] = "arXiv:2406.08464"
    takes: ClassVar[tuple[SeedKind, ...]] = ("nothing", "passages")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "system": PromptTemplate("You answer questions about this text.\n{text}"),
    }

    questions: int = Field(1, ge=1, le=20, description="conversations of one unit")
    turns: int = Field(1, ge=1, le=8, description="questions of one conversation")
    system: str = Field("", description="the system's turn, which steers what is asked about")
    one_line: bool = Field(True, description="end the user's words at the end of the line")
    max_question_tokens: int = Field(128, ge=8, le=2048, description="longest question")
    max_answer_tokens: int = Field(512, ge=8, le=8192, description="longest answer")
    temperature: float = Field(1.0, gt=0, le=2, description="of the question; answers are greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability drawn from")

    @property
    @override
    def asks(self) -> int:
        return 2 * self.questions * self.turns

    @property
    @override
    def longest(self) -> int:
        return max(self.max_question_tokens, self.max_answer_tokens)

    @override
    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        if not isinstance(model, TemplatedModel):
            raise BackendError(
                f"{model.name} writes its chat template where it cannot be seen",
                code="backend.no-template",
                expected="a model whose template can be asked for (backend llamacpp, transformers)",
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
            asked = yield from self._ask_user(unit, turns)
            if asked is None:
                break
            answer = yield from unit.say(
                [*self._before(unit), *turns, Message("user", asked)],
                tokens=self.max_answer_tokens,
                temperature=0.0,
            )
            if answer is None:
                break
            turns += make_qa_messages(asked, answer)
            if number == 0 and asked.casefold() == answer.casefold():
                unit.fail("an answer that repeats the question", asked)
                return
        if turns:
            self._keep(unit, turns)

    def _ask_user(
        self, unit: GenerationUnit, turns: Sequence[Message]
    ) -> RequestCoroutine[str | None]:
        opening, end = self._opening(unit, turns)
        stop = (end, "\n") if self.one_line else (end,)
        ask = unit.ask_raw(opening, tokens=self.max_question_tokens, stop=stop)
        (given,) = yield [ask]
        if not isinstance(given, Completion):
            unit.fail(given.reason, given.text)
            return None
        text = given.text.strip()
        if is_truncated(given):
            unit.fail("question cut at the token limit", text)
        elif not any(letter.isalpha() for letter in text):
            unit.fail("no question", given.text)
        elif _ROLE.search(text) or text.endswith(":"):
            unit.fail("a header or a beginning in place of a question", text)
        else:
            return text
        return None

    def _opening(self, unit: GenerationUnit, turns: Sequence[Message]) -> tuple[str, str]:
        """Return what the template writes before a user's words, and how it ends them."""
        model = unit.model
        if not isinstance(model, TemplatedModel):  # generate has looked
            raise TypeError(f"{model.name} has no template")
        whole = model.render([*self._before(unit), *turns, Message("user", _MARK)])
        before, _, after = whole.rpartition(_MARK)
        return before, after.strip().split("\n", 1)[0] or "\n"

    def _before(self, unit: GenerationUnit) -> list[Message]:
        if unit.seed.kind == "passages":
            text = unit.words("system", text=fence_text(unit.seed.passage.text))
            return [Message("system", f"{self.system}\n{text}".strip())]
        return [Message("system", self.system)] if self.system else []

    def _keep(self, unit: GenerationUnit, turns: Sequence[Message]) -> None:
        asked, answer = turns[0].content, turns[1].content
        told: dict[str, object] = {"question": asked, "answer": answer}
        if unit.seed.kind == "passages":
            told["evidence"] = find_best_quote(unit.seed.passage, answer).to_json()
        unit.keep(turns, told)
