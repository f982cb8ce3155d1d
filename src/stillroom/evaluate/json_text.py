"""Reading JSON that a model wrote: as it stands, or repaired, and held to its schema either way.

Takes any text and never raises. Where the backend has a grammar the text is valid as it stands;
where it has none, ``json_repair`` mends commas, quotes and fences, and ``jsonschema`` decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Reading", "read_json", "violation_of"]

_MAX_CHARACTERS = 200_000
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a text, or what is wrong with it; ``is_repaired`` says that it was mended."""

    value: Any = None
    problem: str = ""
    is_repaired: bool = False


def read_json(text: str, schema: Mapping[str, Any]) -> Reading:
    """Return the JSON value of a text that fits a schema, or the problem in words."""
    if not text.strip():
        return Reading(problem="it is empty")
    if len(text) > _MAX_CHARACTERS:
        return Reading(problem=f"it is {len(text)} characters long")
    fenced = _FENCE.search(text)
    bare = fenced[1] if fenced else text.strip()
    try:
        value, is_repaired = json.loads(bare, parse_constant=_refuse), fenced is not None
    except (ValueError, RecursionError):
        value, is_repaired = _repair(bare), True
    problem = violation_of(value, schema)
    return Reading(None, problem, is_repaired) if problem else Reading(value, "", is_repaired)


def violation_of(value: Any, schema: Mapping[str, Any]) -> str:
    """Return how a value breaks a schema, in words; empty if it fits."""
    from jsonschema.exceptions import best_match

    try:
        worst = best_match(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value))
    except RecursionError:
        return "it is nested too deeply"
    if worst is None:
        return ""
    place = ".".join(str(part) for part in worst.absolute_path)
    return f"{place}: {worst.message}"[:300] if place else str(worst.message)[:300]


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def _repair(text: str) -> Any:
    import json_repair

    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    if not starts:
        return None
    try:
        value = json_repair.loads(text[min(starts) :], skip_json_loads=True)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError, IndexError):
        return None
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
