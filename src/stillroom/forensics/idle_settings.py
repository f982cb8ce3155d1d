"""Settings that a recipe changes though they do nothing there, found by their dotted names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["find_changed"]


def find_changed(given: BaseModel, names: Iterable[str]) -> list[str]:
    """Return which of some settings are not what they are where nobody sets them.

    Args:
        given: The settings.
        names: Dotted, as ``detector.views.crop``; what lies below a group that is not there is as
            it was.
    """
    return [name for name in names if _is_changed(given, name)]


def _is_changed(given: BaseModel, name: str) -> bool:
    *groups, last = name.split(".")
    at: Any = given
    for group in groups:
        at = getattr(at, group)
        if at is None:
            return False
    field: FieldInfo = type(at).model_fields[last]
    plain = field.get_default(call_default_factory=True, validated_data={})
    value = getattr(at, last)
    if isinstance(plain, str) and isinstance(value, BaseModel):  # a method by its name
        plain = type(value)() if getattr(type(value), "method_name", str)() == plain else None
    return bool(value != plain)
