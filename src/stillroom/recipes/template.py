"""Commented recipe templates for ``stillroom new KIND[/METHOD]``.

Every setting has its description, bounds and default; those without a default get a placeholder.
The output is a valid recipe.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stillroom.errors import RecipeError
from stillroom.recipes.schema import find_kind_module, find_recipe_class, iter_targets
from stillroom.recipes.settings import Secret, SettingFormat
from stillroom.recipes.yaml_text import emit_scalar, emit_yaml
from stillroom.registry.catalog import suggest
from stillroom.registry.method import Method, MethodField, Registry

__all__ = [
    "describe_setting",
    "get_default",
    "is_list_setting",
    "make_placeholder",
    "min_length",
    "render_template",
]

_WIDTH = 96
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def render_template(kind: str, method: str | None = None) -> str:
    """Return a recipe of a kind with every setting explained.

    If the room has a file ``<name>.yaml`` (name of the method, else of the kind), that file is
    returned unchanged.

    ``method`` may be of any registry of the recipe.

    Raises:
        RecipeError: If the kind or the method is unknown.
    """
    room, _, short = kind.rpartition(".")
    folder = find_kind_module(kind).parent
    written = _read_example(folder.parent if room else folder, method or short)
    if written is not None:
        return written
    model = find_recipe_class(kind)
    wanted = _find_method(model, kind, method) if method else None
    name = f"{room or kind}-{method.replace('_', '-')}" if method else kind.replace(".", "-")
    lines = [f"# stillroom run {name}.yaml"]
    lines += _comment_lines((inspect.getdoc(model) or "").split("\n", 1)[0], 0)
    lines += _TemplatePrinter(wanted).recipe(model, kind)
    return "\n".join(lines) + "\n"


def _read_example(folder: Path, name: str) -> str | None:
    path = folder / f"{name}.yaml"
    return path.read_text(encoding="utf-8") if _NAME.fullmatch(name) and path.is_file() else None


def _find_method(model: type[BaseModel], kind: str, method: str) -> tuple[Registry[Any], str]:
    known: list[str] = []
    for registry in _list_registries(model):
        names = registry.names()
        if method in names:
            return registry, method
        known += names
    raise RecipeError(
        f"'{method}' is not a method that '{kind}' can choose",
        code="recipe.unknown-method",
        expected=f"one of: {', '.join(known)}" if known else f"no method: '{kind}' has none",
        next=suggest(method, known) or f"stillroom new {kind}",
    )


def _list_registries(model: type[BaseModel]) -> Iterator[Registry[Any]]:
    for info in model.model_fields.values():
        for target in iter_targets(info.annotation, info.metadata):
            if isinstance(target, MethodField):
                yield target.registry
            else:
                yield from _list_registries(target)


class _TemplatePrinter:
    """Prints groups of settings; ``wanted`` is selected at the first field of its registry."""

    def __init__(self, wanted: tuple[Registry[Any], str] | None) -> None:
        self.wanted = wanted
        self.needs: dict[str, int] = {}
        self.sets: dict[str, Any] = {}

    def recipe(self, model: type[BaseModel], kind: str) -> Iterator[str]:
        """Yield the lines of a recipe, with placeholders for the needs of its methods."""
        for method in _methods(model, self.wanted):
            for key, count in method.recipe_needs().items():
                self.needs[key] = max(count, self.needs.get(key, 0))
            self.sets |= method.recipe_sets()
        yield from self.group(model, 0, {"version": 1, "kind": kind})

    def group(
        self, model: type[BaseModel], indent: int, decided: Mapping[str, Any], path: str = ""
    ) -> Iterator[str]:
        """Yield the lines of a model's settings at a path; ``decided`` are already fixed."""
        for name, info in model.model_fields.items():
            key = info.alias or name
            if key in decided:
                yield from emit_yaml({key: decided[key]}, indent)
                continue
            if f"{path}{key}" in self.sets and not self._takes_wanted(info):
                yield ""
                yield from _comment_lines(describe_setting(info), indent)
                yield from emit_yaml({key: self.sets[f"{path}{key}"]}, indent)
                continue
            if decided or name != next(iter(model.model_fields)):
                yield ""
            is_needed = get_default(info) is None and key in self.needs
            yield from _comment_lines(describe_setting(info, is_needed=is_needed), indent)
            yield from self.setting(key, info, indent, path)

    def setting(self, key: str, info: FieldInfo, indent: int, path: str) -> Iterator[str]:
        """Yield one setting: the selected method, its default, an example or a placeholder."""
        targets = list(iter_targets(info.annotation, info.metadata))
        choice = next((target for target in targets if isinstance(target, MethodField)), None)
        default = get_default(info)
        if choice is not None and self.wanted and self._takes_wanted(info):
            name, self.wanted = self.wanted[1], None
            yield from self.method(key, choice.registry, name, info, indent)
        elif self.wanted and _is_group(default) and self._holds_wanted(targets):
            yield from self.required(key, targets[0], info, indent, path)
        elif default is not PydanticUndefined and not (default is None and self.needs.get(key)):
            yield from self.default(key, _build_default(choice, default), indent, path)
        elif info.examples:
            yield from emit_yaml({key: info.examples[0]}, indent)
        elif choice is not None:
            yield from self.method(key, choice.registry, choice.registry.names()[0], info, indent)
        elif targets:
            yield from self.required(key, targets[0], info, indent, path)
        else:
            value = make_placeholder(key, info.annotation, info.metadata)
            yield from emit_yaml({key: value}, indent)

    def _takes_wanted(self, info: FieldInfo) -> bool:
        """Return whether a setting is of the wanted registry."""
        return self.wanted is not None and any(
            isinstance(target, MethodField) and target.registry.group == self.wanted[0].group
            for target in iter_targets(info.annotation, info.metadata)
        )

    def _holds_wanted(self, targets: list[Any]) -> bool:
        """Return whether a group has a field of the wanted registry."""
        if not self.wanted or not targets or isinstance(targets[0], MethodField):
            return False
        return any(
            registry.group == self.wanted[0].group for registry in _list_registries(targets[0])
        )

    def method(
        self, key: str, registry: Registry[Any], name: str, info: FieldInfo, indent: int
    ) -> Iterator[str]:
        """Yield a method field with all its settings."""
        yield f"{' ' * indent}{key}:"
        if is_list_setting(info.annotation):
            yield f"{' ' * indent}  -"
            indent += 2
        yield f"{' ' * indent}  name: {name}"
        yield from self.group(registry.get(name), indent + 2, {"name": name}, f"{name}:")

    def required(
        self, key: str, model: Any, info: FieldInfo, indent: int, path: str
    ) -> Iterator[str]:
        """Yield a group, or a list of groups, setting by setting."""
        yield f"{' ' * indent}{key}:"
        if not is_list_setting(info.annotation):
            yield from self.group(model, indent + 2, {}, f"{path}{key}.")
            return
        for _ in range(max(min_length(info.metadata), self.needs.get(key, 0))):
            yield f"{' ' * indent}  -"
            yield from self.group(model, indent + 4, {}, f"{path}{key}.")

    def default(self, key: str, value: Any, indent: int, path: str = "") -> Iterator[str]:
        """Yield a default; a group or a method is expanded with each of its settings explained."""
        path = f"{path}.{key}" if path else key
        if path in self.sets:
            yield from emit_yaml({key: self.sets[path]}, indent)
            return
        if not isinstance(value, BaseModel):
            yield from emit_yaml({key: _to_plain(value)}, indent)
            return
        fields = type(value).model_fields
        if not isinstance(value, Method) and not fields:
            yield f"{' ' * indent}{key}: {{}}"
            return
        yield f"{' ' * indent}{key}:"
        if isinstance(value, Method):
            yield f"{' ' * indent}  name: {value.method_name()}"
        for name, info in fields.items():
            if isinstance(value, Method) or name != next(iter(fields)):
                yield ""
            yield from _comment_lines(describe_setting(info), indent + 2)
            yield from self.default(info.alias or name, getattr(value, name), indent + 2, path)


def _is_group(default: Any) -> bool:
    """Whether a default is a group of settings, or no group."""
    return default is None or (isinstance(default, BaseModel) and not isinstance(default, Method))


def _methods(
    model: type[BaseModel], wanted: tuple[Registry[Any], str] | None
) -> Iterator[type[Method]]:
    """Yield the methods selected in the printed recipe."""
    if wanted is not None:
        yield wanted[0].get(wanted[1])
    for info in model.model_fields.values():
        for target in iter_targets(info.annotation, info.metadata):
            if not isinstance(target, MethodField) or (
                wanted and target.registry.group == wanted[0].group
            ):
                continue
            default = get_default(info)
            if default is PydanticUndefined:
                yield target.registry.get(target.registry.names()[0])
            elif isinstance(default, str):
                yield target.registry.get(default)
            elif isinstance(default, Method):
                yield type(default)
        default = get_default(info)
        if _is_group(default) and default is not None:
            yield from _methods(type(default), wanted)


def _build_default(choice: MethodField[Any] | None, default: Any) -> Any:
    """Return the method of a default given by name or settings."""
    if choice is not None and isinstance(default, str | dict):
        return choice.registry.build(default)
    return default


def _comment_lines(text: str, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{space}# ", subsequent_indent=f"{space}#   "
    )


_UNBOUNDED = 2**53
"""Bounds at least this large are limits of the machine and are not shown."""


def describe_setting(info: FieldInfo, *, is_needed: bool = False) -> str:
    """Return a setting's description, allowed values, and default or that it is required."""
    marks = [*info.metadata, info] if info.discriminator else info.metadata
    parts = [info.description or "", *dict.fromkeys(_iter_formats(info.annotation, marks))]
    default = get_default(info)
    if default is PydanticUndefined or is_needed:
        parts.append("required")
    elif default is None:
        parts.append("optional")
    elif isinstance(default, Method):
        parts.append(f"default {default.method_name()}")
    elif not isinstance(default, BaseModel) and not _is_constant(info):
        plain = _to_plain(default)
        if not plain or not isinstance(plain, dict | list):
            parts.append(f"default {emit_scalar(plain)}")
    return "; ".join(part for part in parts if part)


def _is_constant(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1


def get_default(info: FieldInfo) -> Any:
    """Return the default, from its factory if it has one, or ``PydanticUndefined``."""
    return info.get_default(call_default_factory=True)


def make_placeholder(name: str, annotation: Any, metadata: Sequence[Any]) -> Any:
    """Return a valid plain value for the annotation, based on ``name``."""
    form = next((mark for mark in metadata if isinstance(mark, SettingFormat)), None)
    if form is not None:
        return form.placeholder.replace("NAME", name)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return make_placeholder(name, parts[0], parts[1:])
    if origin is Literal:
        return parts[0]
    if origin in {list, tuple, set, frozenset}:
        return [make_placeholder(name, parts[0], ())] * min_length(metadata)
    if origin is dict:
        return {"name": make_placeholder(name, parts[1], ())}
    if annotation in {int, float}:
        return _number(annotation, metadata)
    kinds = [part for part in parts if part is not type(None)]
    if kinds:
        return make_placeholder(name, kinds[0], ())
    return {bool: False, Path: f"path/to/{name}"}.get(annotation, "TEXT")


def min_length(metadata: Sequence[Any]) -> int:
    """Return the minimum number of items of a list, at least one."""
    return max(1, int(_limit(metadata, "min_length") or 1))


def is_list_setting(annotation: Any) -> bool:
    """Return whether a value is or may be a list."""
    if get_origin(annotation) in {list, tuple}:
        return True
    return any(get_origin(part) in {list, tuple} for part in get_args(annotation))


def _to_plain(value: Any) -> Any:
    """Convert a default to plain values for YAML."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {str(key): _to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_plain(part) for part in value]
    if isinstance(value, Secret):
        return value.reference
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _iter_formats(annotation: Any, metadata: Iterable[Any]) -> Iterator[str]:
    """Yield the allowed values: units, choices, bounds."""
    marks = list(metadata)
    forms = [mark.hint for mark in marks if isinstance(mark, SettingFormat)]
    yield from forms
    for mark in marks:
        if isinstance(mark, MethodField):
            yield f"one of: {', '.join(mark.registry.names())}"
        elif isinstance(mark, FieldInfo) and isinstance(mark.discriminator, str):
            yield f"{mark.discriminator} is one of: {', '.join(_list_tags(annotation, mark))}"
    if not forms:
        yield from _bounds(marks)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        if len(parts) > 1:
            yield f"one of: {', '.join(emit_scalar(part) for part in parts)}"
    elif origin is Annotated:
        yield from _iter_formats(parts[0], parts[1:])
    else:
        for part in parts:
            yield from _iter_formats(part, ())


def _list_tags(annotation: Any, union: FieldInfo) -> Iterator[str]:
    """Yield the tags of a discriminated union."""
    for model in iter_targets(annotation):
        if not isinstance(model, MethodField):
            yield from map(str, get_args(model.model_fields[str(union.discriminator)].annotation))


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    low, high = _limit(metadata, "ge"), _limit(metadata, "le")
    high = None if high is not None and high >= _UNBOUNDED else high
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
    limits = (getattr(mark, name, None) for mark in metadata)
    return next((limit for limit in limits if limit is not None), None)
