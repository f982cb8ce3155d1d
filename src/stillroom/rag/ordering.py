"""What is done with hits after they are found: new orders, caps, and neighbours joined back.

Nothing here reads a query or a model.

Source of ``order_ends``: Liu et al. 2023, "Lost in the Middle: How Language Models Use Long
Contexts", arXiv:2307.03172.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stillroom.records import Hit

if TYPE_CHECKING:
    from stillroom.rag.index import Index

__all__ = ["cap_documents", "join_neighbours", "order_ends", "order_hits"]


def order_hits(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Return the hits by new scores, ranks from 1; equal ones keep their order.

    Args:
        hits: In their first order.
        scores: Of the first of them; hits beyond follow in their order, with falling scores below
            all others.
    """
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    ranked = [(hits[at], scores[at]) for at in order]
    least = min(scores, default=0.0)
    ranked += [(hit, least - step) for step, hit in enumerate(hits[len(scores) :], 1)]
    return [Hit(hit.passage, score, rank) for rank, (hit, score) in enumerate(ranked, 1)]


def order_ends(hits: Sequence[Hit]) -> list[Hit]:
    """Return the hits with the best at both ends and the worst in the middle: 1, 3, 5, 6, 4, 2.

    Models read what stands at the ends of a long context better than its middle. Scores and ranks
    stay those of the search.
    """
    return [*hits[::2], *hits[1::2][::-1]]


def cap_documents(hits: Sequence[Hit], most: int) -> list[Hit]:
    """Return the hits without those that come after ``most`` of the same document; 0 for no cap."""
    if most < 1:
        return list(hits)
    seen: Counter[str] = Counter()
    kept = []
    for hit in hits:
        seen[hit.passage.document_id] += 1
        if seen[hit.passage.document_id] <= most:
            kept.append(hit)
    return kept


def join_neighbours(hits: Sequence[Hit], index: Index, window: int) -> list[Hit]:
    """Return the hits, each widened by the passages before and after it in its document.

    What overlaps or touches becomes one hit, which stands where its best one stood: no text is
    given twice. The text is the document's own, whatever lay between the passages included, so
    that ``document.text[start:end] == text`` and citations open to the exact place.

    Args:
        hits: Best first.
        index: Where they were found.
        window: How many passages on each side; 0 changes nothing.
    """
    if window < 1 or not hits:
        return list(hits)
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        row = index.row_of(hit.passage.id)
        rows = range(max(row - window, 0), min(row + window + 1, len(index)))
        near = [index.passage_at(at) for at in rows]
        own = [one for one in near if one.document_id == hit.passage.document_id]
        span = (min(one.start for one in own), max(one.end for one in own))
        spans.setdefault(hit.passage.document_id, []).append(span)
    merged = {document: _merge(own) for document, own in spans.items()}
    joined: dict[tuple[str, int], Hit] = {}
    for hit in hits:
        document_id = hit.passage.document_id
        start, end = next(
            span for span in merged[document_id] if span[0] <= hit.passage.start < span[1]
        )
        if (document_id, start) not in joined:
            document = index.document(document_id)
            passage = replace(
                hit.passage,
                start=start,
                end=end,
                text=document.text[start:end],
                location=document.locate(start, end),
                headings=document.heading_path(start),
            )
            joined[document_id, start] = Hit(passage, hit.score, len(joined) + 1)
    return list(joined.values())


def _merge(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans in order, those that overlap or touch made one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
