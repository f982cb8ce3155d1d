"""Regular-expression verifier: the answer matches a pattern.

Own method. Patterns run in the sandbox with a time limit, since some do not terminate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator
from typing_extensions import override

from stillroom.evaluate.interfaces import VerificationResult, Verifier
from stillroom.evaluate.sandbox import run_code

__all__ = ["Regex"]

_SEARCH = """
import json, re, sys
pattern, text, whole = json.loads(sys.stdin.read())
print(int(bool((re.fullmatch if whole else re.search)(pattern, text))))
"""
_NESTED = re.compile(r"[*+}]\)?[*+{]|\)[*+{]")


class Regex(Verifier):
    """Searches the answer for a pattern; a task's field ``pattern`` overrides the setting."""

    pattern: str = Field("", description="pattern, unless the task has its own")
    whole: bool = Field(False, description="whether the whole answer must match")

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"it is not a regular expression: {error}") from error
        return value

    @override
    def check(self, text: str, fields: Mapping[str, Any]) -> VerificationResult:
        pattern = str(fields.get("pattern") or self.pattern)
        if not pattern:
            return VerificationResult(False, "no pattern to match", 0.0)
        try:
            compiled = re.compile(pattern)
        except re.error:
            return VerificationResult(False, "its pattern is not a regular expression", 0.0)
        text = text.strip()
        if _NESTED.search(pattern):  # such patterns may not terminate
            request = json.dumps([pattern, text, self.whole])
            outcome = run_code([_SEARCH], stdin=request, timeout_s=2.0)
            if not outcome.is_done:
                return VerificationResult(False, "the pattern does not come to an end", 0.0)
            is_found = outcome.output.strip() == "1"
        else:
            is_found = bool((compiled.fullmatch if self.whole else compiled.search)(text))
        return (
            VerificationResult(True)
            if is_found
            else VerificationResult(False, "does not match the pattern", 0.0)
        )
