"""SweepSettings: what a sweep varies, and the judged questions that tell what is better."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from stillroom.errors import RecipeError
from stillroom.rag.method import DEFAULT_RETRIEVER
from stillroom.recipes import Reference, Settings

if TYPE_CHECKING:
    from stillroom.rag.recipe import RagRecipe

__all__ = [
    "Configuration",
    "SweepSettings",
    "build_variant",
    "list_configurations",
    "refuse_sweep",
    "say_value",
]


_AS_IS = "as is"


def _resolve_path(value: Any) -> str:
    reference: TypeAdapter[str] = TypeAdapter(Reference)
    return reference.validate_python(value)


class SweepSettings(Settings):
    """Variations of an index and of ways to search it, measured on judged questions."""

    vary: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="settings of this recipe by dotted name, each with the values that are tried, "
        "as {chunker: [heading, {name: recursive, size: 200}]}; the first ones are compared with",
    )
    variants: list[dict[str, Any]] = Field(
        default_factory=list,
        description="single configurations beside those combinations: settings by dotted name, and "
        "way; what one leaves out is as in the first combination",
    )
    ways: list[str] = Field(
        [DEFAULT_RETRIEVER, "keyword", "dense", "hybrid"],
        min_length=1,
        description="[TRANSFORM>]RETRIEVER[+RERANKER]; the first is compared with",
    )
    questions: Reference | None = Field(
        None, description="questions that name their evidence: JSON lines, SQuAD, records"
    )
    queries: Reference | None = Field(
        None, description="in place of questions: queries of a collection"
    )
    qrels: Reference | None = Field(None, description="the judgements of those queries")
    model: str = Field("", description="what transforms and rerankers may ask")
    measure: str = Field("ndcg@10", description="what is made high")
    depth: int = Field(50, ge=1, le=1000, description="ranks that are judged")
    held_out: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the questions that have no part in choosing the best, and measure it",
    )

    @field_validator("vary")
    @classmethod
    def _resolve(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Let paths of embedders start where the recipe's other paths do."""
        if not all(vary.values()):
            raise ValueError("give at least one value of each setting")
        return {
            name: [_resolve_path(value) for value in values] if name == "embedder" else values
            for name, values in vary.items()
        }

    @field_validator("variants")
    @classmethod
    def _resolve_each(cls, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                name: _resolve_path(value) if name == "embedder" else value
                for name, value in variant.items()
            }
            for variant in variants
        ]


class Configuration(Settings):
    """One index recipe and one way, with what of each axis it has."""

    choices: dict[str, str] = Field(description="the value of each axis, as it is written")
    changes: dict[str, Any] = Field(description="settings of the recipe that are set, by name")
    way: str = Field(description="how the index is searched")

    @property
    def name(self) -> str:
        """What the configuration is called: its choices on every axis that varies."""
        return ", ".join(self.choices.values())


def list_configurations(sweep: SweepSettings) -> list[Configuration]:
    """Return every combination and every variant once, the one that all are compared with first."""
    axes: dict[str, Sequence[Any]] = {**sweep.vary, "way": sweep.ways}
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    chosen = grid + [{**grid[0], **variant} for variant in sweep.variants]
    touched = {name for variant in sweep.variants for name in variant}
    shown = list(dict.fromkeys([*axes, *(name for one in chosen for name in one)]))
    shown = [
        name for name in shown if name == "way" or name in touched or len(axes.get(name, ())) > 1
    ]
    found: dict[str, Configuration] = {}
    for one in chosen:
        choices = {name: say_value(one[name]) if name in one else _AS_IS for name in shown}
        changes = {name: value for name, value in one.items() if name != "way"}
        configuration = Configuration(choices=choices, changes=changes, way=str(one["way"]))
        found.setdefault(configuration.name, configuration)
    return list(found.values())


def build_variant(recipe: RagRecipe, changes: dict[str, Any]) -> RagRecipe:
    """Return the recipe of an index with some settings changed, without its sweep.

    Raises:
        RecipeError: If a name is none of the recipe's, or a value does not fit it.
    """
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude={"sweep"})
    for name, value in changes.items():
        place, path = data, name.split(".")
        for part in path[:-1]:
            inner = place.get(part)
            place = inner if isinstance(inner, dict) else {}
        if path[-1] not in place or path[0] in {"version", "kind", "documents", "sweep"}:
            raise _bad(f"'{name}' is not a setting that can vary", name, "a setting of kind rag")
        place[path[-1]] = value
    try:
        return type(recipe).model_validate(data)
    except (ValidationError, RecipeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        said = ", ".join(f"{name}: {say_value(value)}" for name, value in changes.items())
        raise _bad(f"no index can be made with {said}: {what}", said, "values that fit") from error


def refuse_sweep(recipe: RagRecipe) -> None:
    """Refuse to build one index of a recipe that asks for many.

    Raises:
        RecipeError: If the recipe has a sweep.
    """
    if recipe.sweep is not None:
        raise RecipeError(
            "the recipe has a sweep, which makes many indexes and keeps none",
            code="rag.sweep-recipe",
            where="sweep",
            expected="a recipe without one",
            next="stillroom rag sweep RECIPE --out DIR, then run the best.yaml that it leaves",
        )


def say_value(value: Any) -> str:
    """Return a value as a person writes it on one line."""
    if isinstance(value, dict):
        rest = [f"{key}={say_value(part)}" for key, part in value.items() if key != "name"]
        name = str(value.get("name", ""))
        return f"{name}:{','.join(rest)}" if name and rest else name or ",".join(rest)
    return str(value)


def _bad(what: str, where: str, expected: str) -> RecipeError:
    return RecipeError(
        what,
        code="rag.sweep-setting",
        where=f"sweep.vary: {where}",
        expected=expected,
        next="stillroom new rag prints every setting",
    )
