"""What quotes cannot be read without: the term that they explain, the columns of their row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.rag.answer_selection.definitions import find_term
from stillroom.rag.answer_selection.encoding import find_head

if TYPE_CHECKING:
    from stillroom.rag.answer_selection.encoding import Span
    from stillroom.rag.answer_selection.joining import Quoted
    from stillroom.records import Document, Hit

__all__ = ["add_terms"]


def add_terms(
    find_quotes: Callable[[Sequence[Quoted]], list[list[dict[str, Any]]]],
    hits: Sequence[Hit],
    documents: Sequence[Document],
    found: Sequence[list[dict[str, Any]]],
) -> list[list[dict[str, Any]]]:
    """Return the quotes of each run, after the term that they explain in a list of definitions.

    A row of a table stands after the names of its columns, once for all rows.
    """
    shown, quoted = set[tuple[int, tuple[int, int]]](), list[list[dict[str, Any]]]()
    for quotes in found:
        parts = list[dict[str, Any]]()
        for quote in quotes:
            number = quote["number"] - 1
            span = quote["start"], quote["end"]
            term = find_term(documents[number], hits[number].passage, span)
            if term and parts and term[0] <= parts[-1]["start"] < term[1]:
                parts[-1]["continues"] = True
            elif term and (number, term) not in shown:
                terms = find_quotes([(number, term, None)])[0]
                parts += [{**part, "continues": True} for part in terms]
            elif not term and (earlier := _find_earlier_term(documents, hits, number, span)):
                if earlier not in shown:
                    parts += find_quotes([(*earlier, None)])[0]
                shown.add(earlier)
            if term:
                shown.add((number, term))
            head = _find_missing_head(hits, [*found, *quoted, parts], number, quote["start"])
            if head:
                names = find_quotes([(number, head, None)])[0]
                parts += [{**part, "continues": True} for part in names]
            parts.append(quote)
        quoted.append(parts)
    return quoted


def _find_earlier_term(
    documents: Sequence[Document], hits: Sequence[Hit], number: int, span: Span
) -> tuple[int, Span] | None:
    """Return number of the hit and span of the term of an entry that goes on in another hit."""
    passage = hits[number].passage
    entries = documents[number].find_definitions(passage.start + span[0])
    if not entries or entries[-1].start >= passage.start:
        return None
    head = entries[-1]
    places = (
        (other, (head.start - hit.passage.start, head.end - hit.passage.start))
        for other, hit in enumerate(hits)
        if hit.passage.document_id == passage.document_id
        and hit.passage.start <= head.start
        and head.end <= hit.passage.end
    )
    found = ((n, find_term(documents[n], hits[n].passage, (end, end))) for n, (_, end) in places)
    return next(((n, term) for n, term in found if term), None)


def _find_missing_head(
    hits: Sequence[Hit], found: Sequence[list[dict[str, Any]]], number: int, place: int
) -> Span | None:
    """Return the span of the names of the columns of a row, if no quote has them.

    A passage that goes on with a table has them elsewhere.
    """
    passage = hits[number].passage
    head = None if passage.table_header else find_head(passage.text, place)
    if head is None:
        return None
    quoted = (
        [hits[quote["number"] - 1].passage.start + quote[edge] for edge in ("start", "end")]
        for part in found
        for quote in part
        if hits[quote["number"] - 1].passage.document_id == passage.document_id
    )
    first, last = (passage.start + edge for edge in head)
    return None if any(start < last and first < end for start, end in quoted) else head
