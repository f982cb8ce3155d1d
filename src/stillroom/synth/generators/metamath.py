"""MetaMath: rephrased and backward math problems with verified solutions.

Source: Yu et al. 2023 (MetaMath), arXiv:2309.12284, section 3: rephrasing, self-verification and
FOBAR (a number is replaced by x, the answer is given, x is to be found), answer augmentation; only
solutions with the right final answer are kept. Differs: the number to replace is sampled;
rephrasings and statements are JSON.
"""

from __future__ import annotations

import random
import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.final_answer import extract_answer
from stillroom.evaluate.interfaces import VERIFIERS, Verifier
from stillroom.recipes import DISTINCT
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.conversation import (
    get_question,
    get_reference_answer,
    make_qa_messages,
)
from stillroom.synth.prompting.requests import (
    fence_text,
    make_object_schema,
    make_string_schema,
)
from stillroom.synth.prompting.stepwise import (
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)

__all__ = ["Metamath"]

Augmentation = Literal["rephrase", "self_verification", "fobar", "augment"]
_NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w]|[.,]\d)")
_X = re.compile(r"(?<!\w)x(?!\w)")
_LONGEST = 900


class Metamath(StepwiseGenerator):
    """Rewrite math problems and solve the results."""

    paper: ClassVar[str] = "arXiv:2309.12284"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "rephrase": "{question}\n\nSay this problem in other words, with the same numbers and the "
        "same answer.",
        "state": "Problem:\n{question}\n\nIts answer is {answer}.\n\nWrite problem and answer "
        "together as statements, without a question. Keep the unknown x as it is.",
        "backward": "{statement} What is the value of the unknown variable x?",
        "fobar": "{question}\nIf we know the answer to the above question is {answer}, what is the "
        "value of the unknown variable x?",
        "solve": "{question}\n\nThink step by step, and end with a line that says: The answer is "
        "...",
    }

    ways: Annotated[tuple[Augmentation, ...], DISTINCT] = Field(
        ("rephrase", "self_verification", "fobar", "augment"),
        min_length=1,
        description="augmentations applied to each problem",
    )
    tries: int = Field(
        2, ge=1, le=64, description="solutions sampled for each problem until one is right"
    )
    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="method of checking a solution"
    )
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="maximum tokens of a solution")

    @property
    @override
    def max_requests(self) -> int:
        return len(self.ways) * (1 + self.tries)

    @property
    @override
    def max_records(self) -> int:
        return len(self.ways)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        question = get_question(unit.seed.record)
        answer = extract_answer(get_reference_answer(unit.seed.record))
        if not question or not answer:
            unit.fail("a record without a question or an answer")
            return
        rng = unit.rng("number")
        yield from run_concurrently(
            [self._make(unit, augmentation, question, answer, random.Random(rng.random()))
             for augmentation in self.ways]
        )  # fmt: skip

    def _make(
        self,
        unit: GenerationUnit,
        augmentation: Augmentation,
        question: str,
        answer: str,
        rng: random.Random,
    ) -> RequestCoroutine[None]:
        prompted: str | None = question
        expected = answer
        if augmentation == "rephrase":
            prompted = yield from self._rephrase(unit, question)
        elif augmentation != "augment":
            numbers = list(_NUMBER.finditer(question))
            if not numbers or _X.search(question):
                unit.fail("no number that x could stand for", question)
                return
            number = rng.choice(numbers)
            expected = number.group()
            masked = f"{question[: number.start()]}x{question[number.end() :]}"
            if augmentation == "fobar":
                prompted = unit.render("fobar", question=masked, answer=answer)
            else:
                prompted = yield from self._state(unit, masked, answer)
        if prompted is not None:
            yield from self._solve(unit, augmentation, prompted, expected)

    def _rephrase(self, unit: GenerationUnit, question: str) -> RequestCoroutine[str | None]:
        prompt_text = unit.render("rephrase", question=fence_text(question))
        schema = make_object_schema(problem=make_string_schema(_LONGEST, 8))
        reply = yield from unit.ask_json(prompt_text, schema, label="rephrasing")
        if reply is None:
            return None
        problem = str(reply["problem"]).strip()
        if collapse_whitespace(problem).casefold() == collapse_whitespace(question).casefold():
            unit.fail("rephrasing that is the same", problem)
            return None
        return problem

    def _state(
        self, unit: GenerationUnit, masked: str, answer: str
    ) -> RequestCoroutine[str | None]:
        prompt_text = unit.render("state", question=fence_text(masked), answer=answer)
        schema = make_object_schema(statement=make_string_schema(_LONGEST, 8))
        reply = yield from unit.ask_json(prompt_text, schema, label="statement")
        if reply is None:
            return None
        statement = str(reply["statement"]).strip()
        if not _X.search(statement) or answer not in statement or "?" in statement:
            unit.fail("statement without x or the answer, or that asks", statement)
            return None
        return unit.render("backward", statement=statement)

    def _solve(
        self, unit: GenerationUnit, augmentation: Augmentation, question: str, expected: str
    ) -> RequestCoroutine[None]:
        prompt_text = unit.render("solve", question=question)
        for _ in range(self.tries):
            text = yield from unit.ask(prompt_text, tokens=self.max_answer_tokens, label="solution")
            if text is None:
                continue
            verdict = self.verifier.check(text, {"answer": expected})
            if verdict.keep:
                fields = {
                    "question": question,
                    "answer": text,
                    "final_answer": expected,
                    "way": augmentation,
                }
                unit.add_record(make_qa_messages(question, text), fields)
                return
            unit.fail(f"solution with {verdict.reason}", text)
