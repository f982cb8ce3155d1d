"""JSON report of a run, shortfall warning, and the error for a run without records.

Everything is derived from the accepted and rejected records, not from the clock, so that equal runs
give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.synth.pipeline.inputs import PipelineInputs
from stillroom.synth.pipeline.results import CostTracker, SplitResult
from stillroom.synth.pipeline.statistics import RecordStats
from stillroom.synth.pipeline.steps import UNLIMITED, GeneratorPipeline
from stillroom.synth.selection import MixtureResult

if TYPE_CHECKING:
    from stillroom.synth.jobs.records import RecordsRecipe

__all__ = ["describe_shortfall", "make_report", "require_records"]


def require_records(result: SplitResult, recipe: RecordsRecipe) -> None:
    """Raise an error if there is no training record.

    Raises:
        DataError: With the count of every reason.
    """
    if result.records:
        return
    reasons = "; ".join(f"{count} {reason}" for reason, count in result.count_reasons().items())
    raise DataError(
        f"no training record is kept of {result.requests} requests"
        + (f" ({reasons})" if reasons else ""),
        code="synth.nothing-kept",
        where=recipe.index or recipe.seeds or "",
        expected="at least one record that passes every filter",
        next="inspect some with: stillroom synth preview RECIPE; then loosen the filter or "
        "change the teacher",
    )


def describe_shortfall(result: SplitResult, recipe: RecordsRecipe, stopped_by: str = "") -> str:
    """Return a warning if fewer records were kept than targeted, or an empty string.

    ``stopped_by`` names the bound that stopped the generation.
    """
    target = recipe.get_target(result.split)
    num_records = len(result.records)
    is_empty = result.split == "held_out" and not recipe.held_out
    if is_empty or num_records >= target or (target >= UNLIMITED and not stopped_by):
        return ""
    reasons = list(result.count_reasons().items())[:3]
    main_reasons = "; ".join(f"{count} {reason}" for reason, count in reasons) or "no seeds"
    wanted = f" of {target}" if target < UNLIMITED else ""
    cause = stopped_by or "all seeds and attempts are used"
    return (
        f"warning: {num_records}{wanted} {result.split} records kept after "
        f"{result.requests} requests ({main_reasons}); {cause}"
    )


def make_report(
    recipe: RecordsRecipe,
    inputs: PipelineInputs,
    results: Sequence[SplitResult],
    mixture: MixtureResult | None,
    train_stats: RecordStats,
    costs: CostTracker,
) -> dict[str, Any]:
    """Return the contents of report.json; of steps, with the totals of each.

    Args:
        recipe: The recipe of the run.
        inputs: The items read, and those skipped.
        results: The results of each side, the training side last.
        mixture: The training records after mixing; None without.
        train_stats: Statistics of the training records.
        costs: Requests, tokens and cost of the run.
    """
    pipeline = recipe.pipeline
    sources = {
        name: {"seeds": len(source.items), "dropped": dict(source.dropped)}
        for name, source in inputs.sources.items()
    }
    report: dict[str, Any] = {
        "splits": {result.split: _describe_split(recipe, inputs, result) for result in results},
        "spent": costs.to_json(),
        **({"mix": _describe_mixture(recipe, mixture)} if mixture is not None else {}),
    }
    if isinstance(pipeline, GeneratorPipeline):
        return report | {
            "source": next(iter(sources.values()), {"seeds": 0, "dropped": {}}),
            "generator": pipeline.generator.model_dump(mode="json"),
            "filters": [check.model_dump(mode="json") for check in pipeline.filters],
            "described": pipeline.generator.describe(results[-1].records),
        }
    return report | {
        "steps": {
            name: {"from": list(recipe.sources[name]), "does": step.method_names}
            for name, step in recipe.steps.items()
        },
        "source": sources,
        "origins": {kind: train_stats.kinds[kind] for kind in ("human", "synthetic", "unknown")},
    }


def _describe_split(
    recipe: RecordsRecipe, inputs: PipelineInputs, result: SplitResult
) -> dict[str, Any]:
    target = recipe.get_target(result.split)
    split = {
        "documents": sum(side == result.split for side in inputs.sides.values()),
        "seeds": sum(
            len(items) for (_, side), items in inputs.items.items() if side == result.split
        ),
        **({"wanted": target} if target < UNLIMITED else {}),
        "asked": result.requests,
        "kept": len(result.records),
        "dropped": result.count_reasons(),
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
    }
    summaries = {step: dict(summary) for step, summary in result.filter_summaries.items()}
    if isinstance(recipe.pipeline, GeneratorPipeline):
        generate = result.steps["generate"]
        return split | {
            "units": generate.units,
            "parsed": generate.given,
            "trimmed": result.trimmed,
            **({"changed": result.changed} if result.changed else {}),
            **({"measured": summaries["filter"]} if summaries else {}),
            "counts": dict(sorted(generate.counts.items())),
        }
    return split | {
        "units": result.units,
        "parsed": result.parsed,
        "changed": result.changed,
        "steps": {name: totals.to_json() for name, totals in result.steps.items()},
        **({"measured": summaries} if summaries else {}),
    }


def _describe_mixture(recipe: RecordsRecipe, mixture: MixtureResult) -> dict[str, Any]:
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
