"""Step graph of a recipe: settings, validation, cost estimates and a printed table.

A step has a name and exactly one of ``generator``, ``filters`` and ``select``. It takes the records
of earlier steps, or what the recipe starts from: ``index``, ``seeds``, or ``nothing``. Knows
settings only.

A chain is drawn as the graph that it is. Counts are what can be known without asking: the lines of
what is started from, how often it is asked about, and that half of what is judged is kept.
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
    """One step of a graph."""

    sources: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        (),
        alias="from",
        description="earlier steps (or index, seeds, nothing) whose records it takes, in turn; by "
        "default the step before, and for the first what the recipe starts from",
    )
    generator: Annotated[Generator, GENERATORS.choice()] | None = Field(
        None, description="ask a teacher about every record"
    )
    filters: tuple[Annotated[Filter, FILTERS.choice()], ...] = Field(
        (), description="keep what passes all of these, in order"
    )
    select: Annotated[Selector, SELECTORS.choice()] | None = Field(
        None, description="choose among all records that come (of the training side)"
    )
    model: Reference | None = Field(None, description="the step's teacher; default the recipe's")
    attempts: int = Field(
        1, ge=1, le=100, description="how often a generator is asked about each record"
    )
    limit: int | None = Field(
        None, ge=1, description="records that the step gives for training at most; it asks no more"
    )

    @property
    def verb(self) -> str:
        """What the step does, in the words of the recipe."""
        if self.generator is not None:
            return self.generator.method_name()
        if self.select is not None:
            return self.select.method_name()
        return ", ".join(one.method_name() for one in self.filters)


def resolve_sources(steps: Mapping[str, GraphStep], start: str) -> dict[str, tuple[str, ...]]:
    """Return what each step takes, the defaults filled in.

    Args:
        steps: By name, in the recipe's order.
        start: What a first step takes that names nothing: index, seeds or nothing.
    """
    found: dict[str, tuple[str, ...]] = {}
    before = start
    for name, step in steps.items():
        found[name] = step.sources or (before,)
        before = name
    return found


def find_end_steps(sources: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the steps whose records are the recipe's: those that no other step takes."""
    taken = {source for names in sources.values() for source in names}
    return [name for name in sources if name not in taken]


def check_steps(steps: Mapping[str, GraphStep], starts: Mapping[str, bool]) -> list[Problem]:
    """Return all that is wrong with the steps of a graph.

    Args:
        steps: By name, in the recipe's order.
        starts: Of index, seeds and nothing, whether the recipe has it.
    """
    problems: list[Problem] = []
    start = next((name for name, there in starts.items() if there), "nothing")
    known = [name for name, there in starts.items() if there]
    scored: dict[str, set[str]] = {}
    for name, takes in resolve_sources(steps, start).items():
        where, step = f"steps.{name}", steps[name]
        if not _NAME.match(name) or name in GRAPH_SOURCES:
            problems.append(
                Problem(
                    f"'{name}' is not a step's name",
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
                    f"step {name} does {'nothing' if not verbs else 'several things'}",
                    "recipe.step",
                    where,
                    "one of generator, filters, select",
                    "give it one of them" if not verbs else "make a step of each",
                )
            )
        problems += [
            _unknown_source_problem(source, where, known) for source in takes if source not in known
        ]
        problems += _check_start(name, step, takes)
        found = {one for source in takes for one in scored.get(source, ())}
        problems += _check_score(name, step, found)
        names = {one.method_name() for one in step.filters}
        scored[name] = set() if step.generator is not None else found | names
        known.append(name)
    return problems


def _check_start(name: str, step: GraphStep, takes: tuple[str, ...]) -> list[Problem]:
    where = f"steps.{name}"
    has_nothing = "nothing" in takes
    if has_nothing and len(takes) > 1:
        what, expected, then = "nothing stands beside other sources", "one or the other", "drop it"
    elif has_nothing and (step.generator is None or "nothing" not in step.generator.takes):
        what = f"{step.verb or name} cannot start from nothing"
        expected, then = "an earlier step, index or seeds", "name it under from"
    elif step.generator is not None and not has_nothing and step.generator.takes == ("nothing",):
        what = f"{step.verb} starts from nothing"
        expected, then = "from: nothing", "write that"
    else:
        return []
    return [Problem(f"step {name}: {what}", "recipe.step", where, expected, then)]


def _check_score(name: str, step: GraphStep, scored: set[str]) -> list[Problem]:
    """Refuse a choice by the score of a filter that no step before it has."""
    wanted = str(getattr(step.select, "score", "")) if step.select is not None else ""
    if getattr(step.select, "keep", "score") != "score":
        return []
    if not wanted or wanted in scored:
        return []
    known = ", ".join(sorted(scored))
    return [
        Problem(
            f"step {name}: nothing before it scores by '{wanted}'",
            "recipe.step",
            f"steps.{name}.select.score",
            f"one of: {known}" if known else "a filter in a step between it and the generator",
            suggest(wanted, sorted(scored)) or f"add a step with the filter {wanted}",
        )
    ]


def _unknown_source_problem(source: str, where: str, known: list[str]) -> Problem:
    return Problem(
        f"'{source}' is neither a start nor an earlier step",
        "recipe.unknown-step",
        where,
        f"one of: {', '.join(known)}",
        suggest(source, known) or "add the step before this one",
    )


def make_conflict_error(what: str) -> RecipeError:
    """Return the refusal of a setting that a graph says in its steps."""
    return RecipeError(
        f"{what} and steps are both given",
        code="recipe.step",
        expected="one or the other: a graph's steps say it themselves",
        next=f"make a step of {what}",
    )


_PASS_RATE = 0.5
_DEFAULT_ROWS = 1000
_PROMPT_TOKENS = 300
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """What one step is expected to take, ask, spend and give."""

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
    """Return what to expect of every step, in the recipe's order."""
    steps = recipe.steps or _to_graph(recipe)
    sources = resolve_sources(steps, recipe.first)
    gives: dict[str, float] = {
        "index": _count_rows(recipe.index),
        "seeds": _count_rows(recipe.seeds),
        "nothing": float(recipe.target.train + recipe.target.held_out),
    }
    found = []
    for name, step in steps.items():
        takes = sum(gives[source] for source in sources[name])
        asks = tokens = money = 0.0
        if step.generator is not None:
            units = _estimate_units(recipe, step, step.generator, takes)
            asks = units * step.generator.asks
            prompt, written = asks * _PROMPT_TOKENS, asks * step.generator.longest / 2
            tokens = prompt + written
            prices = recipe.budget
            money = (prompt * prices.input_price + written * prices.output_price) / _MILLION
            gives[name] = units * step.generator.gives
        elif step.select is not None:
            budget = getattr(step.select, "budget", None)
            share = float(getattr(step.select, "share", 1.0))
            gives[name] = min(takes, budget) if budget is not None else takes * share
        else:
            gives[name] = takes * _PASS_RATE
        if step.limit is not None:
            gives[name] = min(gives[name], step.limit)
        found.append(
            StepEstimate(name, step.verb, sources[name], takes, asks, tokens, money, gives[name])
        )
    return found


def format_graph(recipe: SynthRecipe) -> list[str]:
    """Return a table of the steps as lines, each with its sources, and what is expected of it."""
    forecasts = estimate_steps(recipe)
    ends = set(find_end_steps({one.step: one.sources for one in forecasts}))
    heads = ("step", "from", "does", "takes", "asks", "tokens", "money", "gives")
    rows = [heads]
    for one in forecasts:
        priced = f"{one.money:.2f}" if one.money else ""
        rows.append(
            (
                one.step,
                ", ".join(one.sources),
                _truncate(one.does),
                _format_count(one.takes),
                _format_count(one.asks) if one.asks else "",
                _format_count(one.tokens) if one.tokens else "",
                priced,
                _format_count(one.gives) + (" (out)" if one.step in ends else ""),
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _to_graph(recipe: SynthRecipe) -> Mapping[str, GraphStep]:
    """Return the two steps of a chain."""
    first = recipe.first
    ask = GraphStep.model_validate({"from": first, "generator": recipe.generator})
    keep = GraphStep.model_validate({"from": "ask", "filters": recipe.filters})
    return {"ask": ask, "keep": keep} if recipe.filters else {"ask": ask}


def _estimate_units(
    recipe: SynthRecipe, step: GraphStep, generator: Generator, takes: float
) -> float:
    """Return how many units a generator is asked about: what the targets need, at most all."""
    wanted = float(recipe.target.train + (recipe.target.held_out if recipe.held_out else 0))
    if step.limit is not None:
        wanted = min(wanted, step.limit / max(1 - recipe.held_out, 0.01))
    attempts = step.attempts if recipe.steps else recipe.attempts
    needed = wanted / _PASS_RATE / max(generator.gives, 1)
    if generator.draws or generator.takes == ("nothing",):
        return needed
    return min(needed, takes * attempts)


def _count_rows(reference: str | None) -> float:
    """Return how many rows a path holds, as far as it exists; else a guess."""
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
