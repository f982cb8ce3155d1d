r"""Math verifier (accuracy reward): the final answer equals the reference as number or formula.

Source: Hendrycks et al. 2021, arXiv:2103.03874 (answers in ``\boxed{}``), compared by Math-Verify.
Differs: formulas are compared in a subprocess with limits of time and memory, since some do not
terminate; an answer in words is read as its sentence's last expression (``extract_answers``).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.final_answer import (
    ExtractionMode,
    differs_in_unit,
    extract_answers,
    is_same_answer,
    is_same_formula,
)
from stillroom.evaluate.interfaces import VerificationResult, Verifier

__all__ = ["Maths"]


class Maths(Verifier):
    """Compares final answers with a reference."""

    paper: ClassVar[str] = "arXiv:2103.03874"
    needs: ClassVar[tuple[str, ...]] = ("answer",)

    find: ExtractionMode = Field(
        "marked",
        description="position of the answer: marked after the last 'answer is', 'answer:', #### or "
        "in \\boxed{}, else the last line; number the last number; whole the whole text",
    )
    formulas: bool = Field(
        True, description="compare formulas with Math-Verify if texts differ (needs the extra)"
    )

    @override
    def check(self, text: str, fields: Mapping[str, Any]) -> VerificationResult:
        references = _right_answers(str(fields.get("answer", "")), self.find)
        answers = extract_answers(text, self.find)
        if not references:
            return VerificationResult(False, "no right answer to compare with", 0.0)
        if not answers:
            return VerificationResult(False, "no answer found", 0.0)
        if differs_in_unit(answers[0], references[0]):
            return VerificationResult(False, "another answer", 0.0)
        pairs = list(product(answers, references))
        if any(is_same_answer(*pair) for pair in pairs):
            return VerificationResult(True)
        if self.formulas and any(is_same_formula(*pair) for pair in pairs):
            return VerificationResult(True)
        return VerificationResult(False, "another answer", 0.0)


def _right_answers(text: str, find: ExtractionMode) -> list[str]:
    """Return the answer of a worked solution; a bare answer is returned with its brackets."""
    bare = text.strip()
    answers = extract_answers(bare, find)
    if answers and bare.strip(".$ {}()[]") == answers[0].strip(".$ {}()[]"):
        return [bare]
    return answers
