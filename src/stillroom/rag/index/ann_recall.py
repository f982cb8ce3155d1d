"""Recall of approximate search, measured on an index against exact search.

When an index is built or changed by more than a tenth, some words of some of its passages are
embedded as questions and put to both searches; the smallest oversampling that finds enough is kept
in the ledger, and readers use it. Where none does, approximate search is exact. ``rag verify``
measures again, with other questions. (Vectors of passages with noise, which need no embedder, are
far easier than questions: where those found 0.99, questions found 0.83.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.provenance import find_output
from stillroom.rag.embedding.cache import QueryEmbedder
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
    """Measure approximate search of the newest snapshot; None where it searches exactly.

    Args:
        index: The artifact's folder or its output.
        embedder: What made the vectors; by default the one that the index names.
        seed: Which passages the questions are drawn from.

    Raises:
        IntegrityError: If the index is damaged.
    """
    folder = find_output(index, "index")
    opened = open_store(folder).read(verify=False)
    try:
        settings = opened.description["settings"]
        view = SearchView(opened, SqlCondition())
        if not len(view.rows) or not is_approximate(settings, len(view.rows)):
            return None
        description = IndexConfig.from_json(opened.description)
        vectors = QueryEmbedder(description, folder, embedder)
        rng = np.random.default_rng(seed)
        asked = sample_queries(opened, view, rng, min(_QUERIES, len(view.rows)))
        queries = np.stack([vectors.embed(Query(text)) for text in asked])
        least = min(1.0, float(settings["dense"]["least_recall"]) + _MARGIN)
        return view.dense.calibrate(queries, k=_DEPTH, least=least)
    finally:
        opened.close()


def measure_recall_if_due(
    writer: IndexWriter, embedder: Embedder | None, *, again: bool = False
) -> dict[str, Any] | None:
    """Measure where it is due, and let readers use what was found; return it as plain JSON.

    Args:
        writer: Of the index, after its commit.
        embedder: What made the vectors; without one it is measured another time.
        again: Measure even if little has changed since.

    Raises:
        IntegrityError: If the index is damaged.
    """
    passages = writer.find_snapshot().passages
    if not is_approximate(writer.description["settings"], passages):
        return None
    before = writer.recall(MEASURED_RECALL)
    if embedder is None:
        return dict(before) if before else None
    if before and not again and abs(passages - before["passages"]) <= _REMEASURE_SHARE * passages:
        return dict(before)
    found = measure_recall(writer.folder, embedder)
    if found is None:
        return None
    told = {**found.to_json(), "passages": passages}
    writer.remember(MEASURED_RECALL, told)
    return told


def refresh_recall(index: Path) -> None:
    """Measure anew and let readers use what was found.

    Args:
        index: The artifact's folder or its output.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If it is damaged.
    """
    output = find_output(index, "index")
    with open_store(output).write() as writer:
        told = IndexConfig.from_json(writer.description)
        measure_recall_if_due(writer, QueryEmbedder(told, output, None).embedder, again=True)
        update_manifest(writer)


def describe_recall(told: dict[str, Any]) -> str:
    """Return a line for a person of what ``measure_recall_if_due`` or ``check_recall`` returned."""
    how = (
        f"by scoring {told['oversampling']} rows for each that is wanted"
        if told["oversampling"]
        else "at most, so that search is exact"
    )
    return (
        f"approximate search finds {told['recall']:.3f} of the exact best {told['k']} {how} "
        f"({told['queries']} questions of passages' words)"
    )


def check_recall(index: Path) -> tuple[dict[str, Any] | None, list[IntegrityIssue]]:
    """Measure approximate search anew, and hold it against what readers use.

    Args:
        index: The artifact's folder or its output.

    Returns:
        What was measured, None where search is exact, and what is wrong with what is kept.

    Raises:
        IntegrityError: If the index is damaged.
    """
    folder = find_output(index, "index")
    found = measure_recall(folder, seed=1)  # other questions than those that chose the oversampling
    if found is None:
        return None, []
    opened = open_store(folder).read(verify=False)
    try:
        kept = opened.recall(MEASURED_RECALL)
    finally:
        opened.close()
    told = {**found.to_json(), "used": kept["oversampling"] if kept else None}
    if kept is None:
        what = "the recall of approximate search was never measured"
        return told, [IntegrityIssue("recall", what, is_derived=True)]
    needs = found.oversampling
    if kept["oversampling"] is not None and (needs is None or needs > 2 * kept["oversampling"]):
        what = (
            f"approximate search scores {kept['oversampling']} rows for each that is wanted, and "
            f"now needs {needs or 'all'}"
        )
        return told, [IntegrityIssue("recall", what, is_derived=True)]
    return told, []


_MIN_WORDS, _MAX_WORDS = 4, 12


_MAX_QUERY_CHARACTERS = 300


def sample_queries(
    reading: SnapshotReader, view: SearchView, rng: np.random.Generator, count: int
) -> list[str]:
    """Return some words of some passages each, in order of the passages.

    Args:
        reading: The snapshot.
        view: What of it is drawn from.
        rng: Draws.
        count: How many; at most as many as there are passages.
    """
    if not count:
        return []
    rows = np.sort(rng.choice(len(view.rows), count, replace=False))
    asked = []
    for row in rows:
        words = json.loads(reading.passage(*view.rows.locate(int(row))))["text"].split()
        size = int(rng.integers(_MIN_WORDS, _MAX_WORDS + 1))
        start = int(rng.integers(0, max(1, len(words) - size)))
        asked.append(" ".join(words[start : start + size])[:_MAX_QUERY_CHARACTERS])
    return asked
