"""Job that evaluates the answers of several pipelines.

Writes ``report.json`` and ``report.html``, ``answers.jsonl`` (every answer with its grades and the
failed stage, worst first) and one TREC run file per pipeline under ``runs/``, in which passages
with evidence are listed as ``QUESTION#NUMBER``. Answers and verdicts are journaled one by one.
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
    """Inputs and settings: the index, the questions, the pipelines, the models.

    Without a ``judge``, correctness is decided by word overlap, and support by ``checker``, a
    method of ``stillroom.rag.checkers`` with its settings in one line. ``labels`` are human
    verdicts on some answers. ``prices`` are those of a million prompt and completion tokens, in any
    currency.
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
        """Return the text of the job's recipe.yaml: a note, since no recipe runs this job."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        if self.access is not None:
            values["access"] = [self.access.tenant, *sorted(self.access.principals)]
        lines = [f"{key}: {json.dumps(value, default=str)}" for key, value in values.items()]
        return "\n".join(["# stillroom rag eval --answers", *lines]) + "\n"


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """The trace of an answer with its grades, the failed stage and the judge's verdict."""

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
    """Answer every question with every pipeline, grade the answers, and report failures by stage.

    Args:
        plan: Inputs and settings.
        out: The folder of the report.
        resume: Resume an interrupted run.
        overwrite: Replace an earlier job at ``out``.
        reporter: Displays progress; default none.

    Raises:
        DataError: If a file cannot be used.
        RecipeError: If a pipeline names an unknown method.
        Cancelled: If the user stopped it; ``resume`` continues.
    """
    pipelines = parse_pipelines(plan.ways, parse_rag_pipeline)
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
            locations = {question.id: evidence.locate(question) for question in questions}
            readings, model = _answer_all(plan, pipelines, questions, index, job)
            graded, grader = _grade_all(plan, pipelines, questions, locations, readings, index, job)
            _write_answers(job, graded, locations)
            report = report_answers(plan, graded, locations, grader, model, labels, len(index))
            add_leakage(report, evidence.find_leaks(questions, locations), len(questions))
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
    """Read human verdicts by question and pipeline from JSON lines of question, way and right.

    Raises:
        DataError: If a line is malformed.
    """
    labels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            labels[str(row["question"]), str(row.get("way", ""))] = bool(row["right"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the label cannot be read: {error!r}",
                code="data.question-set",
                where=f"{path}:{number}",
                expected='{"question": ID, "way": WAY, "right": true}',
                next="correct the file; malformed lines are never skipped",
            ) from error
    return labels


def _sample_questions(
    questions: list[JudgedQuestion], plan: AnswerEvalPlan
) -> list[JudgedQuestion]:
    """Return the questions to ask; above the limit, a subset determined by seed and ids."""
    if not plan.limit or len(questions) <= plan.limit:
        return questions
    order = sorted(questions, key=lambda question: digest_json([plan.seed, question.id]))
    sampled = {question.id for question in order[: plan.limit]}
    return [question for question in questions if question.id in sampled]


def _answer_all(
    plan: AnswerEvalPlan,
    pipelines: Sequence[RetrievalPipeline],
    questions: Sequence[JudgedQuestion],
    index: Index,
    job: Job,
) -> tuple[dict[tuple[str, str], AnswerTrace], str]:
    """Return the traces by pipeline and question, and the model's fingerprint."""
    journal = job.journal("readings")
    sampling = Sampling(max_new_tokens=plan.max_new_tokens, stop=("\n\n",), seed=plan.seed)
    traces: dict[tuple[str, str], AnswerTrace] = {}
    with (
        _open_judge_model(plan.model) as model,
        job.phase("read", len(pipelines) * len(questions), "answers") as progress,
    ):
        for question in questions:
            for pipeline in pipelines:
                key_parts = [
                    pipeline.name,
                    question.id,
                    question.text,
                    plan.k,
                    plan.depth,
                    index.digest,
                ]
                key = digest_json([*key_parts, model.fingerprint, plan.max_new_tokens, plan.seed])
                if key not in journal:
                    job.check_cancelled()
                    reading = run_question(
                        index,
                        model,
                        pipeline,
                        question,
                        k=plan.k,
                        depth=plan.depth,
                        sampling=sampling,
                    )
                    journal.put(key, reading.to_json())
                traces[pipeline.name, question.id] = AnswerTrace.from_json(journal[key])
                progress.advance()
        return traces, model.fingerprint


def _grade_all(
    plan: AnswerEvalPlan,
    pipelines: Sequence[RetrievalPipeline],
    questions: Sequence[JudgedQuestion],
    locations: Mapping[str, Sequence[EvidenceLocation]],
    readings: Mapping[tuple[str, str], AnswerTrace],
    index: Index,
    job: Job,
) -> tuple[dict[str, list[GradedAnswer]], AnswerGrader]:
    with _open_judge(plan) as judge:
        checker = parse_method(CHECKERS, plan.checker)
        grader = AnswerGrader(index, judge, checker, job.journal("verdicts"), {})
        graded: dict[str, list[GradedAnswer]] = {pipeline.name: [] for pipeline in pipelines}
        with (
            collect_warnings() as warnings,
            job.phase("grade", len(readings), "answers") as progress,
        ):
            for question in questions:
                for pipeline in pipelines:
                    job.check_cancelled()
                    reading = readings[pipeline.name, question.id]
                    graded[pipeline.name].append(
                        _grade_one(reading, question, locations[question.id], grader, plan.k)
                    )
                    progress.advance()
            grader.control = measure_judge_control(
                grader, _collect_quotations(questions, locations, index), seed=plan.seed
            )
        for text in dict.fromkeys(warnings):
            job.say(text)
        return graded, grader


def _collect_quotations(
    questions: Sequence[JudgedQuestion],
    locations: Mapping[str, Sequence[EvidenceLocation]],
    index: Index,
) -> list[tuple[str, str]]:
    """Return up to twenty quotations of evidence with the passages that contain them."""
    quotations: dict[str, str] = {}
    for question in questions:
        for evidence, location in zip(question.evidence, locations[question.id], strict=False):
            if evidence.quote and location.passages and len(quotations) < _QUOTATIONS:
                quotations.setdefault(evidence.quote, index.passage(min(location.passages)).text)
    return list(quotations.items())


def _grade_one(
    reading: AnswerTrace,
    question: JudgedQuestion,
    locations: Sequence[EvidenceLocation],
    grader: AnswerGrader,
    k: int,
) -> GradedAnswer:
    grades, verdict = grade_answer(reading, question, locations, grader)
    is_judged = grades["right"] is not None  # a judge that failed leaves nothing to blame
    stage = (
        attribute_failure(reading, locations, is_right=bool(grades["right"]), k=k)
        if is_judged
        else ""
    )
    return GradedAnswer(question, reading, grades, stage, verdict)


def _write_answers(
    job: Job,
    graded: Mapping[str, Sequence[GradedAnswer]],
    locations: Mapping[str, Sequence[EvidenceLocation]],
) -> None:
    for number, (pipeline, rows) in enumerate(graded.items()):
        run = {
            graded_answer.question.id: label_ranking(
                graded_answer.reading.ranked,
                {
                    f"{graded_answer.question.id}#{i}": location
                    for i, location in enumerate(locations[graded_answer.question.id])
                },
            )
            for graded_answer in rows
        }
        name = "".join(char if char.isalnum() else "-" for char in pipeline)[:60]
        write_run(job.output / "runs" / f"{number}-{name}.trec", run)
    with atomic_write(job.output / "answers.jsonl") as file:
        for pipeline, rows in graded.items():
            for graded_answer in sorted(rows, key=_compute_quality):
                row = {
                    "way": pipeline,
                    "question": graded_answer.question.id,
                    "text": graded_answer.question.text,
                    "accepted": list(graded_answer.question.answers),
                    "stage": graded_answer.stage,
                    "grades": dict(graded_answer.grades),
                    **graded_answer.reading.to_json(),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _compute_quality(graded: GradedAnswer) -> tuple[float, float, float, str]:
    """Return the sort key of answers, worst first."""
    shares = (graded.grades[name] or 0.0 for name in ("right", "f1", "faithfulness"))
    first, second, third = shares
    return first, second, third, graded.question.id


def _build_parents(plan: AnswerEvalPlan, job: Job) -> list[Parent]:
    parents = [make_parent("index", plan.index, job.out)]
    for name, path in {"questions": plan.questions, "labels": plan.labels}.items():
        if path is None:
            continue
        if (path / ARTIFACT_FILE).is_file():
            parents.append(make_parent(name, path, job.out))
            continue
        files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
        digests = [[file.name, digest_file(file)] for file in files]
        digest = digests[0][1] if path.is_file() else digest_json(digests)
        parents.append(Parent(name, str(path), digest))
    return parents


@contextmanager
def _open_judge(plan: AnswerEvalPlan) -> Iterator[BinaryJudge | None]:
    if not plan.judge:
        yield None
        return
    with _open_judge_model(plan.judge) as model:
        mode = plan.judge_way or choose_judge_mode(model)
        yield BinaryJudge(model, way=mode, seed=plan.seed)


@contextmanager
def _open_judge_model(reference: str) -> Iterator[TextModel]:
    from stillroom.models import open_text_model

    model = open_text_model(reference)
    try:
        yield model
    finally:
        model.close()
