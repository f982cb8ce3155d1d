"""The steps of a recipe that is a graph: what each does, and what it takes its records from.

A step has a name and exactly one of ``generator``, ``filters`` and ``select``. It takes the records
of earlier steps, or what the recipe starts from: ``index``, ``seeds``, or ``nothing``. Knows
settings only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from stillroom.errors import Problem, RecipeError
from stillroom.recipes import Reference, Settings
from stillroom.registry.listing import suggest
from stillroom.synth.method import FILTERS, GENERATORS, SELECTORS, Filter, Generator, Selector

__all__ = [
    "STARTS",
    "Step",
    "check_steps",
    "ends_of",
    "refuse_both",
    "sources_of",
]

STARTS = ("index", "seeds", "nothing")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Step(Settings):
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


def sources_of(steps: Mapping[str, Step], start: str) -> dict[str, tuple[str, ...]]:
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


def ends_of(sources: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the steps whose records are the recipe's: those that no other step takes."""
    taken = {source for names in sources.values() for source in names}
    return [name for name in sources if name not in taken]


def check_steps(steps: Mapping[str, Step], starts: Mapping[str, bool]) -> list[Problem]:
    """Return all that is wrong with the steps of a graph.

    Args:
        steps: By name, in the recipe's order.
        starts: Of index, seeds and nothing, whether the recipe has it.
    """
    problems: list[Problem] = []
    start = next((name for name, there in starts.items() if there), "nothing")
    known = [name for name, there in starts.items() if there]
    scored: dict[str, set[str]] = {}
    for name, takes in sources_of(steps, start).items():
        where, step = f"steps.{name}", steps[name]
        if not _NAME.match(name) or name in STARTS:
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
        problems += [_unknown(source, where, known) for source in takes if source not in known]
        problems += _check_start(name, step, takes)
        found = {one for source in takes for one in scored.get(source, ())}
        problems += _check_score(name, step, found)
        names = {one.method_name() for one in step.filters}
        scored[name] = set() if step.generator is not None else found | names
        known.append(name)
    return problems


def _check_start(name: str, step: Step, takes: tuple[str, ...]) -> list[Problem]:
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


def _check_score(name: str, step: Step, scored: set[str]) -> list[Problem]:
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


def _unknown(source: str, where: str, known: list[str]) -> Problem:
    return Problem(
        f"'{source}' is neither a start nor an earlier step",
        "recipe.unknown-step",
        where,
        f"one of: {', '.join(known)}",
        suggest(source, known) or "add the step before this one",
    )


def refuse_both(what: str) -> RecipeError:
    """Return the refusal of a setting that a graph says in its steps."""
    return RecipeError(
        f"{what} and steps are both given",
        code="recipe.step",
        expected="one or the other: a graph's steps say it themselves",
        next=f"make a step of {what}",
    )
