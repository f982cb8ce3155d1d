"""Job that builds and measures the configurations of a sweep, listed by ``rag.jobs.sweep``.

Indexes are cached by settings and document digests, and vectors by text: what two configurations
share is computed once, and a separate cache folder shares it between sweeps. An interrupted sweep
can be resumed. Writes ``report.json``, ``report.html``, ``leaderboard.jsonl`` (one row per
configuration) and ``best.yaml`` (the recipe of the best, its pipeline in a comment).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, count_noun
from stillroom.evaluate.metrics.retrieval import score_run
from stillroom.evaluate.qa.question_checks import LeakageFinding, find_split_overlap
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.jobs import Job, atomic_write, sum_work_seconds
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
from stillroom.rag.evaluation.retrieval_job import read_judged_queries
from stillroom.rag.evaluation.sweep import (
    SweepCost,
    SweepRow,
    SweepSummary,
    evaluate_sweep,
    report_sweep,
    split_questions,
)
from stillroom.rag.index.builder import build_index
from stillroom.rag.index.searcher import Index
from stillroom.rag.ingestion.discovery import digest_files, discover_documents
from stillroom.rag.ingestion.embedder_choice import choose_embedder
from stillroom.rag.model_calls import CallCounter, open_optional_model
from stillroom.rag.retrieval.pipeline import parse_pipeline
from stillroom.rag.storage.filters import read_metadata
from stillroom.rag.stores.folder import Folder
from stillroom.recipes import dump_recipe
from stillroom.text.reader import scan_folder

if TYPE_CHECKING:
    from stillroom.rag.evaluation.retrieval import JudgedUnit
    from stillroom.rag.index_settings import IndexSettings
    from stillroom.rag.jobs.index import IndexRecipe
    from stillroom.rag.jobs.sweep import Configuration, SweepRecipe

__all__ = ["read_sweep_questions", "run_sweep"]

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
    recipe: SweepRecipe, variants: Sequence[tuple[Configuration, IndexRecipe]], job: Job
) -> Artifact:
    """Evaluate every configuration of a sweep, and recommend one.

    The first variant is the baseline.

    Raises:
        DataError: If the questions cannot be used or are too few.
        Cancelled: If the user stopped it; resuming continues.
    """
    questions = read_sweep_questions(recipe, job.warn)
    cache = Path(recipe.cache) if recipe.cache is not None else job.scratch / "sweep"
    texts = [dump_recipe(variant) for _, variant in variants]
    job.say(
        f"{len(variants)} configurations on {len(set(texts))} indexes, "
        f"{count_noun(len(questions.texts), 'question')}"
    )
    distinct = {text: variant for text, (_, variant) in zip(texts, variants, strict=True)}
    indexes = _build_all(distinct, cache, job)
    with open_optional_model(recipe.model) as opened:
        model = CallCounter(opened) if opened is not None else None
        measured = [
            _measure(recipe, configuration, indexes[text], questions, model, job)
            for text, (configuration, _) in zip(texts, variants, strict=True)
        ]
    outcome = evaluate_sweep(
        measured, measure=recipe.measure, held_out=recipe.held_out, seed=recipe.seed
    )
    report = report_sweep(outcome, recipe.measure, measured[0])
    leaks = _find_leakage(recipe, questions, indexes.values())
    add_leakage(report, leaks, len(questions.texts))
    best = texts[[row.configuration for row in measured].index(outcome.best.configuration)]
    _write_results(job, outcome, best)
    report.write(job.output)
    return job.finish(
        "report",
        parents=_build_parents(recipe),
        details={
            "best": outcome.best.configuration.model_dump(mode="json"),
            "is_gain": outcome.is_gain,
            **report.to_json(),
        },
    )


def read_sweep_questions(
    recipe: SweepRecipe, warn: Callable[[str], None] | None = None
) -> _SweepQuestions:
    """Read questions with their evidence, or a collection's queries and judgments.

    Raises:
        DataError: If they cannot be used or are too few.
    """
    if isinstance(recipe.questions, str):
        asked = [
            question
            for question in read_question_set(Path(recipe.questions), warn=warn)
            if question.is_answerable
        ]
        qrels: Qrels = {
            question.id: {f"{question.id}#{i}": 1 for i in range(max(len(question.evidence), 1))}
            for question in asked
        }
        texts = {question.id: question.text for question in asked}
    else:
        judged = recipe.questions
        asked = []
        texts, qrels = read_judged_queries(Path(judged.queries), Path(judged.qrels))
    split_questions(list(qrels), recipe.held_out, recipe.seed)
    return _SweepQuestions(texts, asked, qrels)


def _build_all(
    distinct: Mapping[str, IndexRecipe], cache_folder: Path, job: Job
) -> dict[str, _BuiltIndex]:
    """Build the indexes missing in the cache; return all by the text of their recipes."""
    from stillroom.models import open_embedder

    (cache_folder / "indexes").mkdir(parents=True, exist_ok=True)
    indexes: dict[str, _BuiltIndex] = {}
    embedders: dict[str, CachedEmbedder] = {}
    try:
        for number, (text, variant) in enumerate(distinct.items(), 1):
            job.check_cancelled()
            given = [_digest_metadata(Path(path)) for path in [variant.metadata] if path]
            key = digest_json([text, _digest_documents(variant), *given])[:16]
            folder = cache_folder / "indexes" / key
            if not Job.recover(folder):
                job.say(f"index {number} of {len(distinct)}")
                root, scan = discover_documents(variant.documents)
                files, _ = digest_files(root, scan, job)
                reference = choose_embedder(variant, root, files, job)
                variant = variant.model_copy(update={"embedder": reference})
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


def _build(
    variant: IndexRecipe, folder: Path, text: str, embedder: CachedEmbedder, job: Job
) -> None:
    before = embedder.computed
    inner = Job.start(folder, text, seed=variant.seed, resume=True, reporter=job.reporter)
    inner.cancel_with(job)
    try:
        # Indexes of a sweep are in the cache, whatever the store of the recipe.
        sparse, late_interaction = variant.store.auxiliary
        store = Folder(sparse=sparse, late_interaction=late_interaction)
        build_index(variant.model_copy(update={"store": store}), inner, embedder=embedder)
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


def _digest_metadata(path: Path) -> str:
    """Return the digest of a metadata file.

    Raises:
        DataError: If it cannot be used.
    """
    read_metadata(path)
    return digest_file(path)


def _digest_documents(variant: IndexSettings) -> str:
    path = find_output(Path(variant.documents))
    root = path if path.is_dir() else path.parent
    files = sorted(scan_folder(path).files)
    return digest_json([[file.relative_to(root).as_posix(), digest_file(file)] for file in files])


def _measure(
    recipe: SweepRecipe,
    configuration: Configuration,
    built: _BuiltIndex,
    questions: _SweepQuestions,
    model: CallCounter | None,
    job: Job,
) -> SweepRow:
    """Search one index with one pipeline for all questions.

    The index is opened anew, so that every pipeline includes the time of embedding the questions.
    """
    pipeline = parse_pipeline(configuration.pipeline).on_day(job.first_day)
    journal = job.journal("searches")
    run: dict[str, list[tuple[str, float]]] = {}
    rows: list[list[Any]] = []
    with Index.open(built.folder, verify=False, access=recipe.get_access()) as index:
        judge = _JudgedNames(index, questions)
        model_mark = model.fingerprint if model is not None else ""
        others = (judge.unit, recipe.depth, index.digest, model_mark, pipeline.moment)
        is_warm = False
        with job.phase(configuration.name, len(questions.texts), "searches") as progress:
            for query, text in questions.texts.items():
                leave_out = get_query_id(query, judge.unit, questions.qrels.get(query, {}))
                key = digest_json([pipeline.name, query, text, leave_out, *others])
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
                        depth=recipe.depth,
                        model=model,
                        leave_out=leave_out,
                    )
                    spent = model.tokens - before if model is not None else 0
                    journal.put(key, [result.ranked, result.seconds, result.cpu_seconds, spent])
                row = journal[key]
                rows.append(row)
                run[query] = judge.label(query, row[0])
                progress.advance()
    values = score_run(run, questions.qrels, (recipe.measure,))[recipe.measure]
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
            self._places = {question.id: evidence.locate(question) for question in questions.asked}
            return
        passages = (index.passage_at(row) for row in range(len(index)))
        self.unit, _ = choose_unit(passages, questions.qrels)
        if self.unit not in _NAMES:
            raise DataError(
                "the judgments name passages, which depend on the chunker",
                code="rag.sweep-unit",
                expected="judgments of documents, of paths, or of rows of an unpacked corpus",
                next="set questions with evidence, which is located in any passage",
            )

    def label(self, query: str, ranked: Sequence[str]) -> list[tuple[str, float]]:
        """Return a ranking with scores, with evidence under its own name."""
        if query in self._places:
            return label_ranking(ranked, query, self._places[query])
        return [(name, float(len(ranked) - i)) for i, name in enumerate(ranked)]


def _find_leakage(
    recipe: SweepRecipe, questions: _SweepQuestions, indexes: Iterable[_BuiltIndex]
) -> list[LeakageFinding]:
    """Return leakage that makes the questions too easy for any index, each finding once."""
    leaks: dict[tuple[str, str], LeakageFinding] = {}
    for built in indexes if questions.asked else ():
        with Index.open(built.folder, verify=False, access=recipe.get_access()) as index:
            evidence = EvidenceMap(index)
            locations = {question.id: evidence.locate(question) for question in questions.asked}
            for leak in evidence.find_leaks(questions.asked, locations):
                leaks.setdefault((leak.question, leak.kind), leak)
    choosing, measuring = (
        {name: questions.texts[name] for name in side}
        for side in split_questions(list(questions.texts), recipe.held_out, recipe.seed)
    )
    return [*leaks.values(), *find_split_overlap(choosing, measuring)]


def _write_results(job: Job, outcome: SweepSummary, best: str) -> None:
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
        file.write(f"# search it with --pipeline '{outcome.best.configuration.pipeline}'\n")
        file.write(best)


def _build_parents(recipe: SweepRecipe) -> list[Parent]:
    questions = recipe.questions
    files = {"questions": questions} if isinstance(questions, str) else questions.model_dump()
    if recipe.index.metadata:
        files["metadata"] = recipe.index.metadata
    return [
        Parent("documents", recipe.index.documents, _digest_documents(recipe.index)),
        *(
            Parent(name, path, digest_file(Path(path)))
            for name, path in files.items()
            if Path(path).is_file()
        ),
    ]
