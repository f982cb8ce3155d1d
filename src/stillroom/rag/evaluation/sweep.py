"""Best configuration of a sweep: leaderboard, held-out score, corrected p-values, and the report.

The questions are split in two. The best configuration is chosen on the first part and compared with
the first configuration on the second part, which is held out. Each configuration is also compared
with the first on all questions; p-values are corrected for the number of comparisons (Holm).

Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.errors import DataError, count_noun
from stillroom.evaluate import (
    Metric,
    Report,
    Table,
    bootstrap,
    paired_difference,
    warn_small_sample,
)
from stillroom.evaluate.metrics.bootstrap import adjust_p_values, randomization_test
from stillroom.rag.evaluation.retrieval import format_metric

if TYPE_CHECKING:
    from stillroom.rag.jobs.sweep import Configuration

__all__ = [
    "SweepCost",
    "SweepDelta",
    "SweepRow",
    "SweepSummary",
    "evaluate_sweep",
    "report_sweep",
    "split_questions",
]


_MIN_QUESTIONS = 10
_SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class SweepCost:
    """Cost of a configuration: times per query, index size and build, tokens per query."""

    cpu_ms: float
    p50_ms: float
    p95_ms: float
    index_bytes: int
    passages: int
    build_s: float
    embedded: int
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One configuration: its measure by question, and its cost."""

    configuration: Configuration
    values: Mapping[str, float]
    cost: SweepCost


@dataclass(frozen=True, slots=True)
class SweepDelta:
    """One configuration compared with the first on all questions; ``p`` is corrected.

    ``axes`` are the settings that differ; ``verdict`` is ``gain``, ``loss`` or ``not shown``.
    """

    measured: SweepRow
    axes: tuple[str, ...]
    difference: Metric
    p: float
    verdict: str
    cpu_ms: float
    index_bytes: int


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """Results of a sweep; the leaderboard is on the choosing questions, best first.

    ``held_out`` and ``difference`` (from the first configuration) are on the held-out questions.
    """

    leaderboard: tuple[tuple[SweepRow, Metric], ...]
    best: SweepRow
    held_out: Metric
    first_held_out: Metric
    difference: Metric
    p: float
    is_gain: bool
    changes: tuple[SweepDelta, ...]
    choosing: int
    measuring: int


def evaluate_sweep(
    measured: Sequence[SweepRow], *, measure: str, held_out: float, seed: int = 0
) -> SweepSummary:
    """Choose the best configuration on some questions and evaluate it on the others.

    The first configuration is the baseline.

    Raises:
        DataError: If either part has fewer than ten questions.
    """
    choosing, measuring = split_questions(list(measured[0].values), held_out, seed)
    board = [
        (row, _mean(row, choosing, f"choosing/{row.configuration.name}", seed)) for row in measured
    ]
    board.sort(key=lambda pair: -pair[1].value)  # stable: ties go to the first listed
    best, first = board[0][0], measured[0]
    values, baseline = ([row.values[name] for name in measuring] for row in (best, first))
    difference = paired_difference(values, baseline, seed=seed, name=f"difference/{measure}")
    return SweepSummary(
        tuple(board),
        best,
        _mean(best, measuring, f"held-out/{measure}", seed),
        _mean(first, measuring, f"first/{measure}", seed),
        difference,
        randomization_test(values, baseline, seed=seed),
        best is not first and difference.side() > 0,
        _compare(measured, seed),
        len(choosing),
        len(measuring),
    )


def split_questions(
    names: Sequence[str], held_out: float, seed: int
) -> tuple[list[str], list[str]]:
    """Split questions into choosing and held-out ones.

    Raises:
        DataError: If either part has fewer than ten questions.
    """
    shuffled = list(names)
    random.Random(seed).shuffle(shuffled)
    count = round(len(shuffled) * held_out)
    choosing, measuring = shuffled[count:], shuffled[:count]
    if min(len(measuring), len(choosing)) < _MIN_QUESTIONS:
        raise DataError(
            f"{len(choosing)} choosing and {len(measuring)} held-out questions are too few",
            code="rag.too-few-queries",
            expected=(
                f"at least {_MIN_QUESTIONS} of each; some hundred to distinguish configurations"
            ),
            next="judge more questions, or set held_out",
        )
    return choosing, measuring


def _compare(measured: Sequence[SweepRow], seed: int) -> tuple[SweepDelta, ...]:
    """Compare every configuration with the first; changes of one axis come first."""
    first, *other_rows = measured
    names = list(first.values)
    baseline = [first.values[name] for name in names]
    comparisons = []
    for row in other_rows:
        values = [row.values[name] for name in names]
        metric = paired_difference(values, baseline, seed=seed, name=row.configuration.name)
        comparisons.append((row, metric, randomization_test(values, baseline, seed=seed)))
    corrected = adjust_p_values([p for _, _, p in comparisons])
    changes = [
        SweepDelta(
            row,
            _differing(row.configuration, first.configuration),
            metric,
            p,
            _verdict(metric, p),
            row.cost.cpu_ms - first.cost.cpu_ms,
            row.cost.index_bytes - first.cost.index_bytes,
        )
        for (row, metric, _), p in zip(comparisons, corrected, strict=True)
    ]
    return tuple(sorted(changes, key=lambda change: (len(change.axes), -change.difference.value)))


def _verdict(metric: Metric, p: float) -> str:
    if p >= _SIGNIFICANCE_LEVEL:
        return "not shown"
    return "gain" if metric.value > 0 else "loss"


def _differing(configuration: Configuration, baseline: Configuration) -> tuple[str, ...]:
    return tuple(
        axis for axis, value in configuration.choices.items() if baseline.choices[axis] != value
    )


def _mean(row: SweepRow, names: Sequence[str], metric: str, seed: int) -> Metric:
    return bootstrap([row.values[name] for name in names], seed=seed, name=metric)


_MEGA = 1e6


def report_sweep(outcome: SweepSummary, measure: str, first: SweepRow) -> Report:
    """Build the report of a sweep."""
    report = Report("Sweep", _summarize_advice(outcome, measure, first))
    report.add(outcome.held_out, is_headline=True)
    for metric in (outcome.first_held_out, outcome.difference):
        report.add(metric)
    report.section(
        "Leaderboard",
        f"On the {count_noun(outcome.choosing, 'question')} that choose. The first row's value "
        f"is too high: "
        "they chose it. Times are a query's, its embedding included; passages and seconds are "
        "those of the index, embedded counts what no earlier index had.",
        table=_add_leaderboard(outcome, measure),
    )
    report.section(
        "The best on questions that did not choose it",
        f"{count_noun(outcome.measuring, 'question')}.",
        table=_add_held_out(outcome, first),
    )
    if outcome.changes:
        report.section(
            f"Each change from {first.configuration.name}",
            f"On all {outcome.choosing + outcome.measuring} questions, one changed setting first; "
            f"p by Fisher's randomization, corrected for {len(outcome.changes)} comparisons "
            "(Holm).",
            table=_add_changes(outcome),
        )
    return report


def _summarize_advice(outcome: SweepSummary, measure: str, first: SweepRow) -> str:
    """Summarize a sweep in two or three sentences: the recommendation and useful changes."""
    name, old = outcome.best.configuration.name, first.configuration.name
    if outcome.is_gain:
        more = outcome.best.cost.cpu_ms - first.cost.cpu_ms
        size = (outcome.best.cost.index_bytes - first.cost.index_bytes) / _MEGA
        text = (
            f"Use {name}: on {count_noun(outcome.measuring, 'question')} that had no part in "
            f"choosing it, it "
            f"finds {format_metric(outcome.difference, sign=True)} {measure} more than {old}, for "
            f"{more:+.1f} CPU ms a query and {size:+.1f} MB of index."
        )
    elif outcome.best is first:
        text = (
            f"Keep {old}: nothing did better on the "
            f"{count_noun(outcome.choosing, 'question')} that choose."
        )
    else:
        few = warn_small_sample(outcome.measuring, "question")
        text = (
            f"Keep {old}: {name} did best on the questions that choose, and on the "
            f"{outcome.measuring} others the difference is "
            f"{format_metric(outcome.difference, sign=True)}"
            + (f". {few}" if few else ", which does not lie above 0.")
        )
    single = [change for change in outcome.changes if len(change.axes) == 1]
    worth = [_describe_change(change) for change in single if change.verdict == "gain"]
    idle = sum(change.verdict == "not shown" for change in single)
    worse = sum(change.verdict == "loss" for change in single)
    if single:
        text += " Worth it by itself: " + ("; ".join(worth) if worth else "no single change") + "."
        text += f" Not shown to matter: {idle}; worse: {worse}." if idle or worse else ""
    return text


def _describe_change(change: SweepDelta) -> str:
    axis = change.axes[0]
    value = change.measured.configuration.choices[axis]
    return f"{axis} {value} ({change.difference.value:+.3f} for {change.cpu_ms:+.1f} CPU ms)"


def _add_leaderboard(outcome: SweepSummary, measure: str) -> Table:
    rows = tuple(
        (
            row.configuration.name,
            format_metric(metric),
            f"{row.cost.cpu_ms:.1f}",
            f"{row.cost.p50_ms:.1f}",
            f"{row.cost.p95_ms:.1f}",
            f"{row.cost.index_bytes / _MEGA:.2f}",
            f"{row.cost.passages:,}",
            f"{row.cost.build_s:.1f}",
            f"{row.cost.embedded:,}",
            f"{row.cost.tokens:.0f}",
        )
        for row, metric in outcome.leaderboard
    )
    columns = ("configuration", measure, "CPU ms", "p50 ms", "p95 ms", "index MB", "passages")
    return Table("best first", (*columns, "build s", "embedded", "model tokens a query"), rows)


def _add_held_out(outcome: SweepSummary, first: SweepRow) -> Table:
    rows = (
        (outcome.best.configuration.name, format_metric(outcome.held_out), ""),
        (first.configuration.name, format_metric(outcome.first_held_out), ""),
        ("difference", format_metric(outcome.difference, sign=True), f"{outcome.p:.4f}"),
    )
    return Table("with 95 % intervals", ("configuration", "value", "p"), rows)


def _add_changes(outcome: SweepSummary) -> Table:
    rows = tuple(
        (
            "; ".join(
                f"{axis}: {change.measured.configuration.choices[axis]}" for axis in change.axes
            ),
            format_metric(change.difference, sign=True),
            f"{change.p:.4f}",
            f"{change.cpu_ms:+.1f}",
            f"{change.index_bytes / _MEGA:+.2f}",
            change.verdict,
        )
        for change in outcome.changes
    )
    columns = ("change", "difference", "p", "CPU ms", "index MB", "verdict")
    return Table("against the first configuration", columns, rows)
