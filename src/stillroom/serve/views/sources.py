"""Passages of an index and their source documents, as far as a client may see them.

All reads take the client's ``AccessContext``: of an index with tenants only documents visible to
the client are shown, and a document of another tenant is reported as unknown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.flow.opening import find_index
from stillroom.provenance import find_output
from stillroom.provenance.sources import locate_document
from stillroom.rag.answer_selection.encoding import find_sentences
from stillroom.serve.middleware.concurrency import ResourceLRU
from stillroom.serve.views.folder import read_json, resolve_name, to_name

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.index.user_cache import PerUserIndexCache
    from stillroom.rag.index.view import AccessContext
    from stillroom.records import Document, Passage

__all__ = ["SourceView", "Sources", "has_tenants"]

_QUOTE_PLACE = re.compile("-".join([r"(\d{1,12})"] * 4))
_MAX_IDS = 50
_MAX_QUOTES = 100
_MAX_OPEN_INDEXES = 4
_OPEN_TIMEOUT_S = 10.0
_CONTEXT_CHARS = 60_000
_MAX_DOCUMENT_CHARS = 400_000


@dataclass(frozen=True, slots=True)
class SourceView:
    """Document with one passage, or quotes of it, marked.

    ``parts`` are the document's text, or a part of it: every second one is marked; ``is_quote`` is
    whether quotes are.

    ``cut_before`` and ``cut_after`` count the omitted characters; ``notes`` are remarks on the
    current state of the file.
    """

    index: str
    path: str
    title: str
    headings: tuple[str, ...]
    parts: tuple[str, ...]
    cut_before: int
    cut_after: int
    first_line: int
    place: dict[str, Any]
    origin: dict[str, Any]
    passage_id: str
    document_id: str
    context: str
    notes: tuple[str, ...]
    is_quote: bool = False


class Sources:
    """Indexes of a folder, opened on first use and closed to make room for others."""

    def __init__(self, root: Path, access: AccessContext | None = None) -> None:
        """Read indexes under ``root`` with the access of one client."""
        self.root, self.access = root, access
        self._open: ResourceLRU[Path, PerUserIndexCache] = ResourceLRU(
            _MAX_OPEN_INDEXES, "indexes", patience_s=_OPEN_TIMEOUT_S
        )

    def index_of(self, name: str) -> Path:
        """Return the folder of an index: the index step of a run, or an index itself.

        Raises:
            DataError: If the name is neither.
        """
        return find_index(resolve_name(self.root, name))

    @contextmanager
    def seen(self, name: str) -> Iterator[Index]:
        """Open the current state of an index, with the client's access, until the body ends.

        Raises:
            DataError: If the name has no index, or the index has tenants and the client names none.
            ResourceError: If too many indexes are in use.
        """
        from stillroom.rag.index.user_cache import PerUserIndexCache

        folder = self.index_of(name).resolve()
        access = self.access if has_tenants(folder) else None
        opened = self._open.use(folder, partial(PerUserIndexCache, folder, default=access))
        with opened as audience, audience.seen_by(access) as index:
            yield index

    def passages(self, name: str, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return passages by id; a missing one is marked ``missing``."""
        with self.seen(name) as index:
            return [_describe_passage(index, id) for id in ids[:_MAX_IDS]]

    def source(self, name: str, passage_id: str, quote: str = "") -> SourceView:
        """Return the document of a passage with the passage marked, or quotes of it.

        ``quote`` is ``START-END-BYTE_START-BYTE_END`` of a quote in an answer, or those of several
        with commas; where these do not agree, as of a quote from a passage shown with its
        neighbours, the passage is marked.

        Raises:
            DataError: If the index has no such passage that is visible to the client.
        """
        folder = self.index_of(name)
        with self.seen(name) as index:
            passage = index.passage(passage_id)
            document = index.document(passage.document_id)
        found = [_find_quote(document, passage, place) for place in quote.split(",")[:_MAX_QUOTES]]
        spans = [] if None in found else sorted(filter(None, found))
        return _mark_passage(document, passage, folder, to_name(self.root, folder), spans)

    def close(self) -> None:
        """Close all open indexes."""
        self._open.close()


def _describe_passage(index: Index, passage_id: str) -> dict[str, Any]:
    try:
        passage = index.passage(passage_id)
    except DataError:
        return {"id": passage_id, "missing": True}
    return {
        "id": passage.id,
        "text": passage.text,
        "sentences": find_sentences(passage.text, (*passage.headings, passage.title)),
        "headings": list(passage.headings),
        "title": passage.title,
        "path": passage.location.path,
        "place": str(passage.location),
    }


def has_tenants(index: Path) -> bool:
    """Return whether an index has tenants, so that each document is visible to one tenant alone."""
    header = read_json(find_output(index, "index") / "index.json")
    settings = header.get("settings") if isinstance(header, dict) else None
    return isinstance(settings, dict) and settings.get("access", "open") != "open"


def _find_quote(document: Document, passage: Passage, quote: str) -> tuple[int, int] | None:
    """Return the span of a quote in the document's text, or None if it is not in the passage."""
    place = _QUOTE_PLACE.fullmatch(quote)
    if place is None:
        return None
    start, end, byte_start, byte_end = map(int, place.groups())
    if not start < end <= len(passage.text):
        return None
    span = passage.start + start, passage.start + end
    location = document.locate(*span)
    return span if (location.byte_start, location.byte_end) == (byte_start, byte_end) else None


def _mark_passage(
    document: Document, passage: Passage, folder: Path, name: str, quotes: list[tuple[int, int]]
) -> SourceView:
    text, spans = document.text, quotes or [(passage.start, passage.end)]
    start, end = spans[0][0], max(stop for _, stop in spans)
    first, last = 0, len(text)
    if len(text) > _MAX_DOCUMENT_CHARS:
        first = text.rfind("\n", 0, max(0, start - _CONTEXT_CHARS)) + 1
        last = min(len(text), end + _CONTEXT_CHARS)
    location = document.locate(start, end) if quotes else passage.location
    edges = [first]
    for span in spans:
        edges += [max(edge, edges[-1]) for edge in span]
    notes = []
    try:
        file, status = locate_document(folder, location.path, location.digest)
        notes += list(status)
        if file is not None and not status:
            notes.append("the file is unchanged since it was indexed: its digest is the same")
    except OSError as error:
        notes.append(f"the file cannot be read: {os.strerror(error.errno or 0)}")
    notes += [location.note] if location.note else []
    return SourceView(
        index=name,
        path=document.path,
        title=document.title or document.path,
        headings=passage.headings,
        parts=tuple(text[one:other] for one, other in pairwise([*edges, last])),
        cut_before=first,
        cut_after=len(text) - last,
        first_line=text.count("\n", 0, start) + 1,
        place={
            "byte_start": location.byte_start,
            "byte_end": location.byte_end,
            "is_exact": location.is_exact,
            "pages": list(location.pages),
            "label": location.label,
            "digest": location.digest,
        },
        origin=passage.origin.to_json(),
        passage_id=passage.id,
        document_id=passage.document_id,
        context=passage.context,
        notes=tuple(notes),
        is_quote=bool(quotes),
    )
