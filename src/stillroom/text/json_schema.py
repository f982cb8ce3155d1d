"""Whether a value fits a JSON Schema, and where it does not; validation is the jsonschema package.

Knows values, not records. References to other documents are not followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.errors import DataError, MissingExtraError

__all__ = ["Misfit", "check_schema", "find_misfit", "read_json"]

_LONGEST_WHY = 200


@dataclass(frozen=True, slots=True)
class Misfit:
    """The first thing that does not fit: where (a JSON pointer) and why."""

    pointer: str
    why: str


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse what is no JSON Schema (draft 2020-12, unless it names another).

    Raises:
        DataError: If a keyword has a value that it cannot have.
        MissingExtraError: If the jsonschema package is not installed.
    """
    kind = _validator(schema)
    from jsonschema.exceptions import SchemaError

    try:
        kind.check_schema(dict(schema))
    except SchemaError as error:
        raise DataError(
            f"this is no JSON Schema: {error.message:.200}",
            code="data.schema",
            where="/".join(map(str, error.absolute_path)),
            expected="a schema of draft 2020-12, or of the draft that it names",
            next="correct it there",
        ) from error


def find_misfit(value: Any, schema: Mapping[str, Any]) -> Misfit | None:
    """Return the first misfit of a value in order of places; None if it fits.

    Raises:
        MissingExtraError: If the jsonschema package is not installed.
    """
    found = list(_validator(schema)(dict(schema)).iter_errors(value))
    if not found:
        return None
    first = min(found, key=lambda one: ([str(part) for part in one.absolute_path], one.message))
    place = "".join(f"/{part}" for part in first.absolute_path)
    return Misfit(place, str(first.message)[:_LONGEST_WHY])


def read_json(text: str) -> Any:
    """Return the JSON value that a text is, a Markdown fence around it left out.

    Raises:
        ValueError: If it is none.
    """
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare[bare.index("\n") + 1 : -3]
    try:
        return json.loads(bare)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import validator_for
    except ImportError as error:
        raise MissingExtraError.of("jsonschema", "schema", "checking JSON Schemas") from error
    return validator_for(dict(schema), default=Draft202012Validator)
