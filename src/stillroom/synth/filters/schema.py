"""Schema: the answer, or a field, is JSON valid under a JSON Schema.

Source: JSON Schema, draft 2020-12 (validation by the jsonschema package). A Markdown fence around
the JSON is accepted unless ``fence`` is false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator
from typing_extensions import override

from stillroom.evaluate.json_output import check_schema, find_violation, parse_json
from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterResult
from stillroom.synth.prompting.conversation import get_last_answer

__all__ = ["Schema"]


class Schema(Filter):
    """Drop records whose answer is not JSON valid under the schema."""

    paper: ClassVar[str] = ""

    fits: Mapping[str, Any] = Field(
        default_factory=lambda: {"type": "object"}, description="the JSON Schema"
    )
    field: str = Field("", description="field to check; by default the last answer")
    fence: bool = Field(True, description="whether to accept a Markdown fence around the JSON")

    @field_validator("fits")
    @classmethod
    def _is_schema(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        check_schema(value)
        return value

    @override
    def judge(self, record: Record) -> FilterResult:
        value: Any = record.fields.get(self.field) if self.field else get_last_answer(record)
        if isinstance(value, str):
            if not self.fence and value.strip().startswith("```"):
                return FilterResult(False, "JSON within a fence", 0.0)
            try:
                value = parse_json(value)
            except ValueError as error:
                return FilterResult(False, "not JSON", 0.0, details={"why": str(error)})
        elif value is None:
            return FilterResult(
                False, "not JSON", 0.0, details={"why": f"there is no {self.field}"}
            )
        misfit = find_violation(value, self.fits)
        if misfit is not None:
            details = {"at": misfit.pointer or "/", "why": misfit.why}
            return FilterResult(False, "does not fit the schema", 0.0, details=details)
        return FilterResult(True)
