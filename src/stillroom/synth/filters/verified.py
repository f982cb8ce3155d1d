"""Verified: the answer passes a rule-based verifier.

Own method over the seam ``evaluate.verifiers``, whose methods generators draw by as well: what was
written by people, or by another tool, is held to the same rule. The right answer, the tests or the
pattern stand in the record's fields.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.interfaces import VERIFIERS, Verifier
from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterResult
from stillroom.synth.prompting.conversation import get_last_answer

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
    def judge(self, record: Record) -> FilterResult:
        if self.verifier.lacks(record.fields):
            if self.unverifiable == "keep":
                return FilterResult(True)
            return FilterResult(False, "nothing to check by", 0.0)
        text = str(record.fields.get(self.field, "")) if self.field else get_last_answer(record)
        check = self.verifier.check(text, record.fields)
        if check.keep:
            return FilterResult(True, score=check.score)
        told = {"verifier": self.verifier.method_name()}
        return FilterResult(False, check.reason or "wrong", check.score, told=told)
