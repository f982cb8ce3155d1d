"""Report of a reader that learned from human feedback beside the same one without it.

Both answer the judged questions that were held out of training. A person called the accepted answer
right, or quoted it, when an earlier reader had answered: that reader is favored, and answers that
were only called wrong are no questions. So these questions compare readers of one kind, and never
decide whether a reader is worth using.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stillroom.errors import count_noun
from stillroom.evaluate import Metric, Report, Table
from stillroom.evaluate.metrics.bootstrap import MIN_UNITS
from stillroom.rag.answer_selection.judging import format_difference
from stillroom.rag.answer_selection.reader import PACKAGED_READERS
from stillroom.rag.evaluation.reader_comparison import (
    build_comparison,
    find_twins,
    measure_arm,
    tabulate_arms,
)

if TYPE_CHECKING:
    from stillroom.rag.evaluation.answer_job import GradedAnswer
    from stillroom.rag.evaluation.reader_decision import SilenceProbe
    from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe

__all__ = ["report_judgments"]

_HEAD = "judged"


def report_judgments(
    recipe: AnswerEvaluationRecipe,
    graded: Mapping[str, Sequence[GradedAnswer]],
    probes: Mapping[tuple[str, str], SilenceProbe],
) -> tuple[Report, str]:
    """Return the report, and the sentence that says what effect the judgments had.

    Args:
        recipe: Settings of the evaluation; ``compare.untaught`` names the control. Where it could
            not be trained the packaged reader is the control.
        graded: Graded answers by reader, the taught one first.
        probes: Result of ``probe_silence``.
    """
    assert recipe.compare is not None  # noqa: S101  # callers have looked
    comparison = build_comparison(recipe, graded, probes, head=_HEAD)
    compared, first = comparison.arms, comparison.first
    packaged = next((a for a, name in comparison.readers.items() if name in PACKAGED_READERS), "")
    control = recipe.compare.untaught if recipe.compare.untaught in compared else packaged
    differences = comparison.find_differences()
    is_same = control in find_twins(recipe)
    line = _write_line(differences.get(control), is_same=is_same, count=len(compared[first].holds))
    report = Report("Judgments", line)
    for arm in compared:
        for metric in measure_arm(comparison, arm):
            report.add(metric)
    for metric in differences.values():
        report.add(metric)
    report.section(
        "Effect of the judgments",
        f"{line} The {first} reader was trained on the judgments of the other questions, the "
        f"{control} reader was not; "
        "all else is the same. An accepted answer is one that a person called right or quoted, "
        "which favors the reader that had given it. The figures are those of the comparison of "
        "readers.",
        table=tabulate_arms(report, comparison),
    )
    rows = tuple(
        (comparison.labels[arm], format_difference(metric), str(metric.n))
        for arm, metric in differences.items()
    )
    title = f"{first} reader minus the others, right words"
    table = Table(title, ("compared with", "difference", "questions"), rows)
    report.section("Differences on judged questions", table=table)
    return report, line


def _write_line(difference: Metric | None, *, is_same: bool, count: int) -> str:
    questions = f"{count_noun(count, 'judged question')} held out"
    if difference is None or not count:
        return f"The effect of the judgments is not measured: {questions}, of those with an answer."
    if is_same:
        return (
            f"The judgments had no effect yet: with and without them the same reader is kept "
            f"({questions})."
        )
    found = f"right words {format_difference(difference)} on {questions}"
    if count < MIN_UNITS:
        return f"The effect of the judgments is not known yet ({MIN_UNITS} are required): {found}."
    if difference.side() > 0:
        return f"The judgments made the reader better: {found}."
    if difference.side() < 0:
        return f"The judgments made the reader worse: {found}."
    return f"No significant effect of the judgments: {found}."
