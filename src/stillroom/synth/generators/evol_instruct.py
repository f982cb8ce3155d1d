"""Evol-Instruct: iterative evolution of instructions in depth or breadth, with elimination.

Source: Xu et al. 2023 (WizardLM), arXiv:2304.12244, section 3: five evolutions in depth and one in
breadth, one sampled for each round; four rules of elimination; a failure leaves the parent in the
pool for the next round. Differs: the comparison of parent and child is requested as JSON.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import DISTINCT
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.conversation import (
    echoes_question,
    get_question,
    is_empty_answer,
    is_refusal,
    make_qa_messages,
)
from stillroom.synth.prompting.requests import (
    fence_text,
    make_enum_schema,
    make_object_schema,
    strip_quotes,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["EvolInstruct"]

Evolution = Literal["constraints", "deepen", "concretize", "reasoning", "complicate", "breadth"]
_EVOLUTIONS: tuple[Evolution, ...] = get_args(Evolution)
_DEPTH = (
    "Rewrite the instruction below into a more complex version that a person can still "
    "understand and answer. {how} Add no more than 10 to 20 words, and keep what was given in "
    "it.\n\n{instruction}\n\nWrite the new instruction alone."
)
_HOW: dict[Evolution, str] = {
    "constraints": "Add one more constraint or requirement.",
    "deepen": "Where it asks about something, ask for more depth and breadth about that.",
    "concretize": "Replace general notions in it with more specific ones.",
    "reasoning": "Where a few steps of thought would answer it, make it need several explicitly.",
    "complicate": "Give it data in a certain form (a table, code, a formula, JSON) to work on.",
}
_LEAK = re.compile(
    r"#?\s*(?:given|rewritten|new|created|the (?:given|new|rewritten)) (?:prompt|instruction)\b#?"
    r"|(?:rewrit|rephras|reword|revis|modif)\w* (?:the|this|your) (?:instruction|prompt)\b"
    r"|(?:instruction|prompt) (?:above|below)\b|more complex version|</?text>"
    r"|\boriginal (?:instruction|prompt)s?\b|^the instructions? (?:is|are|aims?|keeps?)\b"
    r"|\badded (?:constraint|requirement)\b|^(?:nice|good|great) (?:rewrit|rephras)\w+",
    re.IGNORECASE,
)
_ABSENT = re.compile(
    r"\b(?:the|your|this) original (?:sentence|text|version|statement|question|phrase)\b",
    re.IGNORECASE,
)
"""References to a text that only the rewriting model has seen."""
_LABEL = re.compile(r"^(?:(?:new|rewritten) )?instruction\s*:\s*", re.IGNORECASE)
_SAME = make_object_schema(equal=make_enum_schema("yes", "no"))


class EvolInstruct(StepwiseGenerator):
    """Evolve the instruction of a record and answer every step that survives."""

    paper: ClassVar[str] = "arXiv:2304.12244"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "depth": _DEPTH,
        "breadth": "Take the instruction below as inspiration for a brand new one. It is of the "
        "same domain but rarer, of like length and difficulty, and can be understood and answered "
        "by a person.\n\n{instruction}\n\nWrite the new instruction alone.",
        "equal": "First instruction:\n{first}\n\nSecond instruction:\n{second}\n\nAre the two "
        "equal, with the same constraints and requirements and the same depth and breadth of "
        "inquiry?",
        "answer": "{instruction}",
    }

    ways: Annotated[tuple[Evolution, ...], DISTINCT] = Field(
        _EVOLUTIONS, min_length=1, description="evolutions to sample from, uniformly"
    )
    rounds: int = Field(4, ge=1, le=10, description="rounds of evolution per instruction")
    compare: bool = Field(
        True,
        description="compare each evolution with its parent, and "
        "eliminate it if nothing was gained",
    )
    max_instruction_tokens: int = Field(
        256, ge=16, le=4096, description="maximum tokens of an instruction"
    )
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    @override
    def max_requests(self) -> int:
        return self.rounds * (3 if self.compare else 2)

    @property
    @override
    def max_records(self) -> int:
        return self.rounds

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        instruction = get_question(unit.seed.record)
        if not instruction:
            unit.fail("a record that asks nothing")
            return
        rng = unit.rng("ways")
        parent = unit.seed.item.id
        for round_number in range(1, self.rounds + 1):
            evolution = rng.choice(self.ways)
            evolved = yield from self._evolve(unit, evolution, instruction)
            if evolved is None:
                continue
            answer = yield from unit.ask(
                unit.render("answer", instruction=evolved), tokens=self.max_answer_tokens
            )
            if answer is None:
                continue
            if is_refusal(answer):
                unit.fail("eliminated: an answer that is sorry", f"{evolved} | {answer}")
            elif is_empty_answer(answer):
                unit.fail("eliminated: an answer that says nothing", f"{evolved} | {answer}")
            elif echoes_question(evolved, answer):
                unit.fail("eliminated: an answer that repeats it", f"{evolved} | {answer}")
            else:
                fields = {
                    "question": evolved,
                    "answer": answer,
                    "way": evolution,
                    "round": round_number,
                    "before": instruction,
                }
                record = unit.add_record(
                    make_qa_messages(evolved, answer), fields, parents=(parent,)
                )
                instruction, parent = evolved, record.id

    def _evolve(
        self, unit: GenerationUnit, evolution: Evolution, instruction: str
    ) -> RequestCoroutine[str | None]:
        shown = fence_text(instruction)
        if evolution == "breadth":
            prompt_text = unit.render("breadth", instruction=shown)
        else:
            prompt_text = unit.render("depth", how=_HOW[evolution], instruction=shown)
        reply = yield from unit.ask(
            prompt_text, tokens=self.max_instruction_tokens, label="instruction"
        )
        if reply is None:
            return None
        evolved = strip_quotes(_LABEL.sub("", reply))
        if _LEAK.search(evolved) or (_ABSENT.search(evolved) and not _ABSENT.search(instruction)):
            unit.fail("eliminated: words of the prompt in the instruction", reply)
        elif (
            not evolved
            or collapse_whitespace(evolved).casefold()
            == collapse_whitespace(instruction).casefold()
        ):
            unit.fail("eliminated: nothing gained", reply)
        elif self.compare and (yield from self._is_equal(unit, instruction, evolved)):
            unit.fail("eliminated: nothing gained", evolved)
        else:
            return evolved
        return None

    def _is_equal(self, unit: GenerationUnit, first: str, second: str) -> RequestCoroutine[bool]:
        """Return whether the teacher finds two instructions equal; True if unparsable."""
        prompt_text = unit.render("equal", first=fence_text(first), second=fence_text(second))
        reply = yield from unit.ask_json(prompt_text, _SAME, label="comparison", temperature=0.0)
        return reply is None or reply["equal"] == "yes"
