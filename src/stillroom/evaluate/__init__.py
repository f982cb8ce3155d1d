"""Evaluate: numbers with intervals, and the report that holds them.

Retrieval is measured as trec_eval does, answers as SQuAD does, beliefs as nats per token; every
number comes with a 95 % bootstrap interval over the units it was measured on. In: a records
artifact with held-out questions, optionally an index, and models by name. Out: a report artifact
(output/report.json, output/report.html, output/answers.jsonl).

Papers: Rajpurkar et al. 2016 (arXiv:1606.05250) for answers; Efron 1987 for intervals; Hinton et
al. 2015 (arXiv:1503.02531) for divergence from a teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.evaluate.agreement import Agreement, kl_and_agreement
    from stillroom.evaluate.answerer import Answerer, open_answerer
    from stillroom.evaluate.loss import held_out_loss, perplexity
    from stillroom.evaluate.metrics import (
        LEAST_UNITS,
        Metric,
        bootstrap,
        paired_difference,
        say_few,
    )
    from stillroom.evaluate.plots import Plot
    from stillroom.evaluate.recipe import EvaluateRecipe
    from stillroom.evaluate.report import Report, Table, merge_reports
    from stillroom.evaluate.retrieval import retrieval_metrics

__all__ = [
    "LEAST_UNITS",
    "Agreement",
    "Answerer",
    "EvaluateRecipe",
    "Metric",
    "Plot",
    "Report",
    "Table",
    "bootstrap",
    "held_out_loss",
    "kl_and_agreement",
    "merge_reports",
    "open_answerer",
    "paired_difference",
    "perplexity",
    "retrieval_metrics",
    "say_few",
]

_HOMES = {
    "LEAST_UNITS": "metrics",
    "Agreement": "agreement",
    "Answerer": "answerer",
    "EvaluateRecipe": "recipe",
    "Metric": "metrics",
    "Plot": "plots",
    "Report": "report",
    "Table": "report",
    "bootstrap": "metrics",
    "held_out_loss": "loss",
    "kl_and_agreement": "agreement",
    "merge_reports": "report",
    "open_answerer": "answerer",
    "paired_difference": "metrics",
    "perplexity": "loss",
    "retrieval_metrics": "retrieval",
    "say_few": "metrics",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use; torch comes with the models only."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.evaluate.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
