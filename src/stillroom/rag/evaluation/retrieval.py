"""Retrieval evaluation: hits matched to the evidence; scored by ``evaluate.metrics.retrieval``.

Passages are retrieved and judged under the name used by the judgments: the passage's id, its
document's id or path, or the id of its corpus row; the best passage of a document determines its
rank. Every judged query counts, with 0 if nothing was found.

Judged collections keep all texts in one file, whereas an index is built from documents. Every row
becomes a text file named by its percent-encoded id, so that no id can leave the folder or collide
with another; ids too long for a file name are rejected.

Evidence is a span of a document, a quotation, a name (of a passage, a document, a path or a corpus
row), or, if a question has none, the accepted answers themselves. Quotations are matched verbatim,
ignoring case and punctuation.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric, Table
from stillroom.evaluate.qa.collections import CorpusRow
from stillroom.evaluate.qa.question_checks import LeakageFinding, find_leakage
from stillroom.jobs.files import draft_folder, refuse_existing
from stillroom.jobs.job import write_artifact
from stillroom.provenance import trace_sources
from stillroom.rag.interfaces import make_query
from stillroom.rag.observability import collect_stages, collect_warnings
from stillroom.rag.retrieval.pipeline import (
    RetrievalCandidates,
    RetrievalPipeline,
    get_rerank_depth,
    rerank_hits,
    retrieve,
)
from stillroom.records import Hit, Passage
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.evaluate.qa.questions import EvidenceSpan, JudgedQuestion
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = [
    "EvidenceLocation",
    "EvidenceMap",
    "JudgedUnit",
    "MissedDocument",
    "QueryResult",
    "RunResults",
    "choose_unit",
    "format_metric",
    "get_corpus_id",
    "get_judged_id",
    "get_query_id",
    "label_ranking",
    "list_missed_documents",
    "search_query",
    "summarize_times",
    "tabulate_notices",
    "unpack_corpus",
]


JudgedUnit = Literal["passage", "document", "path", "corpus"]
Qrels = Mapping[str, Mapping[str, int]]
Ranking = list[tuple[str, float]]
_UNITS: tuple[JudgedUnit, ...] = ("passage", "document", "path", "corpus")
_PASSAGES_PER_NAME = 3


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Names found for one query, best first, after and before the reranker, and the cost.

    ``seconds`` is wall time, ``cpu_seconds`` that of all threads; ``notices`` are warnings of
    methods; ``stage_ms`` is the time of each stage.
    """

    ranked: tuple[str, ...]
    first: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    notices: tuple[str, ...] = ()
    stage_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunResults:
    """Results of one pipeline, by query."""

    pipeline: str
    searched: Mapping[str, QueryResult]

    def run(self) -> dict[str, Ranking]:
        """Return the ranking of every query; scores decrease strictly with the rank.

        Only the order is kept, since scores of a reranker and those of hits it did not read are on
        different scales.
        """
        return {
            query: [(name, float(len(result.ranked) - i)) for i, name in enumerate(result.ranked)]
            for query, result in self.searched.items()
        }


@dataclass(frozen=True, slots=True)
class MissedDocument:
    """A relevant id that is not among the first k, and the stage that lost it.

    ``index``: not in the index; ``retrieve``: not within the depth; ``rerank``: among the first k
    before the reranker; ``rank``: within the depth, but below k.
    """

    name: str
    rank: int | None
    stage: Literal["index", "retrieve", "rerank", "rank"]


def get_judged_id(passage: Passage, unit: JudgedUnit) -> str:
    """Return the name of a passage in the judgments."""
    if unit == "passage":
        return passage.id
    if unit == "document":
        return passage.document_id
    path = passage.location.path
    return path if unit == "path" else get_corpus_id(path)


def get_query_id(query: str, unit: JudgedUnit, grades: Mapping[str, int]) -> str:
    """Return the corpus row that is the query itself, which is excluded from the results.

    Collections such as ArguAna use rows of the corpus as queries. A row with the query's id is
    excluded, as in BEIR's evaluation, unless it is judged (BEIR excludes it even then).
    """
    return query if unit == "corpus" and query not in grades else ""


def choose_unit(passages: Iterable[Passage], qrels: Qrels) -> tuple[JudgedUnit, set[str]]:
    """Return the kind of name that matches most judged ids, and the names in the index.

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
            next="check that the judgments belong to the documents of this index",
        )
    return best, names[best]


def search_query(
    index: Index,
    pipeline: RetrievalPipeline,
    text: str,
    *,
    unit: JudgedUnit,
    depth: int,
    model: TextModel | None = None,
    leave_out: str = "",
) -> QueryResult:
    """Search an index for one query.

    ``unit`` is the kind of name by which hits are judged, ``depth`` the number of ranked names
    (three passages are retrieved for each if names can have several), and ``leave_out`` a name that
    is excluded (see ``get_query_id``).
    """
    passages = depth if unit == "passage" else depth * _PASSAGES_PER_NAME
    started, started_cpu = time.perf_counter(), time.process_time()
    with collect_warnings() as warnings, collect_stages() as times:
        before, after = _search(index, pipeline, text, passages, model)
    times_s = time.perf_counter() - started, time.process_time() - started_cpu
    first, ranked = (_pool_names(hits, unit, leave_out)[:depth] for hits in (before, after))
    return QueryResult(ranked, first, *times_s, tuple(warnings), times.to_json())


def list_missed_documents(
    results: RunResults, qrels: Qrels, known: set[str], *, k: int
) -> dict[str, list[MissedDocument]]:
    """Return, for each judged query, the relevant ids that are not among the first ``k``."""
    misses: dict[str, list[MissedDocument]] = {}
    for query, grades in qrels.items():
        result = results.searched.get(query)
        after = {name: i for i, name in enumerate(result.ranked if result else (), 1)}
        before = {name: i for i, name in enumerate(result.first if result else (), 1)}
        missed = []
        for name in sorted(name for name, grade in grades.items() if grade > 0):
            rank = after.get(name)
            if rank is None or rank > k:
                missed.append(
                    MissedDocument(
                        name, rank, _find_lost_stage(name, rank, before.get(name), known, k)
                    )
                )
        misses[query] = missed
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
    index: Index, pipeline: RetrievalPipeline, text: str, depth: int, model: TextModel | None
) -> tuple[list[Hit], list[Hit]]:
    """Return the hits before and after the reranker, which reads its usual number of hits."""
    query, read = make_query(text), get_rerank_depth(pipeline.reranker)
    hits = retrieve(
        index,
        query,
        max(depth, read),
        retriever=pipeline.retriever,
        transform=pipeline.transform,
        model=model,
    )
    if pipeline.reranker is None or not hits:
        return hits, hits
    first = RetrievalCandidates(index, (query,), hits=hits[:read])
    reranked = rerank_hits(first, reranker=pipeline.reranker, model=model)
    return hits[:depth], [*reranked.hits, *hits[read:]][:depth]


def _pool_names(hits: Sequence[Hit], unit: JudgedUnit, leave_out: str) -> tuple[str, ...]:
    """Return the distinct names in order of their best passages, without ``leave_out``."""
    names = dict.fromkeys(get_judged_id(hit.passage, unit) for hit in hits)
    return tuple(name for name in names if name != leave_out)


def summarize_times(seconds: Sequence[float]) -> dict[str, Any]:
    """Return median and 95th percentile of times, in milliseconds."""
    if not seconds:
        return {"median_ms": None, "p95_ms": None}
    middle, high = np.quantile(np.asarray(seconds), [0.5, 0.95]) * 1000
    return {"median_ms": round(float(middle), 3), "p95_ms": round(float(high), 3)}


_DOCUMENT_SUFFIX = ".txt"
_MAX_NAME_BYTES = 250
_MAX_FILES_PER_FOLDER = 1000


def unpack_corpus(
    rows: Iterable[CorpusRow], out: Path, *, source: Path | None = None, overwrite: bool = False
) -> int:
    """Write each row of a corpus as a document, its title on the first line; return their number.

    The folder is created atomically, once all files are written. The artifact.json of ``source``,
    the corpus, is written beside it, since an index reads every file in it.

    Raises:
        DataError: If the folder exists, or is no earlier result; an id cannot be a file name.
    """
    refuse_existing(out, (f"[0-9][0-9][0-9][0-9]/*{_DOCUMENT_SUFFIX}",), overwrite=overwrite)
    with draft_folder(out) as draft:
        count = _write_documents(rows, draft)
    if source is not None:
        parents, origin = trace_sources("rag.unpack", [("corpus", source, "", "")], out)
        details = {"documents": count}
        write_artifact(
            out, "dataset", parents=parents, origin=origin, details=details, is_beside=True
        )
    return count


def _write_documents(rows: Iterable[CorpusRow], folder: Path) -> int:
    count = 0
    for count, row in enumerate(rows, 1):
        name = quote(row.id, safe="")
        if not name or len(name) > _MAX_NAME_BYTES:
            raise DataError(
                f"the id {row.id!r:.60} cannot be a file name",
                code="data.collection",
                where=f"row {count}",
                expected=f"1 to {_MAX_NAME_BYTES} characters when percent-encoded",
                next="shorten the ids of the corpus",
            )
        part = folder / f"{(count - 1) // _MAX_FILES_PER_FOLDER:04d}"
        part.mkdir(exist_ok=True)
        text = f"{row.title.strip()}\n\n{row.text}" if row.title.strip() else row.text
        (part / f"{name.replace('.', '%2E')}{_DOCUMENT_SUFFIX}").write_text(
            text, encoding="utf-8", newline="", errors="replace"
        )
    return count


def get_corpus_id(path: str) -> str:
    """Return the id of the corpus row from a document's path."""
    return unquote(PurePosixPath(path).name.removesuffix(_DOCUMENT_SUFFIX))


_BREAK = " \x1f "
Span = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class EvidenceLocation:
    """A piece of evidence: whether a document has it, and which passages contain it entirely.

    ``spans`` are those of the passages, or of the evidence itself if it is a span, as document,
    start and end; ``quotes`` are its normalized words, if it is a quotation or an answer.
    """

    in_documents: bool
    passages: frozenset[str]
    spans: frozenset[Span] = frozenset()
    quotes: tuple[str, ...] = ()


_MIN_QUESTIONS = 2
_MOST_QUESTIONS = 0.9  # share of the questions that are about one file


class EvidenceMap:
    """All passages of an index by the names that evidence may use."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._passages = [index.passage_at(row) for row in range(len(index))]
        self._rows_by_name: dict[str, list[int]] = defaultdict(list)
        for row, passage in enumerate(self._passages):
            for name in dict.fromkeys(_list_names(passage)):
                self._rows_by_name[name].append(row)
        self._passage_texts = _ConcatenatedTexts(passage.text for passage in self._passages)
        self._documents: _ConcatenatedTexts | None = None

    def locate(self, question: JudgedQuestion) -> list[EvidenceLocation]:
        """Locate a question's evidence, or its accepted answers if it has none."""
        if question.evidence:
            return [self._locate(evidence) for evidence in question.evidence]
        if not question.answers:
            return []
        locations = [self._find_quote(answer, None) for answer in question.answers]
        return [
            EvidenceLocation(
                any(location.in_documents for location in locations),
                frozenset[str]().union(*(location.passages for location in locations)),
                frozenset[Span]().union(*(location.spans for location in locations)),
                tuple(quote for location in locations for quote in location.quotes),
            )
        ]

    def describe_concentration(self, locations: Iterable[Sequence[EvidenceLocation]]) -> str:
        """Return a sentence if nearly all questions are about one file of several; else ''."""
        paths = {passage.id: passage.location.path for passage in self._passages}
        asked = [
            {paths[name] for location in places for name in location.passages}
            for places in locations
        ]
        asked = [files for files in asked if files]
        every = set(paths.values())
        ((file, count),) = Counter(chain.from_iterable(asked)).most_common(1) or [("", 0)]
        if len(asked) < _MIN_QUESTIONS or len(every) < 2 or count < _MOST_QUESTIONS * len(asked):
            return ""
        share = f"All {count}" if count == len(asked) else f"{count} of {len(asked)}"
        return (
            f"{share} questions whose evidence was found are about one file, {file}: the figures "
            f"say little about the other {len(every) - 1}."
        )

    def find_leaks(
        self,
        questions: Sequence[JudgedQuestion],
        locations: Mapping[str, Sequence[EvidenceLocation]],
    ) -> list[LeakageFinding]:
        """Return leakage that makes the questions too easy, as far as this index shows."""
        passages = {passage.id: passage for passage in self._passages}
        evidence = {
            query: [
                passages[name] for location in query_locations for name in sorted(location.passages)
            ]
            for query, query_locations in locations.items()
        }
        texts = {query: [passage.text for passage in held] for query, held in evidence.items()}
        headings = {
            query: [text for passage in held for text in (passage.title, *passage.headings)]
            for query, held in evidence.items()
        }
        return find_leakage(questions, texts, passages, headings)

    def _locate(self, evidence: EvidenceSpan) -> EvidenceLocation:
        rows = self._rows_by_name.get(evidence.name) if evidence.name else None
        if evidence.name and rows is None and not evidence.quote:
            return EvidenceLocation(False, frozenset())
        if rows is not None and 0 <= evidence.start < evidence.end:
            spans = [self._passages[row] for row in rows]
            if any(
                passage.start < evidence.end and passage.end > evidence.start for passage in spans
            ):
                held = (
                    passage.id
                    for passage in spans
                    if passage.start <= evidence.start and evidence.end <= passage.end
                )
                span = (spans[0].document_id, evidence.start, evidence.end)
                return EvidenceLocation(True, frozenset(held), frozenset({span}))
        if evidence.quote:
            return self._find_quote(evidence.quote, rows)
        return self._build_location(rows or ())

    def _build_location(
        self, rows: Sequence[int], quotes: tuple[str, ...] = ()
    ) -> EvidenceLocation:
        passages = [self._passages[row] for row in rows]
        spans = frozenset((passage.document_id, passage.start, passage.end) for passage in passages)
        return EvidenceLocation(True, frozenset(passage.id for passage in passages), spans, quotes)

    def _find_quote(self, quote: str, rows: list[int] | None) -> EvidenceLocation:
        """Locate a quotation in the given rows (default all), then in the documents."""
        phrase = normalize_text(quote)
        if not phrase:
            return EvidenceLocation(False, frozenset())
        candidates = None if rows is None else set(rows)
        matches = [
            row
            for row in self._passage_texts.find(phrase)
            if candidates is None or row in candidates
        ]
        if matches:
            return self._build_location(matches, (phrase,))
        return EvidenceLocation(self._is_in_documents(phrase, rows), frozenset(), quotes=(phrase,))

    def _is_in_documents(self, phrase: str, rows: list[int] | None) -> bool:
        if rows is not None:
            ids = {self._passages[row].document_id for row in rows}
            texts = (normalize_text(self._document_text(name)) for name in sorted(ids))
            return any(f" {phrase} " in f" {text} " for text in texts)
        if self._documents is None:
            ids = {passage.document_id for passage in self._passages}
            self._documents = _ConcatenatedTexts(self._document_text(name) for name in sorted(ids))
        return bool(self._documents.find(phrase))

    def _document_text(self, document_id: str) -> str:
        try:
            return self._index.document(document_id).text
        except DataError:  # an index built without documents: only passages are searched
            return ""


class _ConcatenatedTexts:
    """Texts joined to one string, so that a phrase is searched in all of them with one scan."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts, self._starts, length = [], [], 0
        for text in texts:
            part = f" {normalize_text(text)}{_BREAK}"
            self._starts.append(length)
            parts.append(part)
            length += len(part)
        self._joined = "".join(parts)

    def find(self, text: str) -> list[int]:
        """Return the numbers of the texts that contain the normalized phrase, in order."""
        phrase, numbers, position = f" {text} ", [], 0
        while (position := self._joined.find(phrase, position)) >= 0:
            number = bisect.bisect_right(self._starts, position) - 1
            numbers.append(number)
            is_last = number + 1 == len(self._starts)
            position = len(self._joined) if is_last else self._starts[number + 1]
        return numbers


def _list_names(passage: Passage) -> tuple[str, ...]:
    path = passage.location.path
    return passage.id, passage.document_id, path, get_corpus_id(path)


def label_ranking(
    ranked: Iterable[str], question: str, locations: Sequence[EvidenceLocation]
) -> list[tuple[str, float]]:
    """Replace passages that contain evidence by its names, ``QUESTION#NUMBER``, in a ranking.

    A passage with several pieces is replaced by each of them, in order, so that rankings of
    different chunk sizes are comparable.
    """
    names: dict[str, None] = {}
    for passage in ranked:
        matching = [
            f"{question}#{i}"
            for i, location in enumerate(locations)
            if passage in location.passages
        ]
        names.update(dict.fromkeys([name for name in matching if name not in names] or [passage]))
    return [(name, float(len(names) - i)) for i, name in enumerate(names)]


def tabulate_notices(notices: Iterable[tuple[str, str]]) -> Table | None:
    """Return a table that counts the notices of each pipeline, or None without any."""
    counts = Counter(notices).most_common()
    rows = tuple((pipeline, text, str(count)) for (pipeline, text), count in counts)
    return Table("notices", ("pipeline", "what", "times"), rows) if rows else None


def format_metric(metric: Metric, *, sign: bool = False, digits: int = 4) -> str:
    """Return a metric with its interval; the note of one that could not be measured."""
    style = f"{'+' * sign}.{digits}f"
    if metric.value != metric.value:
        return f"- ({metric.note})"
    if metric.low != metric.low:  # one value
        return f"{metric.value:{style}}"
    return f"{metric.value:{style}} [{metric.low:{style}}, {metric.high:{style}}]"
