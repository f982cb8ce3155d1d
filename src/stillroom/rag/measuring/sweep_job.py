"""A sweep as a job: every index once, every way on each, every question; then the leaderboard.

Indexes lie in a cache by their settings and the documents' digests, and vectors by text: what two
configurations share is made once, and with a cache folder of one's own so do two sweeps. A killed
sweep goes on where it was. Leaves ``report.json``, ``report.html``, ``leaderboard.jsonl`` (one row
a configuration) and ``best.yaml`` (the recipe of the best, its way in a comment).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.leakage import Leak, find_crossing
from stillroom.evaluate.question_sets import JudgedQuestion, read_question_set
from stillroom.evaluate.retrieval import parse_measure, score_run
from stillroom.jobs import Job, Reporter, atomic_write, count_seconds
from stillroom.provenance import (
    Artifact,
    Parent,
    digest_file,
    digest_json,
    find_output,
    read_artifact,
)
from stillroom.rag.index import Index
from stillroom.rag.measuring.evaluation import (
    Qrels,
    choose_unit,
    name_of_query,
    search_one,
    summarize_times,
)
from stillroom.rag.measuring.evaluation_job import Plan, open_asked, read_judged
from stillroom.rag.measuring.locating import EvidenceMap, label_ranking
from stillroom.rag.measuring.reading_report import add_leaks
from stillroom.rag.measuring.sweep_report import report_sweep
from stillroom.rag.measuring.sweep_settings import Configuration, build_variant, list_configurations
from stillroom.rag.measuring.sweeping import Cost, Measured, Outcome, deal_questions, judge_sweep
from stillroom.rag.metering import Meter
from stillroom.rag.run import run
from stillroom.rag.storing import STORES
from stillroom.rag.vector_cache import CachedEmbedder
from stillroom.rag.ways import parse_way
from stillroom.recipes import dump_recipe
from stillroom.text.reading import scan_folder

if TYPE_CHECKING:
    from stillroom.evaluate import Report
    from stillroom.rag.measuring.evaluation import Unit
    from stillroom.rag.measuring.sweep_settings import SweepSettings
    from stillroom.rag.recipe import RagRecipe

__all__ = ["MANY", "run_sweep"]

MANY = 24
"""More configurations than this are tried only when that is asked for."""

_NAMES: tuple[str, ...] = ("document", "path", "corpus")


@dataclass(frozen=True, slots=True)
class _Questions:
    """What is asked and what is relevant: evidence of questions, or names of a collection."""

    texts: Mapping[str, str]
    asked: Sequence[JudgedQuestion]
    qrels: Qrels


@dataclass(frozen=True, slots=True)
class _Built:
    """One index of the cache."""

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
) -> tuple[Artifact, Report, Outcome]:
    """Try every combination that a recipe's ``sweep`` names, and say which is worth it.

    Args:
        recipe: Of kind rag, with ``sweep``.
        out: The folder of the report.
        cache: Where indexes and vectors are kept for later sweeps; by default they go with the job.
        allow_many: Try more than 24 configurations.
        resume: Go on where a killed sweep stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        RecipeError: If the recipe has no sweep, a setting or a way is none, or there are too many.
        DataError: If the questions cannot be used or are too few.
        Cancelled: If the user stopped it; ``resume`` goes on.
    """
    sweep = _check(recipe, allow_many=allow_many)
    configurations = list_configurations(sweep)
    variants = [build_variant(recipe, one.changes) for one in configurations]
    for configuration in configurations:
        parse_way(configuration.way)
    questions = _read_questions(sweep)
    deal_questions(list(questions.qrels), sweep.held_out, recipe.seed)  # refused before any work
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
            place = cache if cache is not None else job.scratch / "sweep"
            job.say(
                f"{len(configurations)} configurations on "
                f"{len({dump_recipe(variant) for variant in variants})} indexes, "
                f"{len(questions.texts)} questions"
            )
            indexes = _build_all(variants, place, job)
            with open_asked(sweep.model) as asked:
                model = Meter(asked) if asked is not None else None
                measured = [
                    _measure(sweep, one, indexes[dump_recipe(variant)], questions, model, job)
                    for one, variant in zip(configurations, variants, strict=True)
                ]
            outcome = judge_sweep(
                measured, measure=sweep.measure, held_out=sweep.held_out, seed=recipe.seed
            )
            report = report_sweep(outcome, sweep.measure, measured[0])
            leaks = _find_leaks(recipe, questions, indexes.values())
            add_leaks(report, leaks, len(questions.texts))
            best = next(
                variant
                for one, variant in zip(configurations, variants, strict=True)
                if one is outcome.best.configuration
            )
            _write(job, outcome, best)
            report.write(job.output)
            artifact = job.finish(
                "report", parents=_parents(recipe, sweep), details=report.to_json()
            )
            return artifact, report, outcome
    finally:
        job.close()


def _check(recipe: RagRecipe, *, allow_many: bool) -> SweepSettings:
    sweep = recipe.sweep
    if sweep is None:
        raise RecipeError(
            "the recipe has no sweep",
            code="rag.sweep-setting",
            expected="sweep: {vary: {SETTING: [VALUE, ...]}, ways: [...], questions: FILE}",
            next="stillroom new rag prints every setting",
        )
    parse_measure(sweep.measure)
    count = len(list_configurations(sweep))
    if count > MANY and not allow_many:
        sizes = {**sweep.vary, "ways": sweep.ways, "variants": sweep.variants}
        said = ", ".join(f"{name} {len(values)}" for name, values in sizes.items())
        raise RecipeError(
            f"the sweep has {count} configurations ({said})",
            code="rag.sweep-too-many",
            expected=f"at most {MANY}, so that nobody starts days of work unawares",
            next="vary less at once, or add --yes",
        )
    return sweep


def _read_questions(sweep: SweepSettings) -> _Questions:
    """Read questions with their evidence, or a collection's queries and judgements."""
    if sweep.questions is not None:
        asked = [one for one in read_question_set(Path(sweep.questions)) if one.is_answerable]
        qrels = {
            one.id: {f"{one.id}#{at}": 1 for at in range(max(len(one.evidence), 1))}
            for one in asked
        }
        return _Questions({one.id: one.text for one in asked}, asked, qrels)
    if sweep.queries is None or sweep.qrels is None:
        raise RecipeError(
            "the sweep has nothing to measure by",
            code="rag.sweep-setting",
            where="sweep",
            expected="questions, or queries and qrels",
            next="give judged questions; fifty of your own are worth more than a thousand made up",
        )
    plan = Plan(Path(), Path(sweep.queries), Path(sweep.qrels), (), ())
    texts, qrels = read_judged(plan)
    return _Questions(texts, (), qrels)


def _build_all(variants: Sequence[RagRecipe], place: Path, job: Job) -> dict[str, _Built]:
    """Build every index that is not in the cache yet; return them by their recipe."""
    from stillroom.models import open_embedder

    (place / "indexes").mkdir(parents=True, exist_ok=True)
    distinct = {dump_recipe(variant): variant for variant in variants}
    found: dict[str, _Built] = {}
    embedders: dict[str, CachedEmbedder] = {}
    try:
        for number, (text, variant) in enumerate(distinct.items(), 1):
            job.check_cancelled()
            key = digest_json([text, _digest_documents(variant)])[:16]
            folder = place / "indexes" / key
            if not Job.recover(folder):
                job.say(f"index {number} of {len(distinct)}")
                reference = variant.embedder
                if reference not in embedders:
                    embedders[reference] = CachedEmbedder(
                        open_embedder(reference), place / "vectors.sqlite"
                    )
                _build(variant, folder, text, embedders[reference], job)
            found[text] = _describe(folder)
    finally:
        for embedder in embedders.values():
            embedder.close()
    return found


def _build(variant: RagRecipe, folder: Path, text: str, embedder: CachedEmbedder, job: Job) -> None:
    before = embedder.computed
    inner = Job.start(folder, text, seed=variant.seed, resume=True, reporter=job.reporter)
    inner.cancel_with(job)
    try:
        # What is tried lies in the cache, wherever the index of the recipe is to lie.
        tried = variant.model_copy(update={"store": STORES.build("folder")})
        run(tried, inner, embedder=embedder)
    finally:
        inner.close()
    job.event("index", folder=str(folder), embedded=embedder.computed - before)
    with atomic_write(folder.with_suffix(".json")) as file:
        json.dump({"embedded": embedder.computed - before}, file)


def _describe(folder: Path) -> _Built:
    details = read_artifact(folder).details
    note = folder.with_suffix(".json")
    embedded = json.loads(note.read_text())["embedded"] if note.is_file() else details["embedded"]
    size = sum(file.stat().st_size for file in (folder / "output").rglob("*") if file.is_file())
    return _Built(folder, details["passages"], embedded, count_seconds(folder), size)


def _digest_documents(variant: RagRecipe) -> str:
    place = find_output(Path(variant.documents))
    root = place if place.is_dir() else place.parent
    files = sorted(scan_folder(place).files)
    return digest_json([[file.relative_to(root).as_posix(), digest_file(file)] for file in files])


def _measure(
    sweep: SweepSettings,
    configuration: Configuration,
    built: _Built,
    questions: _Questions,
    model: Meter | None,
    job: Job,
) -> Measured:
    """Search one index by one way for every question; times are those of a fresh index.

    The index is opened anew, so that every way pays for embedding the questions itself.
    """
    way = parse_way(configuration.way)
    journal = job.journal("searches")
    run: dict[str, list[tuple[str, float]]] = {}
    rows: list[list[Any]] = []
    with Index.open(built.folder, verify=False) as index:
        judge = _Judged(index, questions)
        asked = model.fingerprint if model is not None else ""
        is_warm = False
        with job.phase(configuration.name, len(questions.texts), "searches") as progress:
            for query, text in questions.texts.items():
                key = digest_json(
                    [way.name, query, text, judge.unit, sweep.depth, index.digest, asked]
                )
                if key not in journal:
                    job.check_cancelled()
                    if not is_warm:  # opens the embedder; another text, so that none is remembered
                        search_one(index, way, f"{text} ?", unit="passage", depth=1, model=model)
                        is_warm = True
                    before = model.tokens if model is not None else 0
                    one = search_one(
                        index,
                        way,
                        text,
                        unit=judge.unit,
                        depth=sweep.depth,
                        model=model,
                        leave_out=name_of_query(query, judge.unit, questions.qrels.get(query, {})),
                    )
                    spent = model.tokens - before if model is not None else 0
                    journal.put(key, [one.ranked, one.seconds, one.cpu_seconds, spent])
                row = journal[key]
                rows.append(row)
                run[query] = judge.label(query, row[0])
                progress.advance()
    values = score_run(run, questions.qrels, (sweep.measure,))[sweep.measure]
    wall, cpu = (summarize_times([row[at] for row in rows]) for at in (1, 2))
    cost = Cost(
        cpu["median_ms"],
        wall["median_ms"],
        wall["p95_ms"],
        built.size_bytes,
        built.passages,
        built.seconds,
        built.embedded,
        sum(row[3] for row in rows) / len(rows),
    )
    return Measured(configuration, values, cost)


class _Judged:
    """Names what one index finds as the judgements do, whatever its passages are."""

    def __init__(self, index: Index, questions: _Questions) -> None:
        self._places = {}
        self.unit: Unit = "passage"
        if questions.asked:
            evidence = EvidenceMap(index)
            self._places = {
                one.id: {f"{one.id}#{at}": place for at, place in enumerate(evidence.locate(one))}
                for one in questions.asked
            }
            return
        passages = (index.passage_at(row) for row in range(len(index)))
        self.unit, _ = choose_unit(passages, questions.qrels)
        if self.unit not in _NAMES:
            raise DataError(
                "the judgements name passages, and another chunker makes others",
                code="rag.sweep-unit",
                expected="judgements of documents, of paths, or of rows of an unpacked corpus",
                next="give sweep.questions with evidence, which is found in any passage",
            )

    def label(self, query: str, ranked: Sequence[str]) -> list[tuple[str, float]]:
        """Return a ranking with scores, evidence under its own name."""
        if query in self._places:
            return label_ranking(ranked, self._places[query])
        return [(name, float(len(ranked) - at)) for at, name in enumerate(ranked)]


def _find_leaks(recipe: RagRecipe, questions: _Questions, indexes: Iterable[_Built]) -> list[Leak]:
    """Return what makes the questions too easy for any of the indexes, each leak once."""
    assert recipe.sweep is not None  # noqa: S101  # checked before the job began
    found: dict[tuple[str, str], Leak] = {}
    for built in indexes if questions.asked else ():
        with Index.open(built.folder, verify=False) as index:
            evidence = EvidenceMap(index)
            places = {one.id: evidence.locate(one) for one in questions.asked}
            for leak in evidence.find_leaks(questions.asked, places):
                found.setdefault((leak.question, leak.kind), leak)
    choosing, measuring = (
        {name: questions.texts[name] for name in side}
        for side in deal_questions(list(questions.texts), recipe.sweep.held_out, recipe.seed)
    )
    return [*found.values(), *find_crossing(choosing, measuring)]


def _write(job: Job, outcome: Outcome, best: RagRecipe) -> None:
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


def _parents(recipe: RagRecipe, sweep: SweepSettings) -> list[Parent]:
    found = [Parent("documents", recipe.documents, _digest_documents(recipe))]
    for name in ("questions", "queries", "qrels"):
        path = getattr(sweep, name)
        if path is not None and Path(path).is_file():
            found.append(Parent(name, path, digest_file(Path(path))))
    return found
