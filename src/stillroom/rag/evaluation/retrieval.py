"""Retrieval evaluation: metrics, missed documents, and the location of evidence in an index.

Passages are retrieved and judged under the name that the judgements use: the passage's id, its
document's id or path, or the id of the corpus row it came from; the best passage of a document
stands for it. Every judged query counts, with 0 where nothing was found. Knows no files.

Judged collections keep all their texts in one file; an index is built of documents. Every row
becomes a text file whose name is its id, percent-encoded, so that no id can leave the folder or
collide with another; ids too long for a file name are refused.

Evidence is a span of a document, a quotation, a name (of a passage, a document, a path or a corpus
row), or, where a question names none, the accepted answers themselves. A passage holds a quotation
that stands in it word for word, whatever the case and the punctuation. Does not know what was
retrieved.
"""

from __future__ import annotations

import bisect
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric, bootstrap, paired_difference
from stillroom.evaluate.metrics.bootstrap import randomization_test
from stillroom.evaluate.metrics.retrieval import score_run
from stillroom.evaluate.qa.collections import CorpusRow
from stillroom.evaluate.qa.leakage import LeakageFinding, find_leakage
from stillroom.rag.interfaces import make_query
from stillroom.rag.observability import collect_stages, collect_warnings
from stillroom.rag.retrieval.pipeline import RetrievalPipeline
from stillroom.rag.retrieval.ranking import rerank_hits
from stillroom.records import Hit, Passage
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.evaluate.qa.questions import EvidenceSpan, JudgedQuestion
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = [
    "DEFAULT_MEASURES",
    "DOCUMENT_SUFFIX",
    "EvidenceLocation",
    "EvidenceMap",
    "JudgedUnit",
    "MetricTable",
    "MissedDocument",
    "QueryResult",
    "RunResults",
    "choose_unit",
    "compare_pipelines",
    "get_corpus_id",
    "get_judged_id",
    "get_query_id",
    "label_ranking",
    "list_missed_documents",
    "search_query",
    "summarize_times",
    "unpack_corpus",
]


JudgedUnit = Literal["passage", "document", "path", "corpus"]


Qrels = Mapping[str, Mapping[str, int]]


Ranking = list[tuple[str, float]]


DEFAULT_MEASURES = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map", "success@5")


_UNITS: tuple[JudgedUnit, ...] = ("passage", "document", "path", "corpus")


_PASSAGES_PER_NAME = 3


@dataclass(frozen=True, slots=True)
class QueryResult:
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
class RunResults:
    """What one way found, by query."""

    way: str
    searched: Mapping[str, QueryResult]

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
class MissedDocument:
    """A relevant id that did not come among the first k, and the stage that lost it.

    ``index``: it is not in the index; ``retrieve``: not within the depth; ``rerank``: among the
    first k until the reranker; ``rank``: within the depth and below k.
    """

    name: str
    rank: int | None
    stage: Literal["index", "retrieve", "rerank", "rank"]


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Figures of every way, and of each way less the first, with the p-value of the difference."""

    measures: tuple[str, ...]
    values: dict[str, dict[str, dict[str, float]]]
    metrics: dict[str, dict[str, Metric]]
    differences: dict[str, dict[str, tuple[Metric, float]]] = field(default_factory=dict)


def get_judged_id(passage: Passage, unit: JudgedUnit) -> str:
    """Return what the judgements call a passage."""
    if unit == "passage":
        return passage.id
    if unit == "document":
        return passage.document_id
    path = passage.location.path
    return path if unit == "path" else get_corpus_id(path)


def get_query_id(query: str, unit: JudgedUnit, grades: Mapping[str, int]) -> str:
    """Return the row of a corpus that a query is itself, which is not counted as found.

    Collections as ArguAna ask with rows of their own corpus. A row whose id is the query's is left
    out, as BEIR's evaluation does it; but not one that is judged, which BEIR leaves out as well.
    """
    return query if unit == "corpus" and query not in grades else ""


def choose_unit(passages: Iterable[Passage], qrels: Qrels) -> tuple[JudgedUnit, set[str]]:
    """Return under which name most judged ids are in the index, and the index's names.

    Raises:
        DataError: If no judged id is in the index under any name.
    """
    judged = {name for grades in qrels.values() for name in grades}
    names: dict[JudgedUnit, set[str]] = {unit: set() for unit in _UNITS}
    for passage in passages:
        for unit in _UNITS:
            names[unit].add(get_judged_id(passage, unit))
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


def search_query(
    index: Index,
    way: RetrievalPipeline,
    text: str,
    *,
    unit: JudgedUnit,
    depth: int,
    model: TextModel | None = None,
    leave_out: str = "",
) -> QueryResult:
    """Search an index for one query.

    Args:
        index: Open.
        way: How.
        text: The query.
        unit: What a hit is judged as.
        depth: How many names are ranked; three passages are read for each where a name may have
            several.
        model: What a transform or a reranker may ask.
        leave_out: A name that is not counted as found; see ``get_query_id``.
    """
    passages = depth if unit == "passage" else depth * _PASSAGES_PER_NAME
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with collect_warnings() as told, collect_stages() as times:
        before, after = _search(index, way, text, passages, model)
    taken = time.perf_counter() - begun, time.process_time() - begun_cpu
    first, ranked = (_pool_names(hits, unit, leave_out)[:depth] for hits in (before, after))
    return QueryResult(ranked, first, *taken, tuple(told), times.to_json())


def compare_pipelines(
    found: Sequence[RunResults], qrels: Qrels, measures: Sequence[str], *, seed: int = 0
) -> MetricTable:
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
            measure: _compare_with_first(
                values[way][measure], values[first][measure], queries, measure, seed
            )
            for measure in measures
        }
        for way in others
    }
    return MetricTable(tuple(measures), values, metrics, differences)


def list_missed_documents(
    found: RunResults, qrels: Qrels, known: set[str], *, k: int
) -> dict[str, list[MissedDocument]]:
    """Return for each judged query the relevant ids that are not among its first ``k``.

    Args:
        found: Of one way.
        qrels: What is relevant.
        known: Every name in the index.
        k: How many hits a reader sees.
    """
    misses: dict[str, list[MissedDocument]] = {}
    for query, grades in qrels.items():
        one = found.searched.get(query)
        after = {name: at for at, name in enumerate(one.ranked if one else (), 1)}
        before = {name: at for at, name in enumerate(one.first if one else (), 1)}
        own = []
        for name in sorted(name for name, grade in grades.items() if grade > 0):
            rank = after.get(name)
            if rank is None or rank > k:
                own.append(
                    MissedDocument(
                        name, rank, _find_lost_stage(name, rank, before.get(name), known, k)
                    )
                )
        misses[query] = own
    return misses


def _find_lost_stage(
    name: str, rank: int | None, before: int | None, known: set[str], k: int
) -> Literal["index", "retrieve", "rerank", "rank"]:
    if name not in known:
        return "index"
    if before is not None and before <= k:
        return "rerank"
    return "retrieve" if rank is None and before is None else "rank"


def _search(
    index: Index, way: RetrievalPipeline, text: str, depth: int, model: TextModel | None
) -> tuple[list[Hit], list[Hit]]:
    """Return the hits before and after the reranker, which reads as many as it always does."""
    from stillroom.rag.index.searcher import RERANK_DEPTH

    asked = make_query(text)
    hits = index.retrieve(
        asked, depth, retriever=way.retriever, transform=way.transform, model=model
    )
    if way.reranker is None or not hits:
        return hits, hits
    read = max(RERANK_DEPTH, 1)
    head = rerank_hits(way.reranker, asked, hits[:read], index, model)
    return hits, [*head, *hits[read:]]


def _pool_names(hits: Sequence[Hit], unit: JudgedUnit, leave_out: str) -> tuple[str, ...]:
    """Return each name but one once, where its best passage stands."""
    names = dict.fromkeys(get_judged_id(hit.passage, unit) for hit in hits)
    return tuple(name for name in names if name != leave_out)


def _compare_with_first(
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


DOCUMENT_SUFFIX = ".txt"


_MAX_NAME_BYTES = 250


_MAX_FILES_PER_FOLDER = 1000


def unpack_corpus(rows: Iterable[CorpusRow], out: Path, *, overwrite: bool = False) -> int:
    """Write each row of a corpus as a document, its title on a line of its own; return how many.

    The folder appears at once, when all of it is written.

    Args:
        rows: What ``read_corpus`` yields.
        out: The folder to make.
        overwrite: Replace what is there.

    Raises:
        DataError: If the folder is there already, or an id cannot name a file.
    """
    if out.exists() and not overwrite:
        raise DataError(
            f"{out} is there already",
            code="data.exists",
            where=str(out),
            expected="a folder that is not there yet",
            next="give another --out, or --overwrite",
        )
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    count = 0
    for count, row in enumerate(rows, 1):
        name = quote(row.id, safe="")
        if not name or len(name) > _MAX_NAME_BYTES:
            raise DataError(
                f"the id {row.id!r:.60} cannot name a file",
                code="data.collection",
                where=f"row {count}",
                expected=f"1 to {_MAX_NAME_BYTES} characters once percent-encoded",
                next="give the corpus shorter ids",
            )
        folder = draft / f"{(count - 1) // _MAX_FILES_PER_FOLDER:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{row.title.strip()}\n\n{row.text}" if row.title.strip() else row.text
        (folder / f"{name.replace('.', '%2E')}{DOCUMENT_SUFFIX}").write_text(
            text, encoding="utf-8", newline="", errors="replace"
        )
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    draft.mkdir(parents=True, exist_ok=True)
    draft.rename(out)
    return count


def get_corpus_id(path: str) -> str:
    """Return the id of the corpus row that a document's path was made of."""
    return unquote(PurePosixPath(path).name.removesuffix(DOCUMENT_SUFFIX))


_BREAK = " \x1f "


Span = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class EvidenceLocation:
    """One piece of evidence: whether a document has it, and which passages hold it whole.

    ``spans`` are those of the passages, or of the evidence itself where it is a span, as document,
    start and end; ``quotes`` are its words, normalized, where it is a quotation or an answer.
    """

    in_documents: bool
    passages: frozenset[str]
    spans: frozenset[Span] = frozenset()
    quotes: tuple[str, ...] = ()


class EvidenceMap:
    """All passages of an index by what evidence may call them."""

    def __init__(self, index: Index) -> None:
        """Read every passage of ``index`` once."""
        self._index = index
        self._passages = [index.passage_at(row) for row in range(len(index))]
        self._named: dict[str, list[int]] = defaultdict(list)
        for row, passage in enumerate(self._passages):
            for name in dict.fromkeys(_list_names(passage)):
                self._named[name].append(row)
        self._text = _ConcatenatedTexts(one.text for one in self._passages)
        self._documents: _ConcatenatedTexts | None = None

    def locate(self, question: JudgedQuestion) -> list[EvidenceLocation]:
        """Return the places of a question's evidence; of one without, that of its answers."""
        if question.evidence:
            return [self._place(one) for one in question.evidence]
        if not question.answers:
            return []
        found = [self._find_quote(answer, None) for answer in question.answers]
        return [
            EvidenceLocation(
                any(one.in_documents for one in found),
                frozenset[str]().union(*(one.passages for one in found)),
                frozenset[Span]().union(*(one.spans for one in found)),
                tuple(quote for one in found for quote in one.quotes),
            )
        ]

    def find_leaks(
        self, questions: Sequence[JudgedQuestion], places: Mapping[str, Sequence[EvidenceLocation]]
    ) -> list[LeakageFinding]:
        """Return what makes the questions easier than people's, as far as this index can tell."""
        texts = {one.id: one.text for one in self._passages}
        held = {
            query: [texts[name] for place in found for name in sorted(place.passages)]
            for query, found in places.items()
        }
        return find_leakage(questions, held, texts)

    def _place(self, evidence: EvidenceSpan) -> EvidenceLocation:
        rows = self._named.get(evidence.name) if evidence.name else None
        if evidence.name and rows is None and not evidence.quote:
            return EvidenceLocation(False, frozenset())
        if rows is not None and 0 <= evidence.start < evidence.end:
            spans = [self._passages[row] for row in rows]
            if any(one.start < evidence.end and one.end > evidence.start for one in spans):
                held = (
                    one.id
                    for one in spans
                    if one.start <= evidence.start and evidence.end <= one.end
                )
                span = (spans[0].document_id, evidence.start, evidence.end)
                return EvidenceLocation(True, frozenset(held), frozenset({span}))
        if evidence.quote:
            return self._find_quote(evidence.quote, rows)
        return self._at(rows or ())

    def _at(self, rows: Sequence[int], quotes: tuple[str, ...] = ()) -> EvidenceLocation:
        found = [self._passages[row] for row in rows]
        spans = frozenset((one.document_id, one.start, one.end) for one in found)
        return EvidenceLocation(True, frozenset(one.id for one in found), spans, quotes)

    def _find_quote(self, quote: str, rows: list[int] | None) -> EvidenceLocation:
        """Look for a quotation in the passages of these rows, or of all, then in the documents."""
        wanted = normalize_text(quote)
        if not wanted:
            return EvidenceLocation(False, frozenset())
        among = None if rows is None else set(rows)
        held = [row for row in self._text.find(wanted) if among is None or row in among]
        if held:
            return self._at(held, (wanted,))
        return EvidenceLocation(self._is_in_documents(wanted, rows), frozenset(), quotes=(wanted,))

    def _is_in_documents(self, wanted: str, rows: list[int] | None) -> bool:
        if rows is not None:
            ids = {self._passages[row].document_id for row in rows}
            texts = (normalize_text(self._document_text(one)) for one in sorted(ids))
            return any(f" {wanted} " in f" {text} " for text in texts)
        if self._documents is None:
            ids = {one.document_id for one in self._passages}
            self._documents = _ConcatenatedTexts(self._document_text(one) for one in sorted(ids))
        return bool(self._documents.find(wanted))

    def _document_text(self, document_id: str) -> str:
        try:
            return self._index.document(document_id).text
        except DataError:  # an index made without its documents: then only passages can tell
            return ""


class _ConcatenatedTexts:
    """Many texts as one string, so that looking for a phrase in all of them is one scan."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts, self._starts, length = [], [], 0
        for text in texts:
            part = f" {normalize_text(text)}{_BREAK}"
            self._starts.append(length)
            parts.append(part)
            length += len(part)
        self._whole = "".join(parts)

    def find(self, wanted: str) -> list[int]:
        """Return the numbers of the texts that hold the normalized phrase, in order."""
        phrase, found, at = f" {wanted} ", [], 0
        while (at := self._whole.find(phrase, at)) >= 0:
            number = bisect.bisect_right(self._starts, at) - 1
            found.append(number)
            at = self._starts[number + 1] if number + 1 < len(self._starts) else len(self._whole)
        return found


def _list_names(passage: Passage) -> tuple[str, ...]:
    path = passage.location.path
    return passage.id, passage.document_id, path, get_corpus_id(path)


def label_ranking(
    ranked: Iterable[str], places: Mapping[str, EvidenceLocation]
) -> list[tuple[str, float]]:
    """Return a ranking of passages with evidence under its own name where a passage holds it.

    A passage that holds several pieces stands for each of them, in order; so cuts of any size
    compare.

    Args:
        ranked: Passage ids, best first.
        places: Evidence by the name that the judgements use.
    """
    names: dict[str, None] = {}
    for passage in ranked:
        held = [name for name, place in places.items() if passage in place.passages]
        names.update(dict.fromkeys([name for name in held if name not in names] or [passage]))
    return [(name, float(len(names) - at)) for at, name in enumerate(names)]
