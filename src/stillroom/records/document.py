"""Document and Passage: parsed text with byte ranges and pages.

Character offsets are Python string offsets into ``Document.text``; byte offsets count from the
first byte of the source file. For archive formats (docx, epub) bytes are those of the whole file
and ``label`` names the inner part.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from stillroom.records.origin import Origin, make_content_id

__all__ = ["Anchor", "Definition", "Document", "Heading", "Location", "Passage", "describe_place"]

_COMPRESSED = frozenset({".bz2", ".gz", ".xz"})
_MAX_TERM = 80


@dataclass(frozen=True, slots=True)
class Anchor:
    """Maps text[start:end] to bytes [byte_start, byte_end) of the source, a page, or a label.

    ``is_exact`` is whether the decoded bytes equal that text, so that a sub-range can be narrowed;
    otherwise the bytes only contain it. ``page`` counts from 1; 0 means no pages.
    """

    start: int
    end: int
    byte_start: int
    byte_end: int
    page: int = 0
    label: str = ""
    is_exact: bool = False

    def to_json(self) -> list[Any]:
        """Return a compact list for JSON."""
        return list(_as_fields(self).values())

    @classmethod
    def from_json(cls, data: list[Any]) -> Anchor:
        """Build from the result of ``to_json``."""
        return cls(*data)


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a document: start of its section, its level (1 is the top), its title."""

    start: int
    level: int
    title: str


@dataclass(frozen=True, slots=True)
class Definition:
    """An entry of a list of definitions: text[start:end] is its terms, text[end:stop] the rest.

    Entries of a list within an entry follow it.
    """

    start: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True)
class Location:
    """Location of a range of text in its source file.

    ``is_exact`` is whether the decoded bytes equal the text; otherwise they contain it, within
    markup, in another encoding or compressed.
    """

    path: str
    digest: str
    byte_start: int
    byte_end: int
    pages: tuple[int, ...] = ()
    label: str = ""
    is_exact: bool = False

    @property
    def note(self) -> str:
        """How the bytes hold the text; empty where they are the text."""
        if self.is_exact:
            return ""
        if _is_page_of_file(self.byte_start, self.pages):
            return "the page holds the text, encoded; its bytes are those of the whole file"
        suffix = PurePath(self.path).suffix.lower()
        if suffix in _COMPRESSED:
            return f"the file is compressed ({suffix}): the bytes are all of it, packed"
        return "the bytes hold the text, within markup or encoded"

    def __str__(self) -> str:
        """Return ``path: bytes a-b`` with page or label, or ``path: page n`` of a whole file."""
        label = f", {self.label}" if self.label else ""
        start, end = self.byte_start, self.byte_end
        return describe_place(self.path, start, end, self.pages, is_exact=self.is_exact) + label


def describe_place(
    path: str, start: int, end: int, pages: Sequence[int] = (), *, is_exact: bool = False
) -> str:
    """Return the place of a text in its file in words: its bytes, its first page.

    The text of a page that no bytes of its own hold, as in a PDF, has the page alone.
    """
    if not is_exact and _is_page_of_file(start, pages):
        return f"{path}: page {pages[0]}"
    return f"{path}: bytes {start}-{end}" + (f", page {pages[0]}" if pages else "")


def _is_page_of_file(start: int, pages: Sequence[int]) -> bool:
    return bool(pages) and start == 0


@dataclass(frozen=True, slots=True)
class Document:
    """Parsed source with byte and page spans.

    ``path`` is relative to the folder that was read, with forward slashes; ``digest`` is the
    SHA-256 of the file's bytes; ``anchors`` are sorted by start and do not overlap;
    ``definitions`` are sorted by start.
    """

    path: str
    digest: str
    media_type: str
    text: str
    anchors: tuple[Anchor, ...] = ()
    headings: tuple[Heading, ...] = ()
    title: str = ""
    language: str = ""
    origin: Origin = field(default_factory=Origin)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    definitions: tuple[Definition, ...] = ()
    _outer: dict[str, list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def id(self) -> str:
        """Id derived from the path and the bytes."""
        return make_content_id("doc", self.path, self.digest)

    @property
    def _encoding(self) -> str:
        """Encoding of the file's bytes; UTF-8 unless set by the parser."""
        return str(self.metadata.get("encoding", "utf-8"))

    def locate(self, start: int, end: int) -> Location:
        """Return the location of text[start:end] in the file, as narrow as the anchors allow."""
        first = max(
            bisect.bisect_right(self.anchors, start, key=lambda anchor: anchor.start) - 1, 0
        )
        last = bisect.bisect_left(
            self.anchors, max(end, start + 1), first, key=lambda anchor: anchor.start
        )
        touched = [anchor for anchor in self.anchors[first:last] if anchor.end > start]
        if not touched:
            return Location(self.path, self.digest, 0, 0)
        spans = [self._narrow(anchor, start, end) for anchor in touched]
        pages = tuple(sorted({anchor.page for anchor in touched if anchor.page}))
        labels = list(dict.fromkeys(anchor.label for anchor in touched if anchor.label))
        exact = (
            all(anchor.is_exact for anchor in touched)
            and touched[0].start <= start
            and touched[-1].end >= end
            and all(
                anchor.end == after.start and anchor.byte_end == after.byte_start
                for anchor, after in pairwise(touched)
            )
        )
        return Location(
            self.path,
            self.digest,
            min(span[0] for span in spans),  # parts of a file may be read in another order
            max(span[1] for span in spans),
            pages,
            ", ".join(labels),
            exact,
        )

    def _narrow(self, anchor: Anchor, start: int, end: int) -> tuple[int, int]:
        """Return the bytes of the part of an anchor that lies within text[start:end]."""
        byte_start, byte_end = anchor.byte_start, anchor.byte_end
        if anchor.is_exact and start > anchor.start:
            byte_start += self._count_bytes(anchor, anchor.start, start)
        if anchor.is_exact and end < anchor.end:
            byte_end -= self._count_bytes(anchor, end, anchor.end)
        return byte_start, byte_end

    def _count_bytes(self, anchor: Anchor, start: int, end: int) -> int:
        """Return the number of source bytes of text[start:end] within an exact anchor.

        If the anchor has one byte per character, no text is copied: such an anchor may span the
        whole file. Else the text is measured in the document's encoding.
        """
        if anchor.byte_end - anchor.byte_start == anchor.end - anchor.start:
            return len(range(len(self.text))[start:end])
        encoding = self._encoding
        errors = "surrogatepass" if encoding == "utf-8" else "replace"
        return len(self.text[start:end].encode(encoding, errors))

    def find_definitions(self, position: int) -> tuple[Definition, ...]:
        """Return the entries that explain at a position, the outermost first."""
        entries = self.definitions
        if "definitions" not in self._outer:
            ends = [entry.stop for entry in entries]
            self._outer["definitions"] = _find_outer([e.start for e in entries], ends)
        first = bisect.bisect_left(entries, position, key=lambda entry: entry.start)
        path = _list_outer(self._outer["definitions"], first - 1)
        return tuple(entries[n] for n in path if entries[n].end <= position < entries[n].stop)

    def find_term_at(self, position: int) -> Definition | None:
        """Return the entry of a list of definitions whose terms hold a position, if any."""
        number = bisect.bisect_right(self.definitions, position, key=lambda entry: entry.start)
        entry = self.definitions[number - 1] if number else None
        return entry if entry and position < entry.end else None

    def get_term(self, definition: Definition) -> str:
        """Return the terms of an entry as one line, at most 80 characters."""
        return " ".join(self.text[definition.start : definition.end].split())[:_MAX_TERM]

    def find_headings(self, position: int) -> tuple[Heading, ...]:
        """Return the headings of the sections that enclose a position, the outermost first."""
        if "headings" not in self._outer:
            levels = [-heading.level for heading in self.headings]
            self._outer["headings"] = _find_outer(levels, levels)
        first = bisect.bisect_right(self.headings, position, key=lambda heading: heading.start)
        return tuple(self.headings[n] for n in _list_outer(self._outer["headings"], first - 1))

    def heading_path(self, position: int) -> tuple[str, ...]:
        """Return the titles of the sections that enclose a position, outermost first.

        The terms that are explained there follow.
        """
        titles = [heading.title for heading in self.find_headings(position)]
        return (*titles, *map(self.get_term, self.find_definitions(position)))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, including the id for readers of the file."""
        return {
            "id": self.id,
            "path": self.path,
            "digest": self.digest,
            "media_type": self.media_type,
            "title": self.title,
            "language": self.language,
            "text": self.text,
            "anchors": [anchor.to_json() for anchor in self.anchors],
            "headings": [
                [heading.start, heading.level, heading.title] for heading in self.headings
            ],
            "origin": self.origin.to_json(),
            "metadata": dict(self.metadata),
            **(
                {"definitions": [[e.start, e.end, e.stop] for e in self.definitions]}
                if self.definitions
                else {}
            ),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Document:
        """Build from the result of ``to_json``."""
        return cls(
            path=data["path"],
            digest=data["digest"],
            media_type=data["media_type"],
            text=data["text"],
            anchors=tuple(Anchor.from_json(anchor) for anchor in data["anchors"]),
            headings=tuple(Heading(*heading) for heading in data["headings"]),
            title=data["title"],
            language=data["language"],
            origin=Origin.from_json(data["origin"]),
            metadata=data["metadata"],
            definitions=tuple(Definition(*entry) for entry in data.get("definitions", ())),
        )


@dataclass(frozen=True, slots=True)
class Passage:
    """A contiguous piece of a Document (chunk, node): ``document.text[start:end] == text``.

    ``table_header`` repeats the header row of the table that the passage continues, and ``context``
    is a model's description of the passage's context; the passage is searched by both, but neither
    is part of its text or its id.
    """

    document_id: str
    start: int
    end: int
    text: str
    location: Location
    headings: tuple[str, ...] = ()
    title: str = ""
    language: str = ""
    origin: Origin = field(default_factory=Origin)
    table_header: str = ""
    context: str = ""
    _id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """Id derived from the document, the span and the text."""
        if not self._id:  # cached: jobs use it at every step
            digest = make_content_id("pas", self.document_id, self.start, self.end, self.text)
            object.__setattr__(self, "_id", digest)
        return self._id

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, including the id for readers of the file.

        Table header and context are included only if present.
        """
        place = self.location
        optional = {
            "table_header": self.table_header,
            "context": self.context,
        }
        return {
            "id": self.id,
            "document_id": self.document_id,
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "location": {**_as_fields(place), "pages": list(place.pages)},
            "headings": list(self.headings),
            "title": self.title,
            "language": self.language,
            "origin": self.origin.to_json(),
            **{name: value for name, value in optional.items() if value},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Passage:
        """Build from the result of ``to_json``."""
        place = dict(data["location"])
        place["pages"] = tuple(place["pages"])
        return cls(
            document_id=data["document_id"],
            start=data["start"],
            end=data["end"],
            text=data["text"],
            location=Location(**place),
            headings=tuple(data["headings"]),
            title=data["title"],
            language=data["language"],
            origin=Origin.from_json(data["origin"]),
            table_header=data.get("table_header", ""),
            context=data.get("context", ""),
        )


def _find_outer(starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return for each part the number of the nearest before it that has not ended; -1 for none.

    A part has ended where another starts at its end or later.
    """
    outer, path = list[int](), [-1]
    for number, start in enumerate(starts):
        while path[-1] >= 0 and ends[path[-1]] <= start:
            path.pop()
        outer.append(path[-1])
        path.append(number)
    return outer


def _list_outer(outer: Sequence[int], number: int) -> list[int]:
    """Return the numbers of a part and of those around it, the outermost first."""
    path = list[int]()
    while number >= 0:
        path.append(number)
        number = outer[number]
    return path[::-1]


def _as_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a flat dataclass; ``asdict`` would copy every value, much slower."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
