"""Records pipeline (DAG of tasks): settings of its steps, validation, estimates and table.

A step generates, filters or selects. Its inputs are the records of earlier steps, or the recipe's
sources: ``index``, ``seeds``, or ``nothing``. A generator with its filters is the short form of a
pipeline of two steps.

Counts are estimates without any request: the number of source lines, the number of attempts, and a
pass rate of one half.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, Tag, model_validator

from stillroom.errors import Problem, StillroomError
from stillroom.provenance import LEDGER, find_output
from stillroom.recipes import Reference, Settings, choose_by_key
from stillroom.records import count_records
from stillroom.registry.catalog import suggest
from stillroom.synth.interfaces import (
    FILTERS,
    GENERATORS,
    PASSAGE_FILTERS,
    SELECTORS,
    Filter,
    Generator,
    Selector,
)

if TYPE_CHECKING:
    from stillroom.synth.jobs.records import RecordsRecipe

__all__ = [
    "STEP_SOURCES",
    "UNLIMITED",
    "FilterStep",
    "GenerateStep",
    "GeneratorPipeline",
    "Pipeline",
    "PipelineStep",
    "SelectStep",
    "StepEstimate",
    "StepPipeline",
    "check_steps",
    "estimate_steps",
    "find_end_steps",
    "format_steps",
    "resolve_sources",
]

UNLIMITED = 1_000_000_000
"""A number of records that is never reached."""

STEP_SOURCES = ("index", "seeds", "nothing")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class _Step(Settings):
    """Settings of any step."""

    model_config = ConfigDict(serialize_by_alias=True)

    sources: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        default=(),
        alias="from",
        description="earlier steps (or index, seeds, nothing) whose records it takes, "
        "alternating; by default the previous step, and for the first step the "
        "recipe's source",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="maximum training records of the step; no requests are made beyond it",
    )


class GenerateStep(_Step):
    """Generate records from every input with a teacher."""

    generator: Annotated[Generator, GENERATORS.choice()] = Field(
        description="method that generates the records"
    )
    model: Reference | None = Field(
        default=None, description="teacher of the step; by default the recipe's"
    )
    attempts: int = Field(
        default=1,
        ge=1,
        le=100,
        description="attempts for each input; without inputs, units per record wanted",
    )

    @property
    def method_names(self) -> str:
        """Name of the generator."""
        return self.generator.method_name()


class FilterStep(_Step):
    """Keep the records that pass all filters."""

    filters: tuple[Annotated[Filter, FILTERS.choice()], ...] = Field(
        description="filters that a record must pass, in order"
    )

    @property
    def method_names(self) -> str:
        """Names of the filters."""
        return ", ".join(check.method_name() for check in self.filters)


class SelectStep(_Step):
    """Select among all input records of the training side."""

    select: Annotated[Selector, SELECTORS.choice()] = Field(
        description="method that selects the records"
    )

    @property
    def method_names(self) -> str:
        """Name of the selector."""
        return self.select.method_name()


PipelineStep = Annotated[
    Annotated[GenerateStep, Tag("GenerateStep")]
    | Annotated[FilterStep, Tag("FilterStep")]
    | Annotated[SelectStep, Tag("SelectStep")],
    choose_by_key(
        {"generator": "GenerateStep", "filters": "FilterStep", "select": "SelectStep"},
        "one of generator, filters and select, which names what the step does",
    ),
]
"""One step: what it does is named by the key that it has."""


class GeneratorPipeline(Settings):
    """One generator and its filters."""

    generator: Annotated[Generator, GENERATORS.choice()] = Field(
        "grounded_qa", validate_default=True, description="method that generates the records"
    )
    filters: tuple[Annotated[Filter, FILTERS.choice()], ...] = Field(
        PASSAGE_FILTERS,
        validate_default=True,
        description="filters that a record must pass, in order; by default the generator's",
    )
    attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="maximum attempts per seed; without seeds, units per record wanted",
    )
    include_passages: int = Field(
        200, ge=0, description="maximum train passages included as plain-text records; 0 for none"
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_filters(cls, data: Any) -> Any:
        """Use the generator's own filters if none are named."""
        if not isinstance(data, Mapping) or "filters" in data:
            return data
        generator = data.get("generator", "grounded_qa")
        name = generator.get("name") if isinstance(generator, Mapping) else generator
        if isinstance(generator, Generator):
            return {**data, "filters": generator.choose_filters(generator.model_dump())}
        if not isinstance(name, str) or name not in GENERATORS.names():
            return data  # reported where the generator itself is parsed
        settings = generator if isinstance(generator, Mapping) else {}
        return {**data, "filters": GENERATORS.get(name).choose_filters(settings)}

    @property
    def steps(self) -> dict[str, GenerateStep | FilterStep | SelectStep]:
        """The equivalent steps."""
        return {
            "generate": GenerateStep(generator=self.generator, attempts=self.attempts),
            "filter": FilterStep(filters=self.filters),
        }


class StepPipeline(Settings):
    """Steps that generate, filter and select."""

    steps: dict[str, PipelineStep] = Field(
        min_length=1,
        description="steps by name, in order, each with one of generator, filters and select, and "
        "its sources",
    )


Pipeline = Annotated[
    Annotated[GeneratorPipeline, Tag("GeneratorPipeline")]
    | Annotated[StepPipeline, Tag("StepPipeline")],
    choose_by_key(
        {"steps": "StepPipeline"},
        "a generator with its filters, or steps by name",
        default="GeneratorPipeline",
    ),
]
"""A generator with its filters, or any steps by name."""


def resolve_sources(steps: Mapping[str, PipelineStep], start: str) -> dict[str, tuple[str, ...]]:
    """Return the sources of each step, with the defaults filled in.

    Args:
        steps: Steps by name, in the recipe's order.
        start: Default source of the first step: index, seeds or nothing.
    """
    previous = (start, *steps)
    return {
        name: step.sources or (previous[number],)
        for number, (name, step) in enumerate(steps.items())
    }


def find_end_steps(sources: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the steps whose records are the recipe's output: those that no other step takes."""
    consumed = {source for names in sources.values() for source in names}
    return [name for name in sources if name not in consumed]


def check_steps(
    steps: Mapping[str, PipelineStep], starts: Mapping[str, bool], *, is_single: bool
) -> list[Problem]:
    """Validate the steps of a recipe; return all problems.

    Args:
        steps: Steps by name, in the recipe's order.
        starts: Whether the recipe has index, seeds and nothing.
        is_single: Whether they are those of a generator with its filters.
    """
    problems: list[Problem] = []
    start = next((name for name, is_set in starts.items() if is_set), "nothing")
    known = [name for name, is_set in starts.items() if is_set]
    sources = resolve_sources(steps, start)
    scored: dict[str, set[str]] = {}
    for name, step_sources in sources.items():
        place, step = "pipeline" if is_single else f"pipeline.steps.{name}", steps[name]
        if not _NAME.match(name) or name in STEP_SOURCES:
            problems.append(
                Problem(
                    f"'{name}' is not a valid step name",
                    "recipe.step",
                    place,
                    "lower-case letters, digits and _, not index, seeds or nothing",
                    "rename the step",
                )
            )
        problems += [
            _unknown_source_problem(source, place, known)
            for source in step_sources
            if source not in known
        ]
        problems += _check_start(name, step, step_sources, place)
        available_scores = {item for source in step_sources for item in scored.get(source, ())}
        if isinstance(step, SelectStep):
            problems += _check_score(step.select, available_scores, place)
        filters = step.filters if isinstance(step, FilterStep) else ()
        names = {item.method_name() for item in filters}
        scored[name] = set() if isinstance(step, GenerateStep) else available_scores | names
        known.append(name)
    taken = {source for step_sources in sources.values() for source in step_sources}
    problems += [
        Problem(
            f"{name} is set, and no step takes it",
            "synth.seeds",
            name,
            "a step that takes it, or no such key",
            f"remove {name}, or write from: {name} in a step",
        )
        for name, is_set in starts.items()
        if is_set and name != "nothing" and name not in taken
    ]
    return problems


def _check_start(
    name: str, step: PipelineStep, step_sources: tuple[str, ...], place: str
) -> list[Problem]:
    """Report sources that a step cannot be connected to: of another type than its inputs."""
    has_nothing = "nothing" in step_sources
    kinds = step.generator.seed_kinds if isinstance(step, GenerateStep) else ("records",)
    code, methods = "synth.seeds", step.method_names or name
    if has_nothing and len(step_sources) > 1:
        problem = "nothing cannot be combined with other sources"
        expected = "one or the other"
        remedy = "drop it"
        code = "recipe.step"
    elif has_nothing and "nothing" not in kinds:
        problem = f"{methods} needs {' or '.join(kinds)}, and there are none"
        key = step.generator.recipe_key() if isinstance(step, GenerateStep) else "seeds"
        expected, remedy = f"an earlier step, or {key}: a path", f"set {key} in the recipe"
    elif not has_nothing and kinds == ("nothing",):
        problem = f"{methods} takes no seeds"
        expected, remedy = "neither index nor seeds, or from: nothing", "remove them"
    elif "index" in step_sources and isinstance(step, GenerateStep) and "passages" not in kinds:
        problem = f"{methods} takes {' or '.join(kinds)}, and an index gives passages"
        expected, remedy = "seeds: a file of them", "set seeds in the recipe, or from: seeds"
    else:
        return []
    return [Problem(problem, code, place, expected, remedy)]


def _check_score(selector: Selector, scored: set[str], place: str) -> list[Problem]:
    """Report a selection by the score of a filter that no earlier step has."""
    score = str(getattr(selector, "score", ""))
    if getattr(selector, "keep", "score") != "score" or not score or score in scored:
        return []
    known = ", ".join(sorted(scored))
    return [
        Problem(
            f"no earlier step scores by '{score}'",
            "recipe.step",
            f"{place}.select.score",
            f"one of: {known}" if known else "a filter in a step between it and the generator",
            suggest(score, sorted(scored)) or f"add a step with the filter {score}",
        )
    ]


def _unknown_source_problem(source: str, where: str, known: list[str]) -> Problem:
    return Problem(
        f"'{source}' is neither a source nor an earlier step",
        "recipe.unknown-step",
        where,
        f"one of: {', '.join(known)}",
        suggest(source, known) or "add the step before this one",
    )


_PASS_RATE = 0.5
_DEFAULT_ROWS = 1000
_PROMPT_TOKENS = 300
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Expected inputs, requests, cost and output of one step."""

    step: str
    methods: str
    sources: tuple[str, ...]
    inputs: float
    requests: float = 0.0
    tokens: float = 0.0
    cost: float = 0.0
    outputs: float = 0.0


def estimate_steps(recipe: RecordsRecipe) -> list[StepEstimate]:
    """Return the estimates of every step, in the recipe's order."""
    output_counts: dict[str, float] = {
        "index": _count_rows(recipe.index),
        "seeds": _count_rows(recipe.seeds),
        "nothing": _count_targets(recipe),
    }
    estimates = []
    for name, sources in recipe.sources.items():
        step = recipe.steps[name]
        num_inputs = outputs = sum(output_counts[source] for source in sources)
        num_requests = prompt_tokens = completion_tokens = 0.0
        if isinstance(step, GenerateStep):
            units = _estimate_units(recipe, step, num_inputs)
            outputs = units * step.generator.max_records
            num_requests = units * step.generator.max_requests
            prompt_tokens = num_requests * _PROMPT_TOKENS
            completion_tokens = num_requests * step.generator.max_tokens / 2
        elif isinstance(step, SelectStep):
            budget = getattr(step.select, "budget", None)
            share = float(getattr(step.select, "share", 1.0))
            outputs = min(num_inputs, budget) if budget is not None else num_inputs * share
        elif step.filters:
            outputs = num_inputs * _PASS_RATE
        output_counts[name] = min(outputs, step.limit) if step.limit is not None else outputs
        prices = recipe.budget
        cost = prompt_tokens * prices.input_price + completion_tokens * prices.output_price
        estimates.append(
            StepEstimate(
                name,
                step.method_names,
                sources,
                num_inputs,
                num_requests,
                prompt_tokens + completion_tokens,
                cost / _MILLION,
                output_counts[name],
            )
        )
    return estimates


def format_steps(recipe: RecordsRecipe) -> list[str]:
    """Return a table of the steps as lines, with their sources and estimates."""
    ends = set(find_end_steps(recipe.sources))
    heads = ("step", "from", "methods", "inputs", "requests", "tokens", "cost", "outputs")
    rows = [heads]
    for estimate in estimate_steps(recipe):
        priced = f"{estimate.cost:.2f}" if estimate.cost else ""
        rows.append(
            (
                estimate.step,
                ", ".join(estimate.sources),
                _truncate(estimate.methods),
                _format_count(estimate.inputs),
                _format_count(estimate.requests) if estimate.requests else "",
                _format_count(estimate.tokens) if estimate.tokens else "",
                priced,
                _format_count(estimate.outputs) + (" (out)" if estimate.step in ends else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _estimate_units(recipe: RecordsRecipe, step: GenerateStep, num_inputs: float) -> float:
    """Return the number of units of a generator: as needed for the targets, at most all."""
    generator = step.generator
    target = _count_targets(recipe)
    if step.limit is not None:
        target = min(target, step.limit / max(1 - recipe.held_out, 0.01))
    needed = target / _PASS_RATE / max(generator.max_records, 1)
    if generator.samples_seeds or generator.seed_kinds == ("nothing",):
        return needed
    return min(needed, num_inputs * step.attempts)


def _count_targets(recipe: RecordsRecipe) -> float:
    held_out = recipe.get_target("held_out") if recipe.held_out else 0
    return float(recipe.get_target("train") + held_out)


def _count_rows(reference: str | None) -> float:
    """Return the number of rows in a path, or a guess if it does not exist."""
    if reference is None:
        return 0.0
    try:
        folder = find_output(Path(reference), "index", "records")
        if folder.is_dir():
            names = ("passages.jsonl", "records.jsonl", LEDGER)
            files: Sequence[Path] = [folder / n for n in names if (folder / n).is_file()]
            folder = files[0] if files else folder
        if folder.suffix == ".jsonl" or folder.name == LEDGER:
            with folder.open("rb") as file:
                return float(sum(1 for line in file if line.strip()))
        return float(count_records(folder))
    except (StillroomError, OSError):
        return float(_DEFAULT_ROWS)


def _format_count(value: float) -> str:
    if value >= 10_000_000:
        return f"{value / 1e6:.0f}M"
    return f"{value / 1e3:.0f}k" if value >= 10_000 else f"{value:.0f}"


def _truncate(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
