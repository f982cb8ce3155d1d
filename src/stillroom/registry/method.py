"""Method (strategy, plug-in), their base class, and Registry, which finds them by file name.

A method's pydantic fields are its hyper-parameters: one declaration gives validation, JSON Schema,
the commented recipe, the reference page and the console's form. A registry has a folder and a base
class; no method is listed by name.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from stillroom.errors import RecipeError
from stillroom.registry.catalog import list_names, suggest

__all__ = ["MAX_INT", "CheckedModel", "Method", "MethodField", "Registry"]


_SAMPLING = {"top_k", "top_p"}
MAX_INT = 2**63 - 1
"""The largest whole number that 64 bits hold, for settings and seeds."""


class CheckedModel(BaseModel):
    """Settings: frozen, no unknown keys, no infinite numbers, no minimum above its maximum."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @field_validator("*")
    @classmethod
    def _check_numbers(cls, value: Any) -> Any:
        """Refuse whole numbers that neither tensors nor files nor iterators can count, and NaN.

        What a mapping holds may be a JSON Schema, in which larger whole numbers have a meaning.
        """
        for part in _flatten(value, (list, tuple)):
            if isinstance(part, int) and not ~MAX_INT <= part <= MAX_INT:
                raise RecipeError(
                    f"{part} does not fit a signed integer of 64 bits",
                    code="recipe.value",
                    expected=f"a number from {~MAX_INT} to {MAX_INT}",
                    next="write one within these bounds",
                )
        for part in _flatten(value, (list, tuple, Mapping)):
            if isinstance(part, float) and not math.isfinite(part):
                problem = f"{part} is not a finite number"
                raise RecipeError(problem, code="recipe.value", expected="a finite number")
        return value

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        """Refuse a ``min_NAME`` above its ``max_NAME``, which nothing can pass."""
        fields = type(self).model_fields
        for name in fields:
            top = f"max_{name.removeprefix('min_')}"
            if not name.startswith("min_") or top not in fields:
                continue
            low, high = getattr(self, name), getattr(self, top)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name} ({low}) is above {top} ({high})")
        return self

    def list_unused(self) -> dict[str, str]:
        """Return settings without effect beside the others, each with what would give it one.

        Subclasses add theirs. Such settings are not refused: a recipe is often run with one other
        value, such as a temperature of 0.
        """
        fields = type(self).model_fields
        temperatures = [getattr(self, name) for name in fields if name.endswith("temperature")]
        if temperatures and not any(temperatures):
            return dict.fromkeys(sorted(_SAMPLING & fields.keys()), "set temperature above 0")
        return {}

    def describe_unused(self, path: str = "") -> list[str]:
        """Return a line for each setting that is changed from its default and has no effect.

        Args:
            path: Prefix of names; groups and lists of settings within this one extend it.
        """
        fields = type(self).model_fields
        lines = [
            f"{path}{fields[name].alias or name} has no effect: {reason}"
            for name, reason in self.list_unused().items()
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]
        for name, field in fields.items():
            lines += _describe_unused_in(getattr(self, name), f"{path}{field.alias or name}.")
        return lines


def _flatten(value: Any, groups: tuple[type[Any], ...]) -> list[Any]:
    """Return a value and all that is in it, at any depth of such groups."""
    parts = [value]
    for part in parts:
        if isinstance(part, groups):
            parts += part.values() if isinstance(part, Mapping) else part
    return parts


def _describe_unused_in(value: object, path: str) -> Iterator[str]:
    if isinstance(value, CheckedModel):
        yield from value.describe_unused(path)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _describe_unused_in(part, f"{path}{key}.")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _describe_unused_in(part, f"{path}{number}.")


class Method(CheckedModel):
    """Algorithm with its settings; each subclass is one file in a folder of methods."""

    paper: ClassVar[str]
    status: ClassVar[str] = "stable"

    @classmethod
    def method_name(cls) -> str:
        """Return the registry name, which is the file's name."""
        return cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def recipe_needs(cls) -> dict[str, int]:
        """Return the recipe settings that the method requires, with the number of each.

        The commented recipe has a placeholder for each, even where the setting has a default.
        """
        return {}

    @classmethod
    def recipe_sets(cls) -> dict[str, Any]:
        """Return recipe values that the method requires, by dotted path.

        The commented recipe has these in place of the defaults.
        """
        return {}

    @model_serializer(mode="wrap")
    def _with_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.method_name(), **handler(self)}


M = TypeVar("M", bound=Method)


@cache
def _find_plugins(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group on an import path.

    Every installed package is read for it: milliseconds, for each recipe many times.
    """
    return tuple(entry_points(group=group))


class Registry(Generic[M]):
    """A folder of interchangeable methods that share one base class.

    Other packages add methods by an entry point whose group is the registry's dotted name.
    """

    def __init__(self, group: str, base: type[M]) -> None:
        """Create the registry of the package ``group`` for subclasses of ``base``."""
        self.group = group
        self.base = base
        self._accepts: Callable[[type[M]], bool] | None = None
        self._reason = ""

    def subset(self, accepts: Callable[[type[M]], bool], reason: str) -> Registry[M]:
        """Return a view of the registry with some of its methods.

        Args:
            accepts: Whether a method class belongs to it; reads class attributes only.
            reason: Why another method is refused, and what to use, after the method's name.
        """
        view = copy.copy(self)
        view._accepts, view._reason = accepts, reason  # an instance of this class
        return view

    @property
    def folder(self) -> Path:
        """The folder of methods on disk."""
        package = importlib.import_module(self.group)
        return Path(str(package.__file__)).parent

    def names(self) -> list[str]:
        """Return the names of all methods, sorted: the folder's files and plug-ins.

        A plug-in that cannot be imported is listed by every subset; to choose it is the error.
        """
        files = set(list_names(self.folder))
        plugins = {entry.name for entry in _find_plugins(self.group, tuple(sys.path))} - files
        if self._accepts is None:
            return sorted(files | plugins)
        names = {name for name in files if self._is_accepted(name)}
        for name in plugins:
            try:
                accepted = self._is_accepted(name)
            except Exception:  # noqa: BLE001 - another package may raise anything
                accepted = True
            if accepted:
                names.add(name)
        return sorted(names)

    def _is_accepted(self, name: str) -> bool:
        method = self._load(name)
        return method is None or self._accepts is None or self._accepts(method)

    def get(self, name: str) -> type[M]:
        """Import and return the class of one method.

        Raises:
            RecipeError: If no such method is known (the nearest name is suggested), it belongs to
                another subset, or it lacks what its base class demands.
        """
        method = self._load(name)
        if method is None:
            known = [other for other in self.names() if other != name]
            raise RecipeError(
                f"'{name}' is not a method of {self.group.removeprefix('stillroom.')}",
                code="recipe.unknown-method",
                expected=f"one of: {', '.join(known)}",
                next=suggest(name, known)
                or f"stillroom list methods {self.group.removeprefix('stillroom.')}",
            )
        if self._accepts is not None and not self._accepts(method):
            raise RecipeError(
                f"'{name}' {self._reason}",
                code="recipe.unknown-method",
                expected=f"one of: {', '.join(self.names())}",
                next="choose another method, or the kind that is named",
            )
        if lacking := sorted(getattr(method, "__abstractmethods__", ())):
            raise RecipeError(
                f"'{name}' does not define {', '.join(lacking)}",
                code="recipe.incomplete-method",
                where=f"{method.__module__}:{method.__qualname__}",
                expected=f"all abstract methods of {self.base.__module__}.{self.base.__name__}",
                next="update the package that it comes from: it was made for another version",
            )
        return method

    def _load(self, name: str) -> type[M] | None:
        """Import the class of a method; None if there is none, or it has another base class."""
        is_public = name.isidentifier() and not name.startswith("_")
        # os.path is false, too, of a name that is too long for a file.
        if is_public and os.path.isfile(self.folder / f"{name}.py"):  # noqa: PTH113
            module = importlib.import_module(f"{self.group}.{name}")
            for member in vars(module).values():
                if not inspect.isclass(member) or member.__module__ != module.__name__:
                    continue
                if issubclass(member, self.base) and not member.__name__.startswith("_"):
                    return member
        for entry in _find_plugins(self.group, tuple(sys.path)):
            if entry.name != name:
                continue
            loaded = entry.load()
            if inspect.isclass(loaded) and issubclass(loaded, self.base):
                return loaded
        return None

    def build(self, choice: object) -> M:
        """Build a method from ``{name: ..., setting: ...}``, a bare name, or a Method.

        Raises:
            RecipeError: If the method is unknown or no name is given.
            pydantic.ValidationError: If a setting is unknown or out of bounds.
        """
        if isinstance(choice, self.base):
            return choice
        settings = {"name": choice} if isinstance(choice, str) else choice
        if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
            raise RecipeError(
                "a method is chosen by its name",
                code="recipe.unknown-method",
                expected="{name: METHOD, setting: value, ...} or the bare name",
                next=f"stillroom list methods {self.group.removeprefix('stillroom.')}",
            )
        values = {key: value for key, value in settings.items() if key != "name"}
        return self.get(settings["name"]).model_validate(values)

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of a choice, with one branch per method of the folder."""
        branches = []
        names = [name for name in self.names() if (self.folder / f"{name}.py").is_file()]
        for name in names:
            schema = self.get(name).model_json_schema(mode="validation")
            schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
            schema["required"] = ["name", *schema.get("required", [])]
            branches.append(_inline_definitions(schema, schema.pop("$defs", {})))
        return {"anyOf": [{"type": "string", "enum": names}, *branches]}

    def choice(self, default: str = "") -> MethodField[M]:
        """Return the annotation of a recipe field that selects one method of this registry.

        Use as ``method: Annotated[MergeMethod, METHODS.choice()]``; in lists, annotate the item.

        Args:
            default: The method for settings without a name, as in the field's own default.
        """
        return MethodField(self, default)


def _inline_definitions(value: Any, definitions: dict[str, Any]) -> Any:
    """Replace references in a schema by its own ``$defs``.

    A branch becomes part of a larger schema, where references to its root would not resolve.
    """
    if isinstance(value, dict):
        name = str(value.get("$ref", "")).removeprefix("#/$defs/")
        if name in definitions:
            rest = {key: part for key, part in value.items() if key != "$ref"}
            return {**_inline_definitions(definitions[name], definitions), **rest}
        return {key: _inline_definitions(part, definitions) for key, part in value.items()}
    return (
        [_inline_definitions(part, definitions) for part in value]
        if isinstance(value, list)
        else value
    )


class MethodField(Generic[M]):
    """Pydantic annotation of a method field: a name with settings, dumped the same way."""

    def __init__(self, registry: Registry[M], default: str = "") -> None:
        """Select from ``registry``; settings without a name are those of ``default``."""
        self.registry, self.default = registry, default

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate with the registry, serialize with the method itself."""
        return core_schema.no_info_plain_validator_function(
            self._build,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda method: method.model_dump(mode="json")
            ),
        )

    def _build(self, choice: object) -> M:
        if self.default and isinstance(choice, dict) and "name" not in choice:
            choice = {"name": self.default, **choice}
        return self.registry.build(choice)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return one branch per method of the folder."""
        return self.registry.json_schema()
