"""Job that runs a sweep over index settings and retrieval pipelines.

Indexes are cached by settings and document digests, and vectors by text: what two configurations
share is computed once, and a separate cache folder shares it between sweeps. An interrupted sweep
can be resumed. Writes ``report.json``, ``report.html``, ``leaderboard.jsonl`` (one row per
configuration) and ``best.yaml`` (the recipe of the best, its pipeline in a comment).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.metrics.retrieval import parse_measure, score_run
from stillroom.evaluate.qa.leakage import LeakageFinding, find_split_overlap
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.jobs import Job, Reporter, atomic_write, sum_work_seconds
from stillroom.provenance import (
    Artifact,
    Parent,
    digest_file,
    digest_json,
    find_output,
    read_artifact,
)
from stillroom.rag.embedding.cache import CachedEmbedder
from stillroom.rag.evaluation.answer_report import add_leakage
from stillroom.rag.evaluation.retrieval import (
    EvidenceMap,
    Qrels,
    choose_unit,
    get_query_id,
    label_ranking,
    search_query,
    summarize_times,
)
from stillroom.rag.evaluation.retrieval_job import (
    RetrievalEvalPlan,
    open_optional_model,
    read_judged_queries,
)
from stillroom.rag.evaluation.sweep import (
    SweepCost,
    SweepRow,
    SweepSummary,
    evaluate_sweep,
    report_sweep,
    split_questions,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import STORES
from stillroom.rag.model_calls import CallCounter
from stillroom.rag.recipe import Configuration, build_variant, list_configurations
from stillroom.rag.retrieval.pipeline import parse_pipeline
from stillroom.rag.run import run
from stillroom.recipes import dump_recipe
from stillroom.text.reader import scan_folder

if TYPE_CHECKING:
    from stillroom.evaluate import Report
    from stillroom.rag.evaluation.retrieval import JudgedUnit
    from stillroom.rag.recipe import RagRecipe, SweepSettings

__all__ = ["MANY_CONFIGURATIONS", "run_sweep"]

MANY_CONFIGURATIONS = 24
"""Maximum number of configurations without ``allow_many``."""

_NAMES: tuple[str, ...] = ("document", "path", "corpus")


@dataclass(frozen=True, slots=True)
class _SweepQuestions:
    """Queries and judgments: questions with evidence, or names of a collection."""

    texts: Mapping[str, str]
    asked: Sequence[JudgedQuestion]
    qrels: Qrels


@dataclass(frozen=True, slots=True)
class _BuiltIndex:
    """An index in the cache."""

    folder: Path
    passages: int
    embedded: int
    seconds: float
    size_bytes: int


def run_sweep(
    recipe: RagRecipe,
    out: Path,
    *,
    cache: Path | None = None,
    allow_many: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, SweepSummary]:
    """Evaluate every configuration of a recipe's ``sweep``, and recommend one.

    Args:
        recipe: Recipe of kind rag with ``sweep``.
        out: The folder of the report.
        cache: Folder that keeps indexes and vectors for later sweeps; default the job's own.
        allow_many: Allow more than 24 configurations.
        resume: Resume an interrupted sweep.
        overwrite: Replace an earlier job at ``out``.
        reporter: Displays progress; default none.

    Raises:
        RecipeError: If the recipe has no sweep, a setting or pipeline is invalid, or there are too
            many configurations.
        DataError: If the questions cannot be used or are too few.
        Cancelled: If the user stopped it; ``resume`` continues.
    """
    sweep = _check_plan(recipe, allow_many=allow_many)
    configurations = list_configurations(sweep)
    variants = [build_variant(recipe, item.changes) for item in configurations]
    for configuration in configurations:
        parse_pipeline(configuration.way)
    questions = _read_questions(sweep)
    split_questions(list(questions.qrels), sweep.held_out, recipe.seed)  # fail before any work
    job = Job.start(
        out,
        dump_recipe(recipe),
        seed=recipe.seed,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )
    try:
        with job.interruptible():
            cache_folder = cache if cache is not None else job.scratch / "sweep"
            job.say(
                f"{len(configurations)} configurations on "
                f"{len({dump_recipe(variant) for variant in variants})} indexes, "
                f"{len(questions.texts)} questions"
            )
            indexes = _build_all(variants, cache_folder, job)
            with open_optional_model(sweep.model) as opened:
                model = CallCounter(opened) if opened is not None else None
                measured = [
                    _measure(sweep, item, indexes[dump_recipe(variant)], questions, model, job)
                    for item, variant in zip(configurations, variants, strict=True)
                ]
            outcome = evaluate_sweep(
                measured, measure=sweep.measure, held_out=sweep.held_out, seed=recipe.seed
            )
            report = report_sweep(outcome, sweep.measure, measured[0])
            leaks = _find_leakage(recipe, questions, indexes.values())
            add_leakage(report, leaks, len(questions.texts))
            best = next(
                variant
                for item, variant in zip(configurations, variants, strict=True)
                if item is outcome.best.configuration
            )
            _write_results(job, outcome, best)
            report.write(job.output)
            artifact = job.finish(
                "report", parents=_build_parents(recipe, sweep), details=report.to_json()
            )
            return artifact, report, outcome
    finally:
        job.close()


def _check_plan(recipe: RagRecipe, *, allow_many: bool) -> SweepSettings:
    sweep = recipe.sweep
    if sweep is None:
        raise RecipeError(
            "the recipe has no sweep",
            code="rag.sweep-setting",
            expected="sweep: {vary: {SETTING: [VALUE, ...]}, ways: [...], questions: FILE}",
            next="stillroom new rag prints all settings",
        )
    parse_measure(sweep.measure)
    count = len(list_configurations(sweep))
    if count > MANY_CONFIGURATIONS and not allow_many:
        sizes = {**sweep.vary, "ways": sweep.ways, "variants": sweep.variants}
        counts = ", ".join(f"{name} {len(values)}" for name, values in sizes.items())
        raise RecipeError(
            f"the sweep has {count} configurations ({counts})",
            code="rag.sweep-too-many",
            expected=f"at most {MANY_CONFIGURATIONS}, unless confirmed: more may take days",
            next="vary less at once, or add --yes",
        )
    return sweep


def _read_questions(sweep: SweepSettings) -> _SweepQuestions:
    """Read questions with their evidence, or a collection's queries and judgments."""
    if sweep.questions is not None:
        questions = [
            question
            for question in read_question_set(Path(sweep.questions))
            if question.is_answerable
        ]
        qrels = {
            question.id: {f"{question.id}#{i}": 1 for i in range(max(len(question.evidence), 1))}
            for question in questions
        }
        return _SweepQuestions(
            {question.id: question.text for question in questions}, questions, qrels
        )
    if sweep.queries is None or sweep.qrels is None:
        raise RecipeError(
            "the sweep has no questions",
            code="rag.sweep-setting",
            where="sweep",
            expected="questions, or queries and qrels",
            next="set questions; fifty real ones are worth more than a thousand generated ones",
        )
    plan = RetrievalEvalPlan(Path(), Path(sweep.queries), Path(sweep.qrels), (), ())
    texts, qrels = read_judged_queries(plan)
    return _SweepQuestions(texts, (), qrels)


def _build_all(
    variants: Sequence[RagRecipe], cache_folder: Path, job: Job
) -> dict[str, _BuiltIndex]:
    """Build the indexes missing in the cache; return all by recipe."""
    from stillroom.models import open_embedder

    (cache_folder / "indexes").mkdir(parents=True, exist_ok=True)
    distinct = {dump_recipe(variant): variant for variant in variants}
    indexes: dict[str, _BuiltIndex] = {}
    embedders: dict[str, CachedEmbedder] = {}
    try:
        for number, (text, variant) in enumerate(distinct.items(), 1):
            job.check_cancelled()
            key = digest_json([text, _digest_documents(variant)])[:16]
            folder = cache_folder / "indexes" / key
            if not Job.recover(folder):
                job.say(f"index {number} of {len(distinct)}")
                reference = variant.embedder
                if reference not in embedders:
                    embedders[reference] = CachedEmbedder(
                        open_embedder(reference), cache_folder / "vectors.sqlite"
                    )
                _build(variant, folder, text, embedders[reference], job)
            indexes[text] = _describe(folder)
    finally:
        for embedder in embedders.values():
            embedder.close()
    return indexes


def _build(variant: RagRecipe, folder: Path, text: str, embedder: CachedEmbedder, job: Job) -> None:
    before = embedder.computed
    inner = Job.start(folder, text, seed=variant.seed, resume=True, reporter=job.reporter)
    inner.cancel_with(job)
    try:
        # Indexes of a sweep are in the cache, whatever the store of the recipe.
        cached = variant.model_copy(update={"store": STORES.build("folder")})
        run(cached, inner, embedder=embedder)
    finally:
        inner.close()
    job.event("index", folder=str(folder), embedded=embedder.computed - before)
    with atomic_write(folder.with_suffix(".json")) as file:
        json.dump({"embedded": embedder.computed - before}, file)


def _describe(folder: Path) -> _BuiltIndex:
    details = read_artifact(folder).details
    note = folder.with_suffix(".json")
    embedded = json.loads(note.read_text())["embedded"] if note.is_file() else details["embedded"]
    size = sum(file.stat().st_size for file in (folder / "output").rglob("*") if file.is_file())
    return _BuiltIndex(folder, details["passages"], embedded, sum_work_seconds(folder), size)


def _digest_documents(variant: RagRecipe) -> str:
    path = find_output(Path(variant.documents))
    root = path if path.is_dir() else path.parent
    files = sorted(scan_folder(path).files)
    return digest_json([[file.relative_to(root).as_posix(), digest_file(file)] for file in files])


def _measure(
    sweep: SweepSettings,
    configuration: Configuration,
    built: _BuiltIndex,
    questions: _SweepQuestions,
    model: CallCounter | None,
    job: Job,
) -> SweepRow:
    """Search one index with one pipeline for all questions.

    The index is opened anew, so that every pipeline includes the time of embedding the questions.
    """
    pipeline = parse_pipeline(configuration.way)
    journal = job.journal("searches")
    run: dict[str, list[tuple[str, float]]] = {}
    rows: list[list[Any]] = []
    with Index.open(built.folder, verify=False) as index:
        judge = _JudgedNames(index, questions)
        model_mark = model.fingerprint if model is not None else ""
        is_warm = False
        with job.phase(configuration.name, len(questions.texts), "searches") as progress:
            for query, text in questions.texts.items():
                key = digest_json(
                    [pipeline.name, query, text, judge.unit, sweep.depth, index.digest, model_mark]
                )
                if key not in journal:
                    job.check_cancelled()
                    if not is_warm:  # opens the embedder; another text, so that no vector is cached
                        search_query(
                            index, pipeline, f"{text} ?", unit="passage", depth=1, model=model
                        )
                        is_warm = True
                    before = model.tokens if model is not None else 0
                    result = search_query(
                        index,
                        pipeline,
                        text,
                        unit=judge.unit,
                        depth=sweep.depth,
                        model=model,
                        leave_out=get_query_id(query, judge.unit, questions.qrels.get(query, {})),
                    )
                    spent = model.tokens - before if model is not None else 0
                    journal.put(key, [result.ranked, result.seconds, result.cpu_seconds, spent])
                row = journal[key]
                rows.append(row)
                run[query] = judge.label(query, row[0])
                progress.advance()
    values = score_run(run, questions.qrels, (sweep.measure,))[sweep.measure]
    wall, cpu = (summarize_times([row[column] for row in rows]) for column in (1, 2))
    cost = SweepCost(
        cpu["median_ms"],
        wall["median_ms"],
        wall["p95_ms"],
        built.size_bytes,
        built.passages,
        built.seconds,
        built.embedded,
        sum(row[3] for row in rows) / len(rows),
    )
    return SweepRow(configuration, values, cost)


class _JudgedNames:
    """Maps the passages of an index to the names in the judgments."""

    def __init__(self, index: Index, questions: _SweepQuestions) -> None:
        self._places = {}
        self.unit: JudgedUnit = "passage"
        if questions.asked:
            evidence = EvidenceMap(index)
            self._places = {
                question.id: {
                    f"{question.id}#{i}": location
                    for i, location in enumerate(evidence.locate(question))
                }
                for question in questions.asked
            }
            return
        passages = (index.passage_at(row) for row in range(len(index)))
        self.unit, _ = choose_unit(passages, questions.qrels)
        if self.unit not in _NAMES:
            raise DataError(
                "the judgments name passages, which depend on the chunker",
                code="rag.sweep-unit",
                expected="judgments of documents, of paths, or of rows of an unpacked corpus",
                next="set sweep.questions with evidence, which is located in any passage",
            )

    def label(self, query: str, ranked: Sequence[str]) -> list[tuple[str, float]]:
        """Return a ranking with scores, with evidence under its own name."""
        if query in self._places:
            return label_ranking(ranked, self._places[query])
        return [(name, float(len(ranked) - i)) for i, name in enumerate(ranked)]


def _find_leakage(
    recipe: RagRecipe, questions: _SweepQuestions, indexes: Iterable[_BuiltIndex]
) -> list[LeakageFinding]:
    """Return leakage that makes the questions too easy for any index, each finding once."""
    assert recipe.sweep is not None  # noqa: S101  # checked before the job started
    leaks: dict[tuple[str, str], LeakageFinding] = {}
    for built in indexes if questions.asked else ():
        with Index.open(built.folder, verify=False) as index:
            evidence = EvidenceMap(index)
            locations = {question.id: evidence.locate(question) for question in questions.asked}
            for leak in evidence.find_leaks(questions.asked, locations):
                leaks.setdefault((leak.question, leak.kind), leak)
    choosing, measuring = (
        {name: questions.texts[name] for name in side}
        for side in split_questions(list(questions.texts), recipe.sweep.held_out, recipe.seed)
    )
    return [*leaks.values(), *find_split_overlap(choosing, measuring)]


def _write_results(job: Job, outcome: SweepSummary, best: RagRecipe) -> None:
    with atomic_write(job.output / "leaderboard.jsonl") as file:
        for measured, metric in outcome.leaderboard:
            row = {
                **measured.configuration.model_dump(mode="json"),
                "choosing": metric.to_json(),
                "cost": asdict(measured.cost),
                "values": dict(measured.values),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with atomic_write(job.output / "best.yaml") as file:
        file.write(f"# search it with --way '{outcome.best.configuration.way}'\n")
        file.write(dump_recipe(best))


def _build_parents(recipe: RagRecipe, sweep: SweepSettings) -> list[Parent]:
    parents = [Parent("documents", recipe.documents, _digest_documents(recipe))]
    for name in ("questions", "queries", "qrels"):
        path = getattr(sweep, name)
        if path is not None and Path(path).is_file():
            parents.append(Parent(name, path, digest_file(Path(path))))
    return parents
