"""MetaMath: a problem said otherwise, or asked backward, with a solution that is checked.

Source: Yu et al. 2023 (MetaMath), arXiv:2309.12284, section 3: rephrasing, self-verification and
FOBAR (a number becomes x, the answer is given, x is asked), answer augmentation; only solutions
that end in the right answer are kept. Differs: the number that becomes x is drawn, the rephrasings
and statements are JSON.
"""

from __future__ import annotations

import random
import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.final_answer import find_answer
from stillroom.synth.asking import fence
from stillroom.synth.method import RECORD_FILTERS, VERIFIERS, SeedKind, Verifier
from stillroom.synth.steps import Steps, Stepwise, Unit, together
from stillroom.synth.structured import object_of, text_of
from stillroom.synth.tasks import answer_of, pair, question_of
from stillroom.synth.templates import Template
from stillroom.synth.wording import collapse

__all__ = ["Metamath"]

Way = Literal["rephrase", "self_verification", "fobar", "augment"]
_NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w]|[.,]\d)")
_X = re.compile(r"(?<!\w)x(?!\w)")
_LONGEST = 900


class Metamath(Stepwise):
    """Rewrites problems of mathematics and solves what comes of it."""

    paper: ClassVar[str] = "arXiv:2309.12284"
    takes: ClassVar[tuple[SeedKind, ...]] = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "rephrase": Template(
            "{question}\n\nSay this problem in other words, with the same numbers and the same "
            "answer."
        ),
        "state": Template(
            "Problem:\n{question}\n\nIts answer is {answer}.\n\nWrite problem and answer together "
            "as statements, without a question. Keep the unknown x as it is."
        ),
        "backward": Template("{statement} What is the value of the unknown variable x?"),
        "fobar": Template(
            "{question}\nIf we know the answer to the above question is {answer}, what is the "
            "value of the unknown variable x?"
        ),
        "solve": Template(
            "{question}\n\nThink step by step, and end with a line that says: The answer is ..."
        ),
    }

    ways: tuple[Way, ...] = Field(
        ("rephrase", "self_verification", "fobar", "augment"),
        min_length=1,
        description="what is made of each problem",
    )
    tries: int = Field(2, ge=1, le=64, description="solutions sampled of each until one is right")
    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="how a solution is checked"
    )
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="longest solution")

    @property
    @override
    def asks(self) -> int:
        return len(self.ways) * (1 + self.tries)

    @property
    @override
    def gives(self) -> int:
        return len(self.ways)

    @property
    @override
    def longest(self) -> int:
        return self.max_answer_tokens

    @override
    def write(self, unit: Unit) -> Steps[None]:
        question = question_of(unit.seed.record)
        answer = find_answer(answer_of(unit.seed.record))
        if not question or not answer:
            unit.fail("a record without a question or an answer")
            return
        rng = unit.rng("number")
        yield from together(
            [self._make(unit, way, question, answer, random.Random(rng.random()))
             for way in self.ways]
        )  # fmt: skip

    def _make(
        self, unit: Unit, way: Way, question: str, answer: str, rng: random.Random
    ) -> Steps[None]:
        asked: str | None = question
        wanted = answer
        if way == "rephrase":
            asked = yield from self._rephrase(unit, question)
        elif way != "augment":
            numbers = list(_NUMBER.finditer(question))
            if not numbers or _X.search(question):
                unit.fail("no number that x could stand for", question)
                return
            number = rng.choice(numbers)
            wanted = number.group()
            masked = f"{question[: number.start()]}x{question[number.end() :]}"
            if way == "fobar":
                asked = unit.words("fobar", question=masked, answer=answer)
            else:
                asked = yield from self._state(unit, masked, answer)
        if asked is not None:
            yield from self._solve(unit, way, asked, wanted)

    def _rephrase(self, unit: Unit, question: str) -> Steps[str | None]:
        words = unit.words("rephrase", question=fence(question))
        schema = object_of(problem=text_of(_LONGEST, 8))
        found = yield from unit.fill(words, schema, what="rephrasing")
        if found is None:
            return None
        problem = str(found["problem"]).strip()
        if collapse(problem).casefold() == collapse(question).casefold():
            unit.fail("rephrasing that is the same", problem)
            return None
        return problem

    def _state(self, unit: Unit, masked: str, answer: str) -> Steps[str | None]:
        words = unit.words("state", question=fence(masked), answer=answer)
        schema = object_of(statement=text_of(_LONGEST, 8))
        found = yield from unit.fill(words, schema, what="statement")
        if found is None:
            return None
        statement = str(found["statement"]).strip()
        if not _X.search(statement) or answer not in statement or "?" in statement:
            unit.fail("statement without x or the answer, or that asks", statement)
            return None
        return unit.words("backward", statement=statement)

    def _solve(self, unit: Unit, way: Way, question: str, wanted: str) -> Steps[None]:
        words = unit.words("solve", question=question)
        for _ in range(self.tries):
            text = yield from unit.say(words, tokens=self.max_answer_tokens, what="solution")
            if text is None:
                continue
            verdict = self.verifier.check(text, {"answer": wanted})
            if verdict.keep:
                told = {"question": question, "answer": text, "final_answer": wanted, "way": way}
                unit.keep(pair(question, text), told)
                return
            unit.fail(f"solution with {verdict.reason}", text)
