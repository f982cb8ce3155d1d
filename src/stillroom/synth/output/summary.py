"""JSON report of a run, shortfall warning, and the error for a run without records.

Everything here follows from what was kept and dropped: no clock, so that equal work gives equal
bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.errors import DataError
from stillroom.synth.pipeline.graph import estimate_steps
from stillroom.synth.pipeline.inputs import PipelineInputs
from stillroom.synth.pipeline.results import CostTracker, GraphResult, SplitResult
from stillroom.synth.pipeline.statistics import RecordStats
from stillroom.synth.recipe import UNLIMITED, SynthRecipe
from stillroom.synth.seeds import SeedSet
from stillroom.synth.selection import MixtureResult
from stillroom.synth.types import RejectedRecord, SeedItem, Split

__all__ = [
    "describe_shortfall",
    "make_graph_report",
    "make_no_records_error",
    "make_report",
    "require_records",
]


def require_records(train: SplitResult, recipe: SynthRecipe) -> None:
    """Fail where the training side gave no record at all.

    Raises:
        DataError: With the count of every reason.
    """
    if train.kept:
        return
    reasons = "; ".join(f"{count} {reason}" for reason, count in train.count_reasons().items())
    raise DataError(
        f"of {train.asked} asks about {train.units} seeds no training record is kept"
        + (f" ({reasons})" if reasons else ""),
        code="synth.nothing-kept",
        where=recipe.start,
        expected="at least one record that passes every filter",
        next="look at some with: stillroom synth preview RECIPE; then loosen the filter or change "
        "the teacher",
    )


def describe_shortfall(harvest: SplitResult, recipe: SynthRecipe, ended: str = "") -> str:
    """Return a warning where fewer records were kept than wanted, or nothing.

    ``ended`` says which bound ended the asking.
    """
    wanted = getattr(recipe.target, harvest.split)
    if len(harvest.kept) >= wanted or (harvest.split == "held_out" and not recipe.held_out):
        return ""
    reasons = list(harvest.count_reasons().items())[:3]
    shown = "; ".join(f"{count} {reason}" for reason, count in reasons) or "nothing to ask about"
    why = ended or (
        f"all seeds were asked about {recipe.attempts} times"
        if recipe.start and not recipe.generator.draws
        else f"there were {recipe.attempts} units for each wanted"
    )
    return (
        f"warning: {len(harvest.kept)} of {wanted} {harvest.split} records kept after "
        f"{harvest.asked} asks ({shown}); {why}"
    )


def make_report(
    recipe: SynthRecipe,
    source: SeedSet | None,
    sides: Mapping[str, Split],
    items: Mapping[Split, Sequence[SeedItem]],
    harvests: Sequence[SplitResult],
    texts: int,
    refused: Sequence[RejectedRecord],
) -> dict[str, Any]:
    """Return report.json.

    Args:
        recipe: What was asked for.
        source: The items read, and what fell out in reading; None where nothing was.
        sides: The split of documents.
        items: The items of each side.
        harvests: What each side gave.
        texts: How many passages became records of plain text.
        refused: Passages that a filter refused.
    """
    splits = {}
    for harvest in harvests:
        splits[harvest.split] = {
            "documents": sum(side == harvest.split for side in sides.values()),
            "seeds": len(items[harvest.split]),
            "wanted": getattr(recipe.target, harvest.split),
            "units": harvest.units,
            "asked": harvest.asked,
            "parsed": harvest.parsed,
            "kept": len(harvest.kept),
            "trimmed": harvest.trimmed,
            "dropped": harvest.count_reasons(),
            "prompt_tokens": harvest.prompt_tokens,
            "completion_tokens": harvest.completion_tokens,
            **({"changed": harvest.changed} if harvest.changed else {}),
            **({"measured": dict(harvest.told)} if harvest.told else {}),
            "counts": dict(sorted(harvest.counts.items())),
        }
    reasons = Counter(f"{drop.filter}: {drop.reason}" for drop in refused)
    return {
        "splits": splits,
        "passage_records": {"kept": texts, "dropped": dict(sorted(reasons.items()))},
        "source": {
            "seeds": len(source.items) if source else 0,
            "dropped": dict(source.dropped) if source else {},
        },
        "generator": recipe.generator.model_dump(mode="json"),
        "filters": [chosen.model_dump(mode="json") for chosen in recipe.filters],
    }


def make_graph_report(
    recipe: SynthRecipe,
    start: PipelineInputs,
    crops: Sequence[GraphResult],
    mixed: MixtureResult | None,
    trained: RecordStats,
    purse: CostTracker,
) -> dict[str, Any]:
    """Return the report of a run of a graph."""
    splits = {}
    for crop in crops:
        one = crop.harvest
        wanted = getattr(recipe.target, one.split)
        splits[one.split] = {
            "documents": sum(side == one.split for side in start.sides.values()),
            "seeds": sum(
                len(items) for (_, side), items in start.items.items() if side == one.split
            ),
            **({"wanted": wanted} if wanted < UNLIMITED else {}),
            "units": one.units,
            "asked": one.asked,
            "parsed": one.parsed,
            "kept": len(one.kept),
            "changed": one.changed,
            "dropped": one.count_reasons(),
            "prompt_tokens": one.prompt_tokens,
            "completion_tokens": one.completion_tokens,
            "steps": {name: yielded.to_json() for name, yielded in crop.steps.items()},
            **({"measured": {k: dict(v) for k, v in crop.told.items()}} if crop.told else {}),
        }
    return {
        "splits": splits,
        "steps": {
            one.step: {"from": list(one.sources), "does": one.does}
            for one in estimate_steps(recipe)
        },
        "source": {
            name: {"seeds": len(source.items), "dropped": dict(source.dropped)}
            for name, source in start.sources.items()
        },
        "origins": {kind: trained.kinds[kind] for kind in ("human", "synthetic", "unknown")},
        "spent": purse.to_json(),
        **({"mix": _describe_mixture(recipe, mixed)} if mixed is not None else {}),
    }


def _describe_mixture(recipe: SynthRecipe, mixed: MixtureResult) -> dict[str, Any]:
    settings = recipe.mix.model_dump(mode="json") if recipe.mix is not None else {}
    reasons: dict[str, int] = {}
    for drop in mixed.dropped:
        reasons[drop.reason] = reasons.get(drop.reason, 0) + 1
    return {
        "rule": settings.get("rule"),
        "human_share": settings.get("human_share"),
        "unknown": settings.get("unknown"),
        "there before": mixed.before,
        "written": len(mixed.records),
        "dropped": dict(sorted(reasons.items())),
    }


def make_no_records_error(train: GraphResult) -> DataError:
    """Return the error of a run whose filters accepted no record, with their reasons."""
    reasons = "; ".join(
        f"{count} {reason}" for reason, count in train.harvest.count_reasons().items()
    )
    return DataError(
        f"of {train.harvest.asked} asks no training record is kept"
        + (f" ({reasons})" if reasons else ""),
        code="synth.nothing-kept",
        expected="at least one record that passes every step",
        next="look at some with: stillroom synth preview RECIPE",
    )
