"""Expansion of hits to larger spans of their documents: neighbors, and parent sections.

The text of an expanded hit is taken from the document, so that ``document.text[start:end] == text``
and citations open to the exact position.

Source of ``share``: auto-merging, as in Haystack and LlamaIndex (a parent replaces its passages
once more than a share of them was found). Here one level, with the best score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from stillroom.records import Hit, Passage
from stillroom.text.chunking.boundaries import find_header, find_tables

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index

__all__ = ["expand_window", "merge_into_parents"]


def merge_into_parents(hits: Sequence[Hit], index: Index, share: float = 0.0) -> list[Hit]:
    """Return the hits, with those that have a parent expanded to it and merged.

    A parent takes the rank of its best hit. Parents that overlap, such as windows around
    sentences, are merged; those that only touch are not. ``share``: a parent replaces its
    passages where more than this share of them is among the hits; 0 uses every parent, 1 none.
    """
    counts: dict[tuple[str, tuple[int, int]], int] = {}
    for hit in hits:
        if hit.passage.parent:
            key = hit.passage.document_id, hit.passage.parent
            counts[key] = counts.get(key, 0) + 1
    totals: dict[tuple[str, tuple[int, int]], int] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        passage, parent = hit.passage, hit.passage.parent
        span = passage.start, passage.end
        if parent and parent != span:
            key = passage.document_id, parent
            if key not in totals:
                totals[key] = _count_children(passage, index) if share > 0 else 1
            span = parent if counts[key] > share * totals[key] else span
        spans.setdefault(passage.document_id, []).append(span)
    return _merge_hit_spans(hits, spans, index, touching=False)


def _count_children(passage: Passage, index: Index) -> int:
    """Return the number of passages with the same parent."""
    row, total = index.row_of(passage.id), 1
    for step in (1, -1):
        for neighbor_row in count(row + step, step):
            neighbor = index.passage_at(neighbor_row) if 0 <= neighbor_row < len(index) else None
            same = neighbor is not None and neighbor.document_id == passage.document_id
            if neighbor is None or not same or neighbor.parent != passage.parent:
                break
            total += 1
    return total


def expand_window(hits: Sequence[Hit], index: Index, window: int) -> list[Hit]:
    """Return the hits, each expanded by the passages before and after it in its document.

    Hits that overlap or touch are merged into one with the rank of the best, so that no text is
    repeated. ``window`` passages are added on each side. Parents and strips of passages are not
    expanded.
    """
    if window < 1 or not hits:
        return list(hits)
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        passage = hit.passage
        span = passage.start, passage.end
        row = None if passage.parent == span else index.find_row(passage.id)
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
    return _merge_hit_spans(hits, spans, index)


def _merge_hit_spans(
    hits: Sequence[Hit],
    spans: Mapping[str, Sequence[tuple[int, int]]],
    index: Index,
    *,
    touching: bool = True,
) -> list[Hit]:
    """Return the hits expanded to spans of their documents, one hit per span.

    A merged hit has the rank of its best one, and an expanded passage is its own parent.
    ``touching`` also merges spans that touch.
    """
    merged = {
        document: _merge_overlapping(document_spans, touching)
        for document, document_spans in spans.items()
    }
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
        parent=(start, end),
        table_header=find_header(find_tables(document), start),
        context="",
    )


def _merge_overlapping(spans: Sequence[tuple[int, int]], touching: bool) -> list[tuple[int, int]]:
    """Return the spans in order, with overlapping (or touching) ones merged."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1] + touching:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
