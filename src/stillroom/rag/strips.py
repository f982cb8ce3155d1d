"""Strips: a few sentences of a passage that know where they stand, so that they can be cited.

Source: Yan et al. 2024, "Corrective Retrieval Augmented Generation", arXiv:2401.15884 (knowledge
strips, recomposed in order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stillroom.records import Hit, Passage
from stillroom.text.sentences import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.index import Index

__all__ = ["Span", "cut_strips", "join_strips"]

Span = tuple[int, int, int]
"""Which hit (its place in the list), and start and end within its passage's text."""


def cut_strips(hits: Sequence[Hit], sentences: int) -> list[Span]:
    """Return spans of at most so many sentences each, in order, none of them across passages."""
    strips = []
    for at, hit in enumerate(hits):
        spans = split_sentences(hit.passage.text)
        for first in range(0, len(spans), sentences):
            part = spans[first : first + sentences]
            strips.append((at, part[0][0], part[-1][1]))
    return strips


def join_strips(hits: Sequence[Hit], kept: Sequence[Span], index: Index) -> list[Hit]:
    """Return hits of what was kept, those of one passage in the passage's order.

    Strips that follow each other become one; what lies between others is not shown. The text stays
    the document's own: ``document.text[start:end] == text``.

    Args:
        hits: As they were cut.
        kept: Some of their strips, in any order.
        index: Where their documents are.
    """
    merged: list[Span] = []
    for at, start, end in sorted(kept):
        last = merged[-1] if merged else None
        if last and last[0] == at and not hits[at].passage.text[last[2] : start].strip():
            merged[-1] = (at, last[1], end)
        else:
            merged.append((at, start, end))
    return [
        Hit(_narrow(hits[at], start, end, index), hits[at].score, rank)
        for rank, (at, start, end) in enumerate(merged, 1)
    ]


def _narrow(hit: Hit, start: int, end: int, index: Index) -> Passage:
    passage = hit.passage
    if (start, end) == (0, len(passage.text)):
        return passage
    document = index.document(passage.document_id)
    first, last = passage.start + start, passage.start + end
    return replace(
        passage,
        start=first,
        end=last,
        text=document.text[first:last],
        location=document.locate(first, last),
    )
