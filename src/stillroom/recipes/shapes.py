"""What may stand at a path of a recipe: which group of settings, or a choice of which seam."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stillroom.errors import RecipeError
from stillroom.recipes.kinds import list_kinds, recipe_class
from stillroom.recipes.reading import Path, dotted
from stillroom.recipes.settings import Recipe
from stillroom.registry.method import Choice, Method

__all__ = ["Group", "clean_path", "find_field", "find_group", "targets_of"]

Target = type[BaseModel] | Choice[Any]


@dataclass(frozen=True)
class Group:
    """A group of settings: how messages call it, and the settings it has."""

    label: str
    known: tuple[str, ...]
    model: type[BaseModel] | None = None


def targets_of(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[Target]:
    """Yield the models and choices that an annotation contains, however deep in containers."""
    for mark in metadata:
        if isinstance(mark, Choice):
            yield mark
            return
    if get_origin(annotation) is Annotated:
        bare, *marks = get_args(annotation)
        yield from targets_of(bare, marks)
    elif inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from targets_of(part)


def find_field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """Return the field that a recipe writes as ``key``."""
    for name, info in model.model_fields.items():
        if key == (info.alias or name):
            return info
    return None


def clean_path(location: tuple[str | int, ...], data: Any, *, is_missing: bool) -> Path:
    """Return pydantic's location without the tags it adds for unions and functions.

    Args:
        location: What pydantic says.
        data: The values that were validated.
        is_missing: Whether the last part names something that the data lacks.
    """
    path: list[str | int] = []
    for part in location[:-1] if is_missing else location:
        inside, below = _step(data, part)
        if inside:
            path.append(part)
            data = below
    return (*path, location[-1]) if is_missing and location else tuple(path)


def find_group(model: type[BaseModel], location: tuple[str | int, ...], data: Any) -> Group:
    """Return the group that the last part of pydantic's location is, or should be, a setting of."""
    targets: list[Target] = [model]
    path: list[str | int] = []
    for part in location[:-1]:
        inside, below = _step(data, part)
        if not inside:
            named = [one for one in targets if _names(getattr(one, "__name__", ""), part)]
            targets = named or targets
            continue
        path.append(part)
        models = list(_models(targets, data)) or list(_model_of_kind(data))
        fields = (find_field(found, str(part)) for found in models)
        field = next((field for field in fields if field is not None), None)
        if field is not None:
            targets = list(targets_of(field.annotation, field.metadata))
        data = below
    found = list(_models(targets, data)) or list(_model_of_kind(data))
    known = dict.fromkeys(
        info.alias or name for each in found for name, info in each.model_fields.items()
    )
    return Group(_label(found, data, path), tuple(known), found[0] if found else None)


def _names(name: str, tag: str | int) -> bool:
    """Whether a tag of a union, ``Name`` or ``tuple[Name, ...]``, is that of a model."""
    return bool(name) and name in re.split(r"\W+", str(tag))


def _models(targets: Iterable[Target], data: Any) -> Iterator[type[BaseModel]]:
    for target in targets:
        if not isinstance(target, Choice):
            yield target
            continue
        name = data.get("name", target.default) if isinstance(data, Mapping) else data
        if isinstance(name, str):
            try:
                yield target.seam.get(name)
            except RecipeError:  # reported where the choice itself was validated
                continue


def _model_of_kind(data: Any) -> Iterator[type[BaseModel]]:
    """Yield the recipe that a step of a flow is, where only its kind says so."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if isinstance(kind, str) and kind in list_kinds():
        yield recipe_class(kind)


def _label(models: list[type[BaseModel]], data: Any, path: list[str | int]) -> str:
    for model in models:
        if issubclass(model, Method):
            return model.method_name()
        if issubclass(model, Recipe) and isinstance(data, Mapping):
            return str(data.get("kind", "recipe"))
    return dotted(tuple(path))


def _step(data: Any, part: str | int) -> tuple[bool, Any]:
    """Return whether ``data`` has the part, and what is there."""
    if isinstance(data, Mapping) and part in data:
        return True, data[part]
    if isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data):
        return True, data[part]
    return False, data
