"""Job that evaluates answers of several pipelines; ``rag.evaluation.answers`` grades each.

Writes ``report.json`` and ``report.html``, ``answers.jsonl`` (every answer with its grades and the
failed stage, worst first) and one TREC run file per pipeline under ``runs/``, in which passages
with evidence are listed as ``QUESTION#NUMBER``. Answers and verdicts are journaled one by one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, count_noun
from stillroom.evaluate.judges import BinaryJudge, JudgeResult, choose_judge_mode
from stillroom.evaluate.qa.collections import write_run
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.jobs.journal import Journal, read_journal
from stillroom.models.cache import CompletionCache
from stillroom.models.factory import DeferredModel
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.interfaces import DelegatingModel
from stillroom.objects.disk import require_file
from stillroom.provenance import (
    ARTIFACT_FILE,
    Artifact,
    Parent,
    digest_file,
    digest_json,
    make_parent,
)
from stillroom.provenance.artifact import describe_host, list_installed_versions
from stillroom.provenance.digests import load_json
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
from stillroom.rag.evaluation.judged_report import report_judgments
from stillroom.rag.evaluation.reader_comparison import (
    add_comparison,
    are_synthetic,
    count_passages,
    find_copies,
    find_fingerprint,
    find_twins,
    list_arms,
    make_key,
    match_quotes,
    probe_silence,
    select_model_questions,
    suit_readers,
)
from stillroom.rag.evaluation.reader_decision import BASE_ARM
from stillroom.rag.evaluation.retrieval import EvidenceLocation, EvidenceMap, label_ranking
from stillroom.rag.evaluation.retrieval_job import (
    build_run_name,
    parse_pipelines,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.model_calls import open_optional_model
from stillroom.rag.observability import collect_warnings
from stillroom.rag.retrieval.pipeline import parse_rag_pipeline
from stillroom.records import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe
    from stillroom.rag.retrieval.pipeline import RetrievalPipeline

__all__ = ["GradedAnswer", "MemoizedModel", "estimate_answers", "evaluate_answers", "read_labels"]


_QUOTATIONS = 20
_COMPLETIONS = "completions.jsonl"  # the generating model's, for the next run
_SETTINGS_SUFFIXES = {".json", ".jinja", ".model", ".txt"}  # beside a checkpoint's weights


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """The trace of an answer with its grades, the failed stage and the judge's verdict.

    ``served`` is the answer of a compared reader with its own settings, if ``reading`` is not.
    """

    question: JudgedQuestion
    reading: AnswerTrace
    grades: Mapping[str, float | None]
    stage: Stage
    verdict: JudgeResult | None = field(default=None)
    served: AnswerTrace | None = field(default=None)


_SECONDS_PER_TOKEN = 0.02
_SECONDS_PER_QUOTE = 0.3


def estimate_answers(recipe: AnswerEvaluationRecipe) -> Estimate:
    """Estimate the time of an evaluation, if answers have the maximum length.

    Raises:
        DataError: If a file cannot be used.
        RecipeError: If a pipeline names an unknown method.
    """
    pipelines = parse_pipelines(recipe.pipelines, parse_rag_pipeline)
    _read_labels(recipe)
    count, quoted = len(_read_questions(recipe)) * len(pipelines), 0
    if recipe.compare is not None:
        quoted = 3 * count * len(recipe.compare.readers)
        count = recipe.compare.model_questions * 3 // 2
    return Estimate(
        memory_bytes=600_000_000,
        seconds=count * recipe.max_new_tokens * _SECONDS_PER_TOKEN + quoted * _SECONDS_PER_QUOTE,
        basis=f"{count} answers of at most {recipe.max_new_tokens} tokens at "
        f"{_SECONDS_PER_TOKEN} s a token, {quoted} quotes",
    )


def evaluate_answers(recipe: AnswerEvaluationRecipe, job: Job) -> Artifact:
    """Answer every question with every pipeline, grade the answers, and report failures by stage.

    Raises:
        DataError: If a file cannot be used.
        RecipeError: If a pipeline names an unknown method.
        Cancelled: If the user stopped it; resuming continues.
    """
    pipelines = parse_pipelines(recipe.pipelines, parse_rag_pipeline, day=job.first_day)
    questions, labels = _read_questions(recipe, job.warn), _read_labels(recipe)
    named = [] if recipe.compare is None else list(recipe.compare.readers.values())
    decision: dict[str, Any] = {}
    with recipe.open_index() as index, closing(MemoizedModel(recipe, job)) as model:
        if recipe.compare is not None:
            recipe = suit_readers(recipe, index)
            pipelines = list_arms(recipe, pipelines[0])
        evidence = EvidenceMap(index)
        locations = {question.id: evidence.locate(question) for question in questions}
        readings, served = _answer_all(recipe, pipelines, questions, index, model, job)
        graded, grader = _grade_all(recipe, pipelines, questions, locations, readings, index, job)
        graded = {
            name: [replace(row, served=served.get((name, row.question.id))) for row in rows]
            for name, rows in graded.items()
        }
        _write_answers(job, graded, locations)
        first = next(iter(graded))
        whole = graded if recipe.compare is None else {first: graded[first]}
        is_asked = recipe.compare is None or recipe.compare.model_questions > 0
        writer = model.fingerprint if is_asked else ""
        labels = _match_labels(labels, whole, job)
        report = report_answers(recipe, whole, locations, grader, writer, labels, len(index))
        add_leakage(report, evidence.find_leaks(questions, locations), len(questions))
        concentration = evidence.describe_concentration(locations.values())
        if recipe.compare is not None:
            places = {
                question.id: [*locations[question.id], *find_copies(question, evidence)]
                for question in questions
            }
            sampling = _build_sampling(recipe)
            silent = probe_silence(
                recipe, pipelines, questions, places, index, model, sampling, graded, job
            )
            if recipe.compare.untaught:
                report, line = report_judgments(recipe, graded, silent)
                decision = {"judgments": line}
            else:
                generated, own = are_synthetic(recipe.questions), named[0]
                limits: dict[str, Any] = {"trained": own, "caveat": concentration}
                decided = add_comparison(
                    report, recipe, graded, silent, is_synthetic=generated, **limits
                )
                decision = {"decision": decided.to_json()}
        else:
            report.summary = f"{report.summary} {concentration}".rstrip()
        model.report_reuse(job)
        report.write(job.output)
        return job.finish(
            "report",
            is_timed=lambda path: path == f"output/{_COMPLETIONS}",
            parents=_build_parents(recipe, named, job, writer),
            details={
                "index": index.digest,
                "questions": len(questions),
                **decision,
                **report.to_json(),
            },
        )


class MemoizedModel(DelegatingModel):
    """The model, opened when an answer needs it; does not generate again what the last run has.

    A completion depends on its model (the weights, and the settings, tokenizer and template beside
    them), the prompt, the sampling, this machine and the versions installed on it. An endpoint may
    change behind its name, so it is always asked. A replay has no last run, and generates what is
    drawn.
    """

    def __init__(self, recipe: AnswerEvaluationRecipe, job: Job) -> None:
        from stillroom.models import open_text_model

        super().__init__(DeferredModel(recipe.model, lambda: open_text_model(recipe.model)))
        self._reference = recipe.model
        self._job = job
        self._journal = Journal(job.output / _COMPLETIONS)
        self._last: dict[str, Any] = {}
        if job.previous is not None and not recipe.model.startswith("http"):
            self._last = read_journal(job.previous / "output" / _COMPLETIONS)
        self._spent: list[tuple[float, float]] = []
        self.reused = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Return a single completion of the last run, or complete the prompts."""
        if len(prompts) > 1 or not isinstance(sampling, Sampling) or on_done:
            return super().generate(prompts, sampling, on_done=on_done, is_cancelled=is_cancelled)
        key = CompletionCache.cache_key(self.fingerprint, prompts[0], sampling)
        key = digest_json([key, self._surroundings])
        row = self._last.get(key)
        if row is None:
            started, started_cpu = time.perf_counter(), time.process_time()

            def is_stopped() -> bool:  # an answer takes longer than one waits for a stop
                return self._job.is_cancelled() or bool(is_cancelled and is_cancelled())

            (completion,) = super().generate(prompts, sampling, is_cancelled=is_stopped)
            if completion.finish_reason == "cancelled":
                self._job.check_cancelled()
                return [completion]
            spent = time.perf_counter() - started, time.process_time() - started_cpu
            row = {"completion": completion.to_json(), "spent": spent}
        else:
            self._spent.append(tuple(row["spent"]))
            self.reused += 1
        if key not in self._journal:
            self._journal.put(key, row)
        return [Completion.from_json(row["completion"])]

    @cached_property
    def _surroundings(self) -> str:
        """Digest of what completions depend on besides the fingerprint, which is of weights."""
        files: list[Path] = []
        if not self._reference.startswith(("http", "scripted:")):
            files = sorted(resolve_checkpoint(self._reference).glob("*"))
        files = [file for file in files if file.suffix in _SETTINGS_SUFFIXES and file.is_file()]
        beside = [[file.name, digest_file(file)] for file in files]
        return digest_json([describe_host(), list_installed_versions(), beside])

    def pop_spent(self) -> tuple[float, float]:
        """Return what completions reused since the last call took: seconds, processor seconds."""
        wall, busy = (sum(spent[side] for spent in self._spent) for side in (0, 1))
        self._spent.clear()
        return wall, busy

    def report_reuse(self, job: Job) -> None:
        """Say how many completions were not generated, if any."""
        if self.reused:
            job.say(
                f"{count_noun(self.reused, 'completion')} of the generating model taken from the "
                "last run: model, prompt, sampling, machine and versions are the same"
            )

    def close(self) -> None:
        """Close the model, if it was opened, and the journal."""
        self._journal.close()
        super().close()


def _build_sampling(recipe: AnswerEvaluationRecipe) -> Sampling:
    return Sampling(max_new_tokens=recipe.max_new_tokens, stop=("\n\n",), seed=recipe.seed)


def _read_labels(recipe: AnswerEvaluationRecipe) -> dict[tuple[str, str], bool]:
    judge = recipe.model_judge
    return read_labels(Path(judge.labels)) if judge is not None and judge.labels else {}


def _match_labels(
    labels: Mapping[tuple[str, str], bool], graded: Mapping[str, Sequence[GradedAnswer]], job: Job
) -> dict[tuple[str, str], bool]:
    """Return the verdicts on graded answers; one without a pipeline is on the only pipeline's."""
    only = next(iter(graded)) if len(graded) == 1 else ""
    matched = {(question, name or only): right for (question, name), right in labels.items()}
    known = {(row.question.id, name) for name, rows in graded.items() for row in rows}
    if unused := len(matched.keys() - known):
        job.warn(
            f"{unused} of {len(matched)} labels are not used: they name no question and pipeline "
            f"of this evaluation ({', '.join(graded)})"
        )
    return {key: right for key, right in matched.items() if key in known}


def read_labels(path: Path) -> dict[tuple[str, str], bool]:
    """Read human verdicts by question and pipeline: JSON lines of question, pipeline, right.

    Raises:
        DataError: If a line is malformed.
    """
    labels = {}
    for number, line in enumerate(require_file(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
            if not isinstance(row["right"], bool):
                raise TypeError("right is neither true nor false")
            labels[str(row["question"]), str(row.get("pipeline") or "")] = row["right"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the label cannot be read: {error!r}",
                code="data.question-set",
                where=f"{path}:{number}",
                expected='{"question": ID, "pipeline": PIPELINE, "right": true}',
                next="correct the file; malformed lines are never skipped",
            ) from error
    return labels


def _read_questions(
    recipe: AnswerEvaluationRecipe, warn: Callable[[str], None] | None = None
) -> list[JudgedQuestion]:
    """Return the questions to ask; above the limit, a subset determined by seed and ids."""
    questions = read_question_set(Path(recipe.questions), warn=warn)
    limit = recipe.max_questions
    if not limit or len(questions) <= limit:
        return questions
    order = sorted(questions, key=lambda question: digest_json([recipe.seed, question.id]))
    sampled = {question.id for question in order[:limit]}
    return [question for question in questions if question.id in sampled]


def _answer_all(
    recipe: AnswerEvaluationRecipe,
    pipelines: Sequence[RetrievalPipeline],
    questions: Sequence[JudgedQuestion],
    index: Index,
    model: MemoizedModel,
    job: Job,
) -> tuple[dict[tuple[str, str], AnswerTrace], dict[tuple[str, str], AnswerTrace]]:
    """Return the traces by pipeline and question; of readers, the first one's length binds all.

    And those of the readers that it binds, with their own settings.
    """
    journal = job.journal("readings")
    sampling = _build_sampling(recipe)
    compare = recipe.compare
    twins = find_twins(recipe)

    def read(pipeline: RetrievalPipeline, question: JudgedQuestion) -> AnswerTrace:
        key = make_key(recipe, pipeline, question, index, model)
        if key not in journal:
            job.check_cancelled()
            k = count_passages(recipe, pipeline, pipelines[0])
            reading = run_question(
                index, model, pipeline, question, k=k, depth=recipe.depth, sampling=sampling
            )
            wall, busy = model.pop_spent()
            seconds, cpu_seconds = reading.seconds + wall, reading.cpu_seconds + busy
            reading = replace(reading, seconds=seconds, cpu_seconds=cpu_seconds)
            journal.put(key, reading.to_json())
        return AnswerTrace.from_json(journal[key])

    traces: dict[tuple[str, str], AnswerTrace] = {}
    served: dict[tuple[str, str], AnswerTrace] = {}
    readers = [one for one in pipelines if compare is None or one.name != BASE_ARM]
    with job.phase("read", len(readers) * len(questions), "answers") as progress:
        for question in questions:
            first: AnswerTrace | None = None
            for pipeline in readers:
                name = pipeline.name, question.id
                if first is not None and pipeline.name in twins:
                    traces[name] = first
                else:
                    asked = match_quotes(pipeline, first) if compare else pipeline
                    traces[name] = read(asked, question)
                    if asked is not pipeline:
                        served[name] = read(pipeline, question)
                    first = first or traces[name]
                progress.advance()
    if compare is not None and compare.model_questions:
        by_model = select_model_questions(questions, compare.model_questions, recipe.seed)
        with job.phase("generate", len(by_model), "answers") as progress:
            for question in questions:
                if question.id in by_model:
                    traces[BASE_ARM, question.id] = read(pipelines[-1], question)
                    progress.advance()
    return traces, served


def _grade_all(
    recipe: AnswerEvaluationRecipe,
    pipelines: Sequence[RetrievalPipeline],
    questions: Sequence[JudgedQuestion],
    locations: Mapping[str, Sequence[EvidenceLocation]],
    readings: Mapping[tuple[str, str], AnswerTrace],
    index: Index,
    job: Job,
) -> tuple[dict[str, list[GradedAnswer]], AnswerGrader]:
    with _open_judge(recipe) as judge:
        grader = AnswerGrader(index, judge, recipe.checker, job.journal("verdicts"), {})
        graded: dict[str, list[GradedAnswer]] = {pipeline.name: [] for pipeline in pipelines}
        with (
            collect_warnings() as warnings,
            job.phase("grade", len(readings), "answers") as progress,
        ):
            for question in questions:
                for pipeline in pipelines:
                    job.check_cancelled()
                    reading = readings.get((pipeline.name, question.id))
                    if reading is None:  # the model is asked a part of the questions
                        continue
                    graded[pipeline.name].append(
                        _grade_one(reading, question, locations[question.id], grader, recipe.k)
                    )
                    progress.advance()
            grader.control = measure_judge_control(
                grader, _collect_quotations(questions, locations, index), seed=recipe.seed
            )
        for text in dict.fromkeys(warnings):
            job.warn(text)
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
                graded_answer.question.id,
                locations[graded_answer.question.id],
            )
            for graded_answer in rows
        }
        write_run(job.output / "runs" / build_run_name(number, pipeline), run)
    with atomic_write(job.output / "answers.jsonl") as file:
        for pipeline, rows in graded.items():
            for graded_answer in sorted(rows, key=_compute_quality):
                row = {
                    "pipeline": pipeline,
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


def _build_parents(
    recipe: AnswerEvaluationRecipe, named: Sequence[str], job: Job, writer: str
) -> list[Parent]:
    parents = [make_parent("index", Path(recipe.index), job.out)]
    if (Path(recipe.model) / ARTIFACT_FILE).is_file():
        parents.append(make_parent("model", Path(recipe.model), job.out))
    elif writer:  # the fingerprint of the model that was asked
        parents.append(Parent("model", recipe.model, writer, "checkpoint"))
    labels = recipe.model_judge.labels if recipe.model_judge is not None else None
    read = list(recipe.compare.readers.values()) if recipe.compare is not None else []
    # Also the artifacts in whose place a packaged reader reads.
    artifacts = [value for value in named if (Path(value) / ARTIFACT_FILE).is_file()]
    readers = dict.fromkeys([*artifacts, *read])
    inputs = [("questions", recipe.questions), ("labels", labels)]
    inputs += [("reader", value) for value in readers if value != recipe.questions]
    for name, value in inputs:
        if value is None:
            continue
        path = Path(value)
        if (path / ARTIFACT_FILE).is_file():
            parents.append(make_parent(name, path, job.out))
        elif name == "reader":
            parents.append(Parent(name, value, find_fingerprint(value)))
        else:
            parts = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
            digests = [[file.name, digest_file(file)] for file in parts]
            digest = digests[0][1] if path.is_file() else digest_json(digests)
            parents.append(Parent(name, str(path), digest))
    return parents


@contextmanager
def _open_judge(recipe: AnswerEvaluationRecipe) -> Iterator[BinaryJudge | None]:
    judge = recipe.model_judge
    with open_optional_model(judge.model if judge is not None else None) as model:
        if judge is None or model is None:
            yield None
            return
        mode = judge.mode or choose_judge_mode(model)
        yield BinaryJudge(model, way=mode, seed=recipe.seed)
