"""Verified: the answer is right by rule: maths, code that runs, a pattern, a schema.

Own method over the seam ``evaluate.verifiers``, whose methods generators draw by as well: what was
written by people, or by another tool, is held to the same rule. The right answer, the tests or the
pattern stand in the record's fields.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.method import VERIFIERS, Filter, Verdict, Verifier
from stillroom.synth.turns import answer_of

__all__ = ["Verified"]


class Verified(Filter):
    """Drops answers that a verifier finds wrong, or that it has nothing to check by."""

    paper: ClassVar[str] = ""

    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="how an answer is checked"
    )
    field: str = Field("", description="field that is checked; by default the last answer")
    unverifiable: Literal["drop", "keep"] = Field(
        "drop", description="what becomes of records that give nothing to check by"
    )

    @override
    def judge(self, record: Record) -> Verdict:
        if self.verifier.lacks(record.fields):
            if self.unverifiable == "keep":
                return Verdict(True)
            return Verdict(False, "nothing to check by", 0.0)
        text = str(record.fields.get(self.field, "")) if self.field else answer_of(record)
        check = self.verifier.check(text, record.fields)
        if check.keep:
            return Verdict(True, score=check.score)
        told = {"verifier": self.verifier.method_name()}
        return Verdict(False, check.reason or "wrong", check.score, told=told)
