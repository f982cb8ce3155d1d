"""Job that evaluates the answers of several pipelines.

Leaves ``report.json`` and ``report.html``, ``answers.jsonl`` (every answer with its grades, worst
first, and the stage to blame) and a TREC run file a way under ``runs/``, in which evidence stands
under ``QUESTION#NUMBER`` wherever a passage holds it. Answers and verdicts are journaled as they
come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError
from stillroom.evaluate.judges import BinaryJudge, JudgeMode, JudgeResult, choose_judge_mode
from stillroom.evaluate.qa.collections import write_run
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.jobs import Job, Reporter, atomic_write
from stillroom.provenance import (
    ARTIFACT_FILE,
    Artifact,
    Parent,
    digest_file,
    digest_json,
    make_parent,
)
from stillroom.rag.evaluation.answer_report import add_leakage, report_answers
from stillroom.rag.evaluation.answers import (
    AnswerGrader,
    AnswerTrace,
    Stage,
    attribute_failure,
    grade_answer,
    measure_judge_control,
    run_question,
)
from stillroom.rag.evaluation.retrieval import EvidenceLocation, EvidenceMap, label_ranking
from stillroom.rag.evaluation.retrieval_job import parse_pipelines
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.rag.interfaces import CHECKERS, DEFAULT_RETRIEVER
from stillroom.rag.observability import collect_warnings
from stillroom.rag.retrieval.pipeline import parse_method, parse_rag_pipeline
from stillroom.records import Sampling

if TYPE_CHECKING:
    from stillroom.evaluate import Report
    from stillroom.models import TextModel
    from stillroom.rag.retrieval.pipeline import RetrievalPipeline

__all__ = ["AnswerEvalPlan", "GradedAnswer", "evaluate_answers", "read_labels"]


_QUOTATIONS = 20


@dataclass(frozen=True, slots=True)
class AnswerEvalPlan:
    """What is evaluated: the index, the questions, the ways, who answers and who judges.

    ``judge`` may be empty: then words decide what is right, and ``checker``, a method of
    ``stillroom.rag.checkers`` with its settings in a line, what is supported. ``labels`` are
    people's verdicts on some answers.
    ``prices`` are what a million tokens cost, read and written, in any currency.
    """

    index: Path
    questions: Path
    model: str
    ways: tuple[str, ...] = (DEFAULT_RETRIEVER,)
    judge: str = ""
    judge_way: JudgeMode | None = None
    labels: Path | None = None
    checker: str = "overlap"
    k: int = 3
    depth: int = 50
    limit: int = 0
    seed: int = 0
    max_new_tokens: int = 128
    prices: tuple[float, float] = (0.0, 0.0)
    access: AccessContext | None = None

    def to_text(self) -> str:
        """Return what the job's recipe.yaml holds: a note, since no recipe runs it."""
        told = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        if self.access is not None:
            told["access"] = [self.access.tenant, *sorted(self.access.principals)]
        lines = [f"{key}: {json.dumps(value, default=str)}" for key, value in told.items()]
        return "\n".join(["# stillroom rag eval --answers", *lines]) + "\n"


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """One reading with its grades, the stage to blame and the judge's verdict on it."""

    question: JudgedQuestion
    reading: AnswerTrace
    grades: Mapping[str, float | None]
    stage: Stage
    verdict: JudgeResult | None = field(default=None)


def evaluate_answers(
    plan: AnswerEvalPlan,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report]:
    """Answer every question by every way, grade the answers, and report what went wrong where.

    Args:
        plan: What is evaluated.
        out: The folder of the report.
        resume: Go on where a killed run stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        DataError: If a file cannot be used.
        RecipeError: If a way names no method.
        Cancelled: If the user stopped it; ``resume`` goes on.
    """
    ways = parse_pipelines(plan.ways, parse_rag_pipeline)
    questions = _sample_questions(read_question_set(plan.questions), plan)
    labels = read_labels(plan.labels) if plan.labels else {}
    job = Job.start(
        out,
        plan.to_text(),
        seed=plan.seed,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )
    try:
        with job.interruptible(), Index.open(plan.index, access=plan.access) as index:
            evidence = EvidenceMap(index)
            places = {one.id: evidence.locate(one) for one in questions}
            readings, model = _answer_all(plan, ways, questions, index, job)
            graded, bench = _grade_all(plan, ways, questions, places, readings, index, job)
            _write_answers(job, graded, places)
            report = report_answers(plan, graded, places, bench, model, labels, len(index))
            add_leakage(report, evidence.find_leaks(questions, places), len(questions))
            report.write(job.output)
            artifact = job.finish(
                "report",
                parents=_build_parents(plan, job),
                details={"index": index.digest, "questions": len(questions), **report.to_json()},
            )
            return artifact, report
    finally:
        job.close()


def read_labels(path: Path) -> dict[tuple[str, str], bool]:
    """Return people's verdicts by question and way: JSON lines of question, way and right.

    Raises:
        DataError: If a line is none.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[str(row["question"]), str(row.get("way", ""))] = bool(row["right"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the label cannot be read: {error!r}",
                code="data.question-set",
                where=f"{path}:{number}",
                expected='{"question": ID, "way": WAY, "right": true}',
                next="mend the file; nothing is left out in silence",
            ) from error
    return found


def _sample_questions(
    questions: list[JudgedQuestion], plan: AnswerEvalPlan
) -> list[JudgedQuestion]:
    """Return the questions to ask; past the limit, the seed and each one's id choose."""
    if not plan.limit or len(questions) <= plan.limit:
        return questions
    order = sorted(questions, key=lambda one: digest_json([plan.seed, one.id]))
    kept = {one.id for one in order[: plan.limit]}
    return [one for one in questions if one.id in kept]


def _answer_all(
    plan: AnswerEvalPlan,
    ways: Sequence[RetrievalPipeline],
    questions: Sequence[JudgedQuestion],
    index: Index,
    job: Job,
) -> tuple[dict[tuple[str, str], AnswerTrace], str]:
    """Return every reading by way and question, and the fingerprint of who answered."""
    journal = job.journal("readings")
    sampling = Sampling(max_new_tokens=plan.max_new_tokens, stop=("\n\n",), seed=plan.seed)
    found: dict[tuple[str, str], AnswerTrace] = {}
    with (
        _open_judge_model(plan.model) as model,
        job.phase("read", len(ways) * len(questions), "answers") as progress,
    ):
        for question in questions:
            for way in ways:
                asked = [way.name, question.id, question.text, plan.k, plan.depth, index.digest]
                key = digest_json([*asked, model.fingerprint, plan.max_new_tokens, plan.seed])
                if key not in journal:
                    job.check_cancelled()
                    reading = run_question(
                        index, model, way, question, k=plan.k, depth=plan.depth, sampling=sampling
                    )
                    journal.put(key, reading.to_json())
                found[way.name, question.id] = AnswerTrace.from_json(journal[key])
                progress.advance()
        return found, model.fingerprint


def _grade_all(
    plan: AnswerEvalPlan,
    ways: Sequence[RetrievalPipeline],
    questions: Sequence[JudgedQuestion],
    places: Mapping[str, Sequence[EvidenceLocation]],
    readings: Mapping[tuple[str, str], AnswerTrace],
    index: Index,
    job: Job,
) -> tuple[dict[str, list[GradedAnswer]], AnswerGrader]:
    with _open_judge(plan) as judge:
        checker = parse_method(CHECKERS, plan.checker)
        bench = AnswerGrader(index, judge, checker, job.journal("verdicts"), {})
        graded: dict[str, list[GradedAnswer]] = {way.name: [] for way in ways}
        with (
            collect_warnings() as told,
            job.phase("grade", len(readings), "answers") as progress,
        ):
            for question in questions:
                for way in ways:
                    job.check_cancelled()
                    reading = readings[way.name, question.id]
                    graded[way.name].append(
                        _grade_one(reading, question, places[question.id], bench, plan.k)
                    )
                    progress.advance()
            bench.control = measure_judge_control(
                bench, _collect_quotations(questions, places, index), seed=plan.seed
            )
        for text in dict.fromkeys(told):
            job.say(text)
        return graded, bench


def _collect_quotations(
    questions: Sequence[JudgedQuestion],
    places: Mapping[str, Sequence[EvidenceLocation]],
    index: Index,
) -> list[tuple[str, str]]:
    """Return quotations of the evidence with the passages they stand in, the first twenty."""
    found: dict[str, str] = {}
    for question in questions:
        for evidence, place in zip(question.evidence, places[question.id], strict=False):
            if evidence.quote and place.passages and len(found) < _QUOTATIONS:
                found.setdefault(evidence.quote, index.passage(min(place.passages)).text)
    return list(found.items())


def _grade_one(
    reading: AnswerTrace,
    question: JudgedQuestion,
    places: Sequence[EvidenceLocation],
    bench: AnswerGrader,
    k: int,
) -> GradedAnswer:
    grades, verdict = grade_answer(reading, question, places, bench)
    is_judged = grades["right"] is not None  # a judge that failed leaves nothing to blame
    stage = (
        attribute_failure(reading, places, is_right=bool(grades["right"]), k=k) if is_judged else ""
    )
    return GradedAnswer(question, reading, grades, stage, verdict)


def _write_answers(
    job: Job,
    graded: Mapping[str, Sequence[GradedAnswer]],
    places: Mapping[str, Sequence[EvidenceLocation]],
) -> None:
    for number, (way, rows) in enumerate(graded.items()):
        run = {
            one.question.id: label_ranking(
                one.reading.ranked,
                {
                    f"{one.question.id}#{at}": place
                    for at, place in enumerate(places[one.question.id])
                },
            )
            for one in rows
        }
        name = "".join(char if char.isalnum() else "-" for char in way)[:60]
        write_run(job.output / "runs" / f"{number}-{name}.trec", run)
    with atomic_write(job.output / "answers.jsonl") as file:
        for way, rows in graded.items():
            for one in sorted(rows, key=_compute_quality):
                row = {
                    "way": way,
                    "question": one.question.id,
                    "text": one.question.text,
                    "accepted": list(one.question.answers),
                    "stage": one.stage,
                    "grades": dict(one.grades),
                    **one.reading.to_json(),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _compute_quality(one: GradedAnswer) -> tuple[float, float, float, str]:
    """Return what orders answers, worst first."""
    shares = (one.grades[name] or 0.0 for name in ("right", "f1", "faithfulness"))
    first, second, third = shares
    return first, second, third, one.question.id


def _build_parents(plan: AnswerEvalPlan, job: Job) -> list[Parent]:
    found = [make_parent("index", plan.index, job.out)]
    for name, path in {"questions": plan.questions, "labels": plan.labels}.items():
        if path is None:
            continue
        if (path / ARTIFACT_FILE).is_file():
            found.append(make_parent(name, path, job.out))
            continue
        files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
        digests = [[file.name, digest_file(file)] for file in files]
        digest = digests[0][1] if path.is_file() else digest_json(digests)
        found.append(Parent(name, str(path), digest))
    return found


@contextmanager
def _open_judge(plan: AnswerEvalPlan) -> Iterator[BinaryJudge | None]:
    if not plan.judge:
        yield None
        return
    with _open_judge_model(plan.judge) as model:
        way = plan.judge_way or choose_judge_mode(model)
        yield BinaryJudge(model, way=way, seed=plan.seed)


@contextmanager
def _open_judge_model(reference: str) -> Iterator[TextModel]:
    from stillroom.models import open_text_model

    model = open_text_model(reference)
    try:
        yield model
    finally:
        model.close()
