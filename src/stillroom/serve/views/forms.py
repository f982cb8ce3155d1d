"""Form fields of a recipe from its JSON Schema, and the methods that a form offers.

A setting without a simple control is edited as YAML. All information comes from the schema; an
empty field keeps the value of the recipe. Work on a cluster, which client jobs may not use, is not
offered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import override

from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.rag.generation.content_flags import CONTENT_FLAGS
from stillroom.rag.settings import AnswerSettings
from stillroom.recipes import find_recipe_class, render_template
from stillroom.recipes.yaml_text import read_yaml
from stillroom.registry.catalog import MethodListing, find_registries, list_kinds, list_methods

__all__ = [
    "MAIN_JOB",
    "FieldOption",
    "FormField",
    "RecipeForm",
    "describe_form",
    "list_answer_settings",
    "list_answering_options",
    "list_content_flags",
    "list_forms",
    "list_kinds",
    "list_method_options",
]

MAIN_JOB = "flow/make"
_MAX_DEPTH = 4

_SIMPLE_CONTROLS = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
}

_HIDDEN_FIELDS = frozenset({"version", "kind"})
_CLUSTER_ENGINE = "ray"
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FieldOption:
    """One choice of a setting: its name, its description, and its own settings."""

    name: str
    summary: str
    settings: tuple[FormField, ...] = ()


@dataclass(frozen=True, slots=True)
class FormField:
    """One setting of a form.

    ``control`` is ``text``, ``place`` (a name in the folder or a reference), ``integer``,
    ``number``, ``boolean``, ``choice``, ``method`` (a choice whose options have settings),
    ``group`` or ``yaml``; ``path`` is dotted, as in an override. ``key`` is the setting that names
    the option of a ``method``. ``example`` is the value in the commented recipe of a required
    setting.
    """

    path: str
    control: str
    hint: str = ""
    default: str = ""
    example: str = ""
    is_required: bool = False
    low: float | None = None
    high: float | None = None
    options: tuple[FieldOption, ...] = ()
    settings: tuple[FormField, ...] = ()
    title: str = ""
    key: str = "name"

    @property
    def label(self) -> str:
        """Label of the field: its title, or the last part of its path in words."""
        words = self.path.rpartition(".")[2].replace("_", " ")
        return self.title or words[:1].upper() + words[1:]


@dataclass(frozen=True, slots=True)
class RecipeForm:
    """Kind of recipe that a form can create; kinds are grouped by room."""

    name: str
    summary: str
    room: str = ""


class _SchemaWithDefaults(GenerateJsonSchema):
    """JSON Schema whose defaults include those of factories, so that a form names them."""

    @override
    def get_default_value(self, schema: Any) -> Any:
        factory = schema.get("default_factory")
        if factory is None or schema.get("default_factory_takes_data"):
            return super().get_default_value(schema)
        return factory()


def list_forms() -> list[RecipeForm]:
    """Return the main job and all other kinds of recipe, by room."""
    main = RecipeForm(
        MAIN_JOB, "The main job: from documents to a reader of your own that quotes answers."
    )
    kinds = [
        RecipeForm(name, summary.replace("`", ""), name.partition(".")[0])
        for name, summary in list_kinds().items()
    ]
    return [main, *sorted(kinds, key=lambda form: form.room)]


def describe_form(name: str) -> tuple[tuple[FormField, ...], str]:
    """Return the settings of a kind, and its commented recipe.

    Raises:
        RecipeError: If there is no such kind or method.
    """
    if name == MAIN_JOB:
        return _MAIN_FIELDS, render_template("flow", "make")
    if name == "flow":
        return (), render_template("flow")
    schema, commented = (
        find_recipe_class(name).model_json_schema(
            by_alias=True, schema_generator=_SchemaWithDefaults
        ),
        render_template(name),
    )
    written = read_yaml(commented, "recipe").data
    settings = tuple(
        replace(field, example=_format_default(_drop_empty(written[field.path])))
        if field.is_required and field.path in written
        else field
        for field in _build_fields(schema, schema.get("$defs", {}), "", 0)
    )
    return settings, commented


def _drop_empty(value: Any) -> Any:
    """Return a value of a commented recipe without empty settings."""
    if isinstance(value, Mapping):
        return {str(key): _drop_empty(item) for key, item in value.items() if item}
    return [_drop_empty(item) for item in value] if isinstance(value, list) else value


def _build_fields(schema: Schema, defs: Schema, prefix: str, depth: int) -> tuple[FormField, ...]:
    required = set(schema.get("required", ()))
    fields = [
        _build_field(f"{prefix}{name}", part, defs, depth, is_required=name in required)
        for name, part in schema.get("properties", {}).items()
        if name not in _HIDDEN_FIELDS
        and not (prefix and "const" in part)
        and _drop_cluster_options(_resolve_reference(part, defs)) != {}
    ]
    return tuple(sorted(fields, key=lambda part: (not part.is_required, part.control == "group")))


def _build_field(
    path: str, schema: Schema, defs: Schema, depth: int, *, is_required: bool
) -> FormField:
    resolved = _resolve_reference(schema, defs)
    merged = _drop_cluster_options(resolved)
    hint = str(schema.get("description", merged.get("description", "")))
    if merged is not resolved:
        hint = hint.partition(";")[0]  # the text after this concerns clusters
    parts = [_resolve_reference(part, defs) for part in merged.get("anyOf", ())]
    if "oneOf" in merged:  # of several groups the first has controls; the others are YAML
        parts = [_resolve_reference(merged["oneOf"][0], defs)]
    parts = [part for part in parts if part.get("type") != "null"]
    if len(parts) == 1:
        merged = {**merged, **parts[0]}
    key = merged.get("discriminator", {}).get("propertyName", "name")
    default = _format_default(schema.get("default"), key)
    values: dict[str, Any] = {"hint": hint, "default": default, "is_required": is_required}
    variants = [_resolve_reference(part, defs) for part in merged.get("oneOf", ())] or parts
    named = [part for part in variants if "const" in part.get("properties", {}).get(key, {})]
    if named and depth < _MAX_DEPTH:
        options = tuple(_build_option(part, defs, f"{path}.", depth, key) for part in named)
        return FormField(path, "method", **values, options=options, key=key)
    if "enum" in merged and all(isinstance(part, str) for part in merged["enum"]):
        options = tuple(FieldOption(part, "") for part in merged["enum"])
        return FormField(path, "choice", **values, options=options)
    if merged.get("properties") and depth < _MAX_DEPTH:
        return FormField(
            path, "group", **values, settings=_build_fields(merged, defs, f"{path}.", depth + 1)
        )
    control = _SIMPLE_CONTROLS.get(str(merged.get("type")), "yaml")
    if control == "text" and merged.get("minLength") == 1:
        control = "place"
    low = merged.get("minimum", merged.get("exclusiveMinimum"))
    high = merged.get("maximum", merged.get("exclusiveMaximum"))
    return FormField(path, control, **values, low=low, high=high)


def _drop_cluster_options(schema: Schema) -> Schema:
    """Return the schema of an engine without its cluster options, empty if none are left.

    Any other schema is returned unchanged.
    """
    parts = schema.get("anyOf", ())
    if not any(_CLUSTER_ENGINE in part.get("enum", ()) for part in parts):
        return schema
    groups = (part["properties"] for part in parts if "properties" in part)
    properties = {
        name: part for group in groups for name, part in group.items() if name != _CLUSTER_ENGINE
    }
    return {**schema, "anyOf": (), "type": "object", "properties": properties} if properties else {}


def _build_option(schema: Schema, defs: Schema, prefix: str, depth: int, key: str) -> FieldOption:
    name = str(schema["properties"][key]["const"])
    summary = str(schema.get("description", "")).split("\n\n", 1)[0]
    settings = tuple(
        field
        for field in _build_fields(schema, defs, prefix, depth + 1)
        if field.path != f"{prefix}{key}"
    )
    return FieldOption(name, summary, settings)


def _resolve_reference(schema: Schema, defs: Schema) -> Schema:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    return {**defs.get(reference.rpartition("/")[2], {}), **schema}


def _format_default(default: Any, key: str = "name") -> str:
    """Format a default value for the form; of a choice, the value of ``key``."""
    if default is None or default == "":
        return ""
    if isinstance(default, Mapping) and key in default:
        return str(default[key])
    return default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)


_ORIGIN_OPTIONS = tuple(FieldOption(name, "") for name in ("human", "synthetic", "unknown"))


def _build_main_field(title: str, path: str, control: str, hint: str, **more: Any) -> FormField:
    return FormField(path, control, hint, title=title, **more)


_MAIN_FIELDS = (
    _build_main_field("Documents", "inputs.documents", "place", "a folder", is_required=True),
    _build_main_field(
        "Origin of the documents",
        "steps.index.origin.kind",
        "choice",
        "who wrote the documents",
        default="unknown",
        options=_ORIGIN_OPTIONS,
    ),
    _build_main_field(
        "License of the documents", "steps.index.origin.license", "text", "an SPDX identifier"
    ),
    _build_main_field(
        "Teacher",
        "inputs.teacher",
        "place",
        "generates the questions, and answers where it is asked to",
        default=DEFAULT_TEACHER,
    ),
    _build_main_field(
        "Embedder",
        "inputs.embedder",
        "place",
        "embeds passages and questions",
        default="builtin:auto",
    ),
    _build_main_field(
        "Questions to train on",
        "steps.records.num_records.train",
        "integer",
        "number of questions that are generated; a part is held out",
        default="120",
        low=1,
    ),
    _build_main_field(
        "Passes over the questions",
        "steps.reader.train.epochs",
        "number",
        "training of the reader",
        default="1",
        low=0,
    ),
    _build_main_field(
        "Questions in the report",
        "steps.report.max_questions",
        "integer",
        "maximum number of held-out questions that every reader answers",
        default="200",
        low=1,
    ),
    _build_main_field(
        "Questions to the model",
        "steps.report.compare.model_questions",
        "integer",
        "number of questions that the model answers for comparison",
        default="20",
        low=0,
    ),
    _build_main_field(
        "Seed",
        "seed",
        "integer",
        "the same seed on the same machine gives the same bytes",
        default="0",
        low=0,
    ),
)


@lru_cache(maxsize=32)
def list_method_options(registry: str) -> tuple[MethodListing, ...]:
    """Return the methods of a registry such as ``rag.retrievers``, by name."""
    name = f"stillroom.{registry}"
    return tuple(list_methods({name: find_registries()[name]}))


def list_answering_options() -> dict[str, tuple[MethodListing, ...]]:
    """Return the retrievers, rerankers and answering methods."""
    return {
        "retrievers": list_method_options("rag.retrievers"),
        "rerankers": list_method_options("rag.rerankers"),
        "answering": list_method_options("rag.answer_strategies"),
    }


def list_content_flags() -> dict[str, str]:
    """Return what a text with each content flag may hold."""
    return CONTENT_FLAGS


def list_answer_settings() -> tuple[FormField, ...]:
    """Return the settings of an answer that a request may give, without the methods."""
    schema = AnswerSettings.model_json_schema()
    fields = {field.path: field for field in _build_fields(schema, {}, "", 0)}
    return tuple(
        replace(fields[name], high=fields[name].high or option.maximum, title=setting.title or "")
        for name, (setting, option) in AnswerSettings.client_options().items()
        if option.in_requests and not option.is_method
    )
