"""Reciprocal rank fusion and score fusion (DocumentJoiner), lost-in-the-middle order, duplicates.

``fuse_reciprocal_ranks``: score(d) = sum over lists of weight / (k + rank(d)), rank from 1; d
missing from a list adds 0, k = 60. ``fuse_scores``: score(d) = sum over lists of weight * n(d),
where n(d) = (s - min) / (max - min) of the list's scores s, or 1 if all are equal; d missing from a
list adds 0, as the last row of a list does. Equal scores are ordered by the best single rank, then
by row. Other normalizations (z-score, theoretical minima, DBSF) found as much
(docs/explanation/lab-notebook.md).

Sources: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and
individual Rank Learning Methods", SIGIR; Bruch, Gai and Ingber 2022, "An Analysis of Fusion
Functions for Hybrid Retrieval", arXiv:2210.11934 (convex combination).

Source of ``reorder_lost_in_the_middle``: Liu et al. 2023, "Lost in the Middle: How Language Models
Use Long Contexts", arXiv:2307.03172.

The text of an expanded hit (Haystack's SentenceWindowRetriever) is taken from the document, so that
``document.text[start:end] == text`` and citations open to the exact position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stillroom.records import Hit, Passage
from stillroom.text.chunking.boundaries import find_header, find_tables
from stillroom.text.dedup.shingles import hash_shingles, jaccard_similarity

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.types import RankedRows
    from stillroom.text.dedup.shingles import HashArray

__all__ = [
    "drop_duplicates",
    "expand_window",
    "fuse_reciprocal_ranks",
    "fuse_scores",
    "limit_per_document",
    "normalize_scores",
    "reorder_lost_in_the_middle",
    "sort_hits",
]


_DUPLICATE_SIMILARITY = 0.9


def fuse_reciprocal_ranks(
    lists: Sequence[RankedRows], *, k: float = 60.0, weights: Sequence[float] | None = None
) -> list[tuple[int, float]]:
    """Return the rows of all lists by reciprocal rank fusion (RRF), best first.

    ``k``, 0 or more, flattens the difference between the first ranks; weights are 1 by default.
    """
    fused: dict[int, float] = {}
    best: dict[int, int] = {}
    for ranked, weight in zip(lists, weights or [1.0] * len(lists), strict=True):
        for rank, (row, _) in enumerate(ranked, start=1):
            fused[row] = fused.get(row, 0.0) + weight / (k + rank)
            best[row] = min(best.get(row, rank), rank)
    return _sort_rows(fused, best)


def fuse_scores(lists: Sequence[RankedRows], weights: Sequence[float]) -> list[tuple[int, float]]:
    """Return the rows of all lists by the weighted sum of their normalized scores, best first."""
    fused: dict[int, float] = {}
    best: dict[int, int] = {}
    for ranked, weight in zip(lists, weights, strict=True):
        normal = normalize_scores([score for _, score in ranked])
        for rank, ((row, _), score) in enumerate(zip(ranked, normal, strict=True), start=1):
            fused[row] = fused.get(row, 0.0) + weight * score
            best[row] = min(best.get(row, rank), rank)
    return _sort_rows(fused, best)


def normalize_scores(scores: Sequence[float], *, floor: float | None = None) -> list[float]:
    """Return scores from 0, for the lowest one or ``floor``, to 1; 1 for all if they are equal."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if high - low <= 1e-12 * max(abs(high), abs(low)):
        return [1.0] * len(scores)
    low = low if floor is None else floor
    return [(score - low) / (high - low) for score in scores]


def _sort_rows(fused: dict[int, float], best: dict[int, int]) -> list[tuple[int, float]]:
    order = sorted(fused, key=lambda row: (-fused[row], best[row], row))
    return [(row, fused[row]) for row in order]


def sort_hits(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Return the hits by new scores, ranks from 1; equal scores keep their order.

    ``scores`` are those of the first hits; the others follow in their order, with decreasing scores
    below all of these.
    """
    order = sorted(range(len(scores)), key=lambda position: (-scores[position], position))
    ranked = [(hits[position], scores[position]) for position in order]
    least = min(scores, default=0.0)
    ranked += [(hit, least - step) for step, hit in enumerate(hits[len(scores) :], 1)]
    return [Hit(hit.passage, score, rank) for rank, (hit, score) in enumerate(ranked, 1)]


def reorder_lost_in_the_middle(hits: Sequence[Hit]) -> list[Hit]:
    """Return the hits with the best at both ends and the worst in the middle: 1, 3, 5, 6, 4, 2.

    Models use the ends of a long context better than its middle. Scores and ranks are unchanged.
    """
    return [*hits[::2], *hits[1::2][::-1]]


def limit_per_document(hits: Sequence[Hit], most: int) -> list[Hit]:
    """Return at most ``most`` hits of each document; 0 for no limit."""
    if most < 1:
        return list(hits)
    counts: Counter[str] = Counter()
    limited = []
    for hit in hits:
        counts[hit.passage.document_id] += 1
        if counts[hit.passage.document_id] <= most:
            limited.append(hit)
    return limited


def drop_duplicates(hits: Sequence[Hit]) -> list[Hit]:
    """Drop hits that are (near) duplicates of a better one."""
    distinct: list[Hit] = []
    sketches: list[HashArray] = []
    for hit in hits:
        sketch = hash_shingles(hit.passage.text)
        if all(jaccard_similarity(sketch, earlier) < _DUPLICATE_SIMILARITY for earlier in sketches):
            distinct.append(hit)
            sketches.append(sketch)
    return distinct


def expand_window(hits: Sequence[Hit], index: Index, window: int) -> list[Hit]:
    """Return the hits, each widened (sentence window) by the passages before and after it.

    Hits that overlap or touch are merged into one with the rank of the best, so that no text is
    repeated. ``window`` passages are added on each side. Strips of passages are not expanded.
    """
    if window < 1 or not hits:
        return list(hits)
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        passage = hit.passage
        span = passage.start, passage.end
        row = index.find_row(passage.id)
        if row is not None:
            rows = range(max(row - window, 0), min(row + window + 1, len(index)))
            neighbors = [index.passage_at(number) for number in rows]
            siblings = [
                sibling for sibling in neighbors if sibling.document_id == passage.document_id
            ]
            span = (
                min(sibling.start for sibling in siblings),
                max(sibling.end for sibling in siblings),
            )
        spans.setdefault(passage.document_id, []).append(span)
    merged = {name: _merge_touching(document_spans) for name, document_spans in spans.items()}
    hits_by_span: dict[tuple[str, int], Hit] = {}
    for hit in hits:
        passage = hit.passage
        start, end = next(
            span for span in merged[passage.document_id] if span[0] <= passage.start < span[1]
        )
        if (passage.document_id, start) not in hits_by_span:
            if (start, end) != (passage.start, passage.end):
                passage = _widen(passage, start, end, index)
            hits_by_span[passage.document_id, start] = Hit(
                passage, hit.score, len(hits_by_span) + 1
            )
    return list(hits_by_span.values())


def _widen(passage: Passage, start: int, end: int, index: Index) -> Passage:
    document = index.document(passage.document_id)
    return replace(
        passage,
        start=start,
        end=end,
        text=document.text[start:end],
        location=document.locate(start, end),
        headings=document.heading_path(start),
        table_header=find_header(find_tables(document), start),
        context="",
    )


def _merge_touching(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans in order, with those that overlap or touch merged."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
