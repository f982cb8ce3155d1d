"""What is done with hits after they are found: new orders, caps, and neighbours joined back.

Nothing here reads a query or a model.

Source of ``order_ends``: Liu et al. 2023, "Lost in the Middle: How Language Models Use Long
Contexts", arXiv:2307.03172.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stillroom.records import Hit, Passage
from stillroom.text.tables import find_header, find_tables

if TYPE_CHECKING:
    from stillroom.rag.index import Index

__all__ = ["cap_documents", "join_neighbours", "order_ends", "order_hits", "show_spans"]


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
        window: How many passages on each side; 0 changes nothing, nor does any to a passage that
            is shown as its parent.
    """
    if window < 1 or not hits:
        return list(hits)
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        passage = hit.passage
        span = passage.start, passage.end
        if passage.parent != span:  # what was widened to its parent is no row of the index
            row = index.row_of(passage.id)
            rows = range(max(row - window, 0), min(row + window + 1, len(index)))
            near = [index.passage_at(at) for at in rows]
            own = [one for one in near if one.document_id == passage.document_id]
            span = (min(one.start for one in own), max(one.end for one in own))
        spans.setdefault(passage.document_id, []).append(span)
    return show_spans(hits, spans, index)


def show_spans(
    hits: Sequence[Hit],
    spans: Mapping[str, Sequence[tuple[int, int]]],
    index: Index,
    *,
    touching: bool = True,
) -> list[Hit]:
    """Return the hits widened to spans of their documents; those of one span are one hit.

    It stands where its best one stood. ``document.text[start:end] == text`` holds for all, and a
    widened passage is its own parent.

    Args:
        hits: Best first.
        spans: By document id; each hit lies within one of them. Those that overlap are made one.
        index: Where the hits were found.
        touching: Make one also those that touch.
    """
    merged = {document: _merge(own, touching) for document, own in spans.items()}
    shown: dict[tuple[str, int], Hit] = {}
    for hit in hits:
        passage = hit.passage
        start, end = next(
            span for span in merged[passage.document_id] if span[0] <= passage.start < span[1]
        )
        if (passage.document_id, start) not in shown:
            if (start, end) != (passage.start, passage.end):
                passage = _widen(passage, start, end, index)
            shown[passage.document_id, start] = Hit(passage, hit.score, len(shown) + 1)
    return list(shown.values())


def _widen(passage: Passage, start: int, end: int, index: Index) -> Passage:
    document = index.document(passage.document_id)
    return replace(
        passage,
        start=start,
        end=end,
        text=document.text[start:end],
        location=document.locate(start, end),
        headings=document.heading_path(start),
        parent=(start, end),
        table_header=find_header(find_tables(document), start),
        context="",
    )


def _merge(spans: Sequence[tuple[int, int]], touching: bool) -> list[tuple[int, int]]:
    """Return the spans in order, those that overlap (or touch) made one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1] + touching:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
