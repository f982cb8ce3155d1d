"""Recipe of a flow (DAG): steps that take documents, checkpoints or the output of earlier steps.

A step is a recipe of any other kind, without ``version``; any path in it may be ``{from: STEP}`` or
``{from: inputs.NAME}`` instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from typing_extensions import override

from stillroom.errors import Problem, RecipeError
from stillroom.recipes import ENGINE, EngineChoice, Recipe, Reference, find_recipe_class
from stillroom.registry.catalog import suggest

__all__ = ["FlowRecipe", "FlowStep", "ServingSteps", "engine_of", "find_sources"]

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_PLACEHOLDER = "step:"


@dataclass(frozen=True)
class FlowStep:
    """One step: its settings as written, and its recipe with ``step:NAME`` for sources."""

    written: frozenset[str]
    sources: tuple[str, ...]
    recipe: Recipe

    def build(self, paths: Mapping[str, str], seed: int) -> Recipe:
        """Return the recipe with real paths for its sources, and the flow's seed by default."""
        data = _replace_placeholders(self.recipe.model_dump(mode="json"), paths.__getitem__)
        if "seed" not in self.written:
            data["seed"] = seed
        return self._validate(data)

    def leave_out(self, skipped: Collection[str]) -> FlowStep:
        """Return the step without skipped sources in its lists of questions and its readers.

        Of each, one source is left: without any, the step cannot be done.
        """
        data = _drop_placeholders(
            self.recipe.model_dump(mode="json"), {_PLACEHOLDER + name for name in skipped}
        )
        sources = dict.fromkeys(find_sources(_restore_references(data)))
        return FlowStep(self.written, tuple(sources), self._validate(data))

    def _validate(self, data: Mapping[str, Any]) -> Recipe:
        recipe = type(self.recipe).model_validate(data)
        engine = engine_of(self.recipe)  # not part of the settings, so it is copied
        return recipe if engine is None else recipe.model_copy(update={"engine": engine})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as written in a flow: ``{from: NAME}`` for sources."""
        data: dict[str, Any] = _restore_references(self.recipe.model_dump(mode="json"))
        del data["version"]
        if "seed" not in self.written:
            del data["seed"]
        return data


def engine_of(recipe: Recipe) -> EngineChoice | None:
    """Return the engine of a recipe; None for kinds without one."""
    engine = getattr(recipe, "engine", None)
    return engine if isinstance(engine, EngineChoice) else None


def find_sources(value: object) -> list[str]:
    """Return every name in a ``{from: NAME}`` inside a value."""
    if isinstance(value, Mapping):
        if set(value) == {"from"}:
            return [str(value["from"])]
        return [name for item in value.values() for name in find_sources(item)]
    if isinstance(value, list | tuple):
        return [name for item in value for name in find_sources(item)]
    return []


def _map_texts(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return settings with every text, and every ``{from: NAME}``, changed."""
    if isinstance(value, str) or (isinstance(value, Mapping) and set(value) == {"from"}):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(item, change) for key, item in value.items()}
    return (
        [_map_texts(item, change) for item in value] if isinstance(value, list | tuple) else value
    )


def _insert_placeholders(value: object) -> Any:
    """Return a value with every ``{from: NAME}`` replaced by its placeholder."""
    return _map_texts(
        value, lambda one: one if isinstance(one, str) else f"{_PLACEHOLDER}{one['from']}"
    )


def _replace_placeholders(value: Any, change: Callable[[str], Any]) -> Any:
    """Return a value with every placeholder replaced by what its name gives."""
    return _map_texts(
        value,
        lambda one: (
            change(one.removeprefix(_PLACEHOLDER))
            if isinstance(one, str) and one.startswith(_PLACEHOLDER)
            else one
        ),
    )


def _restore_references(value: Any) -> Any:
    return _replace_placeholders(value, lambda name: {"from": name})


_MAY_BE_FEWER = ("questions", "readers")


def _drop_placeholders(value: Any, dropped: Collection[str]) -> Any:
    """Return settings without these items of the lists and mappings that may have fewer."""
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        left = item
        if key in _MAY_BE_FEWER and isinstance(item, list):
            left = [one for one in item if one not in dropped]
        elif key in _MAY_BE_FEWER and isinstance(item, dict):
            left = {name: one for name, one in item.items() if one not in dropped}
        kept[key] = _drop_placeholders(left or item, dropped)
    return kept


def _build_step(value: object) -> FlowStep:
    if isinstance(value, FlowStep):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise RecipeError(
            "a step must be a recipe with a kind",
            code="recipe.step",
            expected="kind: and the settings of that kind",
            next="stillroom list kinds",
        )
    if value["kind"] == "flow":
        raise RecipeError(
            "a flow cannot be a step of a flow",
            code="recipe.step",
            expected="a step of another kind",
            next="write its steps into this flow",
        )
    sources = tuple(dict.fromkeys(find_sources(value)))
    recipe = find_recipe_class(value["kind"]).model_validate(_insert_placeholders(value))
    return FlowStep(frozenset(value), sources, recipe)


class ServingSteps(BaseModel):
    """Steps that answer when the run is queried or served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: str = Field(description="step that builds the index")
    reader: str = Field(
        "",
        description="step that trains the sentence reader of answers that quote; where the "
        "documents are too few for it, the packaged one reads",
    )
    model: str = Field(
        description="step that produces the checkpoint that writes answers, or an input "
        "(inputs.NAME)"
    )
    fallback: str = Field(
        "",
        description="input whose checkpoint answers if the documents were too few to train on "
        "(inputs.NAME); without it, and with a step as model, the run fails in that case",
    )


class FlowRecipe(Recipe):
    """Steps that pass artifacts to each other."""

    kind: Literal["flow"] = "flow"
    inputs: dict[str, Reference] = Field(
        default_factory=dict, description="named paths and checkpoints for the steps"
    )
    steps: dict[
        str,
        Annotated[
            FlowStep,
            BeforeValidator(_build_step),
            PlainSerializer(lambda step: step.to_json()),
            WithJsonSchema({"type": "object", "required": ["kind"]}),
        ],
    ] = Field(
        description="recipes by name, in order; {from: NAME} refers to an earlier one's artifact",
        examples=[{"index": {"kind": "rag.index", "documents": "path/to/documents"}}],
    )
    engine: EngineChoice = ENGINE
    answer: ServingSteps | None = Field(None, description="steps that `ask` and `serve` open")

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def needs(self, step: str, other_step: str) -> bool:
        """Return whether a step depends on another, directly or through others."""
        return step == other_step or any(
            source in self.steps and self.needs(source, other_step)
            for source in (self.steps[step].sources if step in self.steps else ())
        )

    @override
    def describe_unused(self, path: str = "") -> list[str]:
        steps = self.steps.items()
        return [
            line for name, step in steps for line in step.recipe.describe_unused(f"steps.{name}.")
        ]

    def list_unused_inputs(self) -> list[str]:
        """Return the names of inputs that neither a step nor ``answer`` refers to."""
        used = {source for step in self.steps.values() for source in step.sources}
        if self.answer is not None:
            used |= {self.answer.model, self.answer.fallback}
        return [name for name in self.inputs if f"inputs.{name}" not in used]

    def find_spare_model(self) -> str:
        """Return the checkpoint that answers if nothing could be trained; empty without one."""
        answer = self.answer
        if answer is None:
            return ""
        spare = answer.model if answer.model.startswith("inputs.") else answer.fallback
        return self.inputs[spare.removeprefix("inputs.")] if spare else ""

    @model_validator(mode="after")
    def _check_sources(self) -> FlowRecipe:
        problems = []
        known = [f"inputs.{name}" for name in self.inputs]
        for name, step in self.steps.items():
            if not _NAME.match(name):
                problems.append(
                    Problem(
                        f"'{name}' is not a valid step name",
                        "recipe.step",
                        f"steps.{name}",
                        "lower-case letters, digits and _",
                        "rename the step",
                    )
                )
            problems += [
                _unknown_source_problem(source, f"steps.{name}", known)
                for source in step.sources
                if source not in known
            ]
            known.append(name)
        problems += _check_clusters(self)
        if self.answer:
            steps, inputs = list(self.steps), [f"inputs.{name}" for name in self.inputs]
            allowed = {
                "index": steps,
                "reader": ["", *steps],
                "model": [*steps, *inputs],
                "fallback": ["", *inputs],
            }
            for field, names in allowed.items():
                source = getattr(self.answer, field)
                if source not in names:
                    known_names = [name for name in names if name]
                    problems.append(_unknown_source_problem(source, f"answer.{field}", known_names))
        if problems:
            raise RecipeError(problems)
        return self


def _check_clusters(recipe: FlowRecipe) -> list[Problem]:
    """Return a problem for each step whose cluster differs from the first one."""
    named = [
        ("engine", recipe.engine),
        *((f"steps.{name}.engine", engine_of(step.recipe)) for name, step in recipe.steps.items()),
    ]
    clusters = [(where, engine.ray.address) for where, engine in named if engine and engine.ray]
    return [
        Problem(
            f"the Ray cluster is {_format_address(address)}, and "
            f"{_format_address(clusters[0][1])} in {clusters[0][0]}",
            "recipe.engine",
            where,
            "one cluster for all steps of a flow: a process can join only one",
            "name the cluster once, as engine of the flow, or run the step as a recipe of its own",
        )
        for where, address in clusters[1:]
        if address != clusters[0][1]
    ]


def _format_address(address: str | None) -> str:
    return f"at '{address}'" if address else "one started for the job"


def _unknown_source_problem(source: str, where: str, known: list[str]) -> Problem:
    return Problem(
        f"'{source}' is neither an input nor an earlier step",
        "recipe.unknown-step",
        where,
        f"one of: {', '.join(known) or 'none yet'}",
        suggest(source, known) or "add the step before this one",
    )
