"""Self-revision: an answer, its critique, and the revised answer.

Source: Madaan et al. 2023 (Self-Refine), arXiv:2303.17651, algorithm 1 (feedback, then refinement,
until the feedback finds nothing) and Bai et al. 2022, arXiv:2212.08073, section 3.1 (critique and
revision by principles). Differs: the critique is JSON that includes the stopping decision.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.conversation import get_question, get_solution, make_qa_messages
from stillroom.synth.prompting.requests import (
    fence_text,
    make_array_schema,
    make_enum_schema,
    make_object_schema,
    make_string_schema,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["Revision"]

_PRINCIPLES = (
    "It answers what is asked, completely.",
    "It says nothing false and nothing that is not needed.",
    "It is clear and in order.",
)
_CRITIQUE = make_object_schema(
    problems=make_array_schema(make_string_schema(160, 8), 4, 0),
    good_enough=make_enum_schema("yes", "no"),
)


class Revision(StepwiseGenerator):
    """Criticize and rewrite the answer of a record (or the teacher's own first answer)."""

    paper: ClassVar[str] = "arXiv:2303.17651"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "draft": "{question}",
        "critique": "Question:\n{question}\n\nAnswer:\n{answer}\n\nA good answer keeps to "
        "this:\n{principles}\n\nName what is wrong with this answer, each problem in a few words, "
        "and say whether it is good enough as it is.",
        "rewrite": "Question:\n{question}\n\nAnswer:\n{answer}\n\nProblems of this "
        "answer:\n{problems}\n\nWrite the answer again without these problems. Write the answer "
        "alone.",
    }

    rounds: int = Field(2, ge=1, le=6, description="maximum critiques")
    principles: tuple[str, ...] = Field(
        _PRINCIPLES, min_length=1, description="principles of a good answer"
    )
    keep_unchanged: bool = Field(False, description="keep answers that need no revision")
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    @override
    def max_requests(self) -> int:
        return 1 + 2 * self.rounds

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        question = get_question(unit.seed.record)
        if not question:
            unit.fail("a record that asks nothing")
            return
        answer: str | None = get_solution(unit.seed.record)
        if not answer:
            answer = yield from unit.ask(
                unit.render("draft", question=question), tokens=self.max_answer_tokens
            )
        if not answer:
            return
        first, problems = answer, []
        for _ in range(self.rounds):
            critique = yield from self._criticize(unit, question, answer)
            if critique is None:
                return
            if not critique:
                break
            revised = yield from self._rewrite(unit, question, answer, critique)
            if revised is None:
                return
            if collapse_whitespace(revised) == collapse_whitespace(answer):
                break
            answer = revised
            problems.append(critique)
        if answer == first and not self.keep_unchanged:
            unit.fail("nothing was revised", f"{question} | {first}")
            return
        fields = {"question": question, "answer": answer, "before": first, "critiques": problems}
        unit.add_record(make_qa_messages(question, answer), fields)

    def _criticize(
        self, unit: GenerationUnit, question: str, answer: str
    ) -> RequestCoroutine[list[str] | None]:
        """Return the problems of an answer; empty if it is good enough."""
        prompt_text = unit.render(
            "critique",
            question=fence_text(question),
            answer=fence_text(answer),
            principles="\n".join(f"- {line}" for line in self.principles),
        )
        reply = yield from unit.ask_json(prompt_text, _CRITIQUE, label="critique")
        if reply is None:
            return None
        return (
            [] if reply["good_enough"] == "yes" else [str(problem) for problem in reply["problems"]]
        )

    def _rewrite(
        self, unit: GenerationUnit, question: str, answer: str, problems: list[str]
    ) -> RequestCoroutine[str | None]:
        prompt_text = unit.render(
            "rewrite",
            question=fence_text(question),
            answer=fence_text(answer),
            problems="\n".join(f"- {line}" for line in problems),
        )
        return (yield from unit.ask(prompt_text, tokens=self.max_answer_tokens, label="revision"))
