"""The commented recipe that ``stillroom new KIND[/METHOD]`` prints, made from the declarations.

Every setting comes with its description, bounds and default; those without a default get a
placeholder. What is printed parses as it stands.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stillroom.errors import RecipeError
from stillroom.recipes.describing import (
    default_of,
    describe,
    is_list,
    least_length,
    placeholder,
    to_plain,
)
from stillroom.recipes.emitting import emit
from stillroom.recipes.kinds import kind_folder, recipe_class
from stillroom.recipes.shapes import targets_of
from stillroom.registry.listing import suggest
from stillroom.registry.method import Choice, Method, Seam

__all__ = ["comment_recipe"]

_WIDTH = 96
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def comment_recipe(kind: str, method: str | None = None) -> str:
    """Return a recipe of a kind with every setting explained.

    Where the room has a file ``recipe_examples/<name>.yaml`` or ``<name>.yaml`` (the name being the
    method's, else the kind's), that file is returned as it is.

    Args:
        kind: One of ``list_kinds()``.
        method: The method to choose, of whichever seam of the recipe has it.

    Raises:
        RecipeError: If the kind or the method is unknown.
    """
    written = _written(kind_folder(kind), method or kind)
    if written is not None:
        return written
    model = recipe_class(kind)
    wanted = _find_method(model, kind, method) if method else None
    name = f"{kind}-{method.replace('_', '-')}" if method else kind
    lines = [f"# stillroom run {name}.yaml"]
    lines += _comment((inspect.getdoc(model) or "").split("\n", 1)[0], 0)
    lines += _Printer(wanted).recipe(model, kind)
    return "\n".join(lines) + "\n"


def _written(folder: Path, name: str) -> str | None:
    if _NAME.fullmatch(name):
        for path in (folder / "recipe_examples" / f"{name}.yaml", folder / f"{name}.yaml"):
            if path.is_file():
                return path.read_text(encoding="utf-8")
    return None


def _find_method(model: type[BaseModel], kind: str, method: str) -> tuple[Seam[Any], str]:
    known: list[str] = []
    for seam in _seams(model):
        names = seam.names()
        if method in names:
            return seam, method
        known += names
    raise RecipeError(
        f"'{method}' is not a method that '{kind}' can choose",
        code="recipe.unknown-method",
        expected=f"one of: {', '.join(known)}" if known else f"no method: '{kind}' has none",
        next=suggest(method, known) or f"stillroom new {kind}",
    )


def _seams(model: type[BaseModel]) -> Iterator[Seam[Any]]:
    for info in model.model_fields.values():
        for target in targets_of(info.annotation, info.metadata):
            if isinstance(target, Choice):
                yield target.seam
            else:
                yield from _seams(target)


class _Printer:
    """Prints groups of settings; ``wanted`` is chosen where its seam is first met."""

    def __init__(self, wanted: tuple[Seam[Any], str] | None) -> None:
        self.wanted = wanted
        self.needs: dict[str, int] = {}
        self.sets: dict[str, Any] = {}

    def recipe(self, model: type[BaseModel], kind: str) -> Iterator[str]:
        """Yield the lines of a recipe; what its chosen methods need gets a placeholder."""
        for method in _methods(model, self.wanted):
            for key, count in method.recipe_needs().items():
                self.needs[key] = max(count, self.needs.get(key, 0))
            self.sets |= method.recipe_sets()
        yield from self.group(model, 0, {"version": 1, "kind": kind})

    def group(self, model: type[BaseModel], indent: int, given: Mapping[str, Any]) -> Iterator[str]:
        """Yield the lines of a model's settings; ``given`` holds those already decided."""
        for name, info in model.model_fields.items():
            key = info.alias or name
            if key in given:
                yield from emit({key: given[key]}, indent)
                continue
            if not indent and key in self.sets:
                yield ""
                yield from _comment(describe(info), indent)
                yield from emit({key: self.sets[key]}, indent)
                continue
            if given or name != next(iter(model.model_fields)):
                yield ""
            is_needed = default_of(info) is None and key in self.needs
            yield from _comment(describe(info, is_needed=is_needed), indent)
            yield from self.setting(key, info, indent)

    def setting(self, key: str, info: FieldInfo, indent: int) -> Iterator[str]:
        """Yield one setting: the chosen method, its default, an example or a placeholder."""
        targets = list(targets_of(info.annotation, info.metadata))
        choice = next((target for target in targets if isinstance(target, Choice)), None)
        default = default_of(info)
        if choice is not None and self.wanted and choice.seam.group == self.wanted[0].group:
            name, self.wanted = self.wanted[1], None
            yield from self.method(key, choice.seam, name, info, indent)
        elif default is None and self.wanted and self._holds_wanted(targets):
            yield from self.required(key, targets[0], info, indent)
        elif default is not PydanticUndefined and not (default is None and self.needs.get(key)):
            yield from self.default(key, _built(choice, default), indent)
        elif info.examples:
            yield from emit({key: info.examples[0]}, indent)
        elif choice is not None:
            yield from self.method(key, choice.seam, choice.seam.names()[0], info, indent)
        elif targets:
            yield from self.required(key, targets[0], info, indent)
        else:
            value = placeholder(key, info.annotation, info.metadata)
            yield from emit({key: value}, indent)

    def _holds_wanted(self, targets: list[Any]) -> bool:
        """Return whether a group that is left out by default holds the wanted method's seam."""
        if not self.wanted or not targets or isinstance(targets[0], Choice):
            return False
        return any(seam.group == self.wanted[0].group for seam in _seams(targets[0]))

    def method(
        self, key: str, seam: Seam[Any], name: str, info: FieldInfo, indent: int
    ) -> Iterator[str]:
        """Yield a choice of a method with all its settings."""
        yield f"{' ' * indent}{key}:"
        if is_list(info.annotation):
            yield f"{' ' * indent}  -"
            indent += 2
        yield f"{' ' * indent}  name: {name}"
        yield from self.group(seam.get(name), indent + 2, {"name": name})

    def required(self, key: str, model: Any, info: FieldInfo, indent: int) -> Iterator[str]:
        """Yield a group, or a list of groups, that has no default."""
        yield f"{' ' * indent}{key}:"
        if not is_list(info.annotation):
            yield from self.group(model, indent + 2, {})
            return
        for _ in range(max(least_length(info.metadata), self.needs.get(key, 0))):
            yield f"{' ' * indent}  -"
            yield from self.group(model, indent + 4, {})

    def default(self, key: str, value: Any, indent: int, path: str = "") -> Iterator[str]:
        """Yield a default; a group or a method comes with each of its settings explained."""
        path = f"{path}.{key}" if path else key
        if path in self.sets:
            yield from emit({key: self.sets[path]}, indent)
            return
        if not isinstance(value, BaseModel):
            yield from emit({key: to_plain(value)}, indent)
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
            yield from _comment(describe(info), indent + 2)
            yield from self.default(info.alias or name, getattr(value, name), indent + 2, path)


def _methods(
    model: type[BaseModel], wanted: tuple[Seam[Any], str] | None
) -> Iterator[type[Method]]:
    """Yield the methods that the printed recipe chooses."""
    if wanted is not None:
        yield wanted[0].get(wanted[1])
    for info in model.model_fields.values():
        for target in targets_of(info.annotation, info.metadata):
            if not isinstance(target, Choice) or (wanted and target.seam.group == wanted[0].group):
                continue
            default = default_of(info)
            if default is PydanticUndefined:
                yield target.seam.get(target.seam.names()[0])
            elif isinstance(default, str):
                yield target.seam.get(default)
            elif isinstance(default, Method):
                yield type(default)


def _built(choice: Choice[Any] | None, default: Any) -> Any:
    """Return the method that a default names, where it is given by name or settings."""
    if choice is not None and isinstance(default, str | dict):
        return choice.seam.build(default)
    return default


def _comment(text: str, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{space}# ", subsequent_indent=f"{space}#   "
    )
