"""Compare chunkers, embedders and pipelines by grid search on judged questions; name the best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_origin

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from stillroom.errors import RecipeError
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.rag.index_settings import IndexSettings
from stillroom.rag.interfaces import DEFAULT_RETRIEVER
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.jobs.inputs import JudgedQueries, ReaderInput, is_path
from stillroom.recipes import DISTINCT, Destination, Recipe, Reference, Settings
from stillroom.registry import Method

__all__ = [
    "JOB_KIND",
    "Configuration",
    "SweepRecipe",
    "build_variant",
    "estimate",
    "list_configurations",
    "run",
]

_UNCHANGED = "as is"


def _resolve_path(name: str, value: Any) -> Any:
    """Resolve the path of an embedder like the recipe's other paths."""
    return TypeAdapter(Reference).validate_python(value) if name == "embedder" else value


class SweepRecipe(ReaderInput, Recipe):
    """Recipe that measures variations of an index and of its pipelines on judged questions."""

    kind: Literal["rag.sweep"] = Field(default="rag.sweep", description="compare configurations")
    index: IndexSettings = Field(description="settings of the baseline's index, as of rag.index")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="settings of the index by dotted name, each with its values, as "
        "{chunker: [heading, {name: recursive, size: 200}]}; the first values are the baseline",
    )
    pipelines: Annotated[list[str], DISTINCT] = Field(
        default=[DEFAULT_RETRIEVER, "keyword", "dense", "hybrid"],
        min_length=1,
        description="[TRANSFORM>]RETRIEVER[+RERANKER]; the first is the baseline",
    )
    configurations: list[dict[str, Any]] = Field(
        default_factory=list,
        description="further configurations: settings by dotted name, and pipeline; missing ones "
        "are as in the baseline",
    )
    max_configurations: int = Field(
        default=24, ge=1, description="maximum number of configurations; more may take days"
    )
    questions: Reference | JudgedQueries = Field(
        description="questions that name their evidence (JSON lines, SQuAD, records), or the "
        "queries and qrels of a collection",
        examples=["path/to/questions"],
    )
    model: Reference | None = Field(
        default=None, description="text model for query transforms and rerankers"
    )
    measure: str = Field(default="ndcg@10", description="measure to maximize")
    depth: int = Field(default=50, ge=1, le=1000, description="number of ranks that are evaluated")
    held_out: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="share of the questions held out of the choice, on which the best is measured",
    )
    cache: Destination | None = Field(
        default=None, description="folder that keeps indexes and vectors for later sweeps"
    )

    @field_validator("grid")
    @classmethod
    def _resolve(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if not all(grid.values()):
            raise ValueError("give at least one value of each setting")
        return {name: [_resolve_path(name, value) for value in grid[name]] for name in grid}

    @field_validator("configurations")
    @classmethod
    def _resolve_each(cls, configurations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {name: _resolve_path(name, value) for name, value in settings.items()}
            for settings in configurations
        ]


class Configuration(Settings):
    """One index recipe and one pipeline, with its value on each axis."""

    choices: dict[str, str] = Field(description="value on each axis, as text")
    changes: dict[str, Any] = Field(description="changed settings of the recipe, by name")
    pipeline: str = Field(description="pipeline that searches the index")

    @property
    def name(self) -> str:
        """The values on every axis that varies, as one text."""
        return ", ".join(self.choices.values())


def list_configurations(sweep: SweepRecipe) -> list[Configuration]:
    """Return every combination and every variant once, the baseline first."""
    axes: dict[str, Sequence[Any]] = {**sweep.grid, "pipeline": sweep.pipelines}
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    points = grid + [{**grid[0], **settings} for settings in sweep.configurations]
    further_names = {name for settings in sweep.configurations for name in settings}
    axis_names = list(dict.fromkeys([*axes, *(name for point in points for name in point)]))
    axis_names = [
        name
        for name in axis_names
        if name == "pipeline" or name in further_names or len(axes.get(name, ())) > 1
    ]
    configurations: dict[str, Configuration] = {}
    for point in points:
        choices = {
            name: _format_value(point[name]) if name in point else _UNCHANGED for name in axis_names
        }
        changes = {name: value for name, value in point.items() if name != "pipeline"}
        configuration = Configuration(
            choices=choices, changes=changes, pipeline=str(point["pipeline"])
        )
        configurations.setdefault(configuration.name, configuration)
    return list(configurations.values())


def build_variant(sweep: SweepRecipe, changes: dict[str, Any]) -> IndexRecipe:
    """Return the recipe of the sweep's index with some settings changed.

    Raises:
        RecipeError: If a name is not a setting of the index, or a value does not fit it.
    """
    data: dict[str, Any] = sweep.index.model_dump(mode="json")
    for name, value in changes.items():
        section, path = data, name.split(".")
        for part in path[:-1]:
            inner = section.get(part)
            section = inner if isinstance(inner, dict) else {}
        if path[-1] not in section or path[0] == "documents":
            raise _make_setting_error(
                f"'{name}' is not a setting that can vary", name, "a setting of kind rag.index"
            )
        section[path[-1]] = value
    for name, group in sweep.index:
        keys = {key.split(".")[1] for key in changes if key.startswith(f"{name}.")}
        if keys and isinstance(group, Settings) and not isinstance(group, Method):
            data[name] = _leave_out_defaults(group, data[name], keys)
    try:
        return IndexRecipe.model_validate({"seed": sweep.seed, **data})
    except (ValidationError, RecipeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        changed = ", ".join(f"{name}: {_format_value(value)}" for name, value in changes.items())
        raise _make_setting_error(
            f"no index can be made with {changed}: {reason}", changed, "values that fit"
        ) from error


def _leave_out_defaults(group: Settings, data: dict[str, Any], changed: set[str]) -> dict[str, Any]:
    """Return changed settings of a group without defaults, which a group of another shape lacks.

    Settings of fixed choices, such as ``search: exact``, are kept: they choose the shape.
    """
    fields = type(group).model_fields
    kept = {
        key
        for key, field in fields.items()
        if get_origin(field.annotation) is Literal
        or getattr(group, key) != field.get_default(call_default_factory=True)
    }
    return {key: value for key, value in data.items() if key in kept | changed}


def _format_value(value: Any) -> str:
    """Return a value as one line of recipe text."""
    if isinstance(value, dict):
        settings = [f"{key}={_format_value(part)}" for key, part in value.items() if key != "name"]
        name = str(value.get("name", ""))
        return f"{name}:{','.join(settings)}" if name and settings else name or ",".join(settings)
    return str(value)


def _make_setting_error(problem: str, where: str, expected: str) -> RecipeError:
    return RecipeError(
        problem,
        code="rag.sweep-setting",
        where=f"grid: {where}",
        expected=expected,
        next="stillroom new rag.index prints every setting",
    )


def _list_variants(recipe: SweepRecipe) -> list[tuple[Configuration, IndexRecipe]]:
    """Return every configuration with the recipe of its index.

    Raises:
        RecipeError: If a setting or pipeline is invalid, or there are too many configurations.
    """
    from stillroom.evaluate.metrics.retrieval import parse_measure
    from stillroom.rag.retrieval.pipeline import parse_pipeline

    parse_measure(recipe.measure)
    configurations = list_configurations(recipe)
    if len(configurations) > recipe.max_configurations:
        sizes = {
            **recipe.grid,
            "pipelines": recipe.pipelines,
            "configurations": recipe.configurations,
        }
        counts = ", ".join(f"{name} {len(values)}" for name, values in sizes.items())
        raise RecipeError(
            f"the sweep has {len(configurations)} configurations ({counts})",
            code="rag.sweep-too-many",
            expected=f"at most {recipe.max_configurations}: more may take days",
            next="vary less at once, or raise max_configurations",
        )
    for configuration in configurations:
        parse_pipeline(configuration.pipeline)
    return [(item, build_variant(recipe, item.changes)) for item in configurations]


def run(recipe: SweepRecipe, job: Job) -> Artifact:
    """Run the sweep; see ``stillroom.rag.evaluation.sweep_job.run_sweep``."""
    from stillroom.rag.evaluation.sweep_job import run_sweep

    return run_sweep(recipe, _list_variants(recipe), job)


def estimate(recipe: SweepRecipe) -> Estimate:
    """Estimate the cost of all indexes, without the searches.

    Raises:
        RecipeError: If a setting or pipeline is invalid, or there are too many configurations.
        DataError: If the questions cannot be used or are too few.
    """
    from stillroom.rag.evaluation.sweep_job import read_sweep_questions
    from stillroom.rag.index.builder import estimate_index

    variants = {variant.model_dump_json(): variant for _, variant in _list_variants(recipe)}
    questions = recipe.questions
    files = (questions,) if isinstance(questions, str) else (questions.queries, questions.qrels)
    if is_path(*files):
        read_sweep_questions(recipe)
    total = Estimate()
    for variant in variants.values():
        total += estimate_index(variant)
    return total


JOB_KIND = JobKind(recipe=SweepRecipe, run=run, estimate=estimate)
