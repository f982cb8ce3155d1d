"""Schema: the answer, or a field, is JSON that fits a JSON Schema.

Source: JSON Schema, draft 2020-12 (validation by the jsonschema package). A Markdown fence around
the JSON is let pass unless ``fence`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.method import Filter, Verdict
from stillroom.synth.turns import answer_of
from stillroom.text.json_schema import check_schema, find_misfit, read_json

__all__ = ["Schema"]


class Schema(Filter):
    """Drops records whose answer is not JSON of the shape asked for."""

    paper: ClassVar[str] = ""

    fits: Mapping[str, Any] = Field(
        default_factory=lambda: {"type": "object"}, description="the JSON Schema"
    )
    field: str = Field("", description="field that is looked at; by default the last answer")
    fence: bool = Field(True, description="whether a Markdown fence may stand around the JSON")

    @field_validator("fits")
    @classmethod
    def _is_schema(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        check_schema(value)
        return value

    @override
    def judge(self, record: Record) -> Verdict:
        value: Any = record.fields.get(self.field) if self.field else answer_of(record)
        if isinstance(value, str):
            if not self.fence and value.strip().startswith("```"):
                return Verdict(False, "JSON within a fence", 0.0)
            try:
                value = read_json(value)
            except ValueError as error:
                return Verdict(False, "not JSON", 0.0, told={"why": str(error)})
        elif value is None:
            return Verdict(False, "not JSON", 0.0, told={"why": f"there is no {self.field}"})
        misfit = find_misfit(value, self.fits)
        if misfit is not None:
            told = {"at": misfit.pointer or "/", "why": misfit.why}
            return Verdict(False, "does not fit the schema", 0.0, told=told)
        return Verdict(True)
