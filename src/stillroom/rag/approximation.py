"""Recall of approximate search: measured on an index against exact search, kept, and held to.

When an index is built or changed by more than a tenth, some words of some of its passages are
embedded as questions and put to both searches; the smallest oversampling that finds enough is kept
in the ledger, and readers use it. Where none does, approximate search is exact. ``rag verify``
measures again, with other questions. (Vectors of passages with noise, which need no embedder, are
far easier than questions: where those found 0.99, questions found 0.83.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.provenance import find_output
from stillroom.rag.comparing import draw_questions
from stillroom.rag.engines.sketches import MeasuredRecall
from stillroom.rag.filters import Condition
from stillroom.rag.method import Query
from stillroom.rag.query_vectors import QueryVectors
from stillroom.rag.store.checking import Damage
from stillroom.rag.store.description import Description
from stillroom.rag.store.manifest import renew_manifest
from stillroom.rag.store.protocol import MEASURED, StoreWriter
from stillroom.rag.store.structures import is_approximate
from stillroom.rag.storing import open_store
from stillroom.rag.view import View

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["check_recall", "describe_recall", "keep_recall", "measure_recall", "renew_recall"]

_QUERIES = 64
_DEPTH = 10
_MARGIN = 0.01
_CHANGED = 0.1


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
        view = View(opened, Condition())
        if not len(view.rows) or not is_approximate(settings, len(view.rows)):
            return None
        description = Description.from_json(opened.description)
        vectors = QueryVectors(description, folder, embedder)
        rng = np.random.default_rng(seed)
        asked = draw_questions(opened, view, rng, min(_QUERIES, len(view.rows)))
        queries = np.stack([vectors.embed(Query(text)) for text in asked])
        least = min(1.0, float(settings["dense"]["least_recall"]) + _MARGIN)
        return view.dense.calibrate(queries, k=_DEPTH, least=least)
    finally:
        opened.close()


def keep_recall(
    writer: StoreWriter, embedder: Embedder | None, *, again: bool = False
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
    before = writer.recall(MEASURED)
    if embedder is None:
        return dict(before) if before else None
    if before and not again and abs(passages - before["passages"]) <= _CHANGED * passages:
        return dict(before)
    found = measure_recall(writer.folder, embedder)
    if found is None:
        return None
    told = {**found.to_json(), "passages": passages}
    writer.remember(MEASURED, told)
    return told


def renew_recall(index: Path) -> None:
    """Measure anew and let readers use what was found.

    Args:
        index: The artifact's folder or its output.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If it is damaged.
    """
    output = find_output(index, "index")
    with open_store(output).write() as writer:
        told = Description.from_json(writer.description)
        keep_recall(writer, QueryVectors(told, output, None).embedder, again=True)
        renew_manifest(writer)


def describe_recall(told: dict[str, Any]) -> str:
    """Return a line for a person of what ``keep_recall`` or ``check_recall`` returned."""
    how = (
        f"by scoring {told['oversampling']} rows for each that is wanted"
        if told["oversampling"]
        else "at most, so that search is exact"
    )
    return (
        f"approximate search finds {told['recall']:.3f} of the exact best {told['k']} {how} "
        f"({told['queries']} questions of passages' words)"
    )


def check_recall(index: Path) -> tuple[dict[str, Any] | None, list[Damage]]:
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
        kept = opened.recall(MEASURED)
    finally:
        opened.close()
    told = {**found.to_json(), "used": kept["oversampling"] if kept else None}
    if kept is None:
        what = "the recall of approximate search was never measured"
        return told, [Damage("recall", what, is_derived=True)]
    needs = found.oversampling
    if kept["oversampling"] is not None and (needs is None or needs > 2 * kept["oversampling"]):
        what = (
            f"approximate search scores {kept['oversampling']} rows for each that is wanted, and "
            f"now needs {needs or 'all'}"
        )
        return told, [Damage("recall", what, is_derived=True)]
    return told, []
