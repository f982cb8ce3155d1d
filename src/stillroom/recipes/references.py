"""Where a recipe refers to files, checkpoints and addresses, told by its own declarations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from stillroom.recipes.reading import Path
from stillroom.recipes.settings import REFERENCE_FORM

__all__ = ["list_references"]


def list_references(settings: BaseModel) -> Iterator[tuple[Path, str]]:
    """Yield every ``Reference`` of validated settings with its path, in the order declared.

    What a job makes where it is not there (``Destination``) is none.
    """
    for name, info in type(settings).model_fields.items():
        is_named = REFERENCE_FORM in info.metadata or _names_some(info.annotation)
        yield from _find(getattr(settings, name), (info.alias or name,), is_named=is_named)


def _find(value: Any, path: Path, *, is_named: bool) -> Iterator[tuple[Path, str]]:
    if isinstance(value, BaseModel):
        yield from (((*path, *inner), text) for inner, text in list_references(value))
    elif isinstance(value, str):
        if is_named:
            yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _find(part, (*path, key), is_named=is_named)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _find(part, (*path, index), is_named=is_named)


def _names_some(annotation: Any) -> bool:
    """Return whether a Reference stands in an annotation, however deep in containers."""
    if get_origin(annotation) is Annotated and REFERENCE_FORM in get_args(annotation):
        return True
    return any(_names_some(part) for part in get_args(annotation))
