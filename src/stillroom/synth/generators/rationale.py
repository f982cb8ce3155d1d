"""Rationale: chain of thought that ends in the reference answer, with a hint as fallback.

Source: Zelikman et al. 2022 (STaR), arXiv:2203.14465, section 3: sample a rationale; where the
answer is wrong, give the answer as a hint and sample again; keep rationales with the right answer,
without the hint. Differs: reasoning that mentions the hint is dropped. To retrain, start from the
base model each round.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.interfaces import VERIFIERS, Verifier
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.prompting.conversation import (
    get_final_answer,
    get_question,
    get_reference_answer,
    make_qa_messages,
)
from stillroom.synth.prompting.requests import fence_text, to_one_line
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["Rationale"]

_TELLS = re.compile(r"\bhint\b|\b(?:given|provided|correct|right) answer\b", re.IGNORECASE)


class Rationale(StepwiseGenerator):
    """Generate reasoning for the answer of a record, and keep what reaches it."""

    paper: ClassVar[str] = "arXiv:2203.14465"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "reason": "{question}\n\nThink step by step, and end with a line that says: The answer is "
        "...",
        "hinted": "{question}\n\n(The answer is {answer}.)\n\nThink step by step about why, as if "
        "you had not been told, and end with a line that says: The answer is ...",
    }

    tries: int = Field(2, ge=1, le=64, description="rationales sampled before a hint is given")
    rationalize: bool = Field(True, description="give the answer as a hint where all tries fail")
    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="method of checking the answer"
    )
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="maximum tokens of a rationale")

    @property
    @override
    def max_requests(self) -> int:
        return self.tries + int(self.rationalize)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        record = unit.seed.record
        question, answer = get_question(record), get_final_answer(record)
        fields = {**record.fields, "answer": get_reference_answer(record)}
        if not question or self.verifier.lacks(fields):
            unit.fail("a record without a question or what its answer is checked by")
            return
        prompt_text = unit.render("reason", question=question)
        for _ in range(self.tries):
            text = yield from unit.ask(
                prompt_text, tokens=self.max_answer_tokens, label="rationale"
            )
            if text is not None and self._holds(unit, text, fields):
                self._keep(unit, question, answer, text, "sampled")
                return
        if not self.rationalize or not answer:
            return
        shown = fence_text(answer) if "\n" in answer else to_one_line(answer)
        prompt_text = unit.render("hinted", question=question, answer=shown)
        text = yield from unit.ask(prompt_text, tokens=self.max_answer_tokens, label="rationale")
        if text is not None and _TELLS.search(text):
            unit.fail("rationale that tells of its hint", text)
        elif text is not None and self._holds(unit, text, fields):
            self._keep(unit, question, answer, text, "rationalized")

    def _holds(self, unit: GenerationUnit, text: str, fields: dict[str, object]) -> bool:
        verdict = self.verifier.check(text, fields)
        if not verdict.keep:
            unit.fail(verdict.reason, text)
        return verdict.keep

    def _keep(
        self, unit: GenerationUnit, question: str, answer: str, text: str, source: str
    ) -> None:
        unit.count(f"rationales {source}")
        fields = {"question": question, "answer": text, "final_answer": answer, "way": source}
        unit.add_record(make_qa_messages(question, text), fields)
