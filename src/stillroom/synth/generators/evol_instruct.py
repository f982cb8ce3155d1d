"""Evol-Instruct: instructions made harder or rarer round by round, failures eliminated.

Source: Xu et al. 2023 (WizardLM), arXiv:2304.12244, section 3: five ways in depth and one in
breadth, one drawn for each round; four rules of elimination; a failure leaves the parent in the
pool for the next round. Differs: whether anything was gained is asked as JSON.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.synth.asking import fence
from stillroom.synth.method import RECORD_FILTERS, SeedKind
from stillroom.synth.replies import unquote
from stillroom.synth.steps import Steps, Stepwise, Unit
from stillroom.synth.tasks import is_echo, is_empty_answer, is_refusal, pair, question_of
from stillroom.synth.templates import Template
from stillroom.synth.wording import collapse

__all__ = ["EvolInstruct"]

Way = Literal["constraints", "deepen", "concretize", "reasoning", "complicate", "breadth"]
_WAYS: tuple[Way, ...] = (
    "constraints",
    "deepen",
    "concretize",
    "reasoning",
    "complicate",
    "breadth",
)
_DEPTH = (
    "Rewrite the instruction below into a more complex version that a person can still "
    "understand and answer. {how} Add no more than 10 to 20 words, and keep what was given in "
    "it.\n\n{instruction}\n\nWrite the new instruction alone."
)
_HOW: dict[Way, str] = {
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
"""What only the one who rewrites has before him."""
_LABEL = re.compile(r"^(?:(?:new|rewritten) )?instruction\s*:\s*", re.IGNORECASE)
_SAME = {
    "type": "object",
    "properties": {"equal": {"enum": ["yes", "no"]}},
    "required": ["equal"],
    "additionalProperties": False,
}


class EvolInstruct(Stepwise):
    """Evolves the instruction of a record and answers every step that survives."""

    paper: ClassVar[str] = "arXiv:2304.12244"
    takes: ClassVar[tuple[SeedKind, ...]] = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "depth": Template(_DEPTH),
        "breadth": Template(
            "Take the instruction below as inspiration for a brand new one. It is of the same "
            "domain but rarer, of like length and difficulty, and can be understood and answered "
            "by a person.\n\n{instruction}\n\nWrite the new instruction alone."
        ),
        "equal": Template(
            "First instruction:\n{first}\n\nSecond instruction:\n{second}\n\nAre the two equal, "
            "with the same constraints and requirements and the same depth and breadth of inquiry?"
        ),
        "answer": Template("{instruction}"),
    }

    ways: tuple[Way, ...] = Field(_WAYS, min_length=1, description="ways drawn from, alike often")
    rounds: int = Field(4, ge=1, le=10, description="rounds of evolution of one instruction")
    compare: bool = Field(True, description="ask whether anything was gained, and eliminate if not")
    max_instruction_tokens: int = Field(256, ge=16, le=4096, description="longest instruction")
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="longest answer")

    @property
    @override
    def asks(self) -> int:
        return self.rounds * (3 if self.compare else 2)

    @property
    @override
    def gives(self) -> int:
        return self.rounds

    @property
    @override
    def longest(self) -> int:
        return max(self.max_instruction_tokens, self.max_answer_tokens)

    @override
    def write(self, unit: Unit) -> Steps[None]:
        instruction = question_of(unit.seed.record)
        if not instruction:
            unit.fail("a record that asks nothing")
            return
        rng = unit.rng("ways")
        parent = unit.seed.item.id
        for round_number in range(1, self.rounds + 1):
            way = rng.choice(self.ways)
            evolved = yield from self._evolve(unit, way, instruction)
            if evolved is None:
                continue
            answer = yield from unit.say(
                unit.words("answer", instruction=evolved), tokens=self.max_answer_tokens
            )
            if answer is None:
                continue
            if is_refusal(answer):
                unit.fail("eliminated: an answer that is sorry", f"{evolved} | {answer}")
            elif is_empty_answer(answer):
                unit.fail("eliminated: an answer that says nothing", f"{evolved} | {answer}")
            elif is_echo(evolved, answer):
                unit.fail("eliminated: an answer that repeats it", f"{evolved} | {answer}")
            else:
                told = {
                    "question": evolved,
                    "answer": answer,
                    "way": way,
                    "round": round_number,
                    "before": instruction,
                }
                made = unit.keep(pair(evolved, answer), told, parents=(parent,))
                instruction, parent = evolved, made.id

    def _evolve(self, unit: Unit, way: Way, instruction: str) -> Steps[str | None]:
        shown = fence(instruction)
        if way == "breadth":
            words = unit.words("breadth", instruction=shown)
        else:
            words = unit.words("depth", how=_HOW[way], instruction=shown)
        said = yield from unit.say(words, tokens=self.max_instruction_tokens, what="instruction")
        if said is None:
            return None
        evolved = unquote(_LABEL.sub("", said))
        if _LEAK.search(evolved) or (_ABSENT.search(evolved) and not _ABSENT.search(instruction)):
            unit.fail("eliminated: words of the prompt in the instruction", said)
        elif not evolved or collapse(evolved).casefold() == collapse(instruction).casefold():
            unit.fail("eliminated: nothing gained", said)
        elif self.compare and (yield from self._is_equal(unit, instruction, evolved)):
            unit.fail("eliminated: nothing gained", evolved)
        else:
            return evolved
        return None

    def _is_equal(self, unit: Unit, first: str, second: str) -> Steps[bool]:
        """Return whether the teacher finds two instructions equal; unread, they are."""
        words = unit.words("equal", first=fence(first), second=fence(second))
        found = yield from unit.fill(words, _SAME, what="comparison", temperature=0.0)
        return found is None or found["equal"] == "yes"
