"""Recall of approximate nearest neighbor search (ANN), measured on an index against exact search.

When an index is built, or changed by more than a tenth, words of sampled passages are embedded as
queries and searched both ways; the smallest oversampling with enough recall is stored in the
catalog and used by readers. If none is enough, search stays exact. ``rag verify`` measures again
with other queries. (Noisy passage vectors, which need no embedder, are far easier than queries:
with recall 0.99 on those, queries had 0.83.)
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.provenance import find_output
from stillroom.rag.embedding.query_embedder import QueryEmbedder
from stillroom.rag.index.view import SearchView
from stillroom.rag.interfaces import Query
from stillroom.rag.search_engines.dense import MeasuredRecall
from stillroom.rag.storage.filters import SqlCondition
from stillroom.rag.storage.protocol import MEASURED_RECALL, IndexWriter, IntegrityIssue
from stillroom.rag.storage.snapshots import IndexConfig, is_approximate, open_store, update_manifest

if TYPE_CHECKING:
    from stillroom.models import Embedder
    from stillroom.rag.storage.protocol import SnapshotReader

__all__ = [
    "check_recall",
    "describe_recall",
    "measure_recall",
    "measure_recall_if_due",
    "refresh_recall",
    "sample_queries",
]


_QUERIES = 64
_DEPTH = 10
_MARGIN = 0.01
_REMEASURE_SHARE = 0.1


def measure_recall(
    index: Path, embedder: Embedder | None = None, *, seed: int = 0
) -> MeasuredRecall | None:
    """Measure recall of approximate search of the newest snapshot; None where search is exact.

    The embedder is by default opened by its reference.

    Raises:
        IntegrityError: If the index is damaged.
    """
    folder = find_output(index, "index")
    with closing(open_store(folder).read(verify=False)) as opened:
        settings = opened.description["settings"]
        view = SearchView(opened, SqlCondition())
        if not len(view.rows) or not is_approximate(settings, len(view.rows)):
            return None
        description = IndexConfig.from_json(opened.description)
        vectors = QueryEmbedder(description, folder, embedder)
        rng = np.random.default_rng(seed)
        texts = sample_queries(opened, view, rng, min(_QUERIES, len(view.rows)))
        queries = np.stack([vectors.embed(Query(text)) for text in texts])
        least = min(1.0, float(settings["dense"]["least_recall"]) + _MARGIN)
        return view.dense.calibrate(queries, k=_DEPTH, least=least)


def measure_recall_if_due(
    writer: IndexWriter, embedder: Embedder | None, *, again: bool = False
) -> dict[str, Any] | None:
    """Measure recall if it is due, store it for readers, and return it as JSON values.

    Without an embedder nothing is measured; ``again`` measures although little has changed.

    Raises:
        IntegrityError: If the index is damaged.
    """
    passages = writer.find_snapshot().passages
    if not is_approximate(writer.description["settings"], passages):
        return None
    stored = writer.get_setting(MEASURED_RECALL)
    if embedder is None:
        return dict(stored) if stored else None
    if stored and not again and abs(passages - stored["passages"]) <= _REMEASURE_SHARE * passages:
        return dict(stored)
    measured = measure_recall(writer.folder, embedder)
    if measured is None:
        return None
    recall = {**measured.to_json(), "passages": passages}
    writer.set_setting(MEASURED_RECALL, recall)
    return recall


def refresh_recall(index: Path) -> None:
    """Measure recall again and store it for readers.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If the index is damaged.
    """
    output = find_output(index, "index")
    with open_store(output).write() as writer:
        config = IndexConfig.from_json(writer.description)
        measure_recall_if_due(writer, QueryEmbedder(config, output, None).embedder, again=True)
        update_manifest(writer)


def describe_recall(recall: dict[str, Any]) -> str:
    """Return the result of ``measure_recall_if_due`` or ``check_recall`` as one line of text."""
    bound, effort = "", f"scoring {recall['oversampling']} rows per requested hit"
    if not recall["oversampling"]:
        bound, effort = "at most ", "too low, so search is exact"
    return (
        f"approximate search: recall@{recall['k']} {bound}{recall['recall']:.3f} against exact "
        f"search, {effort} ({recall['queries']} queries made of passages' words)"
    )


def check_recall(index: Path) -> tuple[dict[str, Any] | None, list[IntegrityIssue]]:
    """Return the recall, measured again (None where search is exact), and issues with the stored.

    Raises:
        IntegrityError: If the index is damaged.
    """
    folder = find_output(index, "index")
    measured = measure_recall(folder, seed=1)  # queries unlike those that chose the oversampling
    if measured is None:
        return None, []
    with closing(open_store(folder).read(verify=False)) as opened:
        stored = opened.get_setting(MEASURED_RECALL)
    recall = {**measured.to_json(), "used": stored["oversampling"] if stored else None}
    if stored is None:
        problem = "the recall of approximate search was never measured"
        return recall, [IntegrityIssue("recall", problem, is_derived=True)]
    needs = measured.oversampling
    if stored["oversampling"] is not None and (needs is None or needs > 2 * stored["oversampling"]):
        problem = (
            f"approximate search scores {stored['oversampling']} rows per requested hit, and "
            f"now needs {needs or 'all'}"
        )
        return recall, [IntegrityIssue("recall", problem, is_derived=True)]
    return recall, []


_MIN_WORDS, _MAX_WORDS = 4, 12
_MAX_QUERY_CHARACTERS = 300


def sample_queries(
    reading: SnapshotReader, view: SearchView, rng: np.random.Generator, count: int
) -> list[str]:
    """Return a few consecutive words from each of some passages, in order of the passages."""
    if not count:
        return []
    rows = np.sort(rng.choice(len(view.rows), count, replace=False))
    queries = []
    for row in rows:
        words = json.loads(reading.passage(*view.rows.locate(int(row))))["text"].split()
        size = int(rng.integers(_MIN_WORDS, _MAX_WORDS + 1))
        start = int(rng.integers(0, max(1, len(words) - size)))
        queries.append(" ".join(words[start : start + size])[:_MAX_QUERY_CHARACTERS])
    return queries
