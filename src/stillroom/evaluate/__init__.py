"""Evaluation: metrics with confidence intervals, judges, verifiers and reports.

Retrieval measures follow trec_eval, answer scores SQuAD, divergences are in nats per token; every
metric has a 95 % bootstrap interval over its units. Input: a records artifact with held-out
questions, optionally an index, and models by name. Output: a report artifact
(output/report.json, output/report.html, output/answers.jsonl).

Papers: Rajpurkar et al. 2016 (arXiv:1606.05250) for answers; Efron 1987 for intervals; Hinton et
al. 2015 (arXiv:1503.02531) for divergence from a teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.evaluate.charts import Plot
    from stillroom.evaluate.interfaces import RagSystem, open_rag_system
    from stillroom.evaluate.jobs.report import EvaluateRecipe
    from stillroom.evaluate.lm.divergence import measure_agreement
    from stillroom.evaluate.lm.loss import held_out_loss, perplexity
    from stillroom.evaluate.metrics.bootstrap import (
        MIN_UNITS,
        Metric,
        bootstrap,
        paired_difference,
        warn_small_sample,
    )
    from stillroom.evaluate.metrics.retrieval import retrieval_metrics
    from stillroom.evaluate.report import Report, Table, describe_metric, merge_reports

__all__ = [
    "MIN_UNITS",
    "EvaluateRecipe",
    "Metric",
    "Plot",
    "RagSystem",
    "Report",
    "Table",
    "bootstrap",
    "describe_metric",
    "held_out_loss",
    "measure_agreement",
    "merge_reports",
    "open_rag_system",
    "paired_difference",
    "perplexity",
    "retrieval_metrics",
    "warn_small_sample",
]

__getattr__ = export_lazily(__name__)
