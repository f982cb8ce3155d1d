"""JSON report of a run, shortfall warning, and the error for a run without records.

Everything is derived from the accepted and rejected records, not from the clock, so that equal runs
give equal bytes.
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


def require_records(result: SplitResult, recipe: SynthRecipe) -> None:
    """Raise an error if there is no training record.

    Raises:
        DataError: With the count of every reason.
    """
    if result.kept:
        return
    reasons = "; ".join(f"{count} {reason}" for reason, count in result.count_reasons().items())
    raise DataError(
        f"no training record is kept of {result.asked} requests about {result.units} seeds"
        + (f" ({reasons})" if reasons else ""),
        code="synth.nothing-kept",
        where=recipe.start,
        expected="at least one record that passes every filter",
        next="inspect some with: stillroom synth preview RECIPE; then loosen the filter or "
        "change the teacher",
    )


def describe_shortfall(result: SplitResult, recipe: SynthRecipe, stopped_by: str = "") -> str:
    """Return a warning if fewer records were kept than targeted, or an empty string.

    ``stopped_by`` names the bound that stopped the generation.
    """
    target = getattr(recipe.target, result.split)
    if len(result.kept) >= target or (result.split == "held_out" and not recipe.held_out):
        return ""
    reasons = list(result.count_reasons().items())[:3]
    main_reasons = "; ".join(f"{count} {reason}" for reason, count in reasons) or "no seeds"
    cause = stopped_by or (
        f"all seeds were used {recipe.attempts} times"
        if recipe.start and not recipe.generator.samples_seeds
        else f"there were {recipe.attempts} units for each record of the target"
    )
    return (
        f"warning: {len(result.kept)} of {target} {result.split} records kept after "
        f"{result.asked} requests ({main_reasons}); {cause}"
    )


def make_report(
    recipe: SynthRecipe,
    source: SeedSet | None,
    sides: Mapping[str, Split],
    items: Mapping[Split, Sequence[SeedItem]],
    results: Sequence[SplitResult],
    texts: int,
    rejected: Sequence[RejectedRecord],
) -> dict[str, Any]:
    """Return the contents of report.json.

    Args:
        recipe: The recipe of the run.
        source: The items read, and those skipped; None without a source.
        sides: The split of each document.
        items: The items of each side.
        results: The results of each side.
        texts: Number of passages included as plain-text records.
        rejected: Passages rejected by a filter.
    """
    splits = {}
    for result in results:
        splits[result.split] = {
            "documents": sum(side == result.split for side in sides.values()),
            "seeds": len(items[result.split]),
            "wanted": getattr(recipe.target, result.split),
            "units": result.units,
            "asked": result.asked,
            "parsed": result.parsed,
            "kept": len(result.kept),
            "trimmed": result.trimmed,
            "dropped": result.count_reasons(),
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            **({"changed": result.changed} if result.changed else {}),
            **({"measured": dict(result.filter_summaries)} if result.filter_summaries else {}),
            "counts": dict(sorted(result.counts.items())),
        }
    reasons = Counter(f"{drop.filter}: {drop.reason}" for drop in rejected)
    return {
        "splits": splits,
        "passage_records": {"kept": texts, "dropped": dict(sorted(reasons.items()))},
        "source": {
            "seeds": len(source.items) if source else 0,
            "dropped": dict(source.dropped) if source else {},
        },
        "generator": recipe.generator.model_dump(mode="json"),
        "filters": [filter_settings.model_dump(mode="json") for filter_settings in recipe.filters],
    }


def make_graph_report(
    recipe: SynthRecipe,
    inputs: PipelineInputs,
    graph_results: Sequence[GraphResult],
    mixture: MixtureResult | None,
    train_stats: RecordStats,
    costs: CostTracker,
) -> dict[str, Any]:
    """Return the contents of report.json for a graph."""
    splits = {}
    for graph_result in graph_results:
        result = graph_result.split_result
        target = getattr(recipe.target, result.split)
        splits[result.split] = {
            "documents": sum(side == result.split for side in inputs.sides.values()),
            "seeds": sum(
                len(items) for (_, side), items in inputs.items.items() if side == result.split
            ),
            **({"wanted": target} if target < UNLIMITED else {}),
            "units": result.units,
            "asked": result.asked,
            "parsed": result.parsed,
            "kept": len(result.kept),
            "changed": result.changed,
            "dropped": result.count_reasons(),
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "steps": {name: yielded.to_json() for name, yielded in graph_result.steps.items()},
            **(
                {"measured": {k: dict(v) for k, v in graph_result.filter_summaries.items()}}
                if graph_result.filter_summaries
                else {}
            ),
        }
    return {
        "splits": splits,
        "steps": {
            result.step: {"from": list(result.sources), "does": result.does}
            for result in estimate_steps(recipe)
        },
        "source": {
            name: {"seeds": len(source.items), "dropped": dict(source.dropped)}
            for name, source in inputs.sources.items()
        },
        "origins": {kind: train_stats.kinds[kind] for kind in ("human", "synthetic", "unknown")},
        "spent": costs.to_json(),
        **({"mix": _describe_mixture(recipe, mixture)} if mixture is not None else {}),
    }


def _describe_mixture(recipe: SynthRecipe, mixture: MixtureResult) -> dict[str, Any]:
    settings = recipe.mix.model_dump(mode="json") if recipe.mix is not None else {}
    reasons: dict[str, int] = {}
    for row in mixture.dropped:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    return {
        "rule": settings.get("rule"),
        "human_share": settings.get("human_share"),
        "unknown": settings.get("unknown"),
        "there before": mixture.before,
        "written": len(mixture.records),
        "dropped": dict(sorted(reasons.items())),
    }


def make_no_records_error(graph_result: GraphResult) -> DataError:
    """Return the error of a run whose filters accepted no record, with their reasons."""
    reasons = "; ".join(
        f"{count} {reason}" for reason, count in graph_result.split_result.count_reasons().items()
    )
    return DataError(
        f"no training record is kept of {graph_result.split_result.asked} requests"
        + (f" ({reasons})" if reasons else ""),
        code="synth.nothing-kept",
        expected="at least one record that passes every step",
        next="inspect some with: stillroom synth preview RECIPE",
    )
