"""Comparison of sentence readers at equal coverage; ``reader_decision`` says which is better.

All arms answer through ``ask`` from the same passages: readers with the strategy ``quote``, and the
generating model, called ``base``. The first reader answers as it is served, and binds the others:
they quote as many sentences and are silent on as many answerable questions, those of which they are
least sure (equal coverage, as selective answering is compared); what the model wrote is cut to as
many words, and counts as silence where the first reader is silent.

Equal coverage alone would favor a reader that hardly answers, so every arm also answers as it is
served, and a decision needs both differences on the same side.

Silence is also measured on questions without an answer: each question is asked again of the index
without the documents that hold its evidence or a copy of it; where it names none, without those
that hold its answer. Another sentence elsewhere may still answer, so 1 is out of reach.

Source: El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification", JMLR
11 (risk at equal coverage).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import CheckpointError, count_noun
from stillroom.evaluate import Metric, Report, Table, bootstrap, describe_metric
from stillroom.evaluate.metrics.answers import best_f1, contains_answer
from stillroom.evaluate.qa.questions import EvidenceSpan, find_question_origin
from stillroom.provenance import ARTIFACT_FILE, digest_json
from stillroom.provenance.sources import list_ancestors
from stillroom.rag.answer_selection.judging import format_difference
from stillroom.rag.answer_selection.reader import (
    BUILTIN_READER,
    OVERLAP_READER,
    choose_reader,
    find_reader,
    open_available_reader,
    open_reader,
)
from stillroom.rag.answer_strategies.quote import Quote
from stillroom.rag.evaluation.answers import find_probability
from stillroom.rag.evaluation.reader_decision import (
    BASE_ARM,
    ArmComparison,
    ComparedArm,
    ReaderDecision,
    SilenceProbe,
    decide_reader,
)
from stillroom.rag.generation.answer import ask
from stillroom.rag.interfaces import ANSWER_STRATEGIES
from stillroom.rag.storage.filters import FilterExpression

if TYPE_CHECKING:
    from stillroom.evaluate.qa.questions import JudgedQuestion
    from stillroom.jobs import Job
    from stillroom.models import TextModel
    from stillroom.rag.evaluation.answer_job import GradedAnswer, MemoizedModel
    from stillroom.rag.evaluation.answers import AnswerTrace
    from stillroom.rag.evaluation.retrieval import EvidenceLocation, EvidenceMap
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe
    from stillroom.rag.retrieval.pipeline import RetrievalPipeline
    from stillroom.records import Sampling

__all__ = [
    "add_comparison",
    "are_synthetic",
    "build_comparison",
    "count_passages",
    "find_copies",
    "find_fingerprint",
    "find_twins",
    "list_arms",
    "make_key",
    "match_quotes",
    "measure_arm",
    "probe_silence",
    "select_model_questions",
    "suit_readers",
    "tabulate_arms",
]

_ANY_MARGIN = 1e9
_RIGHT_F1 = 0.5
_TABULATED = (
    *("served_holds", "served_first", "served_silent", "served_silent_unanswerable"),
    *("holds", "wrong", "silent_answerable", "silent_unanswerable", "cited"),
)
_UNASKED = (
    "Abstention without the documents that answer is not measured: no evidence was found, or the "
    "index holds no other documents."
)
_SHOWN_ANSWERS = 10
_SHOWN_CHARACTERS = 240
Rows = Mapping[str, Sequence["GradedAnswer"]]


def suit_readers(recipe: AnswerEvaluationRecipe, index: Index) -> AnswerEvaluationRecipe:
    """Return a recipe that names the packaged reader with which ``ask`` reads the index.

    Also in place of a folder with the packaged reader's weights, as a training kept them.
    """
    assert recipe.compare is not None  # noqa: S101  # callers have looked
    languages = index.languages
    readers = {
        arm: choose_reader(name, languages)[0]
        if name == BUILTIN_READER or Path(name).is_dir()
        else name
        for arm, name in recipe.compare.readers.items()
    }
    compare = recipe.compare.model_copy(update={"readers": readers})
    return recipe.model_copy(update={"compare": compare})


def list_arms(
    recipe: AnswerEvaluationRecipe, pipeline: RetrievalPipeline
) -> list[RetrievalPipeline]:
    """Return a pipeline for each reader, the first in the recipe first, then the model's."""
    assert recipe.compare is not None  # noqa: S101  # callers have looked
    arms = [
        replace(
            pipeline,
            name=name,
            answering=ANSWER_STRATEGIES.build({"name": "quote", "reader": reference}),
        )
        for name, reference in recipe.compare.readers.items()
    ]
    # Opened here, so that the first question's time is not that of the weights.
    for reference in recipe.compare.readers.values():
        if not find_fingerprint(reference) and reference != BUILTIN_READER:  # which falls back
            open_reader(reference)
    return [*arms, *([replace(pipeline, name=BASE_ARM)] if recipe.compare.model_questions else [])]


def find_fingerprint(reference: str) -> str:
    """Return a reader's fingerprint; empty if it cannot be opened here."""
    try:
        return open_reader(reference).fingerprint
    except CheckpointError:
        return ""


def match_quotes(pipeline: RetrievalPipeline, first: AnswerTrace | None) -> RetrievalPipeline:
    """Return a reader's pipeline that quotes as many sentences as the first, never silent."""
    if first is None or not isinstance(pipeline.answering, Quote):
        return pipeline
    quotes = max(1, first.quotes)
    update = {"max_quotes": quotes, "margin": _ANY_MARGIN, "min_probability": 0.0}
    return replace(pipeline, answering=pipeline.answering.model_copy(update=update))


def select_model_questions(
    questions: Sequence[JudgedQuestion], limit: int, seed: int
) -> frozenset[str]:
    """Return the ids of the answerable questions that the model is asked, by seed and ids."""
    answerable = [question for question in questions if question.is_answerable]
    order = sorted(answerable, key=lambda question: digest_json([seed, "model", question.id]))
    return frozenset(question.id for question in order[:limit])


def make_key(
    recipe: AnswerEvaluationRecipe,
    pipeline: RetrievalPipeline,
    question: JudgedQuestion,
    index: Index,
    model: TextModel,
) -> str:
    """Return a journal's key of an answer: all that it depends on, wherever the reader lies."""
    parts = [pipeline.name, question.id, question.text, recipe.k, recipe.depth, index.digest]
    parts += filter(None, [pipeline.moment])  # most have none: their keys are as they were
    if isinstance(answering := pipeline.answering, Quote):
        # by its weights, not its place: a run that was moved is replayed with the same keys
        weights = find_fingerprint(answering.reader) or answering.reader
        return digest_json([*parts, answering.model_dump(mode="json", exclude={"reader"}), weights])
    parts += filter(None, [answering and answering.moment])
    return digest_json([*parts, model.fingerprint, recipe.max_new_tokens, recipe.seed])


def find_copies(question: JudgedQuestion, evidence: EvidenceMap) -> list[EvidenceLocation]:
    """Return every place where the quotes of a question's evidence stand, in any document."""
    quotes = tuple(EvidenceSpan(span.quote) for span in question.evidence if span.quote)
    return evidence.locate(replace(question, evidence=quotes)) if quotes else []


def probe_silence(
    recipe: AnswerEvaluationRecipe,
    arms: Sequence[RetrievalPipeline],
    questions: Sequence[JudgedQuestion],
    locations: Mapping[str, Sequence[EvidenceLocation]],
    index: Index,
    model: MemoizedModel,
    sampling: Sampling,
    graded: Rows,
    job: Job,
) -> dict[tuple[str, str], SilenceProbe]:
    """Ask each question of the index without its documents.

    The model is asked half of its questions, a twin of the first reader none. Questions whose
    evidence is not found, or for which no document would be left, are not asked. By the graded
    answers the log says how long it takes.
    """
    assert recipe.compare is not None  # noqa: S101  # callers have looked
    journal = job.journal("silence")
    by_model = select_model_questions(questions, recipe.compare.model_questions // 2, recipe.seed)
    twins = find_twins(recipe)
    probes: dict[tuple[str, str], SilenceProbe] = {}
    probed = {
        question.id
        for question in questions
        if question.is_answerable and any(place.passages for place in locations[question.id])
        if _hide_documents(index, locations[question.id]) is not None
    }
    if not probed:
        job.say(_UNASKED)
        return {}
    keys = {
        (arm.name, question.id): make_key(recipe, arm, question, index, model)
        for question in questions
        if question.id in probed
        for arm in arms
        if arm.name not in twins and (arm.name != BASE_ARM or question.id in by_model)
    }
    seconds = _estimate_probes([pair for pair in keys if keys[pair] not in journal], graded, job)
    total = sum(seconds.values())
    with job.phase("abstention", len(questions), "questions", weight=total) as progress:
        for question in questions:
            asked = [arm for arm in arms if (arm.name, question.id) in keys]
            others = _hide_documents(index, locations[question.id]) if asked else None
            for arm in asked:
                assert others is not None  # noqa: S101  # it is probed
                key = keys[arm.name, question.id]
                if key not in journal:
                    job.check_cancelled()
                    settings = arm.to_answer_settings()
                    started = time.process_time()
                    k = count_passages(recipe, arm, arms[0])
                    details = ask(
                        others, model, question.text, k=k, sampling=sampling, **settings
                    ).details
                    probe = SilenceProbe(bool(details["abstained"]), find_probability(details))
                    busy = time.process_time() - started + model.pop_spent()[1]
                    journal.put(key, asdict(probe) | {"cpu_seconds": busy})
                row = journal[key]
                if isinstance(row, Mapping):  # a journal of an earlier version holds the pair alone
                    row = row["abstained"], row["probability"]
                probes[arm.name, question.id] = SilenceProbe(*row)
            progress.advance(weight=sum(seconds.get((arm.name, question.id), 0) for arm in asked))
    return probes


def _estimate_probes(
    pending: Sequence[tuple[str, str]], graded: Rows, job: Job
) -> dict[tuple[str, str], float]:
    """Say what is still asked of whom; return each one's seconds, if as many as an answer's."""
    if not pending:
        return {}
    seconds = {
        arm: sum(row.reading.seconds for row in rows) / max(1, len(rows))
        for arm, rows in graded.items()
    }
    took = sum(seconds[arm] for arm, _ in pending)
    counts = Counter(arm for arm, _ in pending)
    named = (f"{'model' if arm == BASE_ARM else arm} {count}" for arm, count in counts.items())
    job.say(
        "abstention: questions are asked again of the index without the documents that answer "
        f"them ({', '.join(named)}), in about {took:.0f} s"
    )
    return {(arm, question): seconds[arm] for arm, question in pending}


def _hide_documents(index: Index, locations: Sequence[EvidenceLocation]) -> Index | None:
    """Return the index without a question's documents; None if there are no others."""
    names = {name for location in locations for name in location.passages}
    paths = tuple(sorted({index.passage(name).location.path for name in names}))
    held = FilterExpression("in", "path", paths)
    others = index.restrict(FilterExpression("not", parts=(held,)))
    return others if len(others) else None


def count_passages(
    recipe: AnswerEvaluationRecipe, arm: RetrievalPipeline, first: RetrievalPipeline
) -> int:
    """Return the number of passages to show: to the model as many as the first reader reads."""
    quote = first.answering
    if arm.name != BASE_ARM or not isinstance(quote, Quote):
        return recipe.k
    return max(recipe.k, quote.passages or open_available_reader(quote.reader)[0].passages)


def find_twins(recipe: AnswerEvaluationRecipe) -> list[str]:
    """Return the arms whose readers have the weights of the first one, and so answer alike."""
    readers = recipe.compare.readers if recipe.compare is not None else {}
    first = next(iter(readers), "")
    own = find_fingerprint(readers[first]) if readers else ""
    return [
        arm
        for arm, reference in readers.items()
        if arm != first and own and find_fingerprint(reference) == own
    ]


def _compare_arm(
    rows: Sequence[GradedAnswer], first: Sequence[GradedAnswer], *, is_reader: bool
) -> ComparedArm:
    """Return an arm at the coverage and length of the first one, and as it is served."""
    answerable = [row for row in rows if row.question.is_answerable]
    silent = {row.question.id for row in rows if row.reading.abstained}
    threshold = 0.0
    allowed = {row.question.id: row.reading for row in first}
    if is_reader and rows is not first:
        count = sum(allowed[row.question.id].abstained for row in answerable)
        ranked = sorted(answerable, key=lambda row: (row.reading.probability, row.question.id))
        threshold = ranked[count].reading.probability if count < len(ranked) else 2.0
        silent = {row.question.id for row in ranked[:count]}
        silent |= {
            row.question.id
            for row in rows
            if not row.question.is_answerable and row.reading.probability < threshold
        }
    if not is_reader:
        silent |= {row.question.id for row in rows if allowed[row.question.id].abstained}
    holds = {
        row.question.id: 0.0
        if row.question.id in silent
        else _holds(row.question, row.reading, None if is_reader else allowed[row.question.id])
        for row in answerable
    }
    served = {row.question.id: row.served or row.reading for row in rows}
    return ComparedArm(
        rows,
        frozenset(silent),
        threshold,
        holds,
        {row.question.id: _holds(row.question, served[row.question.id]) for row in answerable},
        frozenset(name for name, reading in served.items() if reading.abstained),
        {
            row.question.id: _holds(row.question, served[row.question.id].cut_to_first_quote())
            for row in answerable
            if is_reader
        },
    )


def _holds(
    question: JudgedQuestion, reading: AnswerTrace, allowed: AnswerTrace | None = None
) -> float:
    """Return whether an answer, cut to the words of another one, holds an accepted answer.

    Or has an F1 of one half with it. Silence holds none.
    """
    if reading.abstained:
        return 0.0
    text = reading.plain
    if allowed is not None:
        text = " ".join(text.split()[: len(allowed.plain.split())])
    answers = question.answers
    return float(contains_answer(text, answers) or best_f1(text, answers) >= _RIGHT_F1)


def build_comparison(
    recipe: AnswerEvaluationRecipe,
    graded: Rows,
    probes: Mapping[tuple[str, str], SilenceProbe],
    *,
    head: str = "reader",
) -> ArmComparison:
    """Return the arms, at the first one's coverage, and the probes, with those of its twins.

    Those of ``base`` answer a part of the questions.
    """
    first = next(iter(graded))
    rows = {arm: answers for arm, answers in graded.items() if answers}  # the model's may be none
    asked = dict(probes)
    twins = find_twins(recipe)
    for arm in twins:  # the same weights answer alike
        rows[arm] = graded[first]
        asked |= {(arm, name): one for (other, name), one in probes.items() if other == first}
    compared = {
        arm: _compare_arm(answers, graded[first], is_reader=arm != BASE_ARM)
        for arm, answers in rows.items()
    }
    return ArmComparison(recipe, compared, asked, head, twins)


def add_comparison(
    report: Report,
    recipe: AnswerEvaluationRecipe,
    graded: Rows,
    probes: Mapping[tuple[str, str], SilenceProbe],
    *,
    is_synthetic: bool,
    trained: str = "",
    caveat: str = "",
) -> ReaderDecision:
    """Put the comparison before the report's sections, and its decision before the summary.

    ``trained`` is the folder of the first reader, if a packaged one reads in its place; ``caveat``
    is a sentence that limits the decision.
    """
    comparison = build_comparison(recipe, graded, probes)
    first = comparison.first
    differences, served = comparison.find_differences(), comparison.find_differences(served=True)
    decision = decide_reader(
        comparison, differences, is_synthetic=is_synthetic, trained=trained, caveat=caveat
    )
    headlines = (
        *(f"/{arm}/served_holds" for arm in comparison.shown),
        *(f"/{decision.arm}/{name}" for name in ("served_first", "served_silent_unanswerable")),
    )
    report.headlines.clear()
    for metric in (one for arm in comparison.arms for one in measure_arm(comparison, arm)):
        report.add(metric, is_headline=metric.name.endswith(headlines))
    seconds = [row.reading.cpu_seconds for row in graded[first]]
    cost = bootstrap(seconds, seed=recipe.seed, name="reader/cpu_s_a_question", unit="s")
    for metric in (cost, *differences.values()):
        report.add(metric)
    same = (
        " The very questions by which the trained reader was kept or not: slightly favorable to it."
        if recipe.questions in comparison.readers.values()
        else ""
    )
    sections, own = list(report.sections), comparison.labels[first]
    report.sections.clear()
    report.section("How it was decided", " ".join([*decision.notes, report.summary]))
    report.section(
        "Is it worth it",
        f"All answer the same questions from the same passages. {own[0].upper()}{own[1:]} answers "
        "as it is served; the other readers quote as many sentences and are silent on as many "
        "answerable questions; what the generating model wrote is cut to as many words, silent "
        f"where {own} is (equal coverage). As served: each with its own settings. Accuracy: share "
        "of answers that hold the right words; error rate: of answers without them; abstention: of "
        "no answer. Unanswerable: asked of the index without the documents that answer. Citation "
        "precision: share of the citations that support their sentence. 95 % intervals over "
        "questions." + same + ("" if probes else f" {_UNASKED}"),
        table=tabulate_arms(report, comparison),
    )
    report.section(
        "Differences",
        "Share of the answerable questions whose right words the answers hold, on the same "
        "questions. A reader is better if both differences are significant.",
        table=Table(
            f"{own} minus the others",
            ("compared with", "at equal coverage", "as served", "questions"),
            tuple(
                (
                    comparison.labels[arm],
                    format_difference(metric),
                    format_difference(served[arm]),
                    str(metric.n),
                )
                for arm, metric in differences.items()
                if arm in comparison.shown
            ),
        ),
    )
    report.section("Answers side by side", "Cut to the page.", table=_show_answers(comparison))
    report.sections.extend(sections)
    report.summary = decision.line
    return decision


def measure_arm(comparison: ArmComparison, arm: str) -> list[Metric]:
    """Return the figures of an arm."""
    side = comparison.arms[arm]

    def measure(name: str, values: Sequence[float]) -> Metric:
        label = f"{comparison.labels[arm].removeprefix('the ')}: {describe_metric(name)}"
        name = f"{comparison.head}/{arm}/{name}"
        return replace(bootstrap(values, seed=comparison.recipe.seed, name=name), label=label)

    quiet = {name: float(name in side.silent) for name in side.holds}
    without = [row.question.id for row in side.rows if not row.question.is_answerable]
    unanswerable = [float(name in side.silent) for name in without]
    unanswerable += [
        float(probe.abstained or probe.probability < side.threshold)
        for (name, _), probe in comparison.probes.items()
        if name == arm
    ]
    cited = [
        value
        for row in side.rows
        if row.question.id not in side.silent
        and (value := row.grades["citation_precision"]) is not None
    ]
    optional = {
        "served_first": list(side.served_first.values()),
        "silent_unanswerable": unanswerable,
        "served_silent_unanswerable": list(comparison.list_silence(arm).values()),
        "cited": cited,
    }
    return [
        measure("holds", list(side.holds.values())),
        measure("wrong", [1.0 - quiet[name] - value for name, value in side.holds.items()]),
        measure("silent_answerable", list(quiet.values())),
        measure("served_holds", list(side.served.values())),
        measure("served_silent", [float(name in side.served_silent) for name in side.served]),
        *(measure(name, values) for name, values in optional.items() if values),
    ]


def are_synthetic(questions: str) -> bool:
    """Return whether a model wrote the questions, as far as their lineage or records tell."""
    path = Path(questions)
    folders = [path, *(place.parent for place in (path, path.parent) if place.name == "output")]
    for folder in folders:
        if (folder / ARTIFACT_FILE).is_file():
            return any(
                artifact.kind == "records" and artifact.origin.get("kind") == "synthetic"
                for _, artifact in list_ancestors(folder)
            )
    return find_question_origin(path).kind == "synthetic"


def tabulate_arms(report: Report, comparison: ArmComparison) -> Table:
    """Return the figures of the readers, and of the model, side by side."""
    compared = comparison.shown
    rows: list[tuple[str, ...]] = [
        ("questions", *(str(len(arm.rows)) for arm in compared.values()))
    ]
    for name in _TABULATED:
        cells = (report.metrics.get(f"{comparison.head}/{arm}/{name}") for arm in compared)
        rows.append((describe_metric(name), *(_format_share(cell) for cell in cells)))
    rows.append(
        (
            "CPU s a question",
            *(
                f"{sum(row.reading.cpu_seconds for row in arm.rows) / len(arm.rows):.2f}"
                for arm in compared.values()
            ),
        )
    )
    rows.append(
        ("bytes of the model", *(_measure_bytes(comparison.recipe, arm) for arm in compared))
    )
    return Table("readers side by side", ("", *comparison.columns), tuple(rows))


def _format_share(metric: Metric | None) -> str:
    if metric is None:
        return "not measured"
    if metric.value != metric.value:
        return metric.note
    interval = "" if metric.low != metric.low else f" [{metric.low:.2f}, {metric.high:.2f}]"
    return f"{metric.value:.2f}{interval} (n={metric.n})"


def _measure_bytes(recipe: AnswerEvaluationRecipe, arm: str) -> str:
    """Return the bytes of an arm's weights; a reader's are its updates and those of its encoder."""
    from stillroom.models import resolve_checkpoint

    assert recipe.compare is not None  # noqa: S101  # callers have looked
    reference = recipe.compare.readers.get(arm, "")
    if reference == OVERLAP_READER:
        return "0"
    try:
        if arm == BASE_ARM:
            return f"{_size(resolve_checkpoint(recipe.model)):,}"
        base = str(open_reader(reference).config["base"])  # type: ignore[union-attr]
        updates = _size(find_reader(reference))
        return f"{updates:,} + encoder {_size(resolve_checkpoint(base)):,}"
    except CheckpointError:  # an endpoint, or no packaged weights: the notices say so
        return "not here"


def _size(path: Path) -> int:
    """Return the bytes of the weights at a path."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _show_answers(comparison: ArmComparison) -> Table:
    compared = comparison.shown
    texts = {
        arm: {
            row.question.id: "(counted as silent) "
            * (row.question.id in side.silent and not row.reading.abstained)
            + row.reading.text
            for row in side.rows
        }
        for arm, side in compared.items()
    }
    by_id = {row.question.id: row.question for side in compared.values() for row in side.rows}
    asked = texts.get(BASE_ARM) or next(iter(texts.values()))
    order = [*asked, *(name for name in by_id if name not in asked)]
    rows = tuple(
        (
            by_id[name].text[:_SHOWN_CHARACTERS],
            " / ".join(by_id[name].answers)[:_SHOWN_CHARACTERS] or "(no answer)",
            *(answers.get(name, "(not asked)")[:_SHOWN_CHARACTERS] for answers in texts.values()),
        )
        for name in order[:_SHOWN_ANSWERS]
    )
    columns = ("question", "expected", *comparison.columns)
    return Table(count_noun(len(rows), "question"), columns, rows)
