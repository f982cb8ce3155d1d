"""Front matter: the fields that a Markdown file tells of itself before its text, typed.

YAML between ``---`` lines or TOML between ``+++`` lines. Fields keep their types as JSON has them
(dates become ISO 8601), maps within get dotted names. Aliases of YAML, which can unfold without
end, are refused.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FrontMatter", "read_front_matter"]

_YAML = re.compile(
    r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_TOML = re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_LONGEST = 64 * 1024
_MOST_FIELDS = 200
_DEEPEST = 4

Value = str | int | float | bool | list[str | int | float | bool]


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """The fields, where the text begins, and why fields could not be read."""

    fields: dict[str, Value] = field(default_factory=dict)
    end: int = 0
    error: str = ""


def read_front_matter(text: str) -> FrontMatter:
    """Return the front matter at the start of a text; nothing where there is none."""
    match = _YAML.match(text, 0, _LONGEST) or _TOML.match(text, 0, _LONGEST)
    if match is None:
        return FrontMatter()
    load = _load_yaml if text.startswith("---") else _load_toml
    try:
        loaded = load(match.group(1))
        fields = dict(_flatten(loaded, "", 0)) if isinstance(loaded, dict) else {}
    except (ValueError, RecursionError) as error:
        return FrontMatter({}, match.end(), str(error).split("\n", 1)[0][:200])
    return FrontMatter(dict(list(fields.items())[:_MOST_FIELDS]), match.end())


def _load_yaml(content: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    yaml = YAML(typ="safe", pure=True)
    try:
        if any(isinstance(event, AliasEvent) for event in yaml.parse(content)):
            raise ValueError("aliases are not read")
        return yaml.load(content)
    except YAMLError as error:
        raise ValueError(str(error)) from error


def _load_toml(content: str) -> Any:
    import tomllib

    return tomllib.loads(content)


def _flatten(values: dict[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Value]]:
    if depth > _DEEPEST:
        raise ValueError("maps are nested too deeply")
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.", depth + 1)
        elif isinstance(value, list | tuple | set):
            yield name, [_scalar(one) for one in value if one is not None]
        elif value is not None:
            yield name, _scalar(value)


def _scalar(value: object) -> str | int | float | bool:
    """Return a value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
