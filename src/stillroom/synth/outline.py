"""The graph of a recipe before it runs: its drawing, and what each step will take and cost.

A chain is drawn as the graph that it is. Counts are what can be known without asking: the lines of
what is started from, how often it is asked about, and that half of what is judged is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import StillroomError
from stillroom.provenance import LEDGER, find_output
from stillroom.records import count_records
from stillroom.synth.graph import Step, ends_of, sources_of
from stillroom.synth.method import Generator

if TYPE_CHECKING:
    from stillroom.synth.recipe import SynthRecipe

__all__ = ["Forecast", "draw_graph", "forecast_steps"]

_KEPT_SHARE = 0.5
_UNKNOWN = 1000
_PROMPT_TOKENS = 300
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Forecast:
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
        """Return plain JSON values."""
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


def forecast_steps(recipe: SynthRecipe) -> list[Forecast]:
    """Return what to expect of every step, in the recipe's order."""
    steps = recipe.steps or _as_graph(recipe)
    sources = sources_of(steps, recipe.first)
    gives: dict[str, float] = {
        "index": _count(recipe.index),
        "seeds": _count(recipe.seeds),
        "nothing": float(recipe.target.train + recipe.target.held_out),
    }
    found = []
    for name, step in steps.items():
        takes = sum(gives[source] for source in sources[name])
        asks = tokens = money = 0.0
        if step.generator is not None:
            units = _units(recipe, step, step.generator, takes)
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
            gives[name] = takes * _KEPT_SHARE
        if step.limit is not None:
            gives[name] = min(gives[name], step.limit)
        found.append(
            Forecast(name, step.verb, sources[name], takes, asks, tokens, money, gives[name])
        )
    return found


def draw_graph(recipe: SynthRecipe) -> list[str]:
    """Return a table of the steps as lines, each with its sources, and what is expected of it."""
    forecasts = forecast_steps(recipe)
    ends = set(ends_of({one.step: one.sources for one in forecasts}))
    heads = ("step", "from", "does", "takes", "asks", "tokens", "money", "gives")
    rows = [heads]
    for one in forecasts:
        priced = f"{one.money:.2f}" if one.money else ""
        rows.append(
            (
                one.step,
                ", ".join(one.sources),
                _cut(one.does),
                _short(one.takes),
                _short(one.asks) if one.asks else "",
                _short(one.tokens) if one.tokens else "",
                priced,
                _short(one.gives) + (" (out)" if one.step in ends else ""),
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _as_graph(recipe: SynthRecipe) -> Mapping[str, Step]:
    """Return the two steps of a chain."""
    first = recipe.first
    ask = Step.model_validate({"from": first, "generator": recipe.generator})
    keep = Step.model_validate({"from": "ask", "filters": recipe.filters})
    return {"ask": ask, "keep": keep} if recipe.filters else {"ask": ask}


def _units(recipe: SynthRecipe, step: Step, generator: Generator, takes: float) -> float:
    """Return how many units a generator is asked about: what the targets need, at most all."""
    wanted = float(recipe.target.train + (recipe.target.held_out if recipe.held_out else 0))
    if step.limit is not None:
        wanted = min(wanted, step.limit / max(1 - recipe.held_out, 0.01))
    attempts = step.attempts if recipe.steps else recipe.attempts
    needed = wanted / _KEPT_SHARE / max(generator.gives, 1)
    if generator.draws or generator.takes == ("nothing",):
        return needed
    return min(needed, takes * attempts)


def _count(reference: str | None) -> float:
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
        return float(_UNKNOWN)


def _short(value: float) -> str:
    if value >= 10_000_000:
        return f"{value / 1e6:.0f}M"
    return f"{value / 1e3:.0f}k" if value >= 10_000 else f"{value:.0f}"


def _cut(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
