"""The evaluation of retrieval as a job: every query by every way, journaled, and its report.

Leaves ``report.json`` and ``report.html``, a TREC run file a way under ``runs/``, and
``queries.jsonl``: what each query missed by the first way, worst query first, with the stage that
lost it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.evaluate import Report
from stillroom.evaluate.collections import read_qrels, read_queries, write_run
from stillroom.evaluate.retrieval import parse_measure
from stillroom.jobs import Job, Reporter, atomic_write
from stillroom.provenance import Artifact, Parent, digest_file, digest_json, make_parent
from stillroom.rag.access import Access
from stillroom.rag.index import Index
from stillroom.rag.measuring.evaluation import (
    Board,
    Found,
    Miss,
    Qrels,
    Searched,
    Unit,
    choose_unit,
    compare_ways,
    list_misses,
    name_of_query,
    search_one,
)
from stillroom.rag.measuring.evaluation_report import report_retrieval
from stillroom.rag.method import LegRetriever, make_query
from stillroom.rag.retrievers.dense import Dense
from stillroom.rag.ways import Way, parse_way

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Plan", "evaluate_retrieval", "open_asked", "parse_ways", "read_judged"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is evaluated: the index, the judged queries, the ways, and how it is measured.

    ``model`` is what transforms and rerankers may ask, by reference; ``access`` is who asks an
    index with tenants.
    """

    index: Path
    queries: Path
    qrels: Path
    ways: tuple[str, ...]
    measures: tuple[str, ...]
    depth: int = 100
    k: int = 10
    seed: int = 0
    model: str = ""
    access: Access | None = None

    def to_text(self) -> str:
        """Return what the job's recipe.yaml holds: a note, since no recipe runs it."""
        lines = ["# stillroom rag eval", f"index: {json.dumps(str(self.index))}"]
        lines += [
            f"queries: {json.dumps(str(self.queries))}",
            f"qrels: {json.dumps(str(self.qrels))}",
        ]
        lines += [
            f"ways: {json.dumps(list(self.ways))}",
            f"measures: {json.dumps(list(self.measures))}",
        ]
        lines += [f"depth: {self.depth}", f"k: {self.k}", f"seed: {self.seed}"]
        lines += [f"model: {json.dumps(self.model)}"] if self.model else []
        if self.access is not None:
            who = [self.access.tenant, *sorted(self.access.principals)]
            lines.append(f"access: {json.dumps(who)}")
        return "\n".join(lines) + "\n"


def evaluate_retrieval(
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report]:
    """Search the index for every judged query by every way, and report what was found.

    Args:
        plan: What is evaluated.
        out: The folder of the report.
        resume: Go on where a killed run stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        DataError: If a file or a measure cannot be used, or no judged id is in the index.
        RecipeError: If a way names no method.
        Cancelled: If the user stopped it; ``resume`` goes on.
    """
    for measure in plan.measures:
        parse_measure(measure)
    ways = parse_ways(plan.ways)
    queries, qrels = read_judged(plan)
    job = Job.start(
        out,
        plan.to_text(),
        seed=plan.seed,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )
    try:
        with (
            job.interruptible(),
            Index.open(plan.index, access=plan.access) as index,
            open_asked(plan.model) as model,
        ):
            return _evaluate(plan, ways, queries, qrels, index, job, model)
    finally:
        job.close()


def parse_ways(texts: Sequence[str], parse: Callable[[str], Way] = parse_way) -> list[Way]:
    """Return the ways that lines describe.

    Args:
        texts: One way each.
        parse: Reads a line; by default one that says how passages are found and no more.

    Raises:
        DataError: If one is given twice.
        RecipeError: If one names no method.
    """
    ways = [parse(text) for text in texts]
    if len({way.name for way in ways}) < len(ways):
        raise DataError(
            "a way is given twice",
            code="rag.ways",
            where=", ".join(texts),
            expected="ways that differ",
            next="leave one out",
        )
    return ways


def _evaluate(
    plan: Plan,
    ways: Sequence[Way],
    queries: Mapping[str, str],
    qrels: Qrels,
    index: Index,
    job: Job,
    model: TextModel | None,
) -> tuple[Artifact, Report]:
    unit, known = choose_unit((index.passage_at(row) for row in range(len(index))), qrels)
    embedding = _Embedding(ways, index, job)
    own = {query: name_of_query(query, unit, qrels[query]) for query in queries}
    found = _search_all(plan, ways, queries, unit, own, index, job, model, embedding)
    board = compare_ways(found, qrels, plan.measures, seed=plan.seed)
    misses = list_misses(found[0], qrels, known, k=plan.k)
    for number, one in enumerate(found):
        write_run(job.output / "runs" / f"{number}-{_file_name(one.way)}.trec", one.run())
    _write_queries(job.output / "queries.jsonl", queries, board, found[0], misses)
    said = embedding.say(queries.values())
    left_out = len(known & set(own.values()))
    report = report_retrieval(plan, unit, queries, index, board, found, misses, said, left_out)
    report.write(job.output)
    artifact = job.finish(
        "report",
        parents=[
            make_parent("index", plan.index, job.out),
            Parent("queries", str(plan.queries), digest_file(plan.queries)),
            Parent("qrels", str(plan.qrels), digest_file(plan.qrels)),
        ],
        details={"index": index.digest, "unit": unit, "queries": len(queries), **report.to_json()},
    )
    return artifact, report


def read_judged(plan: Plan) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return the queries that have a relevant judgement, and the judgements of those."""
    texts, qrels = read_queries(plan.queries), read_qrels(plan.qrels)
    judged = {
        query: grades
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }
    lost = [query for query in judged if query not in texts]
    if lost or not judged:
        raise DataError(
            f"{len(lost)} judged queries have no text" if lost else "nothing is judged relevant",
            code="data.collection",
            where=f"{plan.queries}, for instance {lost[0]!r:.60}" if lost else str(plan.qrels),
            expected="a text for every judged query, and a relevance above 0",
            next="check that queries and judgements belong together",
        )
    return {query: texts[query] for query in judged}, judged


class _Embedding:
    """Embeds each query before any way is timed, so that none pays for the others."""

    def __init__(self, ways: Sequence[Way], index: Index, job: Job) -> None:
        self._index, self._journal = index, job.journal("embedded")
        self._is_needed = any(isinstance(way.retriever, (LegRetriever, Dense)) for way in ways)

    def prepare(self, text: str) -> None:
        """Let the index remember a query's vector; how long that took is kept."""
        if not self._is_needed:
            return
        begun = time.perf_counter()
        self._index.embed_query(make_query(text))
        if (key := self._key(text)) not in self._journal:
            self._journal.put(key, (time.perf_counter() - begun) * 1000)

    def say(self, texts: Iterable[str]) -> str:
        """Return the end of the sentence that says what is timed."""
        if not self._is_needed:
            return "."
        middle = statistics.median(self._journal[self._key(text)] for text in texts)
        return f", without the query's embedding, which took {middle:.1f} ms (median)."

    def _key(self, text: str) -> str:
        return digest_json([text, self._index.digest])


def _search_all(
    plan: Plan,
    ways: Sequence[Way],
    queries: Mapping[str, str],
    unit: Unit,
    own: Mapping[str, str],
    index: Index,
    job: Job,
    model: TextModel | None,
    embedding: _Embedding,
) -> list[Found]:
    """Search by every way in turn for each query, so that no way has the warmer machine."""
    journal = job.journal("searches")
    asked = model.fingerprint if model is not None else ""
    keys = {
        (way.name, query): digest_json(
            [way.name, query, text, unit, plan.depth, index.digest, asked, own[query]]
        )
        for query, text in queries.items()
        for way in ways
    }
    done = sum(key in journal for key in keys.values())
    warm = done == len(keys)
    with job.phase("search", len(keys), "searches", done=done) as progress:
        for query, text in queries.items():
            for way in ways:
                key = keys[way.name, query]
                if key in journal:
                    continue
                job.check_cancelled()
                if not warm:  # the first search opens the embedder; it is not timed
                    for each in ways:
                        search_one(index, each, text, unit=unit, depth=plan.depth, model=model)
                    warm = True
                embedding.prepare(text)
                one = search_one(
                    index,
                    way,
                    text,
                    unit=unit,
                    depth=plan.depth,
                    model=model,
                    leave_out=own[query],
                )
                row = [
                    one.ranked,
                    one.first,
                    one.seconds,
                    one.cpu_seconds,
                    one.notices,
                    one.stage_ms,
                ]
                journal.put(key, row)
                progress.advance()
    return [
        Found(way.name, {query: _read(journal[keys[way.name, query]]) for query in queries})
        for way in ways
    ]


def _read(row: Sequence[Any]) -> Searched:
    return Searched(tuple(row[0]), tuple(row[1]), row[2], row[3], tuple(row[4]), row[5])


@contextmanager
def open_asked(reference: str) -> Iterator[TextModel | None]:
    """Yield the model of a reference, or none where it is empty."""
    if not reference:
        yield None
        return
    from stillroom.models import open_text_model

    model = open_text_model(reference)
    try:
        yield model
    finally:
        model.close()


def _write_queries(
    path: Path,
    queries: Mapping[str, str],
    board: Board,
    found: Found,
    misses: Mapping[str, Sequence[Miss]],
) -> None:
    values = board.values[found.way]
    order = sorted(queries, key=lambda query: (values[board.measures[0]][query], query))
    with atomic_write(path) as file:
        for query in order:
            row = {
                "query": query,
                "text": queries[query],
                "values": {measure: values[measure][query] for measure in board.measures},
                "missed": [
                    {"id": miss.name, "rank": miss.rank, "stage": miss.stage}
                    for miss in misses[query]
                ],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _file_name(way: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in way)[:60]
