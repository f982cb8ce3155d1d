"""Regular-expression verifier: the answer matches a pattern.

Own method. Patterns run in the sandbox with a time limit, since some do not terminate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator
from typing_extensions import override

from stillroom.evaluate.interfaces import VerificationResult, Verifier
from stillroom.evaluate.regex_search import search_pattern

__all__ = ["Regex"]


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
            is_found = search_pattern(pattern, text.strip(), whole=self.whole)
        except re.error:
            return VerificationResult(False, "its pattern is not a regular expression", 0.0)
        if is_found is None:
            return VerificationResult(False, "the pattern does not come to an end", 0.0)
        return (
            VerificationResult(True)
            if is_found
            else VerificationResult(False, "does not match the pattern", 0.0)
        )
