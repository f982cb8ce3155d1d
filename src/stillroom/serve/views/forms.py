"""Forms: the settings of a recipe as a page can ask for them, made from its JSON Schema alone.

A setting that no simple control can hold is asked for as YAML. Nothing is said here that the schema
does not say; what a form leaves empty stays as the recipe has it. What jobs of clients are refused,
work on a cluster, is not offered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stillroom.recipes import comment_recipe, list_kinds, recipe_class
from stillroom.recipes.reading import read_yaml

__all__ = ["MAIN_JOB", "Kind", "Option", "Setting", "describe_form", "list_forms"]

MAIN_JOB = "flow/make"
_DEPTH = 4
_SIMPLE = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}
_NOT_ASKED = frozenset({"version", "kind"})
_CLUSTER = "ray"

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One choice of a setting: its name, what it is, and the settings of its own."""

    name: str
    summary: str
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a form.

    ``control`` is ``text``, ``place`` (a name in the folder or a reference), ``integer``,
    ``number``, ``boolean``, ``choice``, ``method`` (a choice whose options have settings),
    ``group`` or ``yaml``; ``path`` is dotted, as an override has it. ``example`` is what the
    commented recipe has in a setting that must be given.
    """

    path: str
    control: str
    hint: str = ""
    default: str = ""
    example: str = ""
    is_required: bool = False
    low: float | None = None
    high: float | None = None
    options: tuple[Option, ...] = ()
    settings: tuple[Setting, ...] = ()
    title: str = ""

    @property
    def label(self) -> str:
        """What a form calls it: its title, else the last part of its path in words."""
        words = self.path.rpartition(".")[2].replace("_", " ")
        return self.title or words[:1].upper() + words[1:]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of recipe that a job can be made of."""

    name: str
    summary: str


def list_forms() -> list[Kind]:
    """Return the main job and every other kind of recipe."""
    main = Kind(MAIN_JOB, "The main job: documents in, a small model that you own out.")
    return [main, *(Kind(name, _first_line(recipe_class(name).__doc__)) for name in list_kinds())]


def describe_form(name: str) -> tuple[tuple[Setting, ...], str]:
    """Return a kind's settings, and its commented recipe.

    Raises:
        RecipeError: If there is no such kind or method.
    """
    if name == MAIN_JOB:
        return _MAIN, comment_recipe("flow", "make")
    if name == "flow":
        return (), comment_recipe("flow")
    schema, commented = recipe_class(name).model_json_schema(by_alias=True), comment_recipe(name)
    written = read_yaml(commented, "recipe").data
    settings = tuple(
        replace(one, example=_show(_thin(written[one.path])))
        if one.is_required and one.path in written
        else one
        for one in _fields(schema, schema.get("$defs", {}), "", 0)
    )
    return settings, commented


def _thin(value: Any) -> Any:
    """Return a value of a commented recipe without what it leaves as it is."""
    if isinstance(value, Mapping):
        return {str(key): _thin(one) for key, one in value.items() if one}
    return [_thin(one) for one in value] if isinstance(value, list) else value


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0].replace("`", "")


def _fields(schema: Schema, defs: Schema, prefix: str, depth: int) -> tuple[Setting, ...]:
    required = set(schema.get("required", ()))
    found = [
        _setting(f"{prefix}{name}", one, defs, depth, is_required=name in required)
        for name, one in schema.get("properties", {}).items()
        if name not in _NOT_ASKED
        and not (prefix and "const" in one)
        and _keep_here(_resolve(one, defs)) != {}
    ]
    return tuple(sorted(found, key=lambda one: (not one.is_required, one.control == "group")))


def _setting(path: str, schema: Schema, defs: Schema, depth: int, *, is_required: bool) -> Setting:
    resolved = _resolve(schema, defs)
    whole = _keep_here(resolved)
    hint = str(schema.get("description", whole.get("description", "")))
    if whole is not resolved:
        hint = hint.partition(";")[0]  # what follows is about clusters
    default = _show(schema.get("default"))
    told: dict[str, Any] = {"hint": hint, "default": default, "is_required": is_required}
    parts = [_resolve(one, defs) for one in whole.get("anyOf", ())]
    parts = [one for one in parts if one.get("type") != "null"]
    named = [one for one in parts if "const" in one.get("properties", {}).get("name", {})]
    if named and depth < _DEPTH:
        options = tuple(_option(one, defs, f"{path}.", depth) for one in named)
        return Setting(path, "method", **told, options=options)
    if len(parts) == 1:
        whole = {**whole, **parts[0]}
    if "enum" in whole and all(isinstance(one, str) for one in whole["enum"]):
        options = tuple(Option(one, "") for one in whole["enum"])
        return Setting(path, "choice", **told, options=options)
    if whole.get("properties") and depth < _DEPTH:
        return Setting(path, "group", **told, settings=_fields(whole, defs, f"{path}.", depth + 1))
    control = _SIMPLE.get(str(whole.get("type")), "yaml")
    if control == "text" and whole.get("minLength") == 1:
        control = "place"
    low = whole.get("minimum", whole.get("exclusiveMinimum"))
    high = whole.get("maximum", whole.get("exclusiveMaximum"))
    return Setting(path, control, **told, low=low, high=high)


def _keep_here(schema: Schema) -> Schema:
    """Return an engine's schema as its group without clusters, empty where nothing is left.

    Any other schema stays as it is.
    """
    parts = schema.get("anyOf", ())
    if not any(_CLUSTER in one.get("enum", ()) for one in parts):
        return schema
    groups = (one["properties"] for one in parts if "properties" in one)
    kept = {name: one for group in groups for name, one in group.items() if name != _CLUSTER}
    return {**schema, "anyOf": (), "type": "object", "properties": kept} if kept else {}


def _option(schema: Schema, defs: Schema, prefix: str, depth: int) -> Option:
    name = str(schema["properties"]["name"]["const"])
    settings = tuple(
        one for one in _fields(schema, defs, prefix, depth + 1) if one.path != f"{prefix}name"
    )
    return Option(name, str(schema.get("description", "")), settings)


def _resolve(schema: Schema, defs: Schema) -> Schema:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    return {**defs.get(reference.rpartition("/")[2], {}), **schema}


def _show(default: Any) -> str:
    """Return a default as a reader of the form sees it."""
    if default is None or default == "":
        return ""
    if isinstance(default, Mapping) and "name" in default:
        return str(default["name"])
    return default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)


_ORIGINS = tuple(Option(name, "") for name in ("human", "synthetic", "unknown"))


def _main(title: str, path: str, control: str, hint: str, **more: Any) -> Setting:
    return Setting(path, control, hint, title=title, **more)


_MAIN = (
    _main("Documents", "inputs.documents", "place", "a folder", is_required=True),
    _main(
        "Origin of the documents",
        "steps.index.origin.kind",
        "choice",
        "who wrote them",
        default="unknown",
        options=_ORIGINS,
    ),
    _main("License of the documents", "steps.index.origin.license", "text", "an SPDX id"),
    _main(
        "Teacher",
        "inputs.teacher",
        "place",
        "writes the records and teaches the student",
        default="hub:HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    _main(
        "Embedder",
        "inputs.embedder",
        "place",
        "turns passages and questions into vectors",
        default="hub:sentence-transformers/all-MiniLM-L6-v2",
    ),
    _main(
        "Training records",
        "steps.records.target.train",
        "integer",
        "questions and answers to learn from",
        default="100",
        low=1,
    ),
    _main(
        "Held-out records",
        "steps.records.target.held_out",
        "integer",
        "questions and answers to measure with",
        default="20",
        low=1,
    ),
    _main(
        "Passages as training text",
        "steps.records.include_passages",
        "integer",
        "learned as plain text",
        default="100",
        low=0,
    ),
    _main(
        "Student size",
        "steps.student.student.max_parameters",
        "number",
        "as a share of the teacher's parameters",
        default="0.6",
        low=0,
        high=1,
    ),
    _main(
        "Training steps",
        "steps.student.train.steps",
        "integer",
        "optimizer steps of the student",
        default="50",
        low=1,
    ),
    _main(
        "Questions in the report",
        "steps.report.max_questions",
        "integer",
        "held-out questions that each model answers",
        default="20",
        low=1,
    ),
    _main("Seed", "seed", "integer", "same seed, same machine: same bytes", default="0", low=0),
)
