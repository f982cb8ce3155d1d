"""Verified: the answer passes a rule-based verifier.

Own method using the registry ``evaluate.verifiers``, which generators use as well: records from
people or from other tools are checked by the same rules. The reference answer, the tests or the
pattern are in the record's fields.
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
    """Drop answers that a verifier rejects or cannot check."""

    paper: ClassVar[str] = ""

    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="method of checking an answer"
    )
    field: str = Field("", description="field to check; by default the last answer")
    unverifiable: Literal["drop", "keep"] = Field(
        "drop", description="how to treat records that cannot be checked"
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
        details = {"verifier": self.verifier.method_name()}
        return FilterResult(False, check.reason or "wrong", check.score, details=details)
