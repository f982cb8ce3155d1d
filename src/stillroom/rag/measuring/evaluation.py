"""How well ways of retrieving find what is judged relevant: figures, differences, and each miss.

Passages are retrieved and judged under the name that the judgements use: the passage's id, its
document's id or path, or the id of the corpus row it came from; the best passage of a document
stands for it. Every judged query counts, with 0 where nothing was found. Knows no files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric, bootstrap, paired_difference
from stillroom.evaluate.metrics import randomization_test
from stillroom.evaluate.retrieval import score_run
from stillroom.rag.measuring.collection import collection_id
from stillroom.rag.method import make_query
from stillroom.rag.notices import collect_notices
from stillroom.rag.stages import collect_stages, rerank_hits
from stillroom.rag.ways import Way
from stillroom.records import Hit, Passage

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index import Index

__all__ = [
    "DEFAULT_MEASURES",
    "Board",
    "Found",
    "Miss",
    "Searched",
    "Unit",
    "choose_unit",
    "compare_ways",
    "list_misses",
    "name_of",
    "name_of_query",
    "search_one",
    "summarize_times",
]

Unit = Literal["passage", "document", "path", "corpus"]
Qrels = Mapping[str, Mapping[str, int]]
Ranking = list[tuple[str, float]]

DEFAULT_MEASURES = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map", "success@5")
_UNITS: tuple[Unit, ...] = ("passage", "document", "path", "corpus")
_PASSAGES_PER_NAME = 3


@dataclass(frozen=True, slots=True)
class Searched:
    """Names found for one query, best first, after and before the reranker, and what it took.

    ``seconds`` is wall clock, ``cpu_seconds`` the processor's, of all threads; ``notices`` is what
    a method had to do otherwise than asked; ``stage_ms`` what each stage took.
    """

    ranked: tuple[str, ...]
    first: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    notices: tuple[str, ...] = ()
    stage_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """What one way found, by query."""

    way: str
    searched: Mapping[str, Searched]

    def run(self) -> dict[str, Ranking]:
        """Return the ranking of every query; scores fall strictly with the rank.

        A reranker's scores and those of the hits it did not read are on two scales, so that only
        the order is kept.
        """
        return {
            query: [(name, float(len(one.ranked) - at)) for at, name in enumerate(one.ranked)]
            for query, one in self.searched.items()
        }


@dataclass(frozen=True, slots=True)
class Miss:
    """A relevant id that did not come among the first k, and the stage that lost it.

    ``index``: it is not in the index; ``retrieve``: not within the depth; ``rerank``: among the
    first k until the reranker; ``rank``: within the depth and below k.
    """

    name: str
    rank: int | None
    stage: Literal["index", "retrieve", "rerank", "rank"]


@dataclass(frozen=True, slots=True)
class Board:
    """Figures of every way, and of each way less the first, with the p-value of the difference."""

    measures: tuple[str, ...]
    values: dict[str, dict[str, dict[str, float]]]
    metrics: dict[str, dict[str, Metric]]
    differences: dict[str, dict[str, tuple[Metric, float]]] = field(default_factory=dict)


def name_of(passage: Passage, unit: Unit) -> str:
    """Return what the judgements call a passage."""
    if unit == "passage":
        return passage.id
    if unit == "document":
        return passage.document_id
    path = passage.location.path
    return path if unit == "path" else collection_id(path)


def name_of_query(query: str, unit: Unit, grades: Mapping[str, int]) -> str:
    """Return the row of a corpus that a query is itself, which is not counted as found.

    Collections as ArguAna ask with rows of their own corpus. A row whose id is the query's is left
    out, as BEIR's evaluation does it; but not one that is judged, which BEIR leaves out as well.
    """
    return query if unit == "corpus" and query not in grades else ""


def choose_unit(passages: Iterable[Passage], qrels: Qrels) -> tuple[Unit, set[str]]:
    """Return under which name most judged ids are in the index, and the index's names.

    Raises:
        DataError: If no judged id is in the index under any name.
    """
    judged = {name for grades in qrels.values() for name in grades}
    names: dict[Unit, set[str]] = {unit: set() for unit in _UNITS}
    for passage in passages:
        for unit in _UNITS:
            names[unit].add(name_of(passage, unit))
    best = max(_UNITS, key=lambda unit: len(names[unit] & judged))
    if not names[best] & judged:
        raise DataError(
            "no judged id is in the index",
            code="rag.nothing-judged",
            where=f"qrels, for instance {next(iter(judged), '')!r:.60}",
            expected="ids of passages or documents, paths of documents, or ids of an unpacked "
            f"corpus; the index has for instance {min(names['path'], default='')!r:.60}",
            next="check that the judgements belong to the documents of this index",
        )
    return best, names[best]


def search_one(
    index: Index,
    way: Way,
    text: str,
    *,
    unit: Unit,
    depth: int,
    model: TextModel | None = None,
    leave_out: str = "",
) -> Searched:
    """Search an index for one query.

    Args:
        index: Open.
        way: How.
        text: The query.
        unit: What a hit is judged as.
        depth: How many names are ranked; three passages are read for each where a name may have
            several.
        model: What a transform or a reranker may ask.
        leave_out: A name that is not counted as found; see ``name_of_query``.
    """
    passages = depth if unit == "passage" else depth * _PASSAGES_PER_NAME
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with collect_notices() as told, collect_stages() as times:
        before, after = _search(index, way, text, passages, model)
    taken = time.perf_counter() - begun, time.process_time() - begun_cpu
    first, ranked = (_pool(hits, unit, leave_out)[:depth] for hits in (before, after))
    return Searched(ranked, first, *taken, tuple(told), times.to_json())


def compare_ways(
    found: Sequence[Found], qrels: Qrels, measures: Sequence[str], *, seed: int = 0
) -> Board:
    """Measure every way, and each way's difference from the first on the same queries."""
    values = {one.way: score_run(one.run(), qrels, measures) for one in found}
    queries = list(qrels)
    metrics = {
        way: {
            measure: bootstrap(
                [by_query[query] for query in queries], seed=seed, name=f"{way}/{measure}"
            )
            for measure, by_query in scored.items()
        }
        for way, scored in values.items()
    }
    first, *others = (one.way for one in found)
    differences = {
        way: {
            measure: _differ(values[way][measure], values[first][measure], queries, measure, seed)
            for measure in measures
        }
        for way in others
    }
    return Board(tuple(measures), values, metrics, differences)


def list_misses(found: Found, qrels: Qrels, known: set[str], *, k: int) -> dict[str, list[Miss]]:
    """Return for each judged query the relevant ids that are not among its first ``k``.

    Args:
        found: Of one way.
        qrels: What is relevant.
        known: Every name in the index.
        k: How many hits a reader sees.
    """
    misses: dict[str, list[Miss]] = {}
    for query, grades in qrels.items():
        one = found.searched.get(query)
        after = {name: at for at, name in enumerate(one.ranked if one else (), 1)}
        before = {name: at for at, name in enumerate(one.first if one else (), 1)}
        own = []
        for name in sorted(name for name, grade in grades.items() if grade > 0):
            rank = after.get(name)
            if rank is None or rank > k:
                own.append(Miss(name, rank, _stage(name, rank, before.get(name), known, k)))
        misses[query] = own
    return misses


def _stage(
    name: str, rank: int | None, before: int | None, known: set[str], k: int
) -> Literal["index", "retrieve", "rerank", "rank"]:
    if name not in known:
        return "index"
    if before is not None and before <= k:
        return "rerank"
    return "retrieve" if rank is None and before is None else "rank"


def _search(
    index: Index, way: Way, text: str, depth: int, model: TextModel | None
) -> tuple[list[Hit], list[Hit]]:
    """Return the hits before and after the reranker, which reads as many as it always does."""
    from stillroom.rag.index import RERANK_DEPTH

    asked = make_query(text)
    hits = index.retrieve(
        asked, depth, retriever=way.retriever, transform=way.transform, model=model
    )
    if way.reranker is None or not hits:
        return hits, hits
    read = max(RERANK_DEPTH, 1)
    head = rerank_hits(way.reranker, asked, hits[:read], index, model)
    return hits, [*head, *hits[read:]]


def _pool(hits: Sequence[Hit], unit: Unit, leave_out: str) -> tuple[str, ...]:
    """Return each name but one once, where its best passage stands."""
    names = dict.fromkeys(name_of(hit.passage, unit) for hit in hits)
    return tuple(name for name in names if name != leave_out)


def _differ(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    queries: Sequence[str],
    measure: str,
    seed: int,
) -> tuple[Metric, float]:
    pair = [[side[query] for query in queries] for side in (ours, theirs)]
    metric = paired_difference(pair[0], pair[1], seed=seed, name=f"difference/{measure}")
    return metric, randomization_test(pair[0], pair[1], seed=seed)


def summarize_times(seconds: Sequence[float]) -> dict[str, Any]:
    """Return median and 95th percentile of times, in milliseconds."""
    if not seconds:
        return {"median_ms": None, "p95_ms": None}
    middle, high = np.quantile(np.asarray(seconds), [0.5, 0.95]) * 1000
    return {"median_ms": round(float(middle), 3), "p95_ms": round(float(high), 3)}
