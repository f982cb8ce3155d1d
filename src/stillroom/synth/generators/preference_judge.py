"""Preference pairs (chosen, rejected; DPO) by LLM judge: two responses scored in both orders.

Source: Cui et al. 2023 (UltraFeedback), arXiv:2310.01377 (scored answers become pairs) and Zheng et
al. 2023, arXiv:2306.05685, section 3.4 (an answer wins only if it wins in both orders). Differs:
both answers are the teacher's, the second at a higher temperature.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.conversation import get_question, make_qa_messages
from stillroom.synth.prompting.requests import (
    fence_text,
    make_enum_schema,
    make_object_schema,
)
from stillroom.synth.prompting.stepwise import (
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)

__all__ = ["PreferenceJudge"]

_SCORES = make_object_schema(
    first=make_enum_schema(*range(1, 11)), second=make_enum_schema(*range(1, 11))
)


class PreferenceJudge(StepwiseGenerator):
    """Pair a chosen with a rejected answer by the scores of a judge."""

    paper: ClassVar[str] = "arXiv:2310.01377"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "ask": "{question}",
        "judge": "Question:\n{question}\n\nFirst answer:\n{first}\n\nSecond "
        "answer:\n{second}\n\n{rubric} Score each answer from 1 to 10.",
    }

    rubric: str = Field(
        "Judge whether an answer is right, complete and to the point.",
        description="criterion of the judge, in a sentence",
    )
    min_margin: float = Field(
        1, ge=0, le=9, description="minimum difference of the mean scores of both orders"
    )
    other_temperature: float = Field(
        1.2, ge=0, le=2, description="sampling temperature of the second answer"
    )
    max_answer_tokens: int = Field(384, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    @override
    def max_requests(self) -> int:
        return 4

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        question = get_question(unit.seed.record)
        if not question:
            unit.fail("a record that asks nothing")
            return
        prompt_text = unit.render("ask", question=question)
        first, second = yield from run_concurrently(
            [
                unit.ask(prompt_text, tokens=self.max_answer_tokens),
                unit.ask(
                    prompt_text, tokens=self.max_answer_tokens, temperature=self.other_temperature
                ),
            ]
        )
        if first is None or second is None:
            return
        if collapse_whitespace(first) == collapse_whitespace(second):
            unit.fail("two answers that are the same", first)
            return
        scores = yield from run_concurrently(
            [self._judge(unit, question, first, second), self._judge(unit, question, second, first)]
        )
        if scores[0] is None or scores[1] is None:
            return
        self._settle(unit, question, (first, second), (scores[0], scores[1]))

    def _judge(
        self, unit: GenerationUnit, question: str, first: str, second: str
    ) -> RequestCoroutine[tuple[int, int] | None]:
        """Return the judge's scores of two answers, in their order; None without a verdict."""
        prompt_text = unit.render(
            "judge",
            question=fence_text(question),
            first=fence_text(first),
            second=fence_text(second),
            rubric=self.rubric,
        )
        reply = yield from unit.ask_json(prompt_text, _SCORES, label="verdict", temperature=0.0)
        return (int(reply["first"]), int(reply["second"])) if reply else None

    def _settle(
        self,
        unit: GenerationUnit,
        question: str,
        answers: tuple[str, str],
        scores: tuple[tuple[int, int], tuple[int, int]],
    ) -> None:
        differences = scores[0][0] - scores[0][1], scores[1][1] - scores[1][0]
        margin = sum(differences) / 2
        shown = f"{differences}: {answers[0]} | {answers[1]}"
        if differences[0] != differences[1] and differences[0] * differences[1] <= 0:
            unit.count("verdicts that change with the order")
            unit.fail("a verdict that changes with the order", shown)
        elif abs(margin) < max(self.min_margin, 0.5):
            unit.fail("a margin below the least", shown)
        else:
            preferred, rejected = answers if margin > 0 else answers[::-1]
            fields = {
                "question": question,
                "answer": preferred,
                "chosen": preferred,
                "rejected": rejected,
                "margin": abs(margin),
                "way": "judge",
            }
            unit.add_record(make_qa_messages(question, preferred), fields)
