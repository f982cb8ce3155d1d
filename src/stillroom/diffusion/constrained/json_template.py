"""JSON templates of a schema: fixed text with a slot for each value.

Names, brackets and constants are fixed text; every other value is a slot with the automaton of its
values. Objects have all named properties, in order; an array of scalars is one slot, an array of
objects has ``minItems`` elements, or one where ``minItems`` is 0 and ``maxItems`` is not. Strings
have no escapes. Keywords that do not fit this scheme are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.diffusion.constrained.automata import (
    ByteDFA,
    match_integers,
    match_list,
    match_literals,
    match_numbers,
    match_quoted,
    match_strings,
    match_union,
)
from stillroom.errors import BackendError

__all__ = ["JsonTemplate", "Slot", "build_template"]

_REFUSED = (
    "pattern",
    "not",
    "if",
    "allOf",
    "multipleOf",
    "uniqueItems",
    "contains",
    "patternProperties",
    "dependentRequired",
    "dependentSchemas",
    "minProperties",
)
_MAX_DEPTH = 24
_MAX_ITEMS = 16
_MAX_COUNTED = 64
_DECIMALS = 3
_MAX_DECIMALS_RANGE = 2001


@dataclass(frozen=True, slots=True)
class Slot:
    """Position of one value in a template.

    Args:
        path: Path in the document, e.g. ``person.age``.
        values: Automaton of its values.
        longest: Maximum characters, where the automaton does not count them.
    """

    path: str
    values: ByteDFA
    longest: int | None = None


JsonTemplate = tuple[str | Slot, ...]


def build_template(schema: Mapping[str, Any]) -> JsonTemplate:
    """Return the template of a schema.

    Raises:
        BackendError: If the schema has no template; names the keyword and its path.
    """
    joined: list[str | Slot] = []
    for part in _TemplateBuilder(schema).parts(schema, "", 0):
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


class _TemplateBuilder:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root

    def parts(self, schema: Any, path: str, depth: int) -> Iterator[str | Slot]:
        """Yield the fixed text and slots of one value."""
        schema = self.resolve(schema, path, depth)
        kind = _type_of(schema)
        if "const" in schema:
            yield _dump(schema["const"])
        elif kind == "object":
            yield from self.object(schema, path, depth)
        elif kind == "array":
            yield from self.array(schema, path, depth)
        elif kind == "string" and "enum" not in schema:
            yield '"'
            yield Slot(path, _string_dfa(schema, path), _longest_value(schema))
            yield '"'
        elif kind == "null":
            yield "null"
        else:
            yield Slot(path, self.single(schema, path, depth), _longest_value(schema))

    def object(self, schema: Mapping[str, Any], path: str, depth: int) -> Iterator[str | Slot]:
        named = schema.get("properties") or {}
        missing = [name for name in schema.get("required") or () if name not in named]
        if missing:
            raise _unsupported_schema_error(f"'{missing[0]}' is required but not described", path)
        yield "{"
        for number, (name, part) in enumerate(named.items()):
            yield (", " if number else "") + json.dumps(name, ensure_ascii=False) + ": "
            yield from self.parts(part, f"{path}.{name}".strip("."), depth + 1)
        yield "}"

    def array(self, schema: Mapping[str, Any], path: str, depth: int) -> Iterator[str | Slot]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, _MAX_ITEMS)))
        if most < least:
            raise _unsupported_schema_error("maxItems is less than minItems", path)
        fixed, items = schema.get("prefixItems"), schema.get("items")
        if fixed:
            elements = list(fixed)[: max(most, len(fixed)) if "maxItems" not in schema else most]
        elif (items in (None, True, False, {}) and least == 0) or most == 0:
            elements = []
        else:
            inner = self.resolve(items or {}, path, depth + 1)
            if _type_of(inner) not in ("object", "array", None) or "enum" in inner:
                element = self.single(inner, path, depth + 1)
                yield "["
                yield Slot(path, match_list(element, least, most))
                yield "]"
                return
            elements = [items] * max(least, 1)
        yield "["
        for number, part in enumerate(elements):
            yield ", " if number else ""
            yield from self.parts(part, f"{path}[{number}]", depth + 1)
        yield "]"

    def single(self, schema: Mapping[str, Any], path: str, depth: int) -> ByteDFA:
        """Return the automaton of a value that is neither an object nor an array."""
        if "const" in schema or "enum" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            if not values:
                raise _unsupported_schema_error("enum is empty", path)
            return match_literals([_dump(value).encode() for value in values])
        choices = schema.get("anyOf") or schema.get("oneOf")
        kinds = schema.get("type")
        if choices:
            parts = [self.resolve(choice, path, depth + 1) for choice in choices]
        elif isinstance(kinds, list):
            parts = [{**schema, "type": kind} for kind in kinds if kind != "number"]
            parts += [{**schema, "type": "number"}] if "number" in kinds else []
            parts = [p for p in parts if p["type"] != "integer" or "number" not in kinds]
        else:
            return _single_value_dfa(schema, path)
        union = match_union([self.single(part, path, depth + 1) for part in parts])
        if union is None:
            raise _unsupported_schema_error("alternatives share a first byte", path)
        return union

    def resolve(self, schema: Any, path: str, depth: int) -> Mapping[str, Any]:
        """Resolve references; refuse unsupported keywords."""
        if depth > _MAX_DEPTH:
            raise _unsupported_schema_error("the schema is recursive", path)
        if not isinstance(schema, Mapping):
            raise _unsupported_schema_error(f"{schema!r:.40} is not a schema", path)
        for key in _REFUSED:
            if schema.get(key):
                raise _unsupported_schema_error(f"'{key}' is not supported", path)
        reference = schema.get("$ref")
        if reference is None:
            return schema
        target: Any = self.root
        for part in str(reference).removeprefix("#").strip("/").split("/") if reference else ():
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise _unsupported_schema_error(f"{reference!r} does not resolve", path)
            target = target[part]
        more = {key: value for key, value in schema.items() if key != "$ref"}
        return self.resolve({**target, **more}, path, depth + 1)


def _type_of(schema: Mapping[str, Any]) -> str | None:
    """Return the type of a schema; ``choice`` for alternatives, None where it is not restricted."""
    kind = schema.get("type")
    if isinstance(kind, str):
        return kind
    if isinstance(kind, list) and len(kind) == 1:
        return str(kind[0])
    if kind is None and "properties" in schema:
        return "object"
    if kind is None and ("items" in schema or "prefixItems" in schema):
        return "array"
    has_choice = kind or "enum" in schema or "anyOf" in schema or "oneOf" in schema
    return "choice" if has_choice else None


def _single_value_dfa(schema: Mapping[str, Any], path: str) -> ByteDFA:
    kind = _type_of(schema)
    if kind == "boolean":
        return match_literals([b"true", b"false"])
    if kind == "null":
        return match_literals([b"null"])
    if kind == "string":
        return match_quoted(_string_dfa(schema, path))
    if kind == "integer":
        low, high = _integer_bounds(schema, 1)
        if low is not None and high is not None and low > high:
            raise _unsupported_schema_error("no integer lies within its bounds", path)
        return match_integers(low, high)
    if kind == "number":
        return _number_dfa(schema, path)
    reason = "it has no type" if kind is None else f"alternatives contain '{kind}'"
    raise _unsupported_schema_error(f"{reason}, so that its structure is not fixed", path)


def _number_dfa(schema: Mapping[str, Any], path: str) -> ByteDFA:
    low, high = _integer_bounds(schema, 1)
    if low is None and high is None:
        return match_numbers()
    for decimals in range(_DECIMALS, -1, -1):
        scale = 10**decimals
        least, most = _integer_bounds(schema, scale)
        if least is None or most is None or most - least >= _MAX_DECIMALS_RANGE:
            continue
        if most < least:
            break
        written = (f"{value / scale:.{decimals}f}" for value in range(least, most + 1))
        return match_literals([text.encode() for text in written])
    if low is not None and high is not None and low > high:
        raise _unsupported_schema_error("no number of three decimals lies within its bounds", path)
    return match_integers(low, high)


def _integer_bounds(schema: Mapping[str, Any], scale: int) -> tuple[int | None, int | None]:
    """Return the least and the greatest integer multiple of 1/scale within the bounds."""
    lows = [math.ceil(schema["minimum"] * scale)] if "minimum" in schema else []
    highs = [math.floor(schema["maximum"] * scale)] if "maximum" in schema else []
    if "exclusiveMinimum" in schema:
        lows.append(math.floor(schema["exclusiveMinimum"] * scale) + 1)
    if "exclusiveMaximum" in schema:
        highs.append(math.ceil(schema["exclusiveMaximum"] * scale) - 1)
    return max(lows, default=None), min(highs, default=None)


def _string_dfa(schema: Mapping[str, Any], path: str) -> ByteDFA:
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    if least > _MAX_COUNTED:
        raise _unsupported_schema_error(f"minLength is supported up to {_MAX_COUNTED}", path)
    if most is not None and int(most) < least:
        raise _unsupported_schema_error("maxLength is less than minLength", path)
    return match_strings(
        least, int(most) if most is not None and int(most) <= _MAX_COUNTED else None
    )


def _longest_value(schema: Mapping[str, Any]) -> int | None:
    most = schema.get("maxLength")
    return int(most) if most is not None and int(most) > _MAX_COUNTED else None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _unsupported_schema_error(reason: str, path: str) -> BackendError:
    return BackendError(
        f"this JSON Schema is not supported by diffusion models: {reason}",
        code="backend.schema",
        where=path or "the whole",
        expected="objects with named properties, arrays, strings, numbers, booleans, enums and "
        "constants",
        next="simplify the schema, or use another backend for this request",
    )
