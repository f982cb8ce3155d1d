"""Schemas of what is asked of a teacher, by what they hold, and how long their values get.

Reading the JSON that it wrote is the floor's, ``evaluate.json_text``; it is named here too, since
who asks by a schema reads by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stillroom.evaluate.json_text import Reading, read_json, violation_of

__all__ = [
    "Reading",
    "bound_of",
    "choice_of",
    "find_cut",
    "list_of",
    "object_of",
    "read_json",
    "text_of",
    "violation_of",
]


_PROSE = 120
"""Characters that a text may have from which it is prose, and no label, title or name."""


def text_of(longest: int, shortest: int = 1) -> dict[str, Any]:
    """Return the schema of a text."""
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def choice_of(*values: str | int) -> dict[str, Any]:
    """Return the schema of one of several values."""
    return {"enum": list(values)}


def list_of(item: Mapping[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": dict(item), "minItems": least, "maxItems": most}


def object_of(**parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with these keys, in this order, and no other."""
    return {
        "type": "object",
        "properties": {key: dict(part) for key, part in parts.items()},
        "required": list(parts),
        "additionalProperties": False,
    }


def find_cut(value: Any, schema: Mapping[str, Any], name: str = "") -> str:
    """Return the name of a text that fills all the room it has, or nothing; labels do not count.

    A grammar closes a string at its bound, wherever its sentence stands. Texts within lists and
    objects count under the name of the key that holds them.
    """
    if isinstance(value, str):
        room = schema.get("maxLength", 0)
        return (name or "text") if room >= _PROSE and len(value) >= room else ""
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(value, Mapping):
        known = schema.get("properties") or {}
        parts = [(str(key), inner, known.get(key)) for key, inner in value.items()]
    elif isinstance(value, list):
        parts = [(name, inner, schema.get("items")) for inner in value]
    found = (find_cut(inner, part, key) for key, inner, part in parts if isinstance(part, Mapping))
    return next((cut for cut in found if cut), "")


def bound_of(schema: Mapping[str, Any]) -> int | None:
    """Return how many characters a value of the schema has at most; None if there is no bound.

    It is a bound of what models write: numbers without a million digits, one space after marks.
    """
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema.get("const")]
        return max(len(json.dumps(value, ensure_ascii=False)) for value in values)
    kind = schema.get("type")
    if kind == "string":
        longest = schema.get("maxLength")
        return None if longest is None else int(longest) + 2
    if kind in {"integer", "number", "boolean", "null"}:
        return 24
    if kind == "array":
        each, count = bound_of(schema.get("items") or {}), schema.get("maxItems")
        return None if each is None or count is None else 2 + int(count) * (each + 2)
    if kind == "object" and schema.get("additionalProperties") is False:
        parts = {key: bound_of(part) for key, part in (schema.get("properties") or {}).items()}
        if any(part is None for part in parts.values()):
            return None
        return 2 + sum(len(key) + 6 + (part or 0) for key, part in parts.items())
    return None
