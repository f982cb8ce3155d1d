"""Report of an answer evaluation: metrics, differences, failed stages, judge, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.errors import count_noun
from stillroom.evaluate import (
    Metric,
    Plot,
    Report,
    Table,
    describe_metric,
    paired_difference,
    warn_small_sample,
)
from stillroom.evaluate.judges import JudgeStats
from stillroom.evaluate.metrics.agreement import (
    PlattScaler,
    measure_judge_agreement,
    prediction_powered_mean,
)
from stillroom.evaluate.metrics.answers import abstention_scores, summarize_shares
from stillroom.evaluate.metrics.bootstrap import bootstrap, randomization_test
from stillroom.evaluate.metrics.retrieval import score_run
from stillroom.evaluate.qa.question_checks import LeakageFinding, tabulate_leakage
from stillroom.rag.evaluation.answers import MEASURES, STAGES, AnswerGrader, Stage
from stillroom.rag.evaluation.retrieval import (
    EvidenceLocation,
    format_metric,
    label_ranking,
    summarize_times,
    tabulate_notices,
)

if TYPE_CHECKING:
    from stillroom.rag.evaluation.answer_job import GradedAnswer
    from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe

__all__ = ["add_leakage", "report_answers"]

_WORST = 20
_SHOWN = 160
_COMPARED_METRICS = ("right", "f1", "faithfulness", "citation_recall")
_MILLION = 1e6
_MIN_LABELS = 2
_CHANCE_AGREEMENT = 0.5
_MEASURES_IN_WORDS = {
    "faithfulness": "statements that the shown passages support",
    "citation_recall": "statements that their citations support",
    "citation_precision": "citations that support their statement",
    "quote_exactness": "quotations that stand so in the passages",
    "context_precision": "how far above the other shown passages those with the answer are",
    "context_recall": "statements of the expected answer that the shown passages support",
    "noise_sensitivity": "statements that a shown passage supports and the expected answer does "
    "not: what other passages led astray",
    "answer_relevance": "likeness of the question to those that the answer would answer",
}
_STAGES_IN_WORDS: dict[Stage, str] = {
    "parse": "the evidence is not in the text that was read of its document",
    "chunk": "it was cut apart",
    "retrieve": "no passage with it was found",
    "rank": "one was found, but below those shown",
    "rerank": "the reranker moved it below those shown",
    "show": "it did not fit into the prompt",
    "read": "it was shown, but not answered from",
    "cite": "the answer is right, but does not cite it",
}
_MORE = ", or as many more as a reader is calibrated for"
Rows = Mapping[str, Sequence["GradedAnswer"]]
Labels = Mapping[tuple[str, str], bool]


def report_answers(
    recipe: AnswerEvaluationRecipe,
    graded: Rows,
    locations: Mapping[str, Sequence[EvidenceLocation]],
    grader: AnswerGrader,
    model: str,
    labels: Labels,
    passages: int,
) -> Report:
    """Build the report.

    ``graded`` has the answers by pipeline, in the order of the questions; ``model`` is the
    fingerprint of the answering model.
    """
    first, rows = next(iter(graded.items()))
    without = sum(not answer.question.is_answerable for answer in rows)
    report = Report(
        "Answers",
        f"{count_noun(len(rows), 'question')} ({without} without an answer) on "
        f"{count_noun(passages, 'passage')}, answered by "
        f"{recipe.model if recipe.compare is None else 'sentence readers'} from "
        f"{count_noun(recipe.k, 'passage')}{_MORE if recipe.compare else ''}. "
        f"{_describe_grader(recipe, grader, model)} "
        "Intervals are 95 "
        "% bootstrap over questions." + f" {warn_small_sample(len(rows), 'question')}".rstrip(),
    )
    for pipeline, answers in graded.items():
        _add_metrics(report, pipeline, answers, locations, recipe.seed)
    measures = {name.rsplit("/", 1)[1] for name in report.metrics}
    stages = {row.stage for answers in graded.values() for row in answers}
    report.section(
        "Pipelines",
        "What the answers of each pipeline are worth; the notes in report.json say on how many "
        f"questions a figure stands where it is not all. {_explain(_MEASURES_IN_WORDS, measures)}",
        table=_figures(report, graded),
        plot=Plot.of(
            describe_metric("right"),
            [report.metrics[f"{pipeline}/right"] for pipeline in graded],
            labels=list(graded),
        ),
    )
    if len(graded) > 1:
        table = _differences(graded, recipe.seed)
        report.section(f"Against {first}", "On the same questions; not corrected.", table=table)
    report.section(
        "Where it goes wrong",
        "The stage to blame for each question, in the order a question passes them; answers.jsonl "
        f"lists every answer, worst first. {_explain(_STAGES_IN_WORDS, stages)}".rstrip(),
        table=_stages(graded),
    )
    report.section("Worst questions", f"By {first}.", table=_worst(rows))
    _add_notices(report, graded)
    _add_judge(report, graded, grader, labels, recipe.seed)
    report.section("Cost", _describe_prices(recipe), table=_cost(recipe, graded, grader))
    return report


def add_leakage(report: Report, leaks: Sequence[LeakageFinding], count: int) -> None:
    """Add a section on leakage that makes the questions too easy, if any was found."""
    table = tabulate_leakage(leaks, count)
    if table is not None:
        text = "Figures on such questions are higher than what people's questions will get."
        report.section("The questions themselves", text, table=table)


def _describe_grader(recipe: AnswerEvaluationRecipe, grader: AnswerGrader, model: str) -> str:
    if grader.judge is None or recipe.model_judge is None:
        return (
            "No judge: an answer is right where its words hold an accepted one whole or its F1 "
            "reaches .5, and a statement supported where the checker "
            f"{grader.checker.method_name()} says so; other words for the same count as wrong."
        )
    text = f"Judged by {recipe.model_judge.model} ({grader.judge.way})."
    if grader.judge.model.fingerprint == model:
        text += " The judge is the very model that answered, and such judges favor themselves."
    if grader.control is not None and grader.control.side(_CHANCE_AGREEMENT) <= 0:
        text += (
            " Shown quotations, it was not seen to tell their own passages from others better than "
            "chance: what it judged means nothing."
        )
    return text


def _add_metrics(
    report: Report,
    pipeline: str,
    rows: Sequence[GradedAnswer],
    locations: Mapping[str, Sequence[EvidenceLocation]],
    seed: int,
) -> None:
    for name in MEASURES:
        defined = [answer for answer in rows if _is_defined_for(name, answer)]
        values = {answer.question.id: answer.grades[name] for answer in defined}
        if any(value is not None for value in values.values()):
            metric = summarize_shares(values, f"{pipeline}/{name}", seed=seed)
            report.add(metric, is_headline=name == "right")
    unanswerable = [not answer.question.is_answerable for answer in rows]
    abstained = [answer.reading.abstained for answer in rows]
    if any(unanswerable) or any(abstained):
        for metric in abstention_scores(unanswerable, abstained, pipeline, seed=seed):
            report.add(metric)
    judged = {
        answer.question.id: locations[answer.question.id]
        for answer in rows
        if answer.question.evidence
    }
    if judged:
        for metric in _measure_evidence(pipeline, rows, judged, seed):
            report.add(metric)


def _is_defined_for(name: str, answer: GradedAnswer) -> bool:
    """Return whether the measure is defined for a question."""
    return answer.question.is_answerable or name in {"right", "faithfulness", "quote_exactness"}


def _measure_evidence(
    pipeline: str,
    rows: Sequence[GradedAnswer],
    judged: Mapping[str, Sequence[EvidenceLocation]],
    seed: int,
) -> list[Metric]:
    """Return the ranking metrics of the evidence; evidence in no passage counts as 0."""
    run = {
        query: label_ranking(answer.reading.ranked, query, judged[query])
        for answer in rows
        if (query := answer.question.id) in judged
    }
    qrels = {
        query: {f"{query}#{i}": 1 for i in range(len(locations))}
        for query, locations in judged.items()
    }
    return [
        bootstrap(list(values.values()), seed=seed, name=f"{pipeline}/evidence_{measure}")
        for measure, values in score_run(run, qrels, ("ndcg@10", "recall@10")).items()
    ]


def _figures(report: Report, graded: Rows) -> Table:
    names: dict[str, None] = {}
    for metric in report.metrics:
        names.update(dict.fromkeys([metric.rsplit("/", 1)[1]]))
    rows = []
    for name in names:
        metrics = [report.metrics.get(f"{pipeline}/{name}") for pipeline in graded]
        rows.append(
            (
                describe_metric(name),
                *(format_metric(metric, digits=3) if metric else "" for metric in metrics),
            )
        )
    return Table("figures with 95 % intervals", ("measure", *graded), tuple(rows))


def _differences(graded: Rows, seed: int) -> Table:
    first, rows = next(iter(graded.items()))
    lines = []
    for pipeline, answers in list(graded.items())[1:]:
        for name in _COMPARED_METRICS:
            pairs = [
                (answer.grades[name], reference.grades[name])
                for answer, reference in zip(answers, rows, strict=True)
            ]
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            if not both:
                continue
            values, baseline = [a for a, _ in both], [b for _, b in both]
            metric = paired_difference(
                values, baseline, seed=seed, name=f"{pipeline}-{first}/{name}"
            )
            p = randomization_test(values, baseline, seed=seed)
            lines.append(
                (
                    pipeline,
                    describe_metric(name),
                    format_metric(metric, sign=True, digits=3),
                    f"{p:.4f}",
                    str(len(both)),
                )
            )
    columns = ("pipeline", "measure", "difference", "p", "questions")
    return Table("pipeline less the first", columns, tuple(lines))


def _explain(words: Mapping[Any, str], names: Collection[str]) -> str:
    """Return the meaning of those names that are no plain words."""
    lines = [f"{name.replace('_', ' ')}: {text}" for name, text in words.items() if name in names]
    return f"{'; '.join(lines)}.".capitalize() if lines else ""


def _stages(graded: Rows) -> Table:
    counts = {
        pipeline: Counter(answer.stage for answer in rows) for pipeline, rows in graded.items()
    }
    rows = [
        (stage, *(str(count[stage]) for count in counts.values()))
        for stage in STAGES
        if any(count[stage] for count in counts.values())
    ]
    rows.append(("(nothing wrong)", *(str(count[""]) for count in counts.values())))
    return Table("questions by the stage to blame", ("stage", *graded), tuple(rows))


def _worst(rows: Sequence[GradedAnswer]) -> Table:
    failed = [answer for answer in rows if answer.stage]
    order = sorted(
        failed, key=lambda answer: (answer.grades["right"] or 0.0, answer.grades["f1"] or 0.0)
    )
    shown = tuple(
        (
            answer.question.id,
            answer.question.text[:_SHOWN],
            answer.stage,
            answer.reading.text[:_SHOWN],
            " / ".join(answer.question.answers)[:_SHOWN],
        )
        for answer in order[:_WORST]
    )
    columns = ("id", "question", "stage", "answer", "accepted")
    caption = f"{len(shown)} of {len(failed)} that went wrong" if failed else "none went wrong"
    return Table(caption, columns, shown)


def _add_notices(report: Report, graded: Rows) -> None:
    table = tabulate_notices(
        (pipeline, text)
        for pipeline, rows in graded.items()
        for answer in rows
        for text in answer.reading.notices
    )
    if table is not None:
        report.section("Done otherwise than asked", "The figures hold these too.", table=table)


def _add_judge(
    report: Report, graded: Rows, grader: AnswerGrader, labels: Labels, seed: int
) -> None:
    """Add a section on the judge's failures, control, and agreement with human labels."""
    if grader.judge is None:
        return
    counts = JudgeStats.of(grader.used.values())
    report.section(
        "Judge",
        "Verdicts that could not be read were asked again; what failed for good is left out of the "
        "figures, which say on how many they stand. As a control, quotations were put to it with "
        "the passage that they stand in and with another; half right is chance.",
        metrics=[grader.control] if grader.control is not None else [],
        table=Table(
            "verdicts",
            ("what", "count"),
            tuple((name, str(count)) for name, count in counts.to_json().items()),
        ),
    )
    judged = [
        (answer, labels.get((answer.question.id, pipeline)))
        for pipeline, rows in graded.items()
        for answer in rows
    ]
    known = [
        (answer.verdict.value, label)
        for answer, label in judged
        if label is not None and answer.verdict is not None and answer.verdict.value is not None
    ]
    if len(known) < _MIN_LABELS:
        return
    chances, truth = [chance for chance, _ in known], [label for _, label in known]
    metrics = measure_judge_agreement([chance > 0.5 for chance in chances], truth, seed=seed)
    text = f"On {len(known)} answers that people have labeled."
    if 0 < sum(truth) < len(truth):
        scale = PlattScaler.fit(chances, truth)
        text += (
            f" By Platt's curve (slope {scale.slope:.2f}, intercept {scale.intercept:+.2f}) people "
            f"more likely say yes above {scale.threshold:.2f}."
        )
    metrics += _correct_accuracy(graded, labels)
    report.section("Judge against people", text, metrics=metrics)


def _correct_accuracy(graded: Rows, labels: Labels) -> list[Metric]:
    """Return the label-corrected accuracy of each pipeline, where there are enough labels."""
    metrics = []
    for pipeline, rows in graded.items():
        labeled = [(answer, labels.get((answer.question.id, pipeline))) for answer in rows]
        known = [
            (answer.grades["right"], label)
            for answer, label in labeled
            if label is not None and answer.grades["right"] is not None
        ]
        unlabeled = [
            answer.grades["right"]
            for answer, label in labeled
            if label is None and answer.grades["right"] is not None
        ]
        if len(known) >= _MIN_LABELS and len(unlabeled) >= _MIN_LABELS:
            values = [float(value or 0.0) for value, _ in known]
            name = f"{pipeline}/right_corrected"
            predictions = [float(value or 0.0) for value in unlabeled]
            metrics.append(
                prediction_powered_mean(predictions, values, [label for _, label in known], name)
            )
    return metrics


def _cost(recipe: AnswerEvaluationRecipe, graded: Rows, grader: AnswerGrader) -> Table:
    rows: list[tuple[str, ...]] = []
    for pipeline, answers in graded.items():
        read = sum(answer.reading.prompt_tokens for answer in answers)
        written = sum(answer.reading.completion_tokens for answer in answers)
        total = summarize_times([answer.reading.seconds for answer in answers])
        search = summarize_times([answer.reading.search_seconds for answer in answers])
        rows.append(
            (
                pipeline,
                *_describe_spending(recipe, read, written),
                *_describe_times(total),
                *_describe_times(search),
            )
        )
    if grader.judge is not None:
        counts = JudgeStats.of(grader.used.values())
        spent = _describe_spending(recipe, counts.prompt_tokens, counts.completion_tokens)
        rows.append(("judge", *spent, "", "", "", ""))
    columns = (
        "who",
        "tokens read",
        "tokens written",
        "cost",
        "answer ms",
        "p95",
        "search ms",
        "p95",
    )
    return Table("tokens and times; medians over questions", columns, tuple(rows))


def _is_priced(recipe: AnswerEvaluationRecipe) -> bool:
    return recipe.prices.prompt > 0 or recipe.prices.completion > 0


def _describe_spending(
    recipe: AnswerEvaluationRecipe, read: int, written: int
) -> tuple[str, str, str]:
    cost = (read * recipe.prices.prompt + written * recipe.prices.completion) / _MILLION
    return f"{read:,}", f"{written:,}", f"{cost:.4f}" if _is_priced(recipe) else "not priced"


def _describe_prices(recipe: AnswerEvaluationRecipe) -> str:
    if not _is_priced(recipe):
        return "Tokens only; the setting prices says what a million cost."
    prices = recipe.prices
    return f"At {prices.prompt:g} a million tokens read and {prices.completion:g} written."


def _describe_times(times: Mapping[str, Any]) -> tuple[str, str]:
    return f"{times['median_ms']:.1f}", f"{times['p95_ms']:.1f}"
