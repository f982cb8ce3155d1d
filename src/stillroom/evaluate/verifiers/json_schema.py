"""JSON Schema verifier: the answer is JSON that validates.

Own method, with the library jsonschema (draft 2020-12). Nothing is repaired: the stored answer is
the teacher's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.interfaces import VerificationResult, Verifier
from stillroom.evaluate.json_output import parse_json_with_schema

__all__ = ["JsonSchema"]


class JsonSchema(Verifier):
    """Validates JSON; a task's field ``schema`` overrides the setting."""

    json_schema: dict[str, Any] = Field(
        default_factory=dict, description="JSON Schema, unless the task has its own"
    )

    @override
    def check(self, text: str, fields: Mapping[str, Any]) -> VerificationResult:
        schema = fields.get("schema") or self.json_schema
        if not isinstance(schema, Mapping) or not schema:
            return VerificationResult(False, "no schema to fit", 0.0)
        reading = parse_json_with_schema(text, schema)
        if reading.problem:
            return VerificationResult(False, "does not fit the schema", 0.0)
        if reading.is_repaired:
            return VerificationResult(False, "is JSON only after repair", 0.0)
        return VerificationResult(True)
