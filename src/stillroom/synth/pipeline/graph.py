"""Step graph of a recipe: settings, validation, cost estimates and a printed table.

A step has a name and exactly one of ``generator``, ``filters`` and ``select``. Its inputs are the
records of earlier steps, or the recipe's sources: ``index``, ``seeds``, or ``nothing``.

A chain is treated as the equivalent graph. Counts are estimates without any request: the number of
source lines, the number of attempts, and a pass rate of one half.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from stillroom.errors import Problem, RecipeError, StillroomError
from stillroom.provenance import LEDGER, find_output
from stillroom.recipes import Reference, Settings
from stillroom.records import count_records
from stillroom.registry.catalog import suggest
from stillroom.synth.interfaces import FILTERS, GENERATORS, SELECTORS, Filter, Generator, Selector

if TYPE_CHECKING:
    from stillroom.synth.recipe import SynthRecipe

__all__ = [
    "GRAPH_SOURCES",
    "PASS_RATE",
    "GraphStep",
    "StepEstimate",
    "check_steps",
    "estimate_steps",
    "find_end_steps",
    "format_graph",
    "make_conflict_error",
    "resolve_sources",
]


GRAPH_SOURCES = ("index", "seeds", "nothing")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class GraphStep(Settings):
    """Settings of one step of a graph."""

    sources: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        (),
        alias="from",
        description="earlier steps (or index, seeds, nothing) whose records it takes, "
        "alternating; by default the previous step, and for the first step the "
        "recipe's source",
    )
    generator: Annotated[Generator, GENERATORS.choice()] | None = Field(
        None, description="generate records from every input with a teacher"
    )
    filters: tuple[Annotated[Filter, FILTERS.choice()], ...] = Field(
        (), description="keep the records that pass all of these, in order"
    )
    select: Annotated[Selector, SELECTORS.choice()] | None = Field(
        None, description="select among all input records (of the training side)"
    )
    model: Reference | None = Field(
        None, description="teacher of the step; by default the recipe's"
    )
    attempts: int = Field(1, ge=1, le=100, description="attempts of the generator for each input")
    limit: int | None = Field(
        None,
        ge=1,
        description="maximum training records of the step; no requests are made beyond it",
    )

    @property
    def verb(self) -> str:
        """Name of the step's methods, as in the recipe."""
        if self.generator is not None:
            return self.generator.method_name()
        if self.select is not None:
            return self.select.method_name()
        return ", ".join(check.method_name() for check in self.filters)


def resolve_sources(steps: Mapping[str, GraphStep], start: str) -> dict[str, tuple[str, ...]]:
    """Return the sources of each step, with the defaults filled in.

    Args:
        steps: Steps by name, in the recipe's order.
        start: Default source of the first step: index, seeds or nothing.
    """
    sources: dict[str, tuple[str, ...]] = {}
    previous = start
    for name, step in steps.items():
        sources[name] = step.sources or (previous,)
        previous = name
    return sources


def find_end_steps(sources: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the steps whose records are the recipe's output: those that no other step takes."""
    consumed = {source for names in sources.values() for source in names}
    return [name for name in sources if name not in consumed]


def check_steps(steps: Mapping[str, GraphStep], starts: Mapping[str, bool]) -> list[Problem]:
    """Validate the steps of a graph; return all problems.

    Args:
        steps: Steps by name, in the recipe's order.
        starts: Whether the recipe has index, seeds and nothing.
    """
    problems: list[Problem] = []
    start = next((name for name, is_set in starts.items() if is_set), "nothing")
    known = [name for name, is_set in starts.items() if is_set]
    scored: dict[str, set[str]] = {}
    for name, step_sources in resolve_sources(steps, start).items():
        where, step = f"steps.{name}", steps[name]
        if not _NAME.match(name) or name in GRAPH_SOURCES:
            problems.append(
                Problem(
                    f"'{name}' is not a valid step name",
                    "recipe.step",
                    where,
                    "lower-case letters, digits and _, not index, seeds or nothing",
                    "rename the step",
                )
            )
        verbs = (step.generator is not None) + bool(step.filters) + (step.select is not None)
        if verbs != 1:
            problems.append(
                Problem(
                    f"step {name} has {'no method' if not verbs else 'several methods'}",
                    "recipe.step",
                    where,
                    "one of generator, filters, select",
                    "add one of them" if not verbs else "make a step of each",
                )
            )
        problems += [
            _unknown_source_problem(source, where, known)
            for source in step_sources
            if source not in known
        ]
        problems += _check_start(name, step, step_sources)
        available_scores = {item for source in step_sources for item in scored.get(source, ())}
        problems += _check_score(name, step, available_scores)
        names = {item.method_name() for item in step.filters}
        scored[name] = set() if step.generator is not None else available_scores | names
        known.append(name)
    return problems


def _check_start(name: str, step: GraphStep, step_sources: tuple[str, ...]) -> list[Problem]:
    where = f"steps.{name}"
    has_nothing = "nothing" in step_sources
    if has_nothing and len(step_sources) > 1:
        problem, expected, remedy = (
            "nothing cannot be combined with other sources",
            "one or the other",
            "drop it",
        )
    elif has_nothing and (step.generator is None or "nothing" not in step.generator.seed_kinds):
        problem = f"{step.verb or name} cannot start from nothing"
        expected, remedy = "an earlier step, index or seeds", "name it under from"
    elif (
        step.generator is not None and not has_nothing and step.generator.seed_kinds == ("nothing",)
    ):
        problem = f"{step.verb} starts from nothing"
        expected, remedy = "from: nothing", "write that"
    else:
        return []
    return [Problem(f"step {name}: {problem}", "recipe.step", where, expected, remedy)]


def _check_score(name: str, step: GraphStep, scored: set[str]) -> list[Problem]:
    """Report a selection by the score of a filter that no earlier step has."""
    score = str(getattr(step.select, "score", "")) if step.select is not None else ""
    if getattr(step.select, "keep", "score") != "score":
        return []
    if not score or score in scored:
        return []
    known = ", ".join(sorted(scored))
    return [
        Problem(
            f"step {name}: no earlier step scores by '{score}'",
            "recipe.step",
            f"steps.{name}.select.score",
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


def make_conflict_error(setting: str) -> RecipeError:
    """Return the error for a recipe setting that conflicts with steps."""
    return RecipeError(
        f"{setting} and steps are both set",
        code="recipe.step",
        expected="only one of them: the steps of a graph replace it",
        next=f"make a step of {setting}",
    )


PASS_RATE = 0.5
_DEFAULT_ROWS = 1000
_PROMPT_TOKENS = 300
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Expected inputs, requests, cost and output of one step."""

    step: str
    does: str
    sources: tuple[str, ...]
    takes: float
    asks: float
    tokens: float
    money: float
    gives: float

    def to_json(self) -> dict[str, object]:
        """Return the values as plain JSON types."""
        return {
            "step": self.step,
            "does": self.does,
            "from": list(self.sources),
            "takes": round(self.takes),
            "asks": round(self.asks),
            "tokens": round(self.tokens),
            "money": round(self.money, 4),
            "gives": round(self.gives),
        }


def estimate_steps(recipe: SynthRecipe) -> list[StepEstimate]:
    """Return the estimates of every step, in the recipe's order."""
    steps = recipe.steps or _to_graph(recipe)
    sources = resolve_sources(steps, recipe.first)
    output_counts: dict[str, float] = {
        "index": _count_rows(recipe.index),
        "seeds": _count_rows(recipe.seeds),
        "nothing": float(recipe.target.train + recipe.target.held_out),
    }
    estimates = []
    for name, step in steps.items():
        num_inputs = sum(output_counts[source] for source in sources[name])
        num_requests = tokens = money = 0.0
        if step.generator is not None:
            units = _estimate_units(recipe, step, step.generator, num_inputs)
            num_requests = units * step.generator.max_requests
            prompt_tokens, completion_tokens = (
                num_requests * _PROMPT_TOKENS,
                num_requests * step.generator.max_tokens / 2,
            )
            tokens = prompt_tokens + completion_tokens
            prices = recipe.budget
            money = (
                prompt_tokens * prices.input_price + completion_tokens * prices.output_price
            ) / _MILLION
            output_counts[name] = units * step.generator.max_records
        elif step.select is not None:
            budget = getattr(step.select, "budget", None)
            share = float(getattr(step.select, "share", 1.0))
            output_counts[name] = (
                min(num_inputs, budget) if budget is not None else num_inputs * share
            )
        else:
            output_counts[name] = num_inputs * PASS_RATE
        if step.limit is not None:
            output_counts[name] = min(output_counts[name], step.limit)
        estimates.append(
            StepEstimate(
                name,
                step.verb,
                sources[name],
                num_inputs,
                num_requests,
                tokens,
                money,
                output_counts[name],
            )
        )
    return estimates


def format_graph(recipe: SynthRecipe) -> list[str]:
    """Return a table of the steps as lines, with their sources and estimates."""
    forecasts = estimate_steps(recipe)
    ends = set(find_end_steps({estimate.step: estimate.sources for estimate in forecasts}))
    heads = ("step", "from", "does", "takes", "asks", "tokens", "money", "gives")
    rows = [heads]
    for estimate in forecasts:
        priced = f"{estimate.money:.2f}" if estimate.money else ""
        rows.append(
            (
                estimate.step,
                ", ".join(estimate.sources),
                _truncate(estimate.does),
                _format_count(estimate.takes),
                _format_count(estimate.asks) if estimate.asks else "",
                _format_count(estimate.tokens) if estimate.tokens else "",
                priced,
                _format_count(estimate.gives) + (" (out)" if estimate.step in ends else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _to_graph(recipe: SynthRecipe) -> Mapping[str, GraphStep]:
    """Return the equivalent steps of a chain."""
    first = recipe.first
    ask = GraphStep.model_validate({"from": first, "generator": recipe.generator})
    keep = GraphStep.model_validate({"from": "ask", "filters": recipe.filters})
    return {"ask": ask, "keep": keep} if recipe.filters else {"ask": ask}


def _estimate_units(
    recipe: SynthRecipe, step: GraphStep, generator: Generator, num_inputs: float
) -> float:
    """Return the number of units of a generator: as needed for the targets, at most all."""
    target = float(recipe.target.train + (recipe.target.held_out if recipe.held_out else 0))
    if step.limit is not None:
        target = min(target, step.limit / max(1 - recipe.held_out, 0.01))
    attempts = step.attempts if recipe.steps else recipe.attempts
    needed = target / PASS_RATE / max(generator.max_records, 1)
    if generator.samples_seeds or generator.seed_kinds == ("nothing",):
        return needed
    return min(needed, num_inputs * attempts)


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
