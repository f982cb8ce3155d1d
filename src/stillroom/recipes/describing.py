"""What a setting may be, in words, and a value to stand in for one that is required."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stillroom.recipes.emitting import emit_scalar
from stillroom.recipes.settings import Form, Secret
from stillroom.registry.method import Choice, Method

__all__ = ["default_of", "describe", "is_list", "least_length", "placeholder", "to_plain"]

_ENDLESS = 2**53
"""A bound at least as large as this is a limit of the machine, not of the method."""


def describe(info: FieldInfo, *, is_needed: bool = False) -> str:
    """Return a setting's description, what it may be, and its default or that it is required."""
    parts = [info.description or "", *dict.fromkeys(_forms(info.annotation, info.metadata))]
    default = default_of(info)
    if default is PydanticUndefined or is_needed:
        parts.append("required")
    elif default is None:
        parts.append("optional")
    elif isinstance(default, Method):
        parts.append(f"default {default.method_name()}")
    elif not isinstance(default, BaseModel):
        plain = to_plain(default)
        if not plain or not isinstance(plain, dict | list):
            parts.append(f"default {emit_scalar(plain)}")
    return "; ".join(part for part in parts if part)


def default_of(info: FieldInfo) -> Any:
    """Return the default, made if it has a factory, or ``PydanticUndefined``."""
    return info.get_default(call_default_factory=True)


def placeholder(name: str, annotation: Any, metadata: Sequence[Any]) -> Any:
    """Return a plain value that the annotation accepts; ``name`` shows what it stands for."""
    form = next((mark for mark in metadata if isinstance(mark, Form)), None)
    if form is not None:
        return form.placeholder.replace("NAME", name)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return placeholder(name, parts[0], parts[1:])
    if origin is Literal:
        return parts[0]
    if origin in {list, tuple, set, frozenset}:
        return [placeholder(name, parts[0], ())] * least_length(metadata)
    if origin is dict:
        return {"name": placeholder(name, parts[1], ())}
    if annotation in {int, float}:
        return _number(annotation, metadata)
    kinds = [part for part in parts if part is not type(None)]
    if kinds:
        return placeholder(name, kinds[0], ())
    return {bool: False, Path: f"path/to/{name}"}.get(annotation, "TEXT")


def least_length(metadata: Sequence[Any]) -> int:
    """Return how many items a list must have, at least one."""
    return max(1, int(_limit(metadata, "min_length") or 1))


def is_list(annotation: Any) -> bool:
    """Return whether a value is a list, or may be."""
    if get_origin(annotation) in {list, tuple}:
        return True
    return any(get_origin(part) in {list, tuple} for part in get_args(annotation))


def to_plain(value: Any) -> Any:
    """Return a default as plain values that YAML can hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(part) for part in value]
    if isinstance(value, Secret):
        return value.reference
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _forms(annotation: Any, metadata: Iterable[Any]) -> Iterator[str]:
    """Yield what a value may be: units, choices, bounds."""
    marks = list(metadata)
    forms = [mark.hint for mark in marks if isinstance(mark, Form)]
    yield from forms
    for mark in marks:
        if isinstance(mark, Choice):
            yield f"one of: {', '.join(mark.seam.names())}"
    if not forms:
        yield from _bounds(marks)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        if len(parts) > 1:
            yield f"one of: {', '.join(emit_scalar(part) for part in parts)}"
    elif origin is Annotated:
        yield from _forms(parts[0], parts[1:])
    else:
        for part in parts:
            yield from _forms(part, ())


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    low, high = _limit(metadata, "ge"), _limit(metadata, "le")
    high = None if high is not None and high >= _ENDLESS else high
    if low is not None and high is not None:
        yield f"{low} to {high}"
    elif low is not None or high is not None:
        yield f"at least {low}" if high is None else f"at most {high}"
    names = {"gt": "above", "lt": "below", "multiple_of": "a multiple of"}
    for key, word in names.items():
        if (limit := _limit(metadata, key)) is not None:
            yield f"{word} {limit}"
    least, most = _limit(metadata, "min_length"), _limit(metadata, "max_length")
    if least is not None:
        yield f"{least} or more"
    if most is not None:
        yield f"no more than {most}"


def _number(kind: type[int] | type[float], metadata: Sequence[Any]) -> int | float:
    """Return a number within the bounds, near the lower one."""
    low, above = _limit(metadata, "ge"), _limit(metadata, "gt")
    tops = [top for top in (_limit(metadata, "le"), _limit(metadata, "lt")) if top is not None]
    if low is not None:
        return kind(low)
    if above is not None:
        return kind(above + 1) if not tops or above + 1 < min(tops) else (above + min(tops)) / 2
    return kind(min(tops) - 1) if tops else kind(1)


def _limit(metadata: Sequence[Any], name: str) -> Any:
    found = (getattr(mark, name, None) for mark in metadata)
    return next((limit for limit in found if limit is not None), None)
