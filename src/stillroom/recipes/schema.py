"""Recipe kinds, their JSON Schema, and the settings and references at a path of a recipe."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stillroom.errors import RecipeError
from stillroom.recipes.settings import REFERENCE_FORMAT, Recipe
from stillroom.recipes.yaml_text import KeyPath, format_path
from stillroom.registry import catalog
from stillroom.registry.method import Method, MethodField

__all__ = [
    "SettingsGroup",
    "clean_path",
    "find_field",
    "find_group",
    "find_kind_module",
    "find_recipe_class",
    "import_kind_module",
    "iter_setting_paths",
    "iter_targets",
    "list_kinds",
    "list_references",
    "recipe_schema",
]

FLOW = "flow"
"""The kind that is made of others; ``flow/recipe.py`` declares it."""


def recipe_schema(kinds: Iterable[str] = ()) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of recipes, discriminated by ``kind``.

    Args:
        kinds: The kinds that are described; all of them if empty.

    Raises:
        RecipeError: If there is no such kind.
    """
    branches: dict[str, Any] = {}
    for kind in tuple(kinds) or list_kinds():
        branch = find_recipe_class(kind).model_json_schema(
            ref_template=f"#/$defs/{kind}/$defs/{{model}}", by_alias=True
        )
        branch["required"] = list(dict.fromkeys(["kind", *branch.get("required", [])]))
        branches[kind] = branch
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Stillroom recipe",
        "type": "object",
        "required": ["kind"],
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in branches],
        "$defs": branches,
    }


_PACKAGE = Path(__file__).resolve().parent.parent


def list_kinds() -> list[str]:
    """Return the names of all kinds, sorted."""
    return catalog.list_kind_names(_PACKAGE)


def find_kind_module(kind: str) -> Path:
    """Return the file of the module that declares a kind.

    Raises:
        RecipeError: If there is no such kind; the nearest name is suggested.
    """
    modules = catalog.find_kind_modules(_PACKAGE)
    if kind not in modules:
        rooms = [name for name in modules if name.startswith(f"{kind}.")]
        raise RecipeError(
            f"'{kind}' is not a kind of recipe",
            code="recipe.unknown-kind",
            expected=f"one of: {', '.join(rooms or modules)}",
            next=catalog.suggest(kind, modules) or "stillroom list kinds",
        )
    return modules[kind]


def import_kind_module(kind: str) -> ModuleType:
    """Import the module that declares a kind.

    Raises:
        RecipeError: If there is no such kind.
    """
    path = find_kind_module(kind).relative_to(_PACKAGE).with_suffix("")
    return importlib.import_module(".".join([_PACKAGE.name, *path.parts]))


def find_recipe_class(kind: str) -> type[Recipe]:
    """Return the recipe class of a kind, importing only the module that declares it.

    Raises:
        RecipeError: If there is no such kind.
    """
    module = import_kind_module(kind)
    if kind == FLOW:
        flow: type[Recipe] = module.FlowRecipe
        return flow
    declared: type[Recipe] = module.JOB_KIND.recipe
    return declared


_MAX_LISTED_DEPTH = 8
SettingTarget = type[BaseModel] | MethodField[Any]


@dataclass(frozen=True)
class SettingsGroup:
    """A group of settings: its label in messages, and its settings."""

    label: str
    known: tuple[str, ...]
    model: type[BaseModel] | None = None


def iter_targets(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[SettingTarget]:
    """Yield the models and method fields of an annotation, also within containers."""
    for mark in metadata:
        if isinstance(mark, MethodField):
            yield mark
            return
    if get_origin(annotation) is Annotated:
        bare, *marks = get_args(annotation)
        yield from iter_targets(bare, marks)
    elif inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from iter_targets(part)


def find_field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """Return the field with the recipe key ``key``."""
    for name, info in model.model_fields.items():
        if key == (info.alias or name):
            return info
    return None


def clean_path(location: tuple[str | int, ...], data: Any, *, is_missing: bool) -> KeyPath:
    """Return pydantic's location without the tags it adds for unions and functions."""
    path: list[str | int] = []
    for place, part in enumerate(location[:-1] if is_missing else location):
        inside, below = _step(data, part)
        if inside and not _is_tag_at(location, place, data, below):
            path.append(part)
            data = below
    return (*path, location[-1]) if is_missing and location else tuple(path)


def find_group(model: type[BaseModel], location: tuple[str | int, ...], data: Any) -> SettingsGroup:
    """Return the group in which the last part of pydantic's location is, or should be."""
    targets: list[SettingTarget] = [model]
    path: list[str | int] = []
    for place, part in enumerate(location[:-1]):
        inside, below = _step(data, part)
        if not inside or _is_tag_at(location, place, data, below):
            named = [
                candidate
                for candidate in targets
                if _is_tag_of(getattr(candidate, "__name__", ""), part)
            ]
            targets = named or targets
            continue
        path.append(part)
        models = list(_matching_models(targets, data)) or list(_model_of_kind(data))
        fields = (find_field(group, str(part)) for group in models)
        field = next((field for field in fields if field is not None), None)
        if field is not None:
            targets = list(iter_targets(field.annotation, field.metadata))
        data = below
    models_here = list(_matching_models(targets, data)) or list(_model_of_kind(data))
    known = dict.fromkeys(
        info.alias or name for model in models_here for name, info in model.model_fields.items()
    )
    return SettingsGroup(
        _label_group(models_here, data, path), tuple(known), models_here[0] if models_here else None
    )


def iter_setting_paths(model: type[BaseModel], data: Any) -> Iterator[KeyPath]:
    """Yield the path of every setting of a recipe, also of groups that its data leaves out.

    Of lists and mappings of groups those are listed that the data has.
    """
    yield from _iter_paths([model], data, ())


def _iter_paths(targets: list[SettingTarget], data: Any, above: KeyPath) -> Iterator[KeyPath]:
    if len(above) > _MAX_LISTED_DEPTH:
        return
    for group in list(_matching_models(targets, data)) or list(_model_of_kind(data)):
        for name, info in group.model_fields.items():
            key = info.alias or name
            path, value = (*above, key), data.get(key) if isinstance(data, Mapping) else None
            yield path
            inner = list(iter_targets(info.annotation, info.metadata))
            items: Iterable[tuple[str | int, Any]] = ()
            if isinstance(value, list):
                items = enumerate(value)
            elif isinstance(value, Mapping) and _is_mapping(info.annotation):
                items = value.items()
            elif not _is_mapping(info.annotation):
                yield from _iter_paths(inner, value, path)
            for part, item in items:
                yield (*path, part)
                yield from _iter_paths(inner, item, (*path, part))


def _is_mapping(annotation: Any) -> bool:
    """Return whether a field is a mapping by free names, perhaps among other types."""
    return get_origin(annotation) in {dict, Mapping} or any(map(_is_mapping, get_args(annotation)))


def _is_tag_at(location: tuple[str | int, ...], place: int, data: Any, below: Any) -> bool:
    """Whether a part of pydantic's location is a union's tag, though a setting is called so, too.

    ``measurement: {type: scores, scores: FILE}`` has the location ``measurement, scores, scores``.
    """
    return (
        isinstance(data, Mapping)
        and data.get("type") == location[place]
        and len(location) > place + 1
        and not isinstance(below, Mapping | list)
    )


def _is_tag_of(name: str, tag: str | int) -> bool:
    """Whether a union's tag, ``Name`` or ``tuple[Name, ...]``, is that of a model."""
    return bool(name) and name in re.split(r"\W+", str(tag))


def _matching_models(targets: Iterable[SettingTarget], data: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that data is meant for; of a discriminated union, the one of its tag."""
    targets = list(targets)
    tagged = [target for target in targets if _has_tags_of(target, data)]
    for target in tagged or targets:
        if not isinstance(target, MethodField):
            yield target
            continue
        name = data.get("name", target.default) if isinstance(data, Mapping) else data
        if isinstance(name, str):
            try:
                yield target.registry.get(name)
            except RecipeError:  # reported by the validation of the choice itself
                continue


def _has_tags_of(target: SettingTarget, data: Any) -> bool:
    """Return whether the settings of a model that have one possible value have it in the data."""
    if isinstance(target, MethodField) or not isinstance(data, Mapping):
        return True
    tags = {
        info.alias or name: get_args(info.annotation)
        for name, info in target.model_fields.items()
        if get_origin(info.annotation) is Literal
    }
    return all(data.get(key, tag[0]) == tag[0] for key, tag in tags.items() if len(tag) == 1)


def _model_of_kind(data: Any) -> Iterator[type[BaseModel]]:
    """Yield the recipe class of a flow's step, found by its kind."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if isinstance(kind, str) and kind in list_kinds():
        yield find_recipe_class(kind)


def _label_group(models: list[type[BaseModel]], data: Any, path: list[str | int]) -> str:
    for model in models:
        if issubclass(model, Method):
            return model.method_name()
        if issubclass(model, Recipe) and isinstance(data, Mapping):
            return str(data.get("kind", "recipe"))
    return format_path(tuple(path))


def _step(data: Any, part: str | int) -> tuple[bool, Any]:
    """Return whether ``data`` has the part, and its value."""
    if isinstance(data, Mapping) and part in data:
        return True, data[part]
    if isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data):
        return True, data[part]
    return False, data


def list_references(settings: BaseModel) -> Iterator[tuple[KeyPath, str]]:
    """Yield every ``Reference`` of validated settings with its path, in order of declaration.

    A ``Destination``, which the job creates, does not count.
    """
    for name, info in type(settings).model_fields.items():
        is_named = REFERENCE_FORMAT in info.metadata or _contains_reference(info.annotation)
        yield from _find_references(
            getattr(settings, name), (info.alias or name,), is_named=is_named
        )


def _find_references(value: Any, path: KeyPath, *, is_named: bool) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, BaseModel):
        yield from (((*path, *inner), text) for inner, text in list_references(value))
    elif isinstance(value, str):
        if is_named:
            yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _find_references(part, (*path, key), is_named=is_named)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _find_references(part, (*path, index), is_named=is_named)


def _contains_reference(annotation: Any) -> bool:
    """Return whether an annotation contains a Reference, also within containers."""
    if get_origin(annotation) is Annotated and REFERENCE_FORMAT in get_args(annotation):
        return True
    return any(_contains_reference(part) for part in get_args(annotation))
