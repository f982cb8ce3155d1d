"""JSON of model outputs: parsing, repair and JSON Schema validation.

Parsing with a schema takes any text and does not raise. A backend with grammar support returns
valid text; for the others ``json_repair`` fixes commas, quotes and fences, and ``jsonschema``
decides. References to other documents are not followed.

Both are imported here, not within functions: threads that import jsonschema for the first time
together meet its modules half initialized.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import json_repair
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend, validator_for

from stillroom.errors import DataError
from stillroom.evaluate.regex_search import time_search

__all__ = [
    "ParsedJson",
    "SchemaViolation",
    "check_schema",
    "describe_violation",
    "find_violation",
    "parse_json",
    "parse_json_with_schema",
]


_MAX_CHARACTERS = 200_000
_MAX_REASON = 300
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedJson:
    """Parsed value, or the problem of the text; ``is_repaired`` is whether it was repaired."""

    value: Any = None
    problem: str = ""
    is_repaired: bool = False


@dataclass(frozen=True, slots=True)
class SchemaViolation:
    """A violation: a JSON pointer and a message."""

    pointer: str
    why: str


def parse_json_with_schema(text: str, schema: Mapping[str, Any]) -> ParsedJson:
    """Return the JSON value of a text that fits a schema, or a description of the problem."""
    if not text.strip():
        return ParsedJson(problem="it is empty")
    if len(text) > _MAX_CHARACTERS:
        return ParsedJson(problem=f"it is {len(text)} characters long")
    fenced = _FENCE.search(text)
    bare = fenced[1] if fenced else text.strip()
    try:
        value, is_repaired = _load_finite(bare), fenced is not None
    except (ValueError, RecursionError):
        value, is_repaired = _repair_json(bare), True
    problem = describe_violation(value, schema)
    return ParsedJson(None, problem, is_repaired) if problem else ParsedJson(value, "", is_repaired)


def find_violation(value: Any, schema: Mapping[str, Any]) -> SchemaViolation | None:
    """Return the most relevant violation; None if the value fits."""
    _BUDGET.steps, _BUDGET.seconds = _MAX_STEPS, _MAX_PATTERN_S
    try:
        worst = best_match(_open_validator(json.dumps(schema, sort_keys=True)).iter_errors(value))
    except RecursionError:
        return SchemaViolation("", "it is nested too deeply")
    except _EndlessSchema as error:
        return SchemaViolation("", str(error))
    if worst is None:
        return None
    pointer = "".join(f"/{part}" for part in worst.absolute_path)
    return SchemaViolation(pointer, str(worst.message)[:_MAX_REASON])


def describe_violation(value: Any, schema: Mapping[str, Any]) -> str:
    """Describe how a value violates a schema; empty if it fits."""
    misfit = find_violation(value, schema)
    if misfit is None:
        return ""
    return f"{misfit.pointer[1:].replace('/', '.')}: {misfit.why}" if misfit.pointer else misfit.why


@lru_cache(maxsize=256)
def _open_validator(schema: str) -> Any:
    parsed = json.loads(schema)
    kind = _validator_class(parsed)
    keywords = {**kind.VALIDATORS, "pattern": _check_pattern}
    if "patternProperties" in keywords:
        keywords["patternProperties"] = _check_pattern_properties
    if closed := keywords.get("additionalProperties"):
        keywords["additionalProperties"] = _check_names_first(closed)
    bound = extend(kind, {name: _bound(check) for name, check in keywords.items()})
    evolve = bound.evolve

    def evolve_bound(self: Any, **changes: Any) -> Any:
        # A schema within, that names its own dialect, would get that dialect's unbound checks.
        if isinstance(schema := changes.get("schema"), Mapping) and "$schema" in schema:
            changes["schema"] = {name: one for name, one in schema.items() if name != "$schema"}
        return evolve(self, **changes)

    bound.evolve = evolve_bound
    return bound(parsed)


class _EndlessSchema(Exception):  # noqa: N818  # caught here
    """A schema whose checks do not come to an end, or cannot be made."""


class _Budget(threading.local):
    steps, seconds = 0, 0.0


def _bound(check: Any) -> Any:
    """Count the checks of a keyword: references that fan out make 2**40 of 40 lines."""

    def count(validator: Any, setting: Any, instance: Any, schema: Any) -> Any:
        _BUDGET.steps -= 1
        if _BUDGET.steps < 0:
            raise _EndlessSchema(f"its schema needs more than {_MAX_STEPS} checks")
        return check(validator, setting, instance, schema)

    return count


def _search(pattern: str, text: str) -> bool:
    try:
        is_found, seconds = time_search(pattern, text)
    except re.error as error:
        raise _EndlessSchema(
            f"a pattern of its schema is not a regular expression: {error}"
        ) from None
    _BUDGET.seconds -= seconds
    if is_found is None or _BUDGET.seconds < 0:
        raise _EndlessSchema("a pattern of its schema does not come to an end")
    return is_found


def _check_pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _search(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, _: Any
) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, schema in patterns.items():
        for name, value in instance.items():
            if _search(pattern, name):
                yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _check_names_first(check: Any) -> Any:
    """Search names for patterns within limits, before jsonschema's own search without any."""

    def search(validator: Any, setting: Any, instance: Any, schema: Any) -> Any:
        if validator.is_type(instance, "object"):
            for pattern in schema.get("patternProperties", {}):
                for name in instance:
                    _search(pattern, name)
        return check(validator, setting, instance, schema)

    return search


_MAX_STEPS = 200_000
_MAX_PATTERN_S = 10.0
"""Processor time of all patterns of a schema together."""
_BUDGET = _Budget()


def _repair_json(text: str) -> Any:
    starts = [start for start in (text.find("{"), text.find("[")) if start >= 0]
    if not starts:
        return None
    try:
        value = json_repair.loads(text[min(starts) :], skip_json_loads=True)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError, IndexError):
        return None
    return value


def _load_finite(text: str) -> Any:
    """Return the value of JSON whose numbers are finite, so that it can be written as JSON."""
    return json.loads(text, parse_constant=_read_finite, parse_float=_read_finite)


def _read_finite(number: str) -> float:
    """Return a number; ``Infinity`` is none of JSON's, and 1e999 is infinite as a float."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number:.20} is not a finite number")
    return value


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check that a JSON Schema is valid (draft 2020-12, unless it names another).

    Raises:
        DataError: If a keyword has an invalid value.
    """
    kind = _validator_class(schema)
    try:
        kind.check_schema(dict(schema))
    except SchemaError as error:
        raise DataError(
            f"this is not a JSON Schema: {error.message:.200}",
            code="data.schema",
            where="/".join(map(str, error.absolute_path)),
            expected="a schema of draft 2020-12, or of the draft that it names",
            next="correct it there",
        ) from error


def parse_json(text: str) -> Any:
    """Parse a text as JSON, without a surrounding Markdown fence.

    Raises:
        ValueError: If it is not JSON, or holds a number that is not finite.
    """
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare[bare.index("\n") + 1 : -3]
    try:
        return _load_finite(bare)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _validator_class(schema: Mapping[str, Any]) -> Any:
    return validator_for(dict(schema), default=Draft202012Validator)
