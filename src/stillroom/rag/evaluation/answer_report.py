"""Report of an answer evaluation: metrics, differences, failed stages, judge, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.evaluate import Metric, Plot, Report, Table, paired_difference, warn_small_sample
from stillroom.evaluate.judges import JudgeStats
from stillroom.evaluate.metrics.agreement import (
    PlattScaler,
    measure_judge_agreement,
    prediction_powered_mean,
)
from stillroom.evaluate.metrics.answers import abstention_scores, summarize_shares
from stillroom.evaluate.metrics.bootstrap import bootstrap, randomization_test
from stillroom.evaluate.metrics.retrieval import score_run
from stillroom.evaluate.qa.leakage import LeakageFinding, tabulate_leakage
from stillroom.rag.evaluation.answers import MEASURES, STAGES, AnswerGrader
from stillroom.rag.evaluation.retrieval import EvidenceLocation, label_ranking, summarize_times

if TYPE_CHECKING:
    from stillroom.rag.evaluation.answer_job import AnswerEvalPlan, GradedAnswer

__all__ = ["add_leakage", "report_answers"]

_WORST = 20
_SHOWN = 160
_COMPARED_METRICS = ("right", "f1", "faithfulness", "citation_recall")
_MILLION = 1e6
_MIN_LABELS = 2
_CHANCE_AGREEMENT = 0.5

Rows = Mapping[str, Sequence["GradedAnswer"]]
Labels = Mapping[tuple[str, str], bool]


def report_answers(
    plan: AnswerEvalPlan,
    graded: Rows,
    places: Mapping[str, Sequence[EvidenceLocation]],
    bench: AnswerGrader,
    model: str,
    labels: Labels,
    passages: int,
) -> Report:
    """Return the report.

    Args:
        plan: What was evaluated.
        graded: Every answer by way, in the order of the questions.
        places: Where the evidence of each question stands.
        bench: What graded, with its judge and what that said.
        model: The fingerprint of who answered.
        labels: People's verdicts, by question and way.
        passages: How many the index has.
    """
    first, rows = next(iter(graded.items()))
    without = sum(not one.question.is_answerable for one in rows)
    report = Report(
        "Answers",
        f"{len(rows)} questions ({without} without an answer) on {passages} passages, answered by "
        f"{plan.model} from {plan.k} passages. {_describe_grader(plan, bench, model)} "
        "Intervals are 95 "
        "% bootstrap over questions." + f" {warn_small_sample(len(rows), 'questions')}".rstrip(),
    )
    for way, answers in graded.items():
        _add_metrics(report, way, answers, places, plan.seed)
    report.section(
        "Ways",
        "What the answers of each way are worth; the notes in report.json say on how many "
        "questions a figure stands where it is not all.",
        table=_figures(report, graded),
        plot=Plot.of(
            "right", [report.metrics[f"{way}/right"] for way in graded], labels=list(graded)
        ),
    )
    if len(graded) > 1:
        table = _differences(graded, plan.seed)
        report.section(f"Against {first}", "On the same questions; not corrected.", table=table)
    report.section(
        "Where it goes wrong",
        "The stage to blame for each question, in the order a question passes them; answers.jsonl "
        "lists every answer, worst first.",
        table=_stages(graded),
    )
    report.section("Worst questions", f"By {first}.", table=_worst(rows))
    _add_notices(report, graded)
    _add_judge(report, graded, bench, labels, plan.seed)
    report.section("Cost", _describe_prices(plan), table=_cost(plan, graded, bench))
    return report


def add_leakage(report: Report, leaks: Sequence[LeakageFinding], count: int) -> None:
    """Say what makes a question set easier than people's questions, if anything does."""
    table = tabulate_leakage(leaks, count)
    if table is not None:
        text = "Figures on such questions are higher than what people's questions will get."
        report.section("The questions themselves", text, table=table)


def _describe_grader(plan: AnswerEvalPlan, bench: AnswerGrader, model: str) -> str:
    if bench.judge is None:
        return (
            "No judge: an answer is right where its words hold an accepted one whole or its F1 "
            f"reaches .5, and a statement supported where the checker {plan.checker} says so; "
            "other words for the same count as wrong."
        )
    said = f"Judged by {plan.judge} ({bench.judge.way})."
    if bench.judge.model.fingerprint == model:
        said += " The judge is the very model that answered, and such judges favor themselves."
    if bench.control is not None and bench.control.side(_CHANCE_AGREEMENT) <= 0:
        said += (
            " Shown quotations, it was not seen to tell their own passages from others better than "
            "chance: what it judged means nothing."
        )
    return said


def _add_metrics(
    report: Report,
    way: str,
    rows: Sequence[GradedAnswer],
    places: Mapping[str, Sequence[EvidenceLocation]],
    seed: int,
) -> None:
    for name in MEASURES:
        asked = [one for one in rows if _is_defined_for(name, one)]
        values = {one.question.id: one.grades[name] for one in asked}
        if any(value is not None for value in values.values()):
            metric = summarize_shares(values, f"{way}/{name}", seed=seed)
            report.add(metric, is_headline=name == "right")
    should = [not one.question.is_answerable for one in rows]
    did = [one.reading.abstained for one in rows]
    if any(should) or any(did):
        for metric in abstention_scores(should, did, way, seed=seed):
            report.add(metric)
    judged = {one.question.id: places[one.question.id] for one in rows if one.question.evidence}
    if judged:
        for metric in _measure_evidence(way, rows, judged, seed):
            report.add(metric)


def _is_defined_for(name: str, one: GradedAnswer) -> bool:
    """Return whether a question can have the measure at all."""
    return one.question.is_answerable or name in {"right", "faithfulness", "quote_exactness"}


def _measure_evidence(
    way: str,
    rows: Sequence[GradedAnswer],
    judged: Mapping[str, Sequence[EvidenceLocation]],
    seed: int,
) -> list[Metric]:
    """Return how well the evidence was ranked; a question whose evidence no passage holds is 0."""
    named = {
        query: {f"{query}#{at}": place for at, place in enumerate(found)}
        for query, found in judged.items()
    }
    run = {
        one.question.id: label_ranking(one.reading.ranked, named[one.question.id])
        for one in rows
        if one.question.id in named
    }
    qrels = {query: dict.fromkeys(found, 1) for query, found in named.items()}
    return [
        bootstrap(list(values.values()), seed=seed, name=f"{way}/evidence_{measure}")
        for measure, values in score_run(run, qrels, ("ndcg@10", "recall@10")).items()
    ]


def _figures(report: Report, graded: Rows) -> Table:
    names: dict[str, None] = {}
    for metric in report.metrics:
        names.update(dict.fromkeys([metric.rsplit("/", 1)[1]]))
    rows = []
    for name in names:
        found = [report.metrics.get(f"{way}/{name}") for way in graded]
        rows.append((name, *(_format_metric(metric) if metric else "" for metric in found)))
    return Table("figures with 95 % intervals", ("measure", *graded), tuple(rows))


def _differences(graded: Rows, seed: int) -> Table:
    first, rows = next(iter(graded.items()))
    lines = []
    for way, answers in list(graded.items())[1:]:
        for name in _COMPARED_METRICS:
            pairs = [
                (ours.grades[name], theirs.grades[name])
                for ours, theirs in zip(answers, rows, strict=True)
            ]
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            if not both:
                continue
            ours, theirs = [a for a, _ in both], [b for _, b in both]
            metric = paired_difference(ours, theirs, seed=seed, name=f"{way}-{first}/{name}")
            p = randomization_test(ours, theirs, seed=seed)
            lines.append((way, name, _format_metric(metric, sign=True), f"{p:.4f}", str(len(both))))
    columns = ("way", "measure", "difference", "p", "questions")
    return Table("way less the first", columns, tuple(lines))


def _stages(graded: Rows) -> Table:
    counts = {way: Counter(one.stage for one in rows) for way, rows in graded.items()}
    rows = [
        (stage, *(str(count[stage]) for count in counts.values()))
        for stage in STAGES
        if any(count[stage] for count in counts.values())
    ]
    rows.append(("(nothing wrong)", *(str(count[""]) for count in counts.values())))
    return Table("questions by the stage to blame", ("stage", *graded), tuple(rows))


def _worst(rows: Sequence[GradedAnswer]) -> Table:
    lost = [one for one in rows if one.stage]
    order = sorted(lost, key=lambda one: (one.grades["right"] or 0.0, one.grades["f1"] or 0.0))
    shown = tuple(
        (
            one.question.id,
            one.question.text[:_SHOWN],
            one.stage,
            one.reading.text[:_SHOWN],
            " / ".join(one.question.answers)[:_SHOWN],
        )
        for one in order[:_WORST]
    )
    columns = ("id", "question", "stage", "answer", "accepted")
    return Table(f"{len(shown)} of {len(lost)} that went wrong", columns, shown)


def _add_notices(report: Report, graded: Rows) -> None:
    told = Counter(
        (way, text) for way, rows in graded.items() for one in rows for text in one.reading.notices
    )
    if told:
        rows = tuple((way, text, str(count)) for (way, text), count in told.most_common())
        table = Table("notices", ("way", "what", "times"), rows)
        report.section("Done otherwise than asked", "The figures hold these too.", table=table)


def _add_judge(
    report: Report, graded: Rows, bench: AnswerGrader, labels: Labels, seed: int
) -> None:
    """Say how the judge did, and where people have labeled answers what its word is worth."""
    if bench.judge is None:
        return
    counts = JudgeStats.of(bench.used.values())
    report.section(
        "Judge",
        "Verdicts that could not be read were asked again; what failed for good is left out of the "
        "figures, which say on how many they stand. As a control, quotations were put to it with "
        "the passage that they stand in and with another; half right is chance.",
        metrics=[bench.control] if bench.control is not None else [],
        table=Table(
            "verdicts",
            ("what", "count"),
            tuple((name, str(count)) for name, count in counts.to_json().items()),
        ),
    )
    judged = [
        (one, labels.get((one.question.id, way), labels.get((one.question.id, ""))))
        for way, rows in graded.items()
        for one in rows
    ]
    known = [
        (one.verdict.value, label)
        for one, label in judged
        if label is not None and one.verdict is not None and one.verdict.value is not None
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
    """Return for each way the share that people would call right, as far as labels allow."""
    found = []
    for way, rows in graded.items():
        said = [(one, labels.get((one.question.id, way))) for one in rows]
        seen = [
            (one.grades["right"], label)
            for one, label in said
            if label is not None and one.grades["right"] is not None
        ]
        rest = [
            one.grades["right"]
            for one, label in said
            if label is None and one.grades["right"] is not None
        ]
        if len(seen) >= _MIN_LABELS and len(rest) >= _MIN_LABELS:
            values = [float(value or 0.0) for value, _ in seen]
            name = f"{way}/right_corrected"
            others = [float(value or 0.0) for value in rest]
            found.append(
                prediction_powered_mean(others, values, [label for _, label in seen], name)
            )
    return found


def _cost(plan: AnswerEvalPlan, graded: Rows, bench: AnswerGrader) -> Table:
    rows: list[tuple[str, ...]] = []
    for way, answers in graded.items():
        read = sum(one.reading.prompt_tokens for one in answers)
        written = sum(one.reading.completion_tokens for one in answers)
        whole = summarize_times([one.reading.seconds for one in answers])
        search = summarize_times([one.reading.search_seconds for one in answers])
        rows.append(
            (
                way,
                *_describe_spending(plan, read, written),
                *_describe_times(whole),
                *_describe_times(search),
            )
        )
    if bench.judge is not None:
        counts = JudgeStats.of(bench.used.values())
        spent = _describe_spending(plan, counts.prompt_tokens, counts.completion_tokens)
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


def _describe_spending(plan: AnswerEvalPlan, read: int, written: int) -> tuple[str, str, str]:
    cost = (read * plan.prices[0] + written * plan.prices[1]) / _MILLION
    return f"{read:,}", f"{written:,}", f"{cost:.4f}" if any(plan.prices) else "not priced"


def _describe_prices(plan: AnswerEvalPlan) -> str:
    if not any(plan.prices):
        return "Tokens only; --price says what a million cost."
    return f"At {plan.prices[0]:g} a million tokens read and {plan.prices[1]:g} written."


def _describe_times(times: Mapping[str, Any]) -> tuple[str, str]:
    return f"{times['median_ms']:.1f}", f"{times['p95_ms']:.1f}"


def _format_metric(metric: Metric, *, sign: bool = False) -> str:
    style = "+.3f" if sign else ".3f"
    if metric.value != metric.value:
        return f"- ({metric.note})"
    return f"{metric.value:{style}} [{metric.low:{style}}, {metric.high:{style}}]"
