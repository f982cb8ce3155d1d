"""Where the evidence of a question stands in an index: its documents, the passages that hold it.

Evidence is a span of a document, a quotation, a name (of a passage, a document, a path or a corpus
row), or, where a question names none, the accepted answers themselves. A passage holds a quotation
that stands in it word for word, whatever the case and the punctuation. Does not know what was
retrieved.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.errors import DataError
from stillroom.evaluate.leakage import Leak, find_leaks
from stillroom.rag.measuring.collection import collection_id
from stillroom.text.normalize import normalize_text

if TYPE_CHECKING:
    from stillroom.evaluate.question_sets import Evidence, JudgedQuestion
    from stillroom.rag.index import Index
    from stillroom.records import Passage

__all__ = ["EvidenceMap", "Place", "label_ranking"]

_BREAK = " \x1f "
Span = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """One piece of evidence: whether a document has it, and which passages hold it whole.

    ``spans`` are those of the passages, or of the evidence itself where it is a span, as document,
    start and end; ``quotes`` are its words, normalized, where it is a quotation or an answer.
    """

    in_documents: bool
    passages: frozenset[str]
    spans: frozenset[Span] = frozenset()
    quotes: tuple[str, ...] = ()


class EvidenceMap:
    """All passages of an index by what evidence may call them."""

    def __init__(self, index: Index) -> None:
        """Read every passage of ``index`` once."""
        self._index = index
        self._passages = [index.passage_at(row) for row in range(len(index))]
        self._named: dict[str, list[int]] = defaultdict(list)
        for row, passage in enumerate(self._passages):
            for name in dict.fromkeys(_names_of(passage)):
                self._named[name].append(row)
        self._text = _Searchable(one.text for one in self._passages)
        self._documents: _Searchable | None = None

    def locate(self, question: JudgedQuestion) -> list[Place]:
        """Return the places of a question's evidence; of one without, that of its answers."""
        if question.evidence:
            return [self._place(one) for one in question.evidence]
        if not question.answers:
            return []
        found = [self._find_quote(answer, None) for answer in question.answers]
        return [
            Place(
                any(one.in_documents for one in found),
                frozenset[str]().union(*(one.passages for one in found)),
                frozenset[Span]().union(*(one.spans for one in found)),
                tuple(quote for one in found for quote in one.quotes),
            )
        ]

    def find_leaks(
        self, questions: Sequence[JudgedQuestion], places: Mapping[str, Sequence[Place]]
    ) -> list[Leak]:
        """Return what makes the questions easier than people's, as far as this index can tell."""
        texts = {one.id: one.text for one in self._passages}
        held = {
            query: [texts[name] for place in found for name in sorted(place.passages)]
            for query, found in places.items()
        }
        return find_leaks(questions, held, texts)

    def _place(self, evidence: Evidence) -> Place:
        rows = self._named.get(evidence.name) if evidence.name else None
        if evidence.name and rows is None and not evidence.quote:
            return Place(False, frozenset())
        if rows is not None and 0 <= evidence.start < evidence.end:
            spans = [self._passages[row] for row in rows]
            if any(one.start < evidence.end and one.end > evidence.start for one in spans):
                held = (
                    one.id
                    for one in spans
                    if one.start <= evidence.start and evidence.end <= one.end
                )
                span = (spans[0].document_id, evidence.start, evidence.end)
                return Place(True, frozenset(held), frozenset({span}))
        if evidence.quote:
            return self._find_quote(evidence.quote, rows)
        return self._at(rows or ())

    def _at(self, rows: Sequence[int], quotes: tuple[str, ...] = ()) -> Place:
        found = [self._passages[row] for row in rows]
        spans = frozenset((one.document_id, one.start, one.end) for one in found)
        return Place(True, frozenset(one.id for one in found), spans, quotes)

    def _find_quote(self, quote: str, rows: list[int] | None) -> Place:
        """Look for a quotation in the passages of these rows, or of all, then in the documents."""
        wanted = normalize_text(quote)
        if not wanted:
            return Place(False, frozenset())
        among = None if rows is None else set(rows)
        held = [row for row in self._text.find(wanted) if among is None or row in among]
        if held:
            return self._at(held, (wanted,))
        return Place(self._is_in_documents(wanted, rows), frozenset(), quotes=(wanted,))

    def _is_in_documents(self, wanted: str, rows: list[int] | None) -> bool:
        if rows is not None:
            ids = {self._passages[row].document_id for row in rows}
            texts = (normalize_text(self._document_text(one)) for one in sorted(ids))
            return any(f" {wanted} " in f" {text} " for text in texts)
        if self._documents is None:
            ids = {one.document_id for one in self._passages}
            self._documents = _Searchable(self._document_text(one) for one in sorted(ids))
        return bool(self._documents.find(wanted))

    def _document_text(self, document_id: str) -> str:
        try:
            return self._index.document(document_id).text
        except DataError:  # an index made without its documents: then only passages can tell
            return ""


class _Searchable:
    """Many texts as one string, so that looking for a phrase in all of them is one scan."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts, self._starts, length = [], [], 0
        for text in texts:
            part = f" {normalize_text(text)}{_BREAK}"
            self._starts.append(length)
            parts.append(part)
            length += len(part)
        self._whole = "".join(parts)

    def find(self, wanted: str) -> list[int]:
        """Return the numbers of the texts that hold the normalized phrase, in order."""
        phrase, found, at = f" {wanted} ", [], 0
        while (at := self._whole.find(phrase, at)) >= 0:
            number = bisect.bisect_right(self._starts, at) - 1
            found.append(number)
            at = self._starts[number + 1] if number + 1 < len(self._starts) else len(self._whole)
        return found


def _names_of(passage: Passage) -> tuple[str, ...]:
    path = passage.location.path
    return passage.id, passage.document_id, path, collection_id(path)


def label_ranking(ranked: Iterable[str], places: Mapping[str, Place]) -> list[tuple[str, float]]:
    """Return a ranking of passages with evidence under its own name where a passage holds it.

    A passage that holds several pieces stands for each of them, in order; so cuts of any size
    compare.

    Args:
        ranked: Passage ids, best first.
        places: Evidence by the name that the judgements use.
    """
    names: dict[str, None] = {}
    for passage in ranked:
        held = [name for name, place in places.items() if passage in place.passages]
        names.update(dict.fromkeys([name for name in held if name not in names] or [passage]))
    return [(name, float(len(names) - at)) for at, name in enumerate(names)]
