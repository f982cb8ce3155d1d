"""Small passages found, their parents read: the wider span in the place of the passages in it.

Source of ``share``: auto-merging, as Haystack and LlamaIndex have it (a parent replaces its
passages once more than a share of them was found). Here one level, and the best score is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from stillroom.rag.ordering import show_spans
from stillroom.records import Hit, Passage

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index import Index
    from stillroom.rag.method import Query, Reranker, Retriever, Transform

__all__ = ["join_parents", "retrieve_to_read"]

_PROBES = 8
_PASSAGES_IN_PARENT = 4  # how many times as deep is looked, so that enough parents are found


def retrieve_to_read(
    index: Index,
    query: str | Query,
    k: int,
    *,
    share: float = 0.0,
    retriever: str | Retriever | None = None,
    reranker: str | Reranker | None = None,
    transform: str | Transform | None = None,
    model: TextModel | None = None,
) -> list[Hit]:
    """Return at most ``k`` hits as they are read: where passages have parents, these.

    Args:
        index: What is searched.
        query: What to look for.
        k: How many hits.
        share: See ``join_parents``.
        retriever: A method of ``stillroom.rag.retrievers``; by default the index's own.
        reranker: A method of ``stillroom.rag.rerankers``.
        transform: A method of ``stillroom.rag.transforms``.
        model: What a transform or a reranker may ask.

    Raises:
        DataError: If k is below 1, or the query too long.
    """

    def find(depth: int) -> list[Hit]:
        return index.retrieve(
            query, depth, retriever=retriever, reranker=reranker, transform=transform, model=model
        )

    deep = k * _PASSAGES_IN_PARENT if k > 0 and _has_parents(index) else k
    hits = find(deep)
    if not any(hit.passage.parent for hit in hits):
        return hits[:k]
    if deep == k:  # few passages have parents, and the probe met none
        hits = find(k * _PASSAGES_IN_PARENT)
    return join_parents(hits, index, share)[:k]


def _has_parents(index: Index) -> bool:
    """Say whether any of a few passages has a parent, so that no search is made in vain."""
    step = max(len(index) // _PROBES, 1)
    return any(index.passage_at(row).parent for row in range(0, len(index), step))


def join_parents(hits: Sequence[Hit], index: Index, share: float = 0.0) -> list[Hit]:
    """Return the hits, those that have a parent widened to it; hits of one parent are one.

    It stands where its best one stood. Parents that overlap, as windows around sentences do, are
    shown as one; those that touch are not.

    Args:
        hits: Best first, as the index gave them.
        index: Where they were found.
        share: A parent is shown where more than this share of its passages is among the hits; 0
            shows every parent, 1 none.
    """
    found: dict[tuple[str, tuple[int, int]], int] = {}
    for hit in hits:
        if hit.passage.parent:
            key = hit.passage.document_id, hit.passage.parent
            found[key] = found.get(key, 0) + 1
    totals: dict[tuple[str, tuple[int, int]], int] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        passage, parent = hit.passage, hit.passage.parent
        span = passage.start, passage.end
        if parent and parent != span:
            key = passage.document_id, parent
            if key not in totals:
                totals[key] = _count_children(passage, index) if share > 0 else 1
            span = parent if found[key] > share * totals[key] else span
        spans.setdefault(passage.document_id, []).append(span)
    return show_spans(hits, spans, index, touching=False)


def _count_children(passage: Passage, index: Index) -> int:
    """Return how many passages of the index have the same parent."""
    row, total = index.row_of(passage.id), 1
    for step in (1, -1):
        for at in count(row + step, step):
            other = index.passage_at(at) if 0 <= at < len(index) else None
            same = other is not None and other.document_id == passage.document_id
            if other is None or not same or other.parent != passage.parent:
                break
            total += 1
    return total
